"""Differences between JSON values, and paths into one: ``$.rows[2].total``, ``$.rows[id=7]``."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeGuard

from ..handler.core.errors import InvalidRequestError

_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_SEGMENT = rf"""\.({_NAME})|\[(-?\d+)\]|\[('[^']*'|"[^"]*")\]|\[({_NAME})=([^\]]*)\]"""
_OPERATORS: dict[str, Callable[[Any, Any], object]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "contains": operator.contains,
}
ABSENT = object()

# The name of a member, an index, or the column and the value that identify a row.
Segment = str | int | tuple[str, str]


class Tolerance(NamedTuple):
    """How far two numbers may differ and still count as equal, as :func:`math.isclose` has it."""

    relative: float = 0.0
    absolute: float = 0.0


EXACT = Tolerance()


class Change(TypedDict):
    """
    One difference.

    ``change`` is ``added``, ``removed`` or ``changed``. Numbers have ``delta`` and ``ratio`` if a
    float can hold them; texts of several lines have ``diff``, the lines of a unified diff.
    """

    path: str
    change: str
    old: NotRequired[object]
    new: NotRequired[object]
    delta: NotRequired[float]
    ratio: NotRequired[float]
    diff: NotRequired[list[str]]


def tolerance(text: str | None) -> Tolerance:
    """
    The tolerance that *text* states: ``0.01`` is absolute, ``1%`` a share of the larger number.

    Raises:
        InvalidRequestError: *text* is neither.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)(%?)", text or "0")
    if not match:
        raise InvalidRequestError(
            f"invalid --tolerance {text!r}",
            why="it must be a number, optionally with %",
            hint="--tolerance 0.001 or --tolerance 1%",
        )
    if match[2]:
        return Tolerance(relative=float(match[1]) / 100)
    return Tolerance(absolute=float(match[1]))


def changes(
    old: object, new: object, *, within: Tolerance = EXACT, key: str = "id"
) -> list[Change]:
    """
    The differences between two values, in order of their paths.

    Lists of objects in which the column *key* is unique are compared row by row, in any order.
    """
    found = [change for change in _changes(old, new, key, "$") if _exceeds(change, within)]
    return sorted(found, key=lambda change: _natural(change["path"]))


def _changes(old: object, new: object, key: str, path: str) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        left, right = _members(old), _members(new)
    elif isinstance(old, list) and isinstance(new, list):
        is_table = _is_table(old, key) and _is_table(new, key)
        left, right = (_items(side, key if is_table else None) for side in (old, new))
    else:
        # As JSON: 1, 1.0 and true are different values.
        if json.dumps(old) != json.dumps(new):
            yield _changed(old, new, path)
        return
    for segment in left | right:
        place = path + segment
        if segment not in right:
            yield {"path": place, "change": "removed", "old": left[segment]}
        elif segment not in left:
            yield {"path": place, "change": "added", "new": right[segment]}
        else:
            yield from _changes(left[segment], right[segment], key, place)


def _changed(old: object, new: object, path: str) -> Change:
    change: Change = {"path": path, "change": "changed", "old": old, "new": new}
    if is_number(old) and is_number(new):
        with suppress(OverflowError):
            ratio = float(new - old) / (abs(old) or 1)
            change["delta"] = new - old
            if old:
                change["ratio"] = ratio
    elif isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        import difflib

        lines = old.splitlines(), new.splitlines()
        change["diff"] = list(difflib.unified_diff(*lines, "old", "new", lineterm="", n=2))
    return change


def _exceeds(change: Change, within: Tolerance) -> bool:
    old, new = change.get("old"), change.get("new")
    if not (any(within) and is_number(old) and is_number(new)):
        return True
    try:
        return not math.isclose(old, new, rel_tol=within.relative, abs_tol=within.absolute)
    except OverflowError:
        from fractions import Fraction

        # One is an integer beyond what a float holds; no float is near such a number.
        if isinstance(old, float) or isinstance(new, float):
            return True
        share = Fraction(within.relative) * max(abs(old), abs(new))
        return abs(old - new) > max(share, Fraction(within.absolute))


def _members(value: Mapping[str, object]) -> dict[str, object]:
    return {_segment(name): each for name, each in value.items()}


def _segment(name: str) -> str:
    return f".{name}" if re.fullmatch(_NAME, name) else f"[{json.dumps(name, ensure_ascii=False)}]"


def _items(rows: list[Any], key: str | None) -> dict[str, object]:
    if key is None:
        return {f"[{number}]": row for number, row in enumerate(rows)}
    return {f"[{key}={row[key]}]": row for row in rows}


def _is_table(rows: list[Any], key: str) -> bool:
    named = [row for row in rows if isinstance(row, dict) and isinstance(row.get(key), str | int)]
    return len(named) == len(rows) == len({str(row[key]) for row in named})


def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def parse_path(path: str) -> list[Segment]:
    """
    The segments of a path.

    Raises:
        InvalidRequestError: *path* is not a path.
    """
    if not re.fullmatch(rf"\$(?:{_SEGMENT})*", path):
        raise InvalidRequestError(
            f"invalid --path {path!r}",
            why="a path starts with $ and continues with .name, [0], ['name'] or [id=7]",
            hint="--path '$.rows[0].total'",
        )
    segments: list[Segment] = []
    for name, index, quoted, column, wanted in re.findall(_SEGMENT, path):
        if column:
            segments.append((column, wanted))
        elif index:
            segments.append(int(index))
        else:
            segments.append(name or quoted[1:-1])
    return segments


def at(value: object, path: str) -> object:
    """
    The part of *value* at *path*; ``ABSENT`` if it has none.

    Raises:
        InvalidRequestError: *path* is not a path.
    """
    for segment in parse_path(path):
        value = _part(value, segment)
    return value


def _part(value: object, segment: Segment) -> object:
    if isinstance(segment, str):
        return value.get(segment, ABSENT) if isinstance(value, dict) else ABSENT
    if not isinstance(value, list):
        return ABSENT
    if isinstance(segment, int):
        return value[segment] if -len(value) <= segment < len(value) else ABSENT
    column, wanted = segment
    rows = (row for row in value if isinstance(row, dict) and str(row.get(column)) == wanted)
    return next(rows, ABSENT)


def condition(text: str) -> Callable[[object], bool]:
    """
    A test such as ``value > 100``: ``value``, an operator and a JSON value; nothing is evaluated.

    A value that cannot be compared does not pass.

    Raises:
        InvalidRequestError: *text* is not a condition.
    """
    match = re.fullmatch(r"\s*value\s*(==|!=|<=|>=|<|>|contains\b)\s*(.+?)\s*", text, re.DOTALL)
    try:
        wanted = json.loads(match[2]) if match else None
    except ValueError:
        match = None
    if not match:
        raise InvalidRequestError(
            f"invalid --when {text!r}",
            why="a condition is value, one of == != < <= > >= contains, and a JSON value",
            hint="--when 'value > 100', --when 'value == \"ok\"'",
        )
    name = match[1]

    def passes(value: object) -> bool:
        if value is ABSENT:
            return False
        # In Python, True equals 1.
        if isinstance(value, bool) is not isinstance(wanted, bool) and name in ("==", "!="):
            return name == "!="
        try:
            return bool(_OPERATORS[name](value, wanted))
        except TypeError:
            return False

    return passes


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
