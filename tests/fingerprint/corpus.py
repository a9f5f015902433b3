"""
The cases: a folder each, with ``before/``, ``after/`` and ``case.toml``.

``case.toml`` holds *expect* (``bust`` or ``keep``), *why* in one line, and where needed *target* (``steps:step``
unless it says so), *needs* (a package that must be installed) and *python* (the oldest version that can parse it).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CASES = HERE / "cases"
REPOSITORY = HERE.parent.parent


@dataclass(frozen=True)
class Case:
    """One change of code, and whether the fingerprint must change with it."""

    name: str
    expect: str
    why: str
    target: str = "steps:step"
    needs: str = ""
    python: str = "3.11"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return CASES / self.name

    def can_run(self, version: tuple[int, ...] = sys.version_info[:2]) -> bool:
        """Whether this Python can parse it and has what it needs."""
        oldest = tuple(map(int, self.python.split(".")))
        return version >= oldest and (not self.needs or find_spec(self.needs) is not None)


def load_cases() -> list[Case]:
    """All cases, by name."""
    found = []
    for path in sorted(CASES.glob("*/case.toml")):
        found.append(Case(name=path.parent.name, **tomllib.loads(path.read_text())))
    return found


def copy(case: Case, side: str, place: Path) -> Path:
    """
    A copy of one side of *case*, in a folder of another name and depth than the other side's.
    """
    goal = place / (f"{case.name}/a" if side == "before" else f"other-place/{case.name}/deeper/b")
    shutil.copytree(case.folder / side, goal, ignore=shutil.ignore_patterns("__pycache__"))
    return goal


class Fresh:
    """
    Runs fingerprints under one hash seed, each in a process of its own.

    Args:
        seed: The children's ``PYTHONHASHSEED``.
        python: The interpreter.
    """

    def __init__(self, seed: int, python: str = sys.executable) -> None:
        environ = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [python, "-S", str(HERE / "fresh.py")]
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.communicate()

    def run(self, folder: Path, target: str, needs: str = "") -> dict[str, Any]:
        """
        The fingerprint of *target* as the command prints it as JSON; on failure ``{"error": …, "code": …}``.
        """
        path = [str(folder / "site-packages")] if (folder / "site-packages").is_dir() else []
        if needs:
            path += [entry for entry in sys.path if entry.endswith("site-packages")]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "target": target, "path": path}) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        last = reply["said"].rpartition("\n{")[2] if "\n{" in reply["said"] else reply["said"].removeprefix("{")
        if reply["code"] or "{" not in reply["said"]:
            return {"error": reply["said"], "code": reply["code"]}
        found: dict[str, Any] = json.loads("{" + last)
        return found


def run_all(cases: Iterable[Case], place: Path, python: str = sys.executable) -> dict[str, dict[str, dict[str, Any]]]:
    """Both sides of all *cases*, each in its own folder, process and hash seed; the two sides at the same time."""
    cases = list(cases)

    def side(name: str, seed: int) -> list[dict[str, Any]]:
        with Fresh(seed, python) as fresh:
            return [fresh.run(copy(case, name, place), case.target, case.needs) for case in cases]

    with ThreadPoolExecutor(2) as pool:
        before, after = pool.map(side, ("before", "after"), (1, 4_000))
    return {case.name: {"before": old, "after": new} for case, old, new in zip(cases, before, after, strict=True)}


def run_case(case: Case, place: Path) -> dict[str, dict[str, Any]]:
    """Both sides of one case."""
    return run_all([case], place)[case.name]
