"""
Finds everything that a function depends on.

The source shows which names are read, the live modules what they are bound to. The crawl starts at
one function and follows links until nothing new is found; each thing that is reached becomes one
part. Nothing of the project is called. Modules that a function imports when it runs are imported
here, as its first call would do.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from types import FunctionType, ModuleType
from typing import Any

from ..errors import InvalidRequestError
from . import ownership, visitors
from .classes import visit_class
from .collector import Collector, Location, SideEffects, Value, unwrap
from .model import Fingerprint, tagged
from .resolver import origin_of
from .side_effects import visit_side_effects
from .values import is_step

# Frames: a long chain of ``elif`` or ``+`` is nested as deeply as it is long.
_DEPTH = 10_000
# The limit of recursion is that of all threads.
_lock = threading.RLock()
_VISITORS: dict[type, Any] = {
    Value: visitors.visit_value,
    SideEffects: visit_side_effects,
    FunctionType: visitors.visit_function,
    type: visit_class,
    ModuleType: visitors.visit_module,
}


def fingerprint(function: object) -> Fingerprint:
    """
    The fingerprint of a function: everything it depends on.

    Values count as they are when first seen in this process, so call it after importing and before
    running.

    Args:
        function: A function, a step, or anything callable that is written in Python.

    Raises:
        InvalidRequestError: It is not written in Python, or a file that it declares does not exist.
    """
    codebase = _codebase_of(function)
    with _lock:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _DEPTH))
        try:
            return _crawl(function, codebase)
        finally:
            # A module that was imported may have set another limit.
            if sys.getrecursionlimit() == _DEPTH:
                sys.setrecursionlimit(limit)


def _crawl(function: object, codebase: ownership.Codebase) -> Fingerprint:
    extras = frozenset[str]()
    for _ in range(8):
        collector = Collector(codebase, extras)
        collector.link(function, _creator_of(collector, function))
        # It comes first, although its module was linked before it.
        collector.queue.rotate()
        while collector.queue and not collector.must_restart():
            collector.label, item, collector.creator = collector.queue.popleft()
            visit = visitors.visit_step if is_step(item) else visitors.visit_callable
            for kind in reversed(type(item).__mro__):
                visit = _VISITORS.get(kind, visit)
            visit(collector, item)
        if not collector.must_restart():
            collector.remember_values()
            rows = sorted((part.name, part.kind, part.digest) for part in collector.parts)
            return Fingerprint(
                tagged("fingerprint", *itertools.chain(*rows)),
                tuple(collector.parts),
                tuple(collector.opaque),
                frozenset(collector.files),
                collector.declared,
                collector.late,
            )
        extras = collector.found_extras
    raise InvalidRequestError(f"{function!r} imports new modules each time pfl reads it")


def _creator_of(collector: Collector, function: object) -> Location | None:
    """The statements of its module that create *function*."""
    module = collector.module_named(getattr(unwrap(function), "__module__", None) or "").module
    if module is None:
        return None
    for name, value in vars(module).items():
        if value is function:
            location, _ = origin_of(collector, module, name, function)
            return location if isinstance(location, Location) else None
    return None


def _codebase_of(function: object) -> ownership.Codebase:
    inner = unwrap(function)
    if inner is None:
        raise InvalidRequestError(
            f"a {type(function).__name__} has no Python source to fingerprint",
            why="it is written in C or is not a function",
            hint="pass a function that is written in Python",
        )
    name = inner.__module__ or ""
    module = sys.modules.get(name)
    file = ownership.file_of(module) if isinstance(module, ModuleType) else None
    if file is None and isinstance(inner, FunctionType):
        file = inner.__code__.co_filename
    return ownership.codebase_of(os.path.abspath(file or ""), name)
