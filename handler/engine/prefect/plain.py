"""
What pfl hands to Prefect, as Prefect can take it: for people, coded and cut.

Nothing here is read back, so a value that Prefect or its database refuses is never the reason that
a step fails, or that a run cannot be listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from ...core.store.values import JsonObject
from ...core.tags import run_tags

if TYPE_CHECKING:
    from ..invocation import Invocation

# The longest text: half of what Prefect allows for the parameters of a run, or for an event.
_TEXT = 200_000
# Deeper values would end in a RecursionError in Prefect.
_DEPTH = 40
# The integers that a database and Prefect's JSON can hold.
_INTEGERS = range(-(2**63), 2**63)


def plain(value: object, depth: int = _DEPTH, items: int | None = None) -> object:
    """
    *value* as JSON that every Prefect server can store.

    Args:
        value: Any value.
        depth: Deeper values are left out.
        items: How many items of each list and object are kept; None: all.
    """
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value in _INTEGERS else text(str(value), 1_000)
    if isinstance(value, float):
        return value if abs(value) < inf else str(value)
    if isinstance(value, dict | list | tuple) and not depth:
        return "…"
    if isinstance(value, dict):
        kept = islice(value.items(), items)
        return {text(name): plain(item, depth - 1, items) for name, item in kept}
    if isinstance(value, list | tuple):
        return [plain(item, depth - 1, items) for item in islice(value, items)]
    return value


def text(value: str, longest: int = _TEXT) -> str:
    """*value* without the characters that JSON or a database refuses, and cut."""
    if len(value) > longest:
        value = value[: longest - 1] + "…"
    if not value.isascii():
        value = value.encode(errors="backslashreplace").decode()
    return value.replace("\0", "\\x00")


def shown(value: object, longest: int, *, indent: int | None = None) -> str:
    """*value* as JSON text for people, of *longest* characters at most."""
    encoder = json.JSONEncoder(ensure_ascii=False, indent=indent)
    pieces: list[str] = []
    size = 0
    # An item has one character at least.
    for piece in encoder.iterencode(plain(value, items=longest)):
        pieces.append(piece)
        size += len(piece)
        if size > longest:
            break
    return text("".join(pieces), longest)


def parameter(value: object, longest: int = 2_000) -> object:
    """*value* as a parameter of a flow run: itself, or its text if it is long."""
    as_text = value if isinstance(value, str) else shown(value, longest + 1)
    return plain(value) if len(as_text) <= longest else text(as_text, longest)


def describe(exc: BaseException) -> str:
    """An error in one line, with the errors in a group, whatever its own methods do."""
    from ..steps import text_of

    return text(f"{type(exc).__name__}: {text_of(exc)}".rstrip(": "), 20_000)


def presentable(exc: BaseException) -> Exception:
    """
    *exc* as Prefect's engine can report it: itself, or an exception with the same name and a text.

    Prefect formats what a task raises. An error in that, or a signal of its own such as ``Pause``,
    would leave the run open.
    """
    described = describe(exc)
    if isinstance(exc, Exception) and not isinstance(exc, ExceptionGroup):
        try:
            as_it_is = f"{type(exc).__name__}: {exc}".rstrip(": ")
            if described == as_it_is and text(repr(exc)) == repr(exc):
                return exc
        except Exception:  # Its own __str__ or __repr__ failed.
            pass
    name, _, message = described.partition(": ")
    stand_in: Exception = type(name, (Exception,), {})(message)
    stand_in.__cause__ = exc
    return stand_in


def named(invocation: Invocation, tags: Iterable[str] = ()) -> JsonObject:
    """The name of the flow run of a call, and its tags, with those that it has."""
    request = invocation.call.request
    name = f"{request.flow.name}/{request.id}/{request.step or 'all'}"
    own = run_tags(request.id, request.step, invocation.claims.holder.token)
    return {"name": name, "tags": sorted({*tags, *own})}
