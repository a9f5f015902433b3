"""
The published figures, all of them: ``python tests/benchmarks/publish.py [--rivals PYTHON] [OPTION OF pfl bench]…``.

Runs ``pfl bench`` with the options, then the rivals, and writes ``docs/benchmarks/<date>.json`` with its tables, its chart and the
README's *Results*. *PYTHON* is an interpreter that has the tools of the extra ``rivals``. Older runs stay; delete what is not wanted.
"""

from __future__ import annotations

import argparse
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1], epilog="Other options go to pfl bench.")
    parser.add_argument("--rivals", metavar="PYTHON", default=sys.executable, help="an interpreter that has the tools")
    chosen, others = parser.parse_known_args(arguments)
    place = ROOT / "docs" / "benchmarks"
    place.mkdir(exist_ok=True)
    path = place / f"{report.new(False)['date']}.json"
    try:
        command.main(["bench", *others, "--out", str(path)])
    except SystemExit as exc:
        if exc.code:
            raise
    run = report.read(path)
    # Where the interpreter is says nothing to anybody else.
    run["command"] = shlex.join(["python", "tests/benchmarks/publish.py", "--rivals", "PYTHON", *others])
    few = {"rounds": 3, "calls": 5, "every": 20} if run["quick"] else {"rounds": 7, "calls": 10, "every": 5}
    rivals.add(run, chosen.rivals, **few)
    report.write(run, path, ROOT / "README.md")


if __name__ == "__main__":
    main(sys.argv[1:])
