"""
The published figures, all of them: ``python tests/benchmarks/publish.py [--rivals PYTHON] [OPTION OF pfl bench]…``.

Runs ``pfl bench`` with the options, then the rivals, and writes ``docs/benchmarks/<date>.json`` with its tables, its chart and the
README's *Results*. *PYTHON* is an interpreter that has the tools of the extra ``rivals``. Older runs stay; delete what is not wanted.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
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
    if shutil.which(chosen.rivals) is None:  # Now, not in three quarters of an hour.
        parser.error(f"there is no {chosen.rivals}")
    for package in sorted({package for package, *_ in rivals.TOOLS.values() if not rivals.installed(chosen.rivals, package)}):
        print(f"{package} is not installed there, so it will be left out", file=sys.stderr)
    place = ROOT / "docs" / "benchmarks"
    place.mkdir(exist_ok=True)
    path = place / f"{report.new(False)['date']}.json"
    # What a run says of itself if it fails half-way; where things are says nothing to anybody else.
    sys.argv[1:] = ["bench", *others]
    try:
        command.main(["bench", *others, "--out", str(path)])
    except SystemExit as exc:
        if exc.code:
            raise
    run = report.read(path)
    run["command"] = shlex.join(["python", "tests/benchmarks/publish.py", "--rivals", "PYTHON", *others])

    def save() -> None:
        report.write(run, path, ROOT / "README.md")

    save()  # Whatever becomes of the rivals, which rivals.py alone can add later.
    few = {"rounds": 3, "calls": 5, "every": 20} if run["quick"] else {"rounds": 7, "calls": 10, "every": 5}
    rivals.add(run, chosen.rivals, save, **few)


if __name__ == "__main__":
    main(sys.argv[1:])
