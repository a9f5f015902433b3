"""Step report of the flow *audit*: the numbers as a page, and what changed since the last one."""

from collections import Counter
from typing import TypedDict

from flows.audit.collect import Collected
from flows.audit.markdown import table
from flows.audit.measure import Measured
from pfl import step


class Report(TypedDict):
    """The page, and what the next report is compared with."""

    totals: dict[str, int]
    modules: dict[str, str]
    markdown: str


@step
def report(collect: Collected, measure: Measured, previous: Report | None, top: int = 10) -> Report:
    """
    A Markdown page about the distribution.

    Args:
        collect: Its modules.
        measure: Its numbers.
        previous: The report before this one.
        top: The number of modules to show, the longest first.
    """
    if top < 1:
        raise ValueError(f"invalid top {top}: it must be at least 1")
    lines = Counter(measure["lines"])
    parts = [
        f"# {collect['name']} {collect['version']}",
        table(("what", "count"), measure["totals"].items()),
        "## Longest modules",
        table(("module", "lines"), lines.most_common(top)),
    ]
    # An earlier version of this step may have returned something else.
    if previous and "modules" in previous:
        changes = compare(previous["modules"], collect["modules"])
        changed = table(("module", "what"), changes.items()) if changes else "No module changed."
        parts += ["## Since the previous report", changed]
    return {
        "totals": measure["totals"],
        "modules": collect["modules"],
        "markdown": "\n\n".join(parts) + "\n",
    }


def compare(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """What happened to each module that differs."""
    changes = {}
    for path in sorted(before.keys() | now.keys()):
        if path not in before:
            changes[path] = "added"
        elif path not in now:
            changes[path] = "removed"
        elif before[path] != now[path]:
            changes[path] = "changed"
    return changes
