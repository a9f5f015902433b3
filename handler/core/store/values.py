"""The values a step may return: JSON, checked so that a cached value equals the computed one."""

from __future__ import annotations

import json
import math
from typing import Any

from ..errors import UnstorableValueError

# Python reads JSON that is nested about a thousand times, less what has been called before.
MAX_DEPTH = 500
JsonObject = dict[str, Any]  # A JSON object whose shape somebody else decides.


def encode(value: object, *, step: str = "") -> str:
    """
    The JSON text of *value*, as it is stored; a tuple becomes a list.

    The keys of a dict are sorted: their order is no part of a cache key, so no step may see it.

    Args:
        value: The value.
        step: The step that returned it, for the error.

    Raises:
        UnstorableValueError: Something in it is not JSON; the message has the path to it, such as
            ``result.rows[3].when``.
    """
    try:
        problem = _find_problem(value, "result", [])
        if problem is None:
            return json.dumps(value, allow_nan=False, sort_keys=True)
        path, why = problem
    except RecursionError:
        path, why = "result", "it is nested too deeply"
    except ValueError as exc:  # An integer with more digits than Python writes.
        path, why = "result", str(exc)
    raise UnstorableValueError(
        f"step {step} returned a value that cannot be stored"
        if step
        else "the value cannot be stored",
        why=f"{path}: {why}",
        hint="return only dict (with string keys), list, str, int, finite float, bool and None",
    )


def round_trip(value: object, *, step: str = "") -> tuple[object, str]:
    """*value* as every later reader receives it, and its JSON text; see :func:`encode`."""
    text = encode(value, step=step)
    return json.loads(text), text


def _find_problem(value: object, path: str, parents: list[int]) -> tuple[str, str] | None:
    """The path to the first part that is not JSON, and why it is not; None if all of it is."""
    if value is None or isinstance(value, str | bool | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, f"{float(value)} is not a JSON number")
    if not isinstance(value, dict | list | tuple):
        name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return path, f"{name} is not JSON"
    if id(value) in parents:
        return path, "it contains itself"
    if len(parents) == MAX_DEPTH:
        return path, "it is nested too deeply"
    parents.append(id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            # json.dumps would turn the key 1 into "1", so the cached value would differ.
            if type(key) is not str:
                return f"{path}[{key!r}]", f"the key is {type(key).__name__}, not a string"
            inner = f"{path}.{key}" if key.isidentifier() else f"{path}[{key!r}]"
            if problem := _find_problem(item, inner, parents):
                return problem
    else:
        for index, item in enumerate(value):
            if problem := _find_problem(item, f"{path}[{index}]", parents):
                return problem
    parents.pop()
    return None
