"""
The published figures: ``python tests/benchmarks/publish.py [--rivals PYTHON] [OPTION]…``.

Runs bench.py with these options, then the rivals, and writes ``docs/benchmarks/<date>.json`` with
its tables and its chart, and the results in ``docs/benchmarks.md``. *PYTHON* is an interpreter that
has the tools of the extra ``rivals``. Older runs stay until you delete them. ``--run FILE.json``
takes an earlier run; without ``--rivals`` it only writes that run's pages again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [place for place in sys.path if place != _HERE]
sys.path.insert(0, str(Path(_HERE).parent))

from benchmarks import bench, report, rivals  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- results: made by tests/benchmarks/publish.py -->"
END = "<!-- /results -->"


def main(arguments: list[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[1], epilog="Other options go to bench.py."
    )
    parser.add_argument("--rivals", metavar="PYTHON", help="interpreter that has the tools")
    parser.add_argument("--run", metavar="FILE.json", type=Path, help="earlier run to publish")
    chosen, others = parser.parse_known_args(arguments)
    if chosen.run and others:
        parser.error(f"--run measures nothing, so it does not go with {others[0]}")
    python = chosen.rivals or (None if chosen.run else sys.executable)
    try:  # Checked now, not in three quarters of an hour.
        parted(PAGE.read_text(encoding="utf-8"))
        if python and shutil.which(python) is None:
            raise ValueError(f"{python} does not exist")
        run = _read(chosen.run) if chosen.run else None
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    packages = sorted({package for package, *_ in rivals.TOOLS.values()})
    for package in packages if python else ():
        if not rivals.installed(python, package):
            print(f"{package} is not installed there and will be left out", file=sys.stderr)
    path = chosen.run
    if run is None:
        path = ROOT / "docs" / "benchmarks" / f"{report.new(False)['date']}.json"
        path.parent.mkdir(exist_ok=True)
        # If the run fails half-way, it names this command, without the path of a directory here.
        sys.argv[1:] = others
        try:
            bench.main([*others, "--out", str(path)])
        except SystemExit as exc:
            if exc.code:
                raise
        run = _read(path)
        words = ["python", "tests/benchmarks/publish.py", "--rivals", "PYTHON", *others]
        run["command"] = shlex.join(words)
    where = Path(os.path.relpath(path.resolve().with_suffix(""), PAGE.parent.resolve())).as_posix()

    def save() -> None:
        report.write(run, path, other_tools(run))
        # Read again: others may have written to the page meanwhile.
        before, _, after = parted(PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(before + section(run, where) + after, encoding="utf-8")

    save()  # The run is kept even if the rivals fail; --run can add them later.
    if python:
        few = {"rounds": 7, "calls": 10, "every": 5}
        if run["quick"]:
            few = {"rounds": 3, "calls": 5, "every": 20}
        rivals.add(run, python, save, **few)


def _read(path: Path) -> dict:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        run = None
    fields = {"machine", "steps", "concurrency", "scale", "left_out"}
    is_run = isinstance(run, dict) and run.get("version") == report.VERSION
    if not is_run or not fields <= run.keys():
        raise ValueError(f"{path} is not a run of the benchmark of version {report.VERSION}")
    return run


def parted(text: str) -> tuple[str, str, str]:
    """
    A text before, in and after its results section.

    Raises:
        ValueError: The text has no such section.
    """
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no results section between {BEGIN} and {END}")
    return before + begin, inside, end + after


def section(run: dict, where: str) -> str:
    """The results section; *where* is the run's path relative to the page, without its suffix."""
    intro = report.prose(
        f"`{run['command']}`, {run['date']}: {report.where(run)}. Median milliseconds; p95, "
        "processor time, the other measurements and what was left out are in "
        f"[{where}.md]({where}.md), all numbers in [{where}.json]({where}.json)."
    )
    parts = [intro, f"![hits, and the cost of commands as a store grows]({where}.svg)"]
    if run["steps"]:
        parts.append(_headline(run, report.cell_of(run["steps"][0])))
    return "\n" + "\n\n".join([*parts, *other_tools(run), *report.sections(run)]) + "\n"


def _headline(run: dict, cell: tuple) -> str:
    rows, number = [], report.number
    for case, words in report.CASES.items():
        for engine, name in report.NAMES.items():
            cold, warm = (
                report.pick(run, cell, case=case, engine=engine, start=start)
                for start in ("cold", "warm")
            )
            if cold and warm:
                counts = [number(warm[each]) for each in ("reads", "writes", "api_requests")]
                rows.append(
                    (
                        words,
                        name,
                        report.answer(cold, warm),
                        number(cold["median_ms"]),
                        number(warm["median_ms"]),
                        *counts,
                        number(cold["modules"]),
                    )
                )
    head = (
        "",
        "answer",
        "cold, ms>",
        "warm, ms>",
        "reads>",
        "writes>",
        "API requests>",
        "modules>",
    )
    return report.table(
        (f"{cell[0]}: {run['steps'][0]['steps']} steps, {cell[1]}", *head), rows
    ) + report.refused(run, cell)


def other_tools(run: dict) -> list[str]:
    """The table of the rivals, if they were measured."""
    if not run.get("rivals"):
        return []
    stale_by_tool = {row["tool"]: row for row in run.get("stale", ())}
    rows = []
    for row in run["rivals"]:
        stale = ""
        if judged := stale_by_tool.get(row["tool"].partition(",")[0]):
            failed = judged.get("failed", 0)
            stale = f"{judged['changes'] - judged['noticed'] - failed} of {judged['changes']}"
            if failed:
                stale += f", {failed} failed"
        numbers = [report.number(row[name]) for name in ("cold_ms", "warm_ms", "modules")]
        rows.append((row["tool"], row["version"], row["store"], *numbers, stale))
    head = (
        "a hit of the same three steps",
        "version",
        "store",
        "cold, ms>",
        "warm, ms>",
        "modules>",
        "stale answers after a change>",
    )
    notes = report.prose(
        "Powertools stores the reply of the whole handler, the others store each step. Its local "
        "cache is off by default; with it, a warm process answers from memory without looking at "
        "a store, which no other tool here does. pfl's manifest is made beforehand, as in an "
        "image; plain Prefect calls its server. The changes are cases of `tests/fingerprint`, "
        "which were written along with pfl's fingerprint: pfl's own count shows that no known "
        "case fails, and the others' counts show what each tool looks at. Failed: the tool could "
        "not hash the function, or took over 4 s."
    )
    return [f"{report.table(head, rows)}\n\n{notes}"]


if __name__ == "__main__":
    main(sys.argv[1:])
