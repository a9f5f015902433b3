"""
The published figures, all of them: ``python tests/benchmarks/publish.py [--rivals PYTHON] [OPTION OF pfl bench]…``.

Runs ``pfl bench`` with the options, then the rivals, and writes ``docs/benchmarks/<date>.json`` with its tables, its chart and the
README's *Results*. *PYTHON* is an interpreter that has the tools of the extra ``rivals``. Older runs stay; delete what is not wanted.
``--run FILE.json`` takes a run that was measured before; without ``--rivals``, only what is made of it is written anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import rivals  # noqa: E402

from cli import main as command  # noqa: E402
from cli.benchmark import report  # noqa: E402

README = ROOT / "README.md"
_JUDGED = """\
Powertools keeps the reply of the whole handler, the others each step. The changes are cases of `tests/fingerprint`,
which were written along with pfl's fingerprint: its own count says that nothing known fails, those of the others what
each tool looks at."""
BEGIN, END = "<!-- results: made by tests/benchmarks/publish.py -->", "<!-- /results -->"


def main(arguments: list[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1], epilog="Other options go to pfl bench.")
    parser.add_argument("--rivals", metavar="PYTHON", help="an interpreter that has the tools")
    parser.add_argument("--run", metavar="FILE.json", type=Path, help="a run of pfl bench to take, instead of a new one")
    chosen, others = parser.parse_known_args(arguments)
    place = ROOT / "docs" / "benchmarks"
    place.mkdir(exist_ok=True)
    path = chosen.run or place / f"{report.new(False)['date']}.json"
    if not chosen.run:
        try:
            command.main(["bench", *others, "--out", str(path)])
        except SystemExit as exc:
            if exc.code:
                raise
    run = json.loads(path.read_text(encoding="utf-8"))
    if not chosen.run:
        # Where the interpreter is says nothing to anybody else.
        run["command"] = shlex.join(["python", "tests/benchmarks/publish.py", "--rivals", "PYTHON", *others])
    if chosen.rivals or not chosen.run:
        few = {"rounds": 3, "calls": 5, "every": 20} if run["quick"] else {"rounds": 7, "calls": 10, "every": 5}
        rivals.add(run, chosen.rivals or sys.executable, **few)
    report.write(run, path, beside(run))
    before, _, after = parted(README.read_text(encoding="utf-8"))
    README.write_text(before + section(run, path.resolve().relative_to(ROOT).with_suffix("").as_posix()) + after, encoding="utf-8")


def parted(text: str) -> tuple[str, str, str]:
    """A text before, in and after its results section."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    assert end, f"{BEGIN} and {END} mark the place"
    return before + begin, inside, end + after


def section(run: dict, where: str) -> str:
    """The results section of the README: *where* is the run's path in the repository, without its ending."""
    told = (
        f"`{run['command']}`, {run['date']}: {report.where(run)}. Median milliseconds; p95, processor time, what else was measured and what was "
        f"left out are in [{where}.md]({where}.md), all numbers in [{where}.json]({where}.json)."
    )
    parts = [textwrap.fill(told, 120, break_long_words=False, break_on_hyphens=False), f"![hits, and what commands cost as a store grows]({where}.svg)"]
    if run["steps"]:
        parts.append(_headline(run, report.cell_of(run["steps"][0])))
    return "\n" + "\n\n".join([*parts, *beside(run), *report.sections(run)]) + "\n"


def _headline(run: dict, cell: tuple) -> str:
    rows, number = [], report.number
    for case, words in report.CASES.items():
        for engine, name in report.NAMES.items():
            cold, warm = (report.pick(run, cell, case=case, engine=engine, start=start) for start in ("cold", "warm"))
            if cold and warm:
                counts = [number(warm[each]) for each in ("reads", "writes", "api_requests")]
                rows.append((words, name, report.bold(warm["answer"]), number(cold["median_ms"]), number(warm["median_ms"]), *counts, number(cold["modules"])))
    head = ("", "answer", "cold, ms>", "warm, ms>", "reads>", "writes>", "API requests>", "modules>")
    return report.table((f"{cell[0]}: {run['steps'][0]['steps']} steps, {cell[1]}", *head), rows)


def beside(run: dict) -> list[str]:
    """What a run says of other tools, where they were measured."""
    if not run.get("rivals"):
        return []
    stale = {row["tool"]: row for row in run["stale"]}
    rows = []
    for row in run["rivals"]:
        judged = stale.get(row["tool"])
        says = f"{judged['changes'] - judged['noticed']} of {judged['changes']}" if judged else ""
        rows.append((row["tool"], row["version"], row["store"], report.number(row["cold_ms"]), report.number(row["warm_ms"]), report.number(row["modules"]), says))
    head = ("a hit of the same three steps", "version", "store", "cold, ms>", "warm, ms>", "modules>", "stale answers after a change>")
    return [f"{report.table(head, rows)}\n\n{_JUDGED}"]


if __name__ == "__main__":
    main(sys.argv[1:])
