"""Step report of the flow *audit*: the numbers as a page, and what changed since the last one."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

from flows.audit.collect import Collected
from flows.audit.measure import LONGEST, Measured
from pfl import step

# The version of Report: a previous report of another version is ignored.
_LAYOUT = 1
_WIDEST = 64
_NUMBER = re.compile(r"[+−]?[\d,]*")

Row = tuple[str, ...]
# By path: the start of a file's digest, and the number of lines of a module.
Files = dict[str, tuple[str, int | None]]
# A changed file: its path, what happened to it, and by how many lines it grew if it has any.
Change = tuple[str, str, int | None]


class Report(TypedDict):
    """The page, and what the next report is compared with."""

    layout: int
    version: str
    totals: dict[str, int]
    markdown: str
    files: Files


@step
def report(collect: Collected, measure: Measured, previous: Report | None, top: int = 10) -> Report:
    """
    A Markdown page about the distribution.

    Args:
        collect: Its files.
        measure: Its numbers.
        previous: The report before this one.
        top: The number of rows that a list shows at most, 1 to 100.
    """
    if not 1 <= top <= LONGEST:
        raise ValueError(f"invalid top {top}: it must be 1 to {LONGEST}")
    sizes = [size_bytes for size_bytes, _ in collect["files"].values()]
    totals = {"files": len(sizes), "bytes": sum(sizes), **measure["totals"]}
    files: Files = {}
    for path, (_, digest) in collect["files"].items():
        module = measure["modules"].get(path)
        files[_unversioned(path)] = (digest[:8], module["lines"] if module else None)
    parts = [f"# {collect['name']} {collect['version']}"]
    if previous and previous.get("layout") == _LAYOUT:
        parts.append(_totals(totals, previous["totals"]))
        title = "Since the previous report"
        if previous["version"] != collect["version"]:
            title += f", of {previous['version']}"
        parts += _changes(title, _compare(previous["files"], files), top)
    else:
        parts.append(_totals(totals, totals))
    longest = [
        (_code(each["name"]), _code(each["module"]), f"{each['lines']:,}")
        for each in measure["longest"][:top]
    ]
    unparsed = [(_code(path), why) for path, why in measure["unparsed"].items()]
    parts += _section("Longest functions", ("function", "module", "lines"), longest, top)
    parts += _section("Imports from elsewhere", ("package", "modules"), _imports(measure), top)
    title = f"Not parsed by Python {collect['python']}"
    parts += _section(title, ("module", "why"), unparsed, top)
    return {
        "layout": _LAYOUT,
        "version": collect["version"],
        "totals": totals,
        "markdown": "\n\n".join(parts) + "\n",
        "files": files,
    }


def _totals(now: dict[str, int], before: dict[str, int]) -> str:
    if before == now:
        return _table(("", "count"), [(what, f"{number:,}") for what, number in now.items()])
    rows = [
        (what, f"{before[what]:,}", f"{number:,}", _signed(number - before[what]))
        for what, number in now.items()
    ]
    return _table(("", "before", "now", "change"), rows)


def _compare(before: Files, now: Files) -> list[Change]:
    """The files that differ, those whose lines changed most first."""
    changes: list[Change] = []
    for path in before.keys() | now.keys():
        old_digest, old_lines = before.get(path, (None, None))
        digest, lines = now.get(path, (None, None))
        if digest == old_digest:
            continue
        what = "changed"
        if old_digest is None:
            what = "added"
        elif digest is None:
            what = "removed"
        has_lines = lines is not None or old_lines is not None
        changes.append((path, what, (lines or 0) - (old_lines or 0) if has_lines else None))
    return sorted(changes, key=lambda change: (change[2] is None, -abs(change[2] or 0), change[0]))


def _changes(title: str, changes: list[Change], top: int) -> list[str]:
    if not changes:
        return [f"## {title}", "No file changed."]
    counts = Counter(what for _, what, _ in changes)
    kinds = [what for what in ("added", "removed", "changed") if counts[what]]
    numbers = ", ".join(f"{counts[what]:,} {what}" for what in kinds)
    rows = [
        (_code(path), what, "" if lines is None else _signed(lines))
        for path, what, lines in changes
    ]
    heading, *rest = _section(title, ("file", "what", "lines"), rows, top)
    return [heading, f"Files: {numbers}.", *rest]


def _imports(measure: Measured) -> list[Row]:
    own = {path.split("/")[0].removesuffix(".py") for path in measure["modules"]}
    foreign = measure["imports"].keys() - own - sys.stdlib_module_names
    by_count = sorted(foreign, key=lambda name: (-measure["imports"][name], name))
    return [(_code(name), f"{measure['imports'][name]:,}") for name in by_count]


def _section(title: str, head: Row, rows: Sequence[Row], top: int) -> list[str]:
    if not rows:
        return []
    parts = [f"## {title}", _table(head, rows[:top])]
    if len(rows) > top:
        parts.append(f"… and {len(rows) - top:,} more.")
    return parts


def _table(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table that reads well as text: columns are padded, and numbers align right."""
    columns: list[Row] = []
    for texts in zip(head, *rows, strict=True):
        title, *cells = (" ".join(text.replace("|", "\\|").split()) for text in texts)
        width = max(3, len(title), *map(len, cells))
        rule = "-" * width
        align = "<"
        if all(_NUMBER.fullmatch(cell) for cell in cells):
            rule = "-" * (width - 1) + ":"
            align = ">"
        columns.append(tuple(f"{text:{align}{width}}" for text in (title, rule, *cells)))
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))


def _code(text: str) -> str:
    """*text* as code, without the middle of a long path."""
    if len(text) > _WIDEST:
        text = f"{text[: _WIDEST // 3]}…{text[-_WIDEST * 2 // 3 :]}"
    return f"`{text}`"


def _signed(number: int) -> str:
    return f"{number:+,}".replace("-", "−") if number else "0"


def _unversioned(path: str) -> str:
    """The same name in each version: ``x-1.2.dist-info/METADATA`` without the version."""
    return re.sub(r"^([^/]+?)-[^/]+\.(dist|egg)-info/", r"\1.\2-info/", path)
