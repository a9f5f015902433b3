"""
The published figures, all of them: ``python tests/benchmarks/publish.py [--rivals PYTHON] [OPTION OF pfl bench]…``.

Runs ``pfl bench`` with the options, then the rivals, and writes ``docs/benchmarks/<date>.json`` with its tables, its chart and the
README's *Results*. *PYTHON* is an interpreter that has the tools of the extra ``rivals``. Older runs stay; delete what is not wanted.
``--run FILE.json`` takes a run that was measured before; without ``--rivals``, only what is made of it is written anew.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import rivals  # noqa: E402
from pfl.cli import main as command  # noqa: E402
from pfl.cli.benchmark import report  # noqa: E402

README = ROOT / "README.md"
BEGIN, END = "<!-- results: made by tests/benchmarks/publish.py -->", "<!-- /results -->"


def main(arguments: list[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[1], epilog="Other options go to pfl bench."
    )
    parser.add_argument("--rivals", metavar="PYTHON", help="an interpreter that has the tools")
    parser.add_argument(
        "--run",
        metavar="FILE.json",
        type=Path,
        help="a run of pfl bench to take, instead of a new one",
    )
    chosen, others = parser.parse_known_args(arguments)
    if chosen.run and others:
        parser.error(f"--run measures nothing, so {others[0]} does not go with it")
    python = chosen.rivals or (None if chosen.run else sys.executable)
    try:  # Now, not in three quarters of an hour.
        parted(README.read_text(encoding="utf-8"))
        if python and shutil.which(python) is None:
            raise ValueError(f"there is no {python}")
        run = _read(chosen.run) if chosen.run else None
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    for package in sorted(
        {
            package
            for package, *_ in rivals.TOOLS.values()
            if python and not rivals.installed(python, package)
        }
    ):
        print(f"{package} is not installed there, so it will be left out", file=sys.stderr)
    path = chosen.run
    if run is None:
        path = ROOT / "docs" / "benchmarks" / f"{report.new(False)['date']}.json"
        path.parent.mkdir(exist_ok=True)
        # What a run says of itself if it fails half-way; where things are says nothing to anybody else.
        sys.argv[1:] = ["bench", *others]
        try:
            command.main(["bench", *others, "--out", str(path)])
        except SystemExit as exc:
            if exc.code:
                raise
        run = _read(path)
        run["command"] = shlex.join(
            ["python", "tests/benchmarks/publish.py", "--rivals", "PYTHON", *others]
        )
    where = Path(os.path.relpath(path.resolve().with_suffix(""), README.parent)).as_posix()

    def save() -> None:
        report.write(run, path, beside(run))
        before, _, after = parted(
            README.read_text(encoding="utf-8")
        )  # Others may have written to it meanwhile.
        README.write_text(before + section(run, where) + after, encoding="utf-8")

    save()  # Whatever becomes of the rivals, which --run can add later.
    if python:
        few = (
            {"rounds": 3, "calls": 5, "every": 20}
            if run["quick"]
            else {"rounds": 7, "calls": 10, "every": 5}
        )
        rivals.add(run, python, save, **few)


def _read(path: Path) -> dict:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        run = None
    if (
        not isinstance(run, dict)
        or run.get("version") != report.VERSION
        or not {"machine", "steps", "concurrency", "scale", "left_out"} <= run.keys()
    ):
        raise ValueError(f"{path} is no run of pfl bench of version {report.VERSION}")
    return run


def parted(text: str) -> tuple[str, str, str]:
    """
    A text before, in and after its results section.

    Raises:
        ValueError: It has none.
    """
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"there is no results section: {BEGIN} and {END} mark it")
    return before + begin, inside, end + after


def section(run: dict, where: str) -> str:
    """The results section of the README: *where* is the run's path in the repository, without its ending."""
    told = (
        f"`{run['command']}`, {run['date']}: {report.where(run)}. Median milliseconds; p95, processor time, what else was measured and what was "
        f"left out are in [{where}.md]({where}.md), all numbers in [{where}.json]({where}.json)."
    )
    parts = [report.prose(told), f"![hits, and what commands cost as a store grows]({where}.svg)"]
    if run["steps"]:
        parts.append(_headline(run, report.cell_of(run["steps"][0])))
    return "\n" + "\n\n".join([*parts, *beside(run), *report.sections(run)]) + "\n"


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


def beside(run: dict) -> list[str]:
    """What a run says of other tools, where they were measured."""
    if not run.get("rivals"):
        return []
    stale = {row["tool"]: row for row in run.get("stale", ())}
    rows, number = [], report.number
    for row in run["rivals"]:
        judged = stale.get(row["tool"].partition(",")[0])
        failed = judged.get("failed", 0) if judged else 0
        says = (
            f"{judged['changes'] - judged['noticed'] - failed} of {judged['changes']}"
            + (f", {failed} failed" if failed else "")
            if judged
            else ""
        )
        rows.append(
            (
                row["tool"],
                row["version"],
                row["store"],
                number(row["cold_ms"]),
                number(row["warm_ms"]),
                number(row["modules"]),
                says,
            )
        )
    head = (
        "a hit of the same three steps",
        "version",
        "store",
        "cold, ms>",
        "warm, ms>",
        "modules>",
        "stale answers after a change>",
    )
    told = report.prose(
        "Powertools keeps the reply of the whole handler, the others each step; with its local cache, which is off unless asked for, a warm process answers from "
        "memory and looks at no store, as no other here does. pfl's manifest is made beforehand, as an image's is; plain Prefect asks its server. The changes are "
        "cases of `tests/fingerprint`, which were written along with pfl's fingerprint: its own count says that nothing known fails, those of the others what each "
        "tool looks at. Failed: it hashed no such function, or took over 4 s."
    )
    return [f"{report.table(head, rows)}\n\n{told}"]


if __name__ == "__main__":
    main(sys.argv[1:])
