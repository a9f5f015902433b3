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
from pfl.handler.core.fingerprint import ownership, rendering, visitors
from pfl.handler.core.fingerprint.classes import visit_class
from pfl.handler.core.fingerprint.collector import (
    Collector,
    Location,
    SideEffects,
    Value,
    is_step,
    unwrap,
)
from pfl.handler.core.fingerprint.model import Fingerprint, digest_of
from pfl.handler.core.fingerprint.resolver import Resolver
from pfl.handler.core.fingerprint.side_effects import visit_side_effects
from pfl.handler.core.fingerprint.source import load
from pfl.handler.core.fingerprint.values import Folder, Package

_DEPTH = 10_000  # frames: a long chain of ``elif`` or ``+`` is nested as deep as it is long
_VISITS = {
    Value: visitors.visit_value,
    Package: visitors.visit_package,
    Folder: visitors.visit_folder,
    SideEffects: visit_side_effects,
    types.FunctionType: visitors.visit_function,
    type: visit_class,
    types.ModuleType: visitors.visit_module,
}


def crawl(function: Any) -> Fingerprint:
    """
    The fingerprint of *function*.

    Raises:
        InvalidRequestError: *function* has no Python source.
    """
    codebase, limit = _codebase_of(function), sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEPTH))
    try:
        return _crawl(function, codebase)
    finally:
        if sys.getrecursionlimit() == _DEPTH:  # a module that was imported may have set another
            sys.setrecursionlimit(limit)


def _crawl(function: Any, codebase: ownership.Codebase) -> Fingerprint:
    extras = frozenset[str]()
    for _ in range(8):
        collector = Collector(codebase, extras)
        label = collector.link(function)
        collector.creators |= {
            label: made for made in [_creator_of(collector, function)] if made is not None
        }
        while collector.queue and not collector.has_imported and collector.found_extras == extras:
            _visit(collector, *collector.queue.popleft())
        if not collector.has_imported and collector.found_extras == extras:
            collector.remember_values()
            opaque = sorted(
                collector.opaque,
                key=lambda part: (part.file or "", part.line or 0, part.name, part.text),
            )
            return Fingerprint(
                digest_of(collector.parts),
                tuple(collector.parts),
                tuple(opaque),
                frozenset(collector.files),
            )
        extras = (
            collector.found_extras
        )  # more counts than was thought, or there are new modules: from the start
    raise InvalidRequestError(f"{function!r} imports new modules each time it is read")


def _creator_of(collector: Collector, function: Any) -> Location | None:
    """The statements of its module that made *function*."""
    module = sys.modules.get(getattr(unwrap(function), "__module__", None) or "")
    name = (
        next((name for name, value in vars(module).items() if value is function), None)
        if module is not None
        else None
    )
    return (
        Resolver(collector, "", None, vars(module), module).made(name, function)
        if name is not None
        else None
    )


def _visit(collector: Collector, label: str, item: Any) -> None:
    visit = _VISITS.get(type(item)) or next(
        (_VISITS[kind] for kind in type(item).__mro__ if kind in _VISITS), None
    )
    (visit or (visitors.visit_step if is_step(item) else visitors.visit_callable))(
        collector, label, item
    )


def _codebase_of(function: Any) -> ownership.Codebase:
    inner = unwrap(function)
    code = getattr(inner, "__code__", None)
    if inner is None or (code is None and not isinstance(inner, type)):
        raise InvalidRequestError(
            f"a {type(function).__name__} has no Python source to fingerprint",
            why=f"{rendering.render('', function)} is written in C or no function",
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
    return ownership.codebase_of(os.path.abspath(file or ""), module)
