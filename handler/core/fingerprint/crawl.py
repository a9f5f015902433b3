"""
From a function to everything it rests on.

Source says which names are read, the live modules say what these are bound to. Reading starts at one function and
follows links until nothing new is found; what is reached gets one part. Nothing of the project is called. Modules that
a function imports when it runs are imported here, as its first call would do.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.fingerprint import ownership, visits, words
from pfl.handler.core.fingerprint.classes import visit_class
from pfl.handler.core.fingerprint.effects import visit_effects
from pfl.handler.core.fingerprint.model import Fingerprint, digest_of
from pfl.handler.core.fingerprint.names import Names
from pfl.handler.core.fingerprint.reading import Effects, Reading, Spot, Value, is_step, plain
from pfl.handler.core.fingerprint.source import load
from pfl.handler.core.fingerprint.values import Folder, Package

_DEPTH = 10_000  # frames: a long chain of ``elif`` or ``+`` is nested as deep as it is long
_VISITS = {
    Value: visits.visit_value,
    Package: visits.visit_package,
    Folder: visits.visit_folder,
    Effects: visit_effects,
    types.FunctionType: visits.visit_function,
    type: visit_class,
    types.ModuleType: visits.visit_module,
}


def crawl(function: Any) -> Fingerprint:
    """
    The fingerprint of *function*.

    Raises:
        InvalidRequestError: *function* has no Python source.
    """
    home, limit = _home_of(function), sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEPTH))
    try:
        return _crawl(function, home)
    finally:
        if sys.getrecursionlimit() == _DEPTH:  # a module that was imported may have set another
            sys.setrecursionlimit(limit)


def _crawl(function: Any, home: ownership.Home) -> Fingerprint:
    asked = frozenset[str]()
    for _ in range(8):
        reading = Reading(home, asked)
        label = reading.link(function)
        reading.made |= {label: made for made in [_made(reading, function)] if made is not None}
        while reading.queue and not reading.has_imported and reading.found_asked == asked:
            _visit(reading, *reading.queue.popleft())
        if not reading.has_imported and reading.found_asked == asked:
            reading.keep()
            opaque = sorted(
                reading.opaque.values(),
                key=lambda part: (part.file or "", part.line or 0, part.name, part.text),
            )
            return Fingerprint(
                digest_of(reading.parts),
                tuple(reading.parts),
                tuple(opaque),
                frozenset(reading.files),
            )
        asked = (
            reading.found_asked
        )  # more counts than was thought, or there are new modules: from the start
    raise InvalidRequestError(f"{function!r} imports new modules each time it is read")


def _made(reading: Reading, function: Any) -> Spot | None:
    """The statements of its module that made *function*."""
    module = sys.modules.get(getattr(plain(function), "__module__", None) or "")
    name = (
        next((name for name, value in vars(module).items() if value is function), None)
        if module is not None
        else None
    )
    return (
        Names(reading, "", None, vars(module), module).made(name, function)
        if name is not None
        else None
    )


def _visit(reading: Reading, label: str, item: Any) -> None:
    visit = _VISITS.get(type(item)) or next(
        (_VISITS[kind] for kind in type(item).__mro__ if kind in _VISITS), None
    )
    (visit or (visits.visit_step if is_step(item) else visits.visit_callable))(reading, label, item)


def _home_of(function: Any) -> ownership.Home:
    inner = plain(function)
    code = getattr(inner, "__code__", None)
    if inner is None or (code is None and not isinstance(inner, type)):
        raise InvalidRequestError(
            f"a {type(function).__name__} has no Python source to fingerprint",
            why=f"{words.shown('', function)} is written in C or no function",
            hint="give a function that is written in Python",
        )
    module = getattr(inner, "__module__", None) or ""
    file = (
        code.co_filename
        if code is not None
        else ownership.file_of(sys.modules[module])
        if module in sys.modules
        else ""
    )
    if code is not None and load(file, inner.__globals__) is None:
        raise InvalidRequestError(
            f"`{inner.__qualname__}` has no source to fingerprint",
            why=f"{file}:{code.co_firstlineno} cannot be read: made by exec, typed at a prompt, or piped in",
            hint="put the function in a module",
        )
    return ownership.home_of(os.path.abspath(file or ""), module)
