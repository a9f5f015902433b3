"""What a step may return: a value that JSON can hold, checked so that a cached value equals the computed one."""

from __future__ import annotations

import json
import math
from typing import Any

from pfl.handler.core.errors import UnstorableValueError

JsonObject = dict[str, Any]  # An object of JSON whose shape somebody else decides.


def encode(value: object, *, step: str = "") -> str:
    """
    The JSON text of *value*, as it is stored; tuples become lists, as they do for whoever reads it.

    Raises:
        UnstorableValueError: Something inside is no JSON; the message has the path to it, such as ``result.rows[3].when``.
    """
    try:
        trouble = _trouble(value, "result", [])
    except RecursionError:
        trouble = ("result", "it is nested too deeply")
    if trouble is None:
        try:
            return json.dumps(value, allow_nan=False)
        except (
            ValueError,
            RecursionError,
        ) as exc:  # An integer past Python's digit limit, for one.
            trouble = ("result", str(exc))
    path, why = trouble
    raise UnstorableValueError(
        f"step {step} returned a value that cannot be stored"
        if step
        else "the value cannot be stored",
        why=f"{path}: {why}",
        hint="return only dict (with text keys), list, str, int, finite float, bool and None",
    )


def normalise(value: object, *, step: str = "") -> tuple[object, str]:
    """*value* as every later reader will see it, and its JSON text."""
    text = encode(value, step=step)
    return json.loads(text), text


def _trouble(value: object, path: str, within: list[int]) -> tuple[str, str] | None:
    if value is None or isinstance(value, str | bool | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, f"{float(value)} is not a JSON number")
    if not isinstance(value, dict | list | tuple):
        return (
            path,
            f"{type(value).__module__}.{type(value).__qualname__} is not JSON".removeprefix(
                "builtins."
            ),
        )
    if id(value) in within:
        return path, "it contains itself"
    within.append(id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            # json.dumps would turn 1 into "1" in silence, and the cached value would differ from the computed one.
            if type(key) is not str:
                return f"{path}[{key!r}]", f"the key is {type(key).__name__}, not text"
            inner = f"{path}.{key}" if key.isidentifier() else f"{path}[{key!r}]"
            if found := _trouble(item, inner, within):
                return found
    else:
        for index, item in enumerate(value):
            if found := _trouble(item, f"{path}[{index}]", within):
                return found
    within.pop()
    return None
