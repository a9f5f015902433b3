"""
What one crawl, from one function, has found so far: parts, their labels, and what cannot be known.
"""

from __future__ import annotations

import ast
import collections
import os
import sys
from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from .. import files
from . import ownership
from .model import Part, tagged
from .rendering import Renderer
from .source import Globals, Source, parse, text_of_file
from .values import MISSING, Encoded, Encoder, Package, is_step

CODE = (FunctionType, BuiltinFunctionType, MethodType, type, ModuleType)
_WRAPPED_AS = ("function", "__wrapped__", "__func__", "func")

# By owner and name.
_FIRST: dict[tuple[int, str], tuple[Any, Any]] = {}
# By identity: the value, its encoding, and the texts that were made of it, by name.
_KNOWN: dict[int, tuple[Any, Encoded, dict[str, str]]] = {}


class ModuleInfo(NamedTuple):
    """A module, its owner, its relative file and, if it is the project's, its source."""

    module: ModuleType | None
    kind: str
    file: str | None
    source: Source | None


class Location(NamedTuple):
    """Where a value is written: relative file, line, the statements that bind it, their module."""

    file: str | None = None
    line: int | None = None
    nodes: tuple[ast.AST, ...] = ()
    module: ModuleType | None = None


class Value(NamedTuple):
    """A value that becomes a part; *key* tells it from others of its name."""

    name: str
    kind: str
    value: Any
    location: Location = Location()
    key: Any = None


class SideEffects(NamedTuple):
    """What a module changes in others when it is imported, or what it defines for them."""

    module: ModuleType
    name: str = ""


class Collector:
    """
    Collects what one function depends on.

    Args:
        codebase: The project.
        extras: What counts besides code, because something that is reached reads it.
    """

    def __init__(self, codebase: ownership.Codebase, extras: frozenset[str]) -> None:
        self.codebase = codebase
        self.owns = codebase.owns
        self.extras = extras
        self.found_extras = extras
        # A new module was imported: what was read until then may have changed.
        self.has_imported = False
        self.encoder = Encoder(codebase)
        self.renderer = Renderer(self.encoder.variables)
        # The part that is read now, and the statements that create it if it may hide its state.
        self.label = ""
        self.creator: Location | None = None
        self.queue: collections.deque[tuple[str, Any, Location | None]] = collections.deque()
        self.parts: list[Part] = []
        self.opaque: dict[Part, None] = {}
        self.files: set[str] = set()
        self.declared: files.Seen = {"files": {}, "listings": {}}
        self.late: dict[str, ModuleType] = {}
        self._first = collections.ChainMap({}, _FIRST)
        self._known = collections.ChainMap({}, _KNOWN)
        # By key: the label, and the item, kept so that its identity is not used twice.
        self._labels: dict[Any, tuple[str, Any]] = {}
        self._counts: dict[str, int] = {}
        self._sources: dict[str, Source | None] = {}
        self._modules: dict[int, ModuleInfo] = {}

    def must_restart(self) -> bool:
        """Whether to crawl again: more counts than was assumed, or modules were imported."""
        return self.has_imported or self.found_extras != self.extras

    def remember_values(self) -> None:
        """Let later crawls see values as this one did, whatever runs in between."""
        _FIRST.update(self._first.maps[0])
        _KNOWN.update(self._known.maps[0])

    def first_seen(self, owner: object, name: str, value: Any) -> Any:
        """
        A value that code may set while it runs, as it was when first seen in this process.

        So the second fingerprint of a process equals the first, whatever ran in between.
        """
        return self._first.setdefault((id(owner), name), (owner, value))[1]

    # --- what is reached

    def link(self, item: Any, creator: Location | None = None) -> str:
        """The label of something reached, which *creator* creates; it is visited later if new."""
        kind = type(item)
        key: Any = id(item)
        paths: list[str] = []
        if kind is Package:
            name, version, paths = ownership.distribution_of(item.name)
            item = Value(name, "package", version, key=("package", name, version))
        if type(item) is Value:
            key = item.key or item.name
        elif kind is SideEffects:
            key = item
        if key not in self._labels:
            name = _name(item)
            count = self._counts[name] = self._counts.get(name, 0) + 1
            label = name if count == 1 else f"{name}#{count}"
            self._labels[key] = (label, item)
            for path in paths:
                self._declare("files", path)
            self.queue.append((label, item, creator))
        return self._labels[key][0]

    def bind(self, name: str, kind: str, value: Any, location: Location) -> str:
        """What the current part holds as *name*, as an item of a digest; a value is a new part."""
        if value is MISSING:
            return "unbound"
        mark = ":" if kind == "closure" else "."
        return self.reach(Value(f"{self.label}{mark}{name}", kind, value, location), self.creator)

    def reach(self, item: Value, creator: Location | None = None) -> str:
        """A value as an item of a digest: what it is if it is code, else a new part."""
        return self.code(item.value, creator) or self.link(item, creator)

    def code(self, value: Any, creator: Location | None = None) -> str | None:
        """A function, class, module or step as an item of a digest; None for any other value."""
        if not (is_instance(value, CODE) or is_step(value)) or type(value) is MethodType:
            return None
        encoded = self.encoder.top(value)
        # Code that carries values is a value.
        if encoded.token.startswith("#") or len(encoded.links) > 1:
            return None
        return " ".join((encoded.token, *(self.link(item, creator) for item in encoded.links)))

    def add_part(self, kind: str, location: Location, items: Sequence[str], text: str) -> None:
        """Add what was read of the current part."""
        digest = tagged(kind, *items)
        self.parts.append(Part(self.label, kind, location.file, location.line, digest, text))

    def add_opaque(self, location: Location, reason: str) -> None:
        """Add something that cannot be known about the current part."""
        reason = self.encoder.variables.with_names(reason)
        digest = tagged("opaque", self.label, reason)
        part = Part(self.label, "opaque", location.file, location.line, digest, reason)
        self.opaque[part] = None

    def encode_value(self, item: Value) -> tuple[Encoded, str]:
        """A value and a short text of it, as they were when first seen in this process."""
        key = id(item.value)
        known = self._known.get(key)
        if known is None:
            known = (item.value, self.encoder.top(item.value), {})
            # What a file holds is read again by the next crawl.
            if item.kind not in ("declared", "module"):
                self._known[key] = known
        _, encoded, texts = known
        if item.name not in texts:
            texts[item.name] = self.renderer.render(item.name, item.value)
        return encoded, texts[item.name]

    def link_files(self, path: str) -> str:
        """The label of a file's content, or of that of all files in a folder."""
        paths = [path] if os.path.isfile(path) else []
        for folder, _, names in os.walk(path):
            if "__pycache__" not in folder:
                self._declare("listings", folder)
                paths += (os.path.join(folder, name) for name in names)
        content = {}
        for file in sorted(paths):
            self._declare("files", file)
            content[self.codebase.relative(file)] = ownership.content_of(file)
        name = self.codebase.relative(path)
        return self.link(Value(name, "declared", content, Location(name), ("file", path)))

    def _declare(self, kind: str, path: str) -> None:
        path = os.path.abspath(path)
        self.declared[kind][path] = files.state(kind, path)

    def code_behind(self, value: Any) -> Any:
        """The class of an instance of the project; the function that anything else wraps."""
        # Reading an attribute of an instance may run its code.
        kind = type(value)
        return kind if self.owns(kind) else unwrap(value)

    # --- source

    def module_info(self, module: ModuleType | None) -> ModuleInfo:
        """The owner of a module, and its source; what it does when it is imported is linked."""
        if module is None:
            return ModuleInfo(None, ownership.GENERATED, None, None)
        if id(module) not in self._modules:
            file = ownership.file_of(module) or ""
            kind = self.codebase.kind_of_module(module)
            source = self.source(file, vars(module)) if kind == ownership.PROJECT else None
            relative = self.codebase.relative(file) or None
            self._modules[id(module)] = ModuleInfo(module, kind, relative, source)
            if source is not None:
                self.files.add(os.path.abspath(file))
                self.link(SideEffects(module))
            elif kind == ownership.PROJECT and file.endswith((".so", ".pyd", ".pyc")):
                self.link_files(file)
        return self._modules[id(module)]

    def module_named(self, name: str) -> ModuleInfo:
        """The same for a module by its name, if it is imported."""
        module = sys.modules.get(name)
        # Anything may be there in place of a module.
        return self.module_info(module if is_instance(module, ModuleType) else None)

    def source(self, path: str, names: Globals) -> Source | None:
        """A file as it is when the crawl starts: asking the disk each time is slow."""
        if path not in self._sources:
            self._sources[path] = parse(path, text_of_file(path, names), self.extras)
        return self._sources[path]


def _name(item: Any) -> str:
    if isinstance(item, Value):
        return item.name
    if isinstance(item, SideEffects):
        return item.name or f"(module) {item.module.__name__}"
    if isinstance(item, FunctionType):
        return item.__code__.co_qualname
    if isinstance(item, ModuleType):
        return item.__name__.rpartition(".")[2]
    if is_step(item):
        return f"@{item.function.__code__.co_qualname}"
    return str(getattr(item, "__qualname__", type(item).__qualname__))


def module_name_of(value: object) -> str | None:
    """The name of the module that *value* is, or claims to come from."""
    if is_instance(value, ModuleType):
        return str(value.__name__)  # type: ignore[attr-defined] # mypy does not narrow by is_instance
    owner = getattr(value if is_instance(value, CODE) else type(value), "__module__", None)
    return owner if isinstance(owner, str) else None


def unwrap(function: Any) -> Any:
    """The Python function or class in a step, partial, method or cached function, or None."""
    for _ in range(32):
        if isinstance(function, FunctionType | type):
            return function
        try:
            inner = [getattr(function, name, None) for name in _WRAPPED_AS]
            function = next(each for each in inner if each is not None)
        except Exception:
            # It wraps nothing, or answers with an error.
            break
    call = getattr(type(function), "__call__", None)  # noqa: B004 - it is read, not called
    return call if isinstance(call, FunctionType) else None


def is_instance(value: object, kinds: Any) -> bool:
    """``isinstance`` that asks the type only: a proxy may run code to answer."""
    return issubclass(type(value), kinds)
