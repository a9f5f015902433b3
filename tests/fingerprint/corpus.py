"""
The cases: a folder each, with ``before/``, ``after/`` and ``case.toml``.

``case.toml`` holds *expect* (``bust`` or ``keep``), *why* in one line, and if needed *target*
(default: ``steps:step``), *needs* (a package that must be installed) and *python* (the oldest
version that can parse it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
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


def copy_all(cases: Sequence[Case], place: Path) -> None:
    """Put both sides of *cases* below *place*, each in a checkout of another name and depth."""
    for goal in (place / "a", place / "other-place" / "deeper" / "b"):
        goal.mkdir(parents=True)
        subprocess.run(
            ["cp", "-R", *(str(case.folder) for case in cases), str(goal)], check=True
        )  # ten times as fast as shutil


def folder_of(case: Case, side: str, place: Path) -> Path:
    """Where `copy_all` put one side of *case*."""
    return place / ("a" if side == "before" else "other-place/deeper/b") / case.name / side


class Fresh:
    """
    Runs fingerprints under one hash seed, each in a process of its own.

    Args:
        seed: The children's ``PYTHONHASHSEED``.
        python: The interpreter.
        needs: A package that is there, and imported once for all.
    """

    def __init__(self, seed: int, python: str = sys.executable, needs: str = "") -> None:
        environ = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONHASHSEED": str(seed),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        path = [entry for entry in sys.path if entry.endswith("site-packages")] if needs else []
        command = [python, "-S", str(HERE / "fresh.py"), needs, *path]
        self.process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.communicate()

    def command(self, folder: Path, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the fingerprint's command in *folder*."""
        path = [str(folder / "site-packages")] if (folder / "site-packages").is_dir() else []
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"folder": str(folder), "arguments": arguments, "path": path}) + "\n"
        )
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        return reply["code"], reply["out"], reply["err"]

    def run(self, folder: Path, target: str) -> dict[str, Any]:
        """
        The fingerprint of *target* as the command prints it as JSON; on failure ``{"error": …}``.
        """
        code, out, err = self.command(folder, target, "--json")
        found: dict[str, Any] = (
            json.loads(out.splitlines()[-1]) if code == 0 else {"error": err}
        )  # a module may print, too
        return found


class Runner:
    """
    Fingerprints cases, each side in a process of its own and only once.

    The sides differ in folder and hash seed.

    Args:
        place: Where `copy_all` put the cases.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._stack = ExitStack()
        self._fresh: dict[tuple[str, str, str], Fresh] = {}
        self._found: dict[tuple[str, str, str], dict[str, Any]] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(self, case: Case, side: str, python: str = sys.executable) -> dict[str, Any]:
        """What `Fresh.run` gives for one side of a case."""
        key = (case.name, side, python)
        if key not in self._found:
            fresh = self._fresh_for(side, python, case.needs)
            self._found[key] = fresh.run(folder_of(case, side, self._place), case.target)
        return self._found[key]

    def _fresh_for(self, side: str, python: str, needs: str) -> Fresh:
        key = (side, python, needs)
        if key not in self._fresh:
            seed = {"before": 1, "after": 4_000}[side]
            self._fresh[key] = self._stack.enter_context(Fresh(seed, python, needs))
        return self._fresh[key]
