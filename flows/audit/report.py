"""Step report of the flow *audit*: the numbers as a page, and what changed since the page before."""

from __future__ import annotations

import re
import sys

from pfl import step

from flows.audit.measure import LONGEST

_LAYOUT = (
    1  # Of what is returned; a previous report that is laid out otherwise is not compared with.
)
_WIDEST = 64


@step
def report(collect: dict, measure: dict, previous: dict | None, top: int = 10) -> dict:
    """
    A Markdown page about the distribution.

    Args:
        collect: Its files.
        measure: Its numbers.
        previous: The report before this one.
        top: The most rows a list of the page has, 1 to 100.

    Returns:
        ``markdown``, and what the next report compares itself with: ``version``, ``totals``, and ``files``, for each its digest
        and, for a module, its lines.
    """
    if not 1 <= top <= LONGEST:
        raise ValueError(f"top is {top}, and has to be 1 to {LONGEST}")
    sizes = [size for size, _ in collect["files"].values()]
    totals = {"files": len(sizes), "bytes": sum(sizes), **measure["totals"]}
    lines = {path: module["lines"] for path, module in measure["modules"].items()}
    files = {
        _unversioned(path): [digest[:8], lines.get(path)]
        for path, (_, digest) in collect["files"].items()
    }
    before = previous if previous and previous.get("layout") == _LAYOUT else None
    longest = [
        (_code(each["name"]), _code(each["module"]), f"{each['lines']:,}")
        for each in measure["longest"][:top]
    ]
    unparsed = [(_code(path), why) for path, why in measure["unparsed"].items()]
    parts = [
        f"# {collect['name']} {collect['version']}",
        _totals(totals, before["totals"] if before else totals),
        *(_changes(files, collect["version"], before, top) if before else ()),
        *_section("Longest functions", ("function", "module", "lines"), longest, top),
        *_section("Imports from elsewhere", ("package", "modules"), _imports(measure), top),
        *_section(f"Not parsed by Python {collect['python']}", ("module", "why"), unparsed, top),
    ]
    page = "\n\n".join(parts) + "\n"
    return {
        "layout": _LAYOUT,
        "version": collect["version"],
        "totals": totals,
        "markdown": page,
        "files": files,
    }


def _totals(now: dict, before: dict) -> str:
    if before == now:
        return _table(("", "count"), [(what, f"{number:,}") for what, number in now.items()])
    rows = [
        (what, f"{before[what]:,}", f"{number:,}", _signed(number - before[what]))
        for what, number in now.items()
    ]
    return _table(("", "before", "now", "change"), rows)


def _changes(files: dict, version: str, before: dict, top: int) -> list[str]:
    title = "Since the previous report" + (
        f", of {before['version']}" if before["version"] != version else ""
    )
    old, found = before["files"], []
    for path in files.keys() | old.keys():
        (was, lines_before), (digest, lines) = (
            old.get(path, (None, None)),
            files.get(path, (None, None)),
        )
        if was != digest:
            grown = (
                None
                if lines_before is None and lines is None
                else (lines or 0) - (lines_before or 0)
            )
            found.append(
                (
                    path,
                    "added" if was is None else "removed" if digest is None else "changed",
                    grown,
                )
            )
    if not found:
        return [f"## {title}", "No file changed."]
    found.sort(key=lambda each: (each[2] is None, -abs(each[2] or 0), each[0]))
    numbers = {
        what: sum(each[1] == what for each in found) for what in ("added", "removed", "changed")
    }
    summary = (
        "Files: "
        + ", ".join(f"{number:,} {what}" for what, number in numbers.items() if number)
        + "."
    )
    rows = [
        (_code(path), what, "" if grown is None else _signed(grown)) for path, what, grown in found
    ]
    heading, *rest = _section(title, ("file", "what", "lines"), rows, top)
    return [heading, summary, *rest]


def _imports(measure: dict) -> list[tuple[str, str]]:
    own = {
        path.split("/")[0].removesuffix(".py") for path in measure["modules"]
    } | sys.stdlib_module_names
    foreign = [(name, number) for name, number in measure["imports"].items() if name not in own]
    return [
        (_code(name), f"{number:,}")
        for name, number in sorted(foreign, key=lambda each: (-each[1], each[0]))
    ]


def _section(title: str, head: tuple, rows: list[tuple], top: int) -> list[str]:
    if not rows:
        return []
    more = [f"… and {len(rows) - top:,} more."] if len(rows) > top else []
    return [f"## {title}", _table(head, rows[:top]), *more]


def _table(head: tuple, rows: list[tuple]) -> str:
    """A table that also reads well as it is: columns are padded, and those of numbers are aligned to the right."""
    lines = [
        tuple(" ".join(cell.replace("|", "\\|").split()) for cell in row) for row in (head, *rows)
    ]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    right = [
        all(re.fullmatch(r"[+−]?[\d,]*", cell) is not None for cell in column)
        for column in zip(*lines[1:], strict=True)
    ]
    lines.insert(
        1,
        tuple(
            "-" * (width - 1) + "-:"[is_right]
            for width, is_right in zip(widths, right, strict=True)
        ),
    )
    marks = [">" if is_right else "<" for is_right in right]
    cells = [
        [f"{cell:{mark}{width}}" for cell, mark, width in zip(row, marks, widths, strict=True)]
        for row in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _code(text: str) -> str:
    """As code, with the middle of a long path left out."""
    return (
        f"`{text}`"
        if len(text) <= _WIDEST
        else f"`{text[: _WIDEST // 3]}…{text[-_WIDEST * 2 // 3 :]}`"
    )


def _signed(number: int) -> str:
    return f"{number:+,}".replace("-", "−") if number else "0"


def _unversioned(path: str) -> str:
    """``x-1.2.dist-info/METADATA`` is the same file in the next version."""
    return re.sub(r"^([^/]+?)-[^/]+\.(dist|egg)-info/", r"\1.\2-info/", path)
