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
import tempfile
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


def run(
    folder: Path, target: str, *, seed: int, python: str = sys.executable, needs: str = "", options: Iterable[str] = ()
) -> dict[str, Any]:
    """
    The fingerprint of *target* in a fresh process.

    Returns:
        What the command prints as JSON; on failure ``{"error": …, "code": …}``.
    """
    path = [str(REPOSITORY)]
    if (folder / "site-packages").is_dir():
        path.append(str(folder / "site-packages"))
    if needs:
        path += [entry for entry in sys.path if entry.endswith("site-packages")]
    environ = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONHASHSEED": str(seed),
        "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "pfl-fingerprint-pycache"),  # a start takes half as long
    }
    command = [python, "-S", *options, "-m", "handler.core.fingerprint", target, "--json"]  # without site: sooner still
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or not done.stdout.startswith("{"):
        return {"error": done.stderr or done.stdout, "code": done.returncode}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_case(case: Case, place: Path, python: str = sys.executable) -> dict[str, dict[str, Any]]:
    """Both sides of *case*, each in its own folder, process and hash seed."""
    return {
        side: run(copy(case, side, place), case.target, seed=seed, python=python, needs=case.needs)
        for side, seed in (("before", 1), ("after", 4_000))
    }


def run_all(cases: Iterable[Case], place: Path, python: str = sys.executable) -> dict[str, dict[str, dict[str, Any]]]:
    """Both sides of all *cases*, two processes at a time."""
    cases = list(cases)
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        return dict(zip((case.name for case in cases), pool.map(lambda case: run_case(case, place, python), cases), strict=True))
