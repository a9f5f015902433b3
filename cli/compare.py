"""Differences between JSON values, and paths into one: ``$.rows[2].total``, ``$.rows[id=7]``."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NotRequired, TypedDict, TypeGuard

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

# The name of a member, an index, or the column and the value that identify a row.
Segment = str | int | tuple[str, str]
# Whether two numbers count as equal.
Closeness = Callable[[float, float], bool]


class Change(TypedDict):
    """
    One difference.

    ``change`` is ``added``, ``removed`` or ``changed``. Numbers have ``delta`` and ``ratio`` if a
    float can hold them; strings of several lines have ``diff``, a unified diff.
    """

    path: str
    change: str
    old: NotRequired[object]
    new: NotRequired[object]
    delta: NotRequired[float]
    ratio: NotRequired[float]
    diff: NotRequired[list[str]]


def tolerance(text: str) -> Closeness:
    """
    Whether two numbers count as equal: ``0.01`` is absolute, ``1%`` a share of the larger one.

    Raises:
        InvalidRequestError: *text* is neither.
    """
    from fractions import Fraction

    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)(%?)", text)
    if not match:
        raise InvalidRequestError(
            f"invalid --tolerance {text!r}",
            why="it must be a number, optionally with %",
            hint="--tolerance 0.001 or --tolerance 1%",
        )
    allowed = Fraction(match[1])

    def are_close(old: float, new: float) -> bool:
        # As people write them: in binary, 0.4 - 0.3 is more than 0.1. An integer may be larger
        # than any float.
        left, right = Fraction(str(old)), Fraction(str(new))
        unit = max(abs(left), abs(right)) / 100 if match[2] else 1
        return abs(left - right) <= allowed * unit

    return are_close


def changes(
    old: object,
    new: object,
    *,
    within: Closeness | None = None,
    key: str = "id",
    path: str = "$",
) -> list[Change]:
    """
    The differences between two values, in the order of their parts.

    Lists of objects in which the column *key* is unique are compared row by row, in any order.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        left, right = _members(old), _members(new)
    elif isinstance(old, list) and isinstance(new, list):
        left, right = _items([old, new], key)
    elif within is not None and is_number(old) and is_number(new) and within(old, new):
        return []
    else:
        # As JSON: 1, 1.0 and true are different values.
        return [] if json.dumps(old) == json.dumps(new) else [_changed(old, new, path)]
    found: list[Change] = []
    for segment in left | right:
        inner = path + segment
        if segment not in right:
            found.append({"path": inner, "change": "removed", "old": left[segment]})
        elif segment not in left:
            found.append({"path": inner, "change": "added", "new": right[segment]})
        else:
            found += changes(left[segment], right[segment], within=within, key=key, path=inner)
    return found


def _changed(old: object, new: object, path: str) -> Change:
    change: Change = {"path": path, "change": "changed", "old": old, "new": new}
    if is_number(old) and is_number(new):
        with suppress(OverflowError):
            ratio = float(new - old) / abs(old or 1)
            change["delta"] = new - old
            if old:
                change["ratio"] = ratio
    elif isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        import difflib

        lines = old.splitlines(), new.splitlines()
        change["diff"] = list(difflib.unified_diff(*lines, "old", "new", lineterm="", n=2))
    return change


def _members(value: Mapping[str, object]) -> dict[str, object]:
    return {_segment(name): each for name, each in value.items()}


def _segment(name: str) -> str:
    return f".{name}" if re.fullmatch(_NAME, name) else f"[{json.dumps(name, ensure_ascii=False)}]"


def _items(lists: list[list[Any]], key: str) -> list[dict[str, object]]:
    """The rows of tables by their value of *key*, or the items of lists by their index."""
    with suppress(LookupError, TypeError):
        tables = [{f"[{key}={row[key]}]": row for row in rows} for rows in lists]
        if list(map(len, tables)) == list(map(len, lists)):
            return tables
    return [{f"[{number}]": row for number, row in enumerate(rows)} for rows in lists]


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


def at(value: Any, path: str) -> object:
    """
    The part of *value* at *path*; None if it has none.

    Raises:
        InvalidRequestError: *path* is not a path.
    """
    for segment in parse_path(path):
        try:
            if isinstance(segment, tuple):
                column, wanted = segment
                rows = (row for row in value if isinstance(row, dict))
                value = next(row for row in rows if str(row.get(column)) == wanted)
            elif isinstance(value, str):
                return None
            else:
                value = value[segment]
        except (LookupError, TypeError, StopIteration):
            return None
    return value


def condition(text: str) -> Callable[[object], bool]:
    """
    A test such as ``value > 100``: ``value``, an operator and a JSON value; nothing is evaluated.

    A value that cannot be compared does not pass.

    Raises:
        InvalidRequestError: *text* is not a condition.
    """
    pattern = r"^\s*value\s*(==|!=|<=|>=|<|>|contains\b)\s*(.+)$"
    try:
        [(name, literal)] = re.findall(pattern, text, re.DOTALL)
        compares = _OPERATORS[name]
        wanted = json.loads(literal)
    except ValueError as exc:
        raise InvalidRequestError(
            f"invalid --when {text!r}",
            why="a condition is value, an operator (== != < <= > >= contains) and a JSON value",
            hint="--when 'value > 100', --when 'value == \"ok\"'",
        ) from exc

    def passes(value: object) -> bool:
        # In Python, True equals 1.
        if isinstance(value, bool) is not isinstance(wanted, bool) and name in ("==", "!="):
            return compares is operator.ne
        try:
            return bool(compares(value, wanted))
        except TypeError:
            return False

    return passes


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number."""
    return type(value) in (int, float)
