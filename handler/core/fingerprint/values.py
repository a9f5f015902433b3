"""
Values as text that is equal exactly when the values are: the digest of a constant.

Order matters in a dict and not in a set; values of two types differ; a value that holds itself is
written with references back. Functions, classes and modules of the project become links, which the
caller follows.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import itertools
import re
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .model import tagged
from .ownership import FRAMEWORK, GENERATED, INSTALLED, PROJECT, Codebase
from .variables import Variables

# Containers and instances, encoded in about half a second; numbers and texts in them cost less.
MAX_VALUES = 50_000

MISSING = object()
READS_FILE = "reads a file, whose content does not count"
# How an instance of a subclass becomes a plain value, without running its code.
_BASES: dict[type, Callable[[Any], Any]] = {
    dict: dict.copy,
    list: list.copy,
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    str: str.__str__,
    bytes: bytes.__bytes__,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    BaseException: lambda value: value.args,
}
# Py_TPFLAGS_IMMUTABLETYPE: a class written in C.
_IMMUTABLE = 1 << 8
# Their state does not decide what a program computes.
_SILENT = re.compile(r"(?:logging|warnings)\b.*(?:Logger|Handler|Manager|catch_warnings)$")
_OF_HANDLERS = ("filters", "formatter")
# Their state does not either, or it changes while the program runs: the statements that create them
# count instead.
HIDDEN_STATE = re.compile(
    r"(?:_thread|threading|_?weakref|_weakrefset|_?asyncio|_?queue|concurrent|multiprocessing"
    r"|itertools|_?random|_?contextvars|contextlib|_abc|numpy\.random)(?:\.|$)"
    r"|argparse\.(?!Namespace)"
)
_RESOURCES = re.compile(
    r"(?:_?io|_?socket|_?ssl|sqlite3|subprocess|http|select|tempfile|mmap)(?:\.|$)"
)
# What functools.update_wrapper copies.
_COPIED = set(
    "__module__ __name__ __qualname__ __doc__ __annotations__ __type_params__ __annotate__".split()
)


class Encoded(NamedTuple):
    """
    A value as text.

    Args:
        token: A literal, or a digest.
        links: Functions, classes and modules inside it, in order.
        unknowns: Why *token* does not hold its whole state; an empty string where that is intended.
    """

    token: str
    links: tuple[Any, ...] = ()
    unknowns: tuple[str, ...] = ()


_HIDDEN = Encoded("", (), ("",))


class Package(NamedTuple):
    """A link to an installed package, by one of its modules."""

    name: str


class Encoder:
    """
    Encodes values, each mutable one once.

    Args:
        codebase: The project, whose functions, classes and modules become links.
    """

    def __init__(self, codebase: Codebase) -> None:
        self.codebase = codebase
        self.variables = Variables(codebase)
        self.memo: dict[int, tuple[Any, Encoded]] = {}
        self._stack: dict[int, int] = {}

    def top(self, value: Any) -> Encoded:
        """Encode a value that is not part of another."""
        self._remaining = MAX_VALUES
        # The outermost value that a reference back points to.
        self._lowest = sys.maxsize
        try:
            return self.encode(value)
        except RecursionError:
            kind = type(value)
            size = f" of {len(value)}" if kind in (list, tuple, dict, set, frozenset) else ""
            return Encoded(f"large {kind.__qualname__}{size}", (), ("too large to read fully",))

    def encode(self, value: Any) -> Encoded:
        """Encode a value that may be part of another."""
        kind = type(value)
        if kind in _PRIMITIVES:
            return Encoded(self._literal(value))
        key = id(value)
        if key in self.memo:
            return self.memo[key][1]
        if key in self._stack:
            self._lowest = min(self._lowest, self._stack[key])
            return Encoded(f"back:{len(self._stack) - self._stack[key]}")
        self._remaining -= 1
        if self._remaining < 0:
            raise RecursionError
        outer = self._lowest
        self._lowest = sys.maxsize
        depth = self._stack[key] = len(self._stack)
        try:
            encoded = self._compound(value, kind)
        finally:
            del self._stack[key]
        # Without a reference to a value around it, it means the same anywhere.
        if self._lowest >= depth:
            self.memo[key] = (value, encoded)
        self._lowest = min(outer, self._lowest)
        return encoded

    def join(self, tag: str, parts: Iterable[Encoded]) -> Encoded:
        """Several values as one."""
        tokens = []
        links: dict[int, Any] = {}
        places: dict[int, int] = {}
        unknowns: dict[str, None] = {}
        for part in parts:
            tokens.append(part.token)
            for link in part.links:
                # Each once, as a table may hold one class a million times.
                links[id(link)] = link
                tokens.append(str(places.setdefault(id(link), len(places))))
            unknowns |= dict.fromkeys(part.unknowns)
        return Encoded(f"#{tagged(tag, *tokens)}", tuple(links.values()), tuple(unknowns))

    def many(self, tag: str, values: Iterable[Any]) -> Encoded:
        """Values in order."""
        return self.join(tag, map(self.encode, values))

    def named(self, tag: str, items: Iterable[tuple[str, Any]]) -> Encoded:
        """Values with names, in the order of the names."""
        return self.many(tag, itertools.chain(*sorted(items, key=lambda item: item[0])))

    def _compound(self, value: Any, kind: type) -> Encoded:
        if kind in (list, tuple):
            return self._sequence(kind.__name__, value)
        if kind is types.MappingProxyType:
            value, kind = value.copy(), dict
        if kind is dict:
            # exec adds __builtins__.
            keys = [key for key in value if key != "__builtins__"]
            values = [value[key] for key in keys]
            return self.join(
                "dict", [self._sequence("keys", keys), self._sequence("values", values)]
            )
        if kind in (set, frozenset):
            return self.join(kind.__name__, sorted(map(self.encode, value), key=_sort_key))
        # Not isinstance: a proxy may run code to answer that.
        for types_, encode in _KINDS.items():
            if issubclass(kind, types_):
                if isinstance(encode, tuple):
                    return self._by_attributes(value, encode)
                return encode(self, value)
        return self._instance(value, kind)

    def _literal(self, value: Any) -> str:
        kind = type(value)
        if kind is int and self.variables.include(value):
            return f"int:{self.variables.with_digests(str(value))}"
        if kind in (str, bytes):
            value = self.variables.with_digests(value)
        if kind is not str:
            return _PRIMITIVES[kind](value)
        value = self.codebase.shorten(value)
        return f"str:{value}" if len(value) < 200 else f"str#{tagged('text', value)}"

    def _sequence(self, tag: str, values: list[Any] | tuple[Any, ...]) -> Encoded:
        if not set(map(type, values)) <= _PRIMITIVES.keys():
            return self.many(tag, values)
        return Encoded("#" + tagged(tag, *map(self._literal, values)))

    def function(self, value: types.FunctionType) -> Encoded:
        """A link to the project's function; a foreign one by name, with what it closes over."""
        kind = self.codebase.kind_of_file(value.__code__.co_filename)
        if kind == GENERATED:
            kind = self.codebase.kind_of_name(value.__module__ or "")
        if kind == PROJECT:
            return Encoded(f"function {value.__code__.co_qualname}", (value,))
        module = value.__globals__.get("__name__") or value.__module__ or ""
        name = self._foreign(module, value.__code__.co_qualname)
        attributes = vars(value)
        # Jinja's loaders keep a file's time to see edits, which is not its content.
        state = [(free, held) for free, _, held in closure_of(value) if free != "mtime"]
        for attribute, held in attributes.items():
            if not attribute.startswith("__") or attribute == "__wrapped__":
                state.append((f".{attribute}", held))
        return self.join("foreign function", [name, self.named("state", state)]) if state else name

    def builtin(self, value: types.BuiltinFunctionType) -> Encoded:
        """A function written in C, with the object it is bound to."""
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            return self._foreign(value.__module__ or "builtins", value.__qualname__)
        return self.join("bound builtin", [Encoded(value.__qualname__), self.encode(owner)])

    def class_(self, value: type) -> Encoded:
        """A link to the project's class; a foreign one by name."""
        if self.codebase.kind_of_class(value) == PROJECT:
            return Encoded(f"class {value.__qualname__}", (value,))
        return self._foreign(value.__module__, value.__qualname__)

    def _foreign(self, module: str, name: str) -> Encoded:
        kind = self.codebase.kind_of_name(module)
        links: tuple[Any, ...] = (Package(module),) if kind == INSTALLED else ()
        if kind == PROJECT and module in sys.modules:
            # It is compiled.
            links = (sys.modules[module],)
        return Encoded(f"{module.partition('.')[0]}:{name}", links)

    def module(self, value: types.ModuleType) -> Encoded:
        """A link to the project's module or an installed package."""
        name = value.__name__
        if self.codebase.kind_of_module(value) == PROJECT:
            return Encoded(f"module {name.rpartition('.')[2]}", (value,))
        return self._foreign(name, name)

    def _instance(self, value: Any, kind: type) -> Encoded:
        name = self.class_(kind)
        owner = self.codebase.kind_of_class(kind)
        if owner == FRAMEWORK:
            return Encoded("step", (value,)) if is_step(value) else name
        if owner != PROJECT:
            return self._foreign_instance(value, kind, name)
        plain = [to_plain(value) for base, to_plain in _BASES.items() if issubclass(kind, base)]
        parts = [name, *map(self.encode, plain), self.named("state", state_of(value))]
        # A base written in C may keep what no attribute shows.
        solid = next(base for base in kind.__mro__ if base.__flags__ & _IMMUTABLE)
        if any(HIDDEN_STATE.match(base.__module__) for base in kind.__mro__):
            parts.append(_HIDDEN)
        elif solid is not object and not issubclass(solid, tuple(_BASES)):
            parts.append(_unknown(kind))
        return self.join("instance", parts)

    def _foreign_instance(self, value: Any, kind: type, name: Encoded) -> Encoded:
        """An instance of *kind*, or the part of an instance that this foreign base keeps."""
        module = kind.__module__
        if module.startswith("pathlib"):
            return self.join("path", [name, self.encode(str(value))])
        path = f"{module}.{kind.__name__}"
        if path in _STATE_ATTRIBUTES:
            return self._by_attributes(value, _STATE_ATTRIBUTES[path])
        if _SILENT.match(path):
            # What handlers do to a message, a program may see.
            return self.many(name.token, (getattr(value, part, None) for part in _OF_HANDLERS))
        if HIDDEN_STATE.match(path):
            return name._replace(unknowns=("",))
        if _RESOURCES.match(module):
            reason = f"an open {path.lstrip('_')}: only its class counts"
            return name._replace(unknowns=(reason,))
        reduced = self._reduced(value, name)
        if module == "jinja2.loaders":
            return reduced._replace(unknowns=(READS_FILE,))
        return reduced

    def _reduced(self, value: Any, name: Encoded) -> Encoded:
        """What an instance returns to be pickled."""
        kind = type(value)
        # First: it creates the empty dict of a partial, which is then part of what that returns.
        attributes = state_of(value)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
            if isinstance(reduced, str):
                # A global, by its name. The class of Python's own differs between versions.
                if getattr(sys.modules.get(kind.__module__), reduced, None) is value:
                    return self._foreign(kind.__module__, reduced)
                wrapped = self.encode(getattr(value, "__wrapped__", None))
                return self.join("global", [name, wrapped, Encoded(reduced, (), ("",))])
            items = [list(item) if isinstance(item, Iterator) else item for item in reduced[1:]]
            state = self.many("reduced", items)
            if not any(state.unknowns):
                return self.join("foreign", [name, state])
        except Exception:
            # Whatever a foreign class does when asked for its state, its class is still known.
            pass
        known = self.named("state", attributes)
        return self.join("foreign", [name, known, _HIDDEN if attributes else _unknown(kind)])

    def _enum(self, value: enum.Enum) -> Encoded:
        kind = type(value)
        if self.codebase.kind_of_class(kind) != PROJECT:
            return self._foreign(kind.__module__, f"{kind.__qualname__}.{value._name_}")
        return self._by_attributes(value, ("_name_", "_value_"))

    def _by_attributes(self, value: Any, names: tuple[str, ...]) -> Encoded:
        kind = type(value)
        attributes = [self.encode(getattr(value, name)) for name in names] or [_unknown(kind)]
        return self.join(kind.__name__, [self.class_(kind), *attributes])


def is_step(item: Any) -> bool:
    """Whether *item* is a step: an object of pfl that holds a function."""
    is_pfl = type(item).__module__.partition(".")[0] == "pfl"
    return is_pfl and isinstance(getattr(item, "function", None), types.FunctionType)


def _unknown(kind: type) -> Encoded:
    return Encoded("", (), (f"the state of a {kind.__qualname__} cannot be read",))


def closure_of(function: types.FunctionType) -> Iterator[tuple[str, types.CellType, Any]]:
    """Name, cell and value of each variable that *function* closes over; MISSING if unset."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell, cell.cell_contents
        except ValueError:
            yield name, cell, MISSING


def state_of(value: object) -> list[tuple[str, Any]]:
    """Attributes and slots of an instance, without running any of its code."""
    items: list[tuple[str, Any]] = []
    for klass in type(value).__mro__:
        for name, slot in vars(klass).items():
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    items.append((name, slot.__get__(value)))
                except AttributeError:
                    continue
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return items
    return items + [(str(name), item) for name, item in without_copied(attributes)]


def without_copied(attributes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Attributes without those that functools.update_wrapper copied from the wrapped function."""
    copied = _COPIED if "__wrapped__" in attributes else ()
    return ((name, item) for name, item in dict.items(attributes) if name not in copied)


def _sort_key(encoded: Encoded) -> tuple[str, list[int]]:
    """By content; lambdas, which share a name, by their lines."""
    functions = [link for link in encoded.links if issubclass(type(link), types.FunctionType)]
    return encoded.token, [each.__code__.co_firstlineno for each in functions]


_PRIMITIVES: dict[type, Callable[[Any], str]] = {
    type(None): repr,
    type(...): repr,
    bool: repr,
    complex: repr,
    float: float.hex,
    int: lambda value: f"int:{value:x}",
    str: str,
    bytes: lambda value: f"bytes:{hashlib.sha256(value).hexdigest()}",
}

# What identifies a foreign instance, by the name of its class: what it derives from these
# differs between Pythons, or holds addresses.
_STATE_ATTRIBUTES = {
    "configparser.ConfigParser": ("_sections", "_defaults"),
    "configparser.RawConfigParser": ("_sections", "_defaults"),
    "pydantic.type_adapter.TypeAdapter": ("_type", "_config"),
}

# How a value of these types is encoded, or the attributes that say everything about it.
_KINDS: dict[Any, Callable[[Encoder, Any], Encoded] | tuple[str, ...]] = {
    types.FunctionType: Encoder.function,
    types.BuiltinFunctionType: Encoder.builtin,
    enum.Enum: Encoder._enum,
    type: Encoder.class_,
    types.ModuleType: Encoder.module,
    # These differ between versions of Python.
    functools.cached_property: ("func",),
    functools.singledispatchmethod: ("dispatcher", "func"),
    (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType): (),
    struct.Struct: ("format",),
    typing.ForwardRef: ("__forward_arg__",),
    types.CodeType: ("co_code", "co_names", "co_varnames", "co_freevars", "co_consts"),
}
