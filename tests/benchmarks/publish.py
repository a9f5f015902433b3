"""
The published figures, all of them: ``python tests/benchmarks/publish.py [--rivals PYTHON] [OPTION OF pfl bench]…``.

Runs ``pfl bench`` with the options, then the rivals, and writes ``docs/benchmarks/<date>.json`` with its tables, its chart and the
README's *Results*. *PYTHON* is an interpreter that has the tools of the extra ``rivals``. Older runs stay; delete what is not wanted.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import rivals  # noqa: E402

from cli import main as command  # noqa: E402
from cli.benchmark import report  # noqa: E402


def main(arguments: list[str]) -> None:
    """Measure and write."""
    said, python = ["python", "tests/benchmarks/publish.py", *arguments], sys.executable
    if arguments[:1] == ["--rivals"]:
        python, arguments = arguments[1], arguments[2:]
        said[3] = "PYTHON"  # Where it is says nothing to anybody else.
    place = ROOT / "docs" / "benchmarks"
    place.mkdir(exist_ok=True)
    path = place / f"{report.new(False)['date']}.json"
    try:
        command.main(["bench", *arguments, "--out", str(path)])
    except SystemExit as exc:
        if exc.code:
            raise
    run = report.read(path)
    run["command"] = shlex.join(said)
    few = {"rounds": 3, "calls": 5, "every": 20} if run["quick"] else {"rounds": 7, "calls": 10, "every": 5}
    rivals.add(run, python, **few)
    report.write(run, path, ROOT / "README.md")


if __name__ == "__main__":
    main(sys.argv[1:])
