"""
What the readers of names, classes and functions share.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from handler.core.fingerprint import place
from handler.core.fingerprint.values import Encoded

MISSING = object()

MEMO: dict[int, tuple[Any, Encoded]] = {}  # values as they were when first seen in this process
FIRST: dict[tuple[int, str], tuple[Any, Any]] = {}


class Value(NamedTuple):
    """A value that gets a part of its own."""

    key: tuple[Any, ...]
    name: str
    kind: str
    value: Any
    file: str | None
    line: int | None
    nodes: tuple[ast.AST, ...]
    home: types.ModuleType | None


class Pair(NamedTuple):
    value: Any
    state: Any


def plain(function: Any) -> Any:
    """The Python function or class inside a step, partial, method or cached function; None if there is none."""
    for _ in range(32):
        if isinstance(function, types.FunctionType | type):
            return function
        fields = ("function", "__wrapped__", "__func__", "func")
        inner = next((item for item in (getattr(function, name, None) for name in fields) if item is not None), None)
        if inner is None:
            break
        function = inner
    call = getattr(type(function), "__call__", None)
    return call if isinstance(call, types.FunctionType) else None


def is_step(item: Any) -> bool:
    """Whether *item* is a step: an object of the framework that holds a function."""
    kind = type(item)
    return kind.__module__.partition(".")[0] == "handler" and isinstance(getattr(item, "function", None), types.FunctionType)


def remembered(owner: Any, name: str, value: Any) -> Any:
    """
    A value that code sets while it runs, as it was when first seen in this process.

    So the second fingerprint of a process equals the first, whatever ran in between.
    """
    return FIRST.setdefault((id(owner), name), (owner, value))[1]


def describe(error: BaseException, relative: Callable[[str | None], str | None]) -> str:
    """An exception with the file and line of the project where it came from."""
    file, line = getattr(error, "filename", None), getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None and not isinstance(error, SyntaxError):
        path = trace.tb_frame.f_code.co_filename
        if place.kind_of_file(path) == place.PROJECT:
            file, line = path, trace.tb_lineno
        trace = trace.tb_next
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__} in {relative(file)}:{line}: {said}" if file else f"{type(error).__name__}: {said}"


def isa(value: Any, kinds: Any) -> bool:
    """``isinstance`` that asks the type only: a proxy may run code to say what it is."""
    return issubclass(type(value), kinds)
