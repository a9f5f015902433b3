"""
Values as text that is equal exactly when the values are: the digest of a constant.

Order does not matter in a set and does in a dict; types are told apart; a value that holds itself is written with
references back. Functions, classes and modules of the project are left as links, which whoever crawls follows.
"""

from __future__ import annotations

import _thread
import contextvars
import copyreg
import enum
import functools
import hashlib
import marshal
import os
import re
import struct
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.fingerprint.model import tagged

MAX_VALUES = 50_000  # containers and instances, looked at in about half a second; numbers and texts in them cost less
_MAX_FOREIGN_VALUES = 5_000

_NO_VALUE = object()
_BULK = {int, float, str, bytes, bool, type(None), complex}
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (dict, lambda value: list(dict.items(value))),
    (list, lambda value: list(list.__iter__(value))),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
    (str, lambda value: str.__getitem__(value, slice(None))),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (int, int.__int__),
    (float, float.__float__),
    (complex, lambda value: complex(value.real, value.imag)),
    (BaseException, lambda value: value.args),
)
_PLAIN = tuple(base for base, _ in _BASES)
_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: a class written in C
_HOOKS = {
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
    "__getattr__",
    "__getattribute__",
}
_SILENT = ("logging", "warnings")
# Their state says nothing about what a program computes, or changes while it runs: how they are made says more.
HIDDEN_STATE = (
    "_thread", "threading", "weakref", "_weakref", "_weakrefset", "asyncio", "_asyncio", "queue", "_queue",
    "concurrent", "multiprocessing", "itertools", "random", "_random", "contextlib", "abc", "_abc", "numpy.random",
)  # fmt: skip
_COPIED = {
    "__module__",
    "__name__",
    "__qualname__",
    "__doc__",
    "__annotations__",
    "__type_params__",
    "__annotate__",
}
_OF_CLASS = {
    "__dict__",
    "__weakref__",
    "__firstlineno__",
    "__static_attributes__",
}  # what vars(Class) has besides what is written
_RESOURCES = (
    "_io",
    "io",
    "socket",
    "_socket",
    "ssl",
    "_ssl",
    "sqlite3",
    "subprocess",
    "http",
    "select",
    "tempfile",
    "mmap",
)
_NEVER_SAME = (
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
    types.FrameType,
    types.TracebackType,
)


class Encoded(NamedTuple):
    """
    A value as text.

    Args:
        token: A literal, or a digest.
        links: Functions, classes and modules inside it, in order.
        doubts: Why its state is not all in *token*; empty strings where that is as it should be.
    """

    token: str
    links: tuple[Any, ...] = ()
    unknowns: tuple[str, ...] = ()


class TooLarge(Exception):
    """A value holds more values than are looked at."""


class Package(NamedTuple):
    """A link to an installed package, by a module of it; with a version, by its own name."""

    name: str
    version: str = ""


class Folder(NamedTuple):
    """A link to a folder, by its path below the project's root, from which an instance reads files when it is used."""

    name: str


class Encoder:
    """
    Encodes values, each mutable one once.

    Args:
        home: The project, whose functions, classes and modules are left as links.
    """

    def __init__(self, codebase: ownership.Codebase) -> None:
        self.codebase = codebase
        self.memo: dict[int, tuple[Any, Encoded]] = {}
        self._stack: dict[int, int] = {}
        self._lowest = sys.maxsize  # the outermost value that a reference back points to
        self._left = MAX_VALUES

    def top(self, value: Any) -> Encoded:
        """Encode a value that stands alone."""
        self._left, self._lowest = MAX_VALUES, sys.maxsize
        self._stack.clear()
        try:
            return self.encode(value)
        except (TooLarge, RecursionError):
            size = f" of {len(value)}" if type(value) in (list, tuple, dict, set, frozenset) else ""
            return Encoded(
                f"large {type(value).__qualname__}{size}", (), ("too large to look at whole",)
            )

    def encode(self, value: Any) -> Encoded:
        """Encode a value that may stand inside another."""
        kind = type(value)
        if kind in _PRIMITIVES:
            return Encoded(self._literal(value))
        key = id(value)
        if key in self.memo:
            return self.memo[key][1]
        if key in self._stack:
            self._lowest = min(self._lowest, self._stack[key])
            return Encoded(f"back:{len(self._stack) - self._stack[key]}")
        self._left -= 1
        if self._left < 0:
            raise TooLarge
        outer, self._lowest = self._lowest, sys.maxsize
        depth = self._stack[key] = len(self._stack)
        try:
            encoded = self._compound(value, kind)
        finally:
            self._stack.pop(key, None)
        if self._lowest >= depth:  # it refers to nothing around it, so it means the same anywhere
            self.memo[key] = (value, encoded)
            self._lowest = outer
        else:
            self._lowest = min(outer, self._lowest)
        return encoded

    def join(self, tag: str, parts: Iterable[Encoded]) -> Encoded:
        """Several values as one."""
        parts = list(parts)
        return Encoded(
            "#" + tagged(tag, *(part.token for part in parts)),
            tuple(link for part in parts for link in part.links),
            tuple(dict.fromkeys(add_opaque for part in parts for add_opaque in part.unknowns)),
        )

    def many(self, tag: str, values: Iterable[Any]) -> Encoded:
        """Values in order."""
        return self.join(tag, map(self.encode, values))

    def named(self, tag: str, items: Iterable[tuple[str, Any]]) -> Encoded:
        """Values with names, in the order of the names."""
        return self.join(
            tag,
            (part for name, value in sorted(items) for part in (Encoded(name), self.encode(value))),
        )

    def _compound(self, value: Any, kind: type) -> Encoded:
        if kind in (list, tuple):
            return self._sequence(kind.__name__, value)
        if kind is dict:
            if "__builtins__" in value:  # exec puts it there
                value = {name: item for name, item in value.items() if name != "__builtins__"}
            keys, values = (
                self._sequence("keys", list(value)),
                self._sequence("values", list(value.values())),
            )
            return self.join("dict", (keys, values))
        if kind in (set, frozenset):
            return self._unordered(kind.__name__, value)
        for types_, encode in _KINDS:
            if issubclass(kind, types_):  # not isinstance: a proxy may run code to say what it is
                return encode(self, value)
        return self._instance(value, kind)

    def _literal(self, value: Any) -> str:
        kind = type(value)
        if kind is not str:
            return _PRIMITIVES[kind](value)
        if len(value) < 1_000_000:  # in longer ones a search for paths takes too long
            value = self.codebase.shorten(value)
        return f"str:{value}" if len(value) < 200 else f"str#{tagged('text', value)}"

    def _literals(self, values: Iterable[Any]) -> list[str] | None:
        """Tokens of plain values, or None if others are among them."""
        return (
            [self._literal(value) for value in values] if set(map(type, values)) <= _BULK else None
        )

    def _sequence(self, tag: str, values: list[Any] | tuple[Any, ...]) -> Encoded:
        if len(values) > 10_000 and set(map(type, values)) <= _BULK:
            # marshal's second format is the same on every Python, and ten times faster.
            return Encoded(
                f"#{tag}:{len(values)}:{hashlib.sha256(marshal.dumps(list(values), 2)).hexdigest()}"
            )
        if (tokens := self._literals(values)) is not None:
            return Encoded("#" + tagged(tag, *tokens))
        return self.many(tag, values)

    def _unordered(self, tag: str, values: Any) -> Encoded:
        if (tokens := self._literals(values)) is not None:
            return Encoded("#" + tagged(tag, *sorted(tokens)))
        return self.join(tag, sorted((self.encode(value) for value in values), key=_sort_key))

    def function(self, value: types.FunctionType) -> Encoded:
        """A link to the project's function; a foreign one by name, with what it closes over."""
        kind = self.codebase.kind_of_file(value.__code__.co_filename)
        if kind == ownership.PROJECT or (
            kind == ownership.GENERATED and not self._is_foreign_module(value.__module__)
        ):
            return Encoded(f"function {value.__code__.co_qualname}", (value,))
        if kind == ownership.FRAMEWORK:
            return Encoded("framework")
        module = value.__globals__.get("__name__") or value.__module__ or ""
        name = self._foreign(module, value.__code__.co_qualname)
        if isinstance(
            registry := vars(value).get("registry"), types.MappingProxyType
        ):  # singledispatch, where order says nothing
            return self.join(
                "singledispatch", [name, self._unordered("registry", registry.items())]
            )
        cells = []
        for free, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            try:
                if (
                    free != "mtime"
                ):  # the time of a file, not what it says: jinja's loaders keep it to see edits
                    cells.append((free, cell.cell_contents))
            except ValueError:
                continue
        state = [
            *cells,
            *(
                (f".{name}", item)
                for name, item in vars(value).items()
                if not name.startswith("__")
            ),
        ]
        if "__wrapped__" in vars(value):
            state.append(("__wrapped__", value.__wrapped__))  # type: ignore[attr-defined]
        return self.join("foreign function", [name, self.named("state", state)]) if state else name

    def builtin(self, value: Any) -> Encoded:
        """A function written in C, with the object it is bound to."""
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return self._foreign(
                getattr(value, "__module__", None) or "builtins", value.__qualname__
            )
        return self.join("bound builtin", [Encoded(value.__qualname__), self.encode(owner)])

    def type(self, value: type) -> Encoded:
        """A link to the project's class; a foreign one by name."""
        kind = self.codebase.kind_of_class(value)
        if kind == ownership.PROJECT:
            return Encoded(f"class {value.__qualname__}", (value,))
        return (
            Encoded("framework")
            if kind == ownership.FRAMEWORK
            else self._foreign(value.__module__, value.__qualname__)
        )

    def _is_foreign_module(self, name: str | None) -> bool:
        module = sys.modules.get(name or "")
        return (
            module is not None
            and name != "__main__"
            and self.codebase.kind_of_module(module) != ownership.PROJECT
        )

    def _foreign(self, module: str, name: str) -> Encoded:
        installed = ownership.kind_of_module(module) == ownership.INSTALLED
        return Encoded(
            f"{module.partition('.')[0]}:{name}", (Package(module),) if installed else ()
        )

    def module(self, value: types.ModuleType) -> Encoded:
        """A link to the project's module or an installed package."""
        kind = self.codebase.kind_of_module(value)
        links = {ownership.PROJECT: (value,), ownership.INSTALLED: (Package(value.__name__),)}.get(
            kind, ()
        )
        return Encoded(f"module {value.__name__.rpartition('.')[2]}", links)

    def _instance(self, value: Any, kind: type) -> Encoded:
        name, owner = self.type(kind), self.codebase.kind_of_class(kind)
        if owner == ownership.FRAMEWORK:
            steps = getattr(value, "function", None)
            return (
                Encoded("step", (value,))
                if isinstance(steps, types.FunctionType)
                else Encoded("framework")
            )
        if owner != ownership.PROJECT:
            return self._foreign_instance(value, kind, name)
        parts = [self.encode(unwrap(value)) for base, unwrap in _BASES if issubclass(kind, base)]
        parts.append(self.named("state", state_of(value)))
        solid = next(
            base
            for base in kind.__mro__
            if base.__flags__ & _IMMUTABLE or is_below(base.__module__, HIDDEN_STATE)
        )
        if solid is not object and not issubclass(
            solid, _PLAIN
        ):  # written in C, which may keep what no attribute shows
            is_quiet = all(
                base.__flags__ & _IMMUTABLE or _HOOKS.isdisjoint(vars(base))
                for base in kind.__mro__
            )
            parts.append(
                self._foreign_instance(value, solid, Encoded(""))
                if is_quiet
                else self._unknown(kind)
            )
        return self.join("instance", [name, *parts])

    def _foreign_instance(self, value: Any, kind: type, name: Encoded) -> Encoded:
        """An instance of *kind*, which is not the project's, or is the part of an instance that is not."""
        module = kind.__module__
        if module.startswith("pathlib"):
            return self.join("path", [name, Encoded(self.codebase.shorten(str(value)))])
        if module == "configparser" and hasattr(
            value, "_sections"
        ):  # newer Pythons add options to its state
            return self.join(
                "configparser", [name, self.encode(value._sections), self.encode(value._defaults)]
            )
        if kind is types.SimpleNamespace or (module, kind.__name__) == ("argparse", "Namespace"):
            return self.join("namespace", [name, self.encode(dict(vars(value)))])
        if (module, kind.__name__) == (
            "pydantic.type_adapter",
            "TypeAdapter",
        ):  # what it derives from these holds addresses
            return self.join(
                "adapter", [name, self.encode(value._type), self.encode(value._config)]
            )
        if is_below(module, _SILENT) and kind.__name__.endswith(
            ("Logger", "Handler", "Manager", "catch_warnings")
        ):
            return name
        if is_below(module, HIDDEN_STATE):
            return name._replace(unknowns=("",))
        if is_below(module, _RESOURCES):
            return name._replace(
                unknowns=(
                    f"a live {module.lstrip('_')}.{kind.__qualname__}, of which only the class counts",
                )
            )
        if (buffer := _buffer(value)) is not None:
            return self.join(
                "buffer", [name, Encoded(buffer), self.named("state", state_of(value))]
            )
        reduced = self._reduced(value, name)
        if module == "jinja2.loaders":
            paths = getattr(value, "searchpath", None) or [getattr(value, "_template_root", None)]
            folders = [
                os.path.abspath(path)
                for path in paths
                if isinstance(path, str) and os.path.isdir(path)
            ]
            mine = [
                Folder(self.codebase.relative(path) or "")
                for path in folders
                if self.codebase.kind_of_file(path) == ownership.PROJECT
            ]
            return reduced._replace(links=(*reduced.links, *mine))
        return reduced

    def _reduced(self, value: Any, name: Encoded) -> Encoded:
        """What an instance gives to be pickled."""
        left = self._left
        before = self._left = min(left, _MAX_FOREIGN_VALUES)
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
            if isinstance(
                reduced, str
            ):  # a global, by its name: Python's own, or one that the project made
                if getattr(sys.modules.get(type(value).__module__), reduced, None) is value:
                    return self._foreign(
                        type(value).__module__, reduced
                    )  # whatever its class: that differs between Pythons
                return self.join("global", [name, Encoded(reduced, (), ("",))])
            state = self.many("reduced", map(_settled, reduced[1:]))
            if not any(state.unknowns):
                return self.join("foreign", [name, state])
        except (
            Exception
        ):  # whatever a foreign class does when asked for its state, its class is all we know then
            pass
        finally:
            self._left = max(left - (before - self._left), 0)
        wrapped = [
            getattr(value, field, None)
            for field in ("__wrapped__", "func", "fn", "py_func", "function")
        ]
        links = [self.function(item) for item in wrapped if isinstance(item, types.FunctionType)]
        return self.join(
            "foreign",
            [name, *links, Encoded("", (), ("",)) if links else self._unknown(type(value))],
        )

    @staticmethod
    def _unknown(kind: type) -> Encoded:
        return Encoded("", (), (f"the state of a {kind.__qualname__} cannot be known",))

    def _enum(self, value: Any) -> Encoded:
        kind = type(value)
        if self.codebase.kind_of_class(kind) != ownership.PROJECT:
            return self._foreign(kind.__module__, f"{kind.__qualname__}.{value._name_}")
        return self.join(
            "member", [self.type(kind), Encoded(str(value._name_)), self.encode(value._value_)]
        )

    def _by_attributes(self, value: Any, names: tuple[str, ...]) -> Encoded:
        return self.join(
            type(value).__name__,
            [self.type(type(value)), *(self.encode(getattr(value, name)) for name in names)],
        )

    def _context_var(self, value: Any) -> Encoded:
        held = value.get(_NO_VALUE)
        if held is _NO_VALUE:
            try:
                held = value.get()
            except LookupError:
                return Encoded(f"context variable {value.name}")
        return self.join("context variable", [Encoded(value.name), self.encode(held)])


def state_of(value: Any) -> list[tuple[str, Any]]:
    """Attributes and slots of an instance, without running any of its code."""
    items: list[tuple[str, Any]] = []
    for klass in type(value).__mro__:
        for name, slot in vars(klass).items():
            if isinstance(slot, types.MemberDescriptorType) and name != "__weakref__":
                try:
                    items.append((name, slot.__get__(value)))
                except AttributeError:
                    continue
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        attributes = {}
    return items + [(str(name), item) for name, item in without_copied(attributes)]


def without_copied(attributes: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Attributes without what functools.update_wrapper copies: that is said by what is wrapped."""
    copied = _COPIED if "__wrapped__" in attributes else ()
    return ((name, item) for name, item in dict.items(attributes) if name not in copied)


def _buffer(value: Any) -> str | None:
    """Arrays of numbers: shape, format and content, through the protocol that numpy and ``array`` offer."""
    if getattr(getattr(value, "dtype", None), "hasobject", False):
        return None  # its bytes are addresses
    try:
        view = memoryview(value)
        data = view if view.c_contiguous else view.tobytes()
        return f"{view.format}:{view.shape}:{hashlib.sha256(data).hexdigest()}"
    except (TypeError, ValueError, BufferError, NotImplementedError):
        return None


def _float(value: float) -> str:
    return "float:nan" if value != value else f"float:{value.hex()}"


def _sort_key(encoded: Encoded) -> tuple[str, list[tuple[Any, ...]]]:
    """By content; lambdas of one name by where they stand."""
    codes = [getattr(link, "__code__", None) for link in encoded.links]
    return encoded.token, [_stand(item) if item else () for item in codes]


def _stand(item: types.CodeType) -> tuple[Any, ...]:
    column = max((location[3] or 0 for location in item.co_positions()), default=0)
    return (
        item.co_filename,
        item.co_firstlineno,
        column,
        ascii(item.co_consts) if column == 0 else "",
    )


def _settled(state: Any) -> Any:
    """State with iterators written out, and without what is None or False: newer Pythons add such attributes."""
    if type(state) is dict:
        return sorted(
            (name, item) for name, item in state.items() if item is not None and item is not False
        )
    return list(state) if hasattr(state, "__next__") else state


def is_below(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of *names*, or below one."""
    return any(module == name or module.startswith(name + ".") for name in names)


_PRIMITIVES: dict[type, Callable[[Any], str]] = {
    type(None): lambda value: "None",
    bool: lambda value: f"bool:{value}",
    int: lambda value: f"int:{value:x}",
    float: _float,
    complex: lambda value: f"complex:{_float(value.real)}:{_float(value.imag)}",
    str: lambda value: f"str:{value}",
    bytes: lambda value: (
        f"bytes:{value.hex()}" if len(value) < 64 else f"bytes#{hashlib.sha256(value).hexdigest()}"
    ),
    type(...): lambda value: "...",
    type(NotImplemented): lambda value: "NotImplemented",
}


_ATTRIBUTES: dict[Any, tuple[str, ...]] = {
    types.MethodType: ("__func__", "__self__"),
    property: ("fget", "fset", "fdel"),
    (staticmethod, classmethod): ("__func__",),
    functools.partial: ("func", "args", "keywords", "__dict__"),
    functools.partialmethod: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    functools.singledispatchmethod: ("dispatcher", "func"),
    (range, slice): ("start", "stop", "step"),
    re.Pattern: ("pattern", "flags"),
    struct.Struct: ("format",),
    typing.ForwardRef: ("__forward_arg__",),
    types.CellType: ("cell_contents",),
    types.CodeType: ("co_code", "co_names", "co_varnames", "co_freevars", "co_consts"),  # right on one Python, other on the next
    (types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType, types.ClassMethodDescriptorType,
     types.GetSetDescriptorType, types.MemberDescriptorType): ("__qualname__",),
}  # fmt: skip

_KINDS: list[tuple[Any, Callable[[Encoder, Any], Encoded]]] = [
    (types.FunctionType, Encoder.function),
    (types.BuiltinFunctionType, Encoder.builtin),
    (enum.Enum, Encoder._enum),
    (type, Encoder.type),
    (types.ModuleType, Encoder.module),
    *(
        (kind, lambda self, value, names=names: self._by_attributes(value, names))
        for kind, names in _ATTRIBUTES.items()
    ),
    (
        type(functools.lru_cache(lambda: None)),
        lambda self, value: self.many("lru_cache", [value.__wrapped__, value.cache_parameters()]),
    ),
    (
        types.MappingProxyType,
        lambda self, value: self.many(
            "mappingproxy", [{name: item for name, item in value.items() if name not in _OF_CLASS}]
        ),
    ),
    (weakref.ref, lambda self, value: self.many("weakref", [value()])),
    (_thread.LockType, lambda self, value: Encoded("lock", (), ("",))),
    (
        _NEVER_SAME,
        lambda self, value: Encoded(type(value).__name__, (), (f"a live {type(value).__name__}",)),
    ),
    (contextvars.ContextVar, Encoder._context_var),
]
