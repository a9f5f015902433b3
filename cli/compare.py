"""What differs between two stored values, and paths into them: ``$.rows[2].total``, ``$.rows[id=7].total``."""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Any

from pfl.handler.core.errors import InvalidRequestError

_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_STEP = re.compile(rf"""\.({_NAME})|\[(-?\d+)\]|\[('[^']*'|"[^"]*")\]|\[({_NAME})=([^\]]*)\]""")
_OPERATORS: dict[str, Callable[[Any, Any], object]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "contains": operator.contains,
}  # fmt: skip
_KINDS = {"add": "added", "remove": "removed", "change": "changed"}
ABSENT = object()
EXACT: Mapping[str, float] = {}


def tolerance(text: str | None) -> dict[str, float]:
    """How far two numbers may lie apart and count as equal, as :func:`math.isclose` takes it: ``0.01`` is absolute, ``1%`` of the larger one."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)(%?)", text or "0")
    if not match:
        why = "it has to be a number, or one with %"
        raise InvalidRequestError(
            f"--tolerance is {text!r}", why=why, hint="--tolerance 0.001 or --tolerance 1%"
        )
    return (
        {"rel_tol": float(match[1]) / 100}
        if match[2]
        else {"rel_tol": 0.0, "abs_tol": float(match[1])}
    )


def changes(
    old: object, new: object, *, within: Mapping[str, float] = EXACT, key: str = "id"
) -> list[dict[str, Any]]:
    """
    Each difference, with ``path``, ``change`` (``added``, ``removed``, ``changed``), ``old`` and ``new``.

    Numbers have ``by`` and, where there is one, ``ratio``, if a float can hold them; texts of several lines have ``diff``, a unified diff. Lists of
    objects that all have a column *key*, each another one, are compared row by row whatever their order.
    """
    from dictdiffer import diff

    found = []
    for kind, steps, told in diff(*_trees(old, new, key), dot_notation=False, node=[]):
        rows = (
            [(steps, *told)]
            if kind == "change"
            else [([*steps, step], each, each) for step, each in told]
        )
        for path, left, right in rows:
            a, b = left.value, right.value
            change: dict[str, Any] = {"path": "".join(["$", *path]), "change": _KINDS[kind]}
            change |= ({} if kind == "add" else {"old": a}) | (
                {} if kind == "remove" else {"new": b}
            )
            if kind == "change" and is_number(a) and is_number(b):
                if any(within.values()) and _is_close(a, b, **within):
                    continue
                with suppress(OverflowError):
                    share = float(b - a) / (abs(a) or 1)
                    change |= {"by": b - a} | ({"ratio": share} if a else {})
            elif kind == "change" and isinstance(a, str) and isinstance(b, str) and "\n" in a + b:
                lines = difflib.unified_diff(
                    a.splitlines(), b.splitlines(), "old", "new", lineterm="", n=2
                )
                change["diff"] = list(lines)
            found.append(change)
    return sorted(found, key=lambda change: _natural(change["path"]))


def _is_close(a: float, b: float, *, rel_tol: float, abs_tol: float = 0.0) -> bool:
    try:
        return math.isclose(a, b, rel_tol=rel_tol, abs_tol=abs_tol)
    except (
        OverflowError
    ):  # Of two integers, one is more than a float holds; no float is near to such a one.
        return (
            isinstance(a, int)
            and isinstance(b, int)
            and abs(a - b) <= max(Fraction(rel_tol) * max(abs(a), abs(b)), abs_tol)
        )


def at(value: object, path: str) -> object:
    """
    What stands at *path* in a value; ``ABSENT`` where nothing does.

    Raises:
        InvalidRequestError: *path* is none.
    """
    for step in _steps(path):
        if isinstance(step, tuple):
            rows = (
                row for row in (value if isinstance(value, list) else ()) if isinstance(row, dict)
            )
            value = next((row for row in rows if str(row.get(step[0])) == step[1]), ABSENT)
        elif isinstance(step, int):
            value = (
                value[step]
                if isinstance(value, list) and -len(value) <= step < len(value)
                else ABSENT
            )
        else:
            value = value.get(step, ABSENT) if isinstance(value, dict) else ABSENT
        if value is ABSENT:
            return ABSENT
    return value


def condition(text: str) -> Callable[[object], bool]:
    """
    A test such as ``value > 100``: value, one of ``== != < <= > >= contains``, and a JSON value. Nothing is evaluated.

    What cannot be compared does not pass.
    """
    match = re.fullmatch(r"\s*value\s*(==|!=|<=|>=|<|>|contains\b)\s*(.+?)\s*", text, re.DOTALL)
    try:
        wanted = json.loads(match[2]) if match else None
    except ValueError:
        match = None
    if not match:
        why, hint = (
            "value, one of == != < <= > >= contains, and a JSON value",
            "--when 'value > 100', --when 'value == \"ok\"'",
        )
        raise InvalidRequestError(f"--when {text!r} is no condition", why=why, hint=hint)

    def passes(value: object) -> bool:
        if value is ABSENT:
            return False
        if isinstance(value, bool) is not isinstance(wanted, bool) and match[1] in ("==", "!="):
            return match[1] == "!="  # In Python, True equals 1.
        try:
            return bool(_OPERATORS[match[1]](value, wanted))
        except TypeError:
            return False

    return passes


class _Leaf:
    """What is compared as a whole, by its JSON text: ``1``, ``1.0`` and ``true`` are not equal."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Leaf) and json.dumps(self.value) == json.dumps(other.value)

    def __deepcopy__(self, memo: dict) -> _Leaf:
        return self  # dictdiffer copies what it tells of.


def _trees(old: object, new: object, key: str) -> tuple[object, object]:
    """Both sides as dicts from a step of a path to what stands there, as deep as both are alike in kind."""
    if isinstance(old, dict) and isinstance(new, dict):
        sides = [{_step(name): each for name, each in side.items()} for side in (old, new)]
    elif isinstance(old, list) and isinstance(new, list):
        is_table = (old or new) and _is_table(old, key) and _is_table(new, key)
        names = [
            [f"{key}={row[key]}" for row in side] if is_table else range(len(side))
            for side in (old, new)
        ]
        named = zip(names, (old, new), strict=True)
        sides = [{f"[{name}]": each for name, each in zip(*pair, strict=True)} for pair in named]
    else:
        return _Leaf(old), _Leaf(new)
    left, right = sides
    pairs = {
        step: _trees(left.get(step, ABSENT), right.get(step, ABSENT), key) for step in left | right
    }
    return {step: pairs[step][0] for step in left}, {step: pairs[step][1] for step in right}


def _step(name: str) -> str:
    return f".{name}" if re.fullmatch(_NAME, name) else f"[{json.dumps(name, ensure_ascii=False)}]"


def _is_table(rows: list, key: str) -> bool:
    found = [
        str(row[key])
        for row in rows
        if isinstance(row, dict) and isinstance(row.get(key), str | int)
    ]
    return len(found) == len(rows) == len(set(found))


def _steps(path: str) -> list[object]:
    steps, place = [], 1
    while path.startswith("$") and place < len(path):
        if not (match := _STEP.match(path, place)):
            break
        name, index, quoted, column, wanted = match.groups()
        steps.append(
            (column, wanted)
            if column
            else int(index)
            if index
            else quoted[1:-1]
            if quoted
            else name
        )
        place = match.end()
    if not path.startswith("$") or place < len(path):
        why = "it starts with $, and goes on with .name, [0], ['name'] or [id=7]"
        raise InvalidRequestError(
            f"--path {path!r} is no path", why=why, hint="--path $.rows[0].total"
        )
    return steps


def _natural(path: str) -> list[object]:
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path)
    ]


def is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
