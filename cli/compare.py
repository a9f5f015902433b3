"""Differences between JSON values, and paths into one: ``$.rows[2].total``, ``$.rows[id=7]``."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import NotRequired, TypedDict, TypeGuard

from ..handler.core.errors import InvalidRequestError

_NAME = "[A-Za-z_][A-Za-z0-9_-]*"  # A name that a path has without quotes.
# $, then any number of .name, ["any name"], [0] and [id=7].
_PATH = rf'\$(\.{_NAME}|\[("([^"\\]|\\.)*"|\d+|[^"\]=]+=.*?)\])*'

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

    try:
        allowed = Fraction(text.removesuffix("%"))
    except (ValueError, ZeroDivisionError) as exc:
        raise InvalidRequestError(
            f"invalid --tolerance {text!r}",
            why="it must be a number, optionally with %",
            hint="--tolerance 0.001 or --tolerance 1%",
        ) from exc

    def are_close(old: float, new: float) -> bool:
        # As people write them: in binary, 0.4 - 0.3 is more than 0.1. An integer may be larger
        # than any float.
        left, right = Fraction(str(old)), Fraction(str(new))
        unit = max(abs(left), abs(right)) / 100 if text.endswith("%") else 1
        return abs(left - right) <= allowed * unit

    return are_close


def changes(
    old: object, new: object, *, within: Closeness | None = None, key: str = "id", path: str = "$"
) -> list[Change]:
    """
    The differences between two values, in the order of their parts.

    Lists of objects in which the column *key* is unique are compared row by row, in any order.
    """
    if type(old) is type(new) and isinstance(old, dict | list):
        left, right = _parts(old, key), _parts(new, key)
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


def _parts(value: object, key: str) -> dict[str, object]:
    """The parts of a value by their segment of a path; the rows of a table by their *key*."""
    parts: dict[str, object] = {}
    if isinstance(value, dict):
        for name, each in value.items():
            is_plain = re.fullmatch(_NAME, name)
            quoted = json.dumps(name, ensure_ascii=False)
            parts[f".{name}" if is_plain else f"[{quoted}]"] = each
    elif isinstance(value, list):
        with suppress(LookupError, TypeError):
            parts = {f"[{key}={row[key]}]": row for row in value}
        if len(parts) != len(value):
            parts = _items(value)
    return parts


def _items(value: list[object]) -> dict[str, object]:
    """The items of a list by their index."""
    return {f"[{number}]": each for number, each in enumerate(value)}


def at(value: object, path: str, key: str = "id") -> object:
    """
    The part of *value* at *path*, which is written as in a difference; None if it has none.

    Raises:
        InvalidRequestError: *path* is not a path.
    """
    if not re.fullmatch(_PATH, path, re.DOTALL):
        raise InvalidRequestError(
            f"invalid --path {path!r}",
            why='a path starts with $ and continues with .name, [0], ["a name"] or [id=7]',
            hint="--path '$.rows[0].total'",
        )
    rest = path[1:]
    while rest:
        parts = _parts(value, key)
        if isinstance(value, list):
            parts |= _items(value)
        # Of .total and .total_net, the longer one is meant.
        segment = max(filter(rest.startswith, parts), key=len, default="")
        if not segment:
            return None
        value = parts[segment]
        rest = rest.removeprefix(segment)
    return value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number."""
    return type(value) in (int, float)
