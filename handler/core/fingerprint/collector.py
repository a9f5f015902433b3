"""
One reading, from one function: what was reached, under which label, and where nothing can be known.
"""

from __future__ import annotations

import ast
import collections
import os
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.fingerprint.analysis import OWN_MODULE, Unit, analyse, renamed
from pfl.handler.core.fingerprint.model import Part, tagged
from pfl.handler.core.fingerprint.rendering import render
from pfl.handler.core.fingerprint.source import Read, Source, load, root_name
from pfl.handler.core.fingerprint.values import Encoded, Encoder, Folder, Package

MISSING = object()
CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, types.ModuleType)

_FIRST: dict[tuple[int, str], tuple[Any, Any]] = {}
_KNOWN: dict[
    int, tuple[Any, Encoded, dict[str, str]]
] = {}  # with the texts that were made, by name


class ModuleInfo(NamedTuple):
    """A module, whose it is, its relative file, and, of the project's own, its source."""

    module: types.ModuleType | None
    kind: str
    file: str | None
    source: Source | None


class Location(NamedTuple):
    """Where a value is written: relative file, line, the statements that give it, and their module."""

    file: str | None = None
    line: int | None = None
    nodes: tuple[ast.AST, ...] = ()
    module: types.ModuleType | None = None


class Value(NamedTuple):
    """A value that gets a part of its own; *lasts* says whether it is the same object next time."""

    key: tuple[Any, ...]
    name: str
    kind: str
    value: Any
    location: Location = Location()
    is_lasting: bool = True


class SideEffects(NamedTuple):
    """What a module does to others when it is imported."""

    module: types.ModuleType


class Collector:
    """
    What one reading has found so far.

    Args:
        home: The project.
        asked: What counts besides code, because something that is reached reads it.
    """

    def __init__(self, codebase: ownership.Codebase, extras: frozenset[str]) -> None:
        self.codebase, self.extras = codebase, extras
        self.found_extras = extras
        self.has_imported = (
            False  # a module that was not there before: what was read until now may have changed
        )
        self.encoder = Encoder(codebase)
        self.queue: collections.deque[tuple[str, Any]] = collections.deque()
        self.parts: list[Part] = []
        self.opaque: dict[tuple[Any, ...], Part] = {}
        self.files: set[str] = set()
        self.creators: dict[
            str, Location
        ] = {}  # by label: where the statements are that made it, for what keeps its state to itself
        self._known: dict[int, tuple[Any, Encoded, dict[str, str]]] = {}
        self._labels: dict[Any, str] = {}
        self._taken: dict[str, int] = {}
        self._held: list[Any] = []  # so that no identity is given twice
        self._sources: dict[str, Source | None] = {}
        self._about: dict[int, ModuleInfo] = {}

    def remember_values(self) -> None:
        """Let later readings see values as this one did, whatever runs in between."""
        _KNOWN.update(self._known)

    # --- what is reached

    def link(self, item: Any, made: Location | None = None) -> str:
        """The label of something reached, and *made* there; it is read later if it is new."""
        kind, key = type(item), id(item)
        if kind is Value:
            key = item.key
        elif kind is SideEffects:
            key = (SideEffects, id(item.module))
        elif kind is Folder:
            key = item
        elif kind is Package:
            key = item = Package(*ownership.distribution_of(item.name))
        if key not in self._labels:
            name = _name(item)
            self._taken[name] = count = self._taken.get(name, 0) + 1
            self._labels[key] = name if count == 1 else f"{name}#{count}"
            self._held.append(item)
            if made is not None:
                self.creators[self._labels[key]] = made
            self.queue.append((self._labels[key], item))
        return self._labels[key]

    def bind(
        self, owner: str, name: str, kind: str, value: Any, location: Location, mark: str = "."
    ) -> str:
        """What *owner* holds under *name*, as an item of a digest: code by its label, any other value by a part of its own."""
        if value is MISSING:
            return "unbound"
        made = self.creators.get(owner)
        if (code := self.code(value, made)) is not None:
            return code
        return self.link(
            Value((owner, kind, name), f"{owner}{mark}{name}", kind, value, location), made
        )

    def code(self, value: Any, made: Location | None = None) -> str | None:
        """A function, class, module or step as an item of a digest; None for values, and for code that carries some."""
        if type(value) is types.FunctionType and self.codebase.owns(value):
            return f"function {value.__code__.co_qualname} {self.link(value, made)}"  # as below, for what is most of a project
        if not (is_instance(value, CODE) or is_step(value)) or is_instance(value, types.MethodType):
            return None
        encoded = self.encoder.top(value)
        if encoded.token.startswith("#") or len(encoded.links) > 1:
            return None
        return " ".join((encoded.token, *(self.link(item, made) for item in encoded.links)))

    def add_part(
        self, label: str, kind: str, location: Location, items: Sequence[str], text: str
    ) -> None:
        """Note what was read of something reached."""
        self.parts.append(
            Part(label, kind, location.file, location.line, tagged(kind, *items), text)
        )

    def add_opaque(self, label: str, location: Location, reason: str) -> None:
        """Note a place where nothing can be known."""
        part = Part(
            label, "opaque", location.file, location.line, tagged("opaque", label, reason), reason
        )
        self.opaque.setdefault((label, location.file, location.line, reason), part)

    def encode_value(self, item: Value) -> tuple[Encoded, str]:
        """A value and a short text of it, as they were when first seen in this process."""
        key = id(item.value)
        known = _KNOWN.get(key) or self._known.get(key) if item.is_lasting else None
        if known is None:
            known = (item.value, self.encoder.top(item.value), {})
            if item.is_lasting:
                self._known[key] = known
        texts = known[2]
        if item.name not in texts:
            texts[item.name] = render(item.name, item.value)
        return known[1], texts[item.name]

    # --- source

    def module_info(self, module: types.ModuleType | None) -> ModuleInfo:
        """Whose a module is, and its source; what it does when it is imported is linked."""
        if module is None:
            return ModuleInfo(None, ownership.GENERATED, None, None)
        if (known := self._about.get(id(module))) is None:
            file = ownership.file_of(module)
            kind = (
                self.codebase.kind_of_file(file)
                if file
                else ownership.kind_of_module(module.__name__)
            )
            source = self.source(file, vars(module)) if file and kind == ownership.PROJECT else None
            known = self._about[id(module)] = ModuleInfo(
                module, kind, self.codebase.relative(file), source
            )
            if file and source is not None:
                self.files.add(os.path.abspath(file))
                self.link(SideEffects(module))
        return known

    def source(self, path: str, names: dict[str, Any]) -> Source | None:
        """A file as it is at the start of this reading; asking the disk for each name would take a third of the time."""
        if path not in self._sources:
            self._sources[path] = load(path, names)
        return self._sources[path]

    def analyse(
        self,
        source: Source,
        nodes: Sequence[ast.AST],
        names: dict[str, Any],
        *,
        body_only: bool = False,
    ) -> Unit:
        """
        What *nodes* say and read.

        Decorators such as ``@step(retries=2)`` say how a step runs, not what it computes. Those of installed packages may
        read annotations.
        """
        skip, extras = [], self.extras
        for decorator in (item for node in nodes for item in getattr(node, "decorator_list", ())):
            name = root_name(decorator) or ""
            owner = module_name_of(names.get(name)) or ""
            kind = ownership.kind_of_module(owner) if owner else ownership.PROJECT
            if kind == ownership.FRAMEWORK:
                skip.append(decorator)
            elif kind == ownership.INSTALLED or name == "singledispatch":
                extras |= {"annotations"}
        key = (*map(id, nodes), extras, body_only, len(skip))
        if key not in source.units:
            try:
                source.units[key] = analyse(
                    nodes, extras, skip=skip, body_only=body_only, aliases=self._aliases(source)
                )
            except RecursionError:
                text = tagged("text", *map(source.text_of, nodes))
                note = ("nested too deep to be read", getattr(nodes[0], "lineno", 0))
                source.units[key] = Unit(text, {Read(OWN_MODULE): note[1]}, (note,), frozenset())
            if "text" in extras:
                unit = source.units[key]
                source.units[key] = unit._replace(
                    text=tagged("text", unit.text, *map(source.verbatim, nodes))
                )
        unit: Unit = source.units[key]
        self.found_extras |= unit.extras
        return unit

    @staticmethod
    def _aliases(source: Source) -> dict[str, str]:
        if "aliases" not in source.units:
            source.units["aliases"] = dict(
                pair for node in source.statements for pair in renamed(node)
            )
        aliases: dict[str, str] = source.units["aliases"]
        return aliases


def _name(item: Any) -> str:
    if isinstance(item, Value | Package | Folder):
        return item.name
    if isinstance(item, SideEffects):
        return f"(module) {item.module.__name__}"
    if isinstance(item, types.FunctionType):
        return item.__code__.co_qualname
    if isinstance(item, types.ModuleType):
        return item.__name__.rpartition(".")[2]
    if is_step(item):
        return f"@{item.function.__code__.co_qualname}"
    return str(getattr(item, "__qualname__", type(item).__qualname__))


def module_name_of(value: Any) -> str | None:
    """The name of the module that *value* is, or says it is from."""
    if is_instance(value, types.ModuleType):
        return str(value.__name__)
    owner = getattr(value if is_instance(value, CODE) else type(value), "__module__", None)
    return owner if isinstance(owner, str) else None


def unwrap(function: Any) -> Any:
    """The Python function or class inside a step, partial, method or cached function; None if there is none."""
    for _ in range(32):
        if isinstance(function, types.FunctionType | type):
            return function
        fields = ("function", "__wrapped__", "__func__", "func")
        try:
            inner = next(
                (
                    item
                    for item in (getattr(function, name, None) for name in fields)
                    if item is not None
                ),
                None,
            )
        except Exception:  # an object that answers with an error has none of them
            inner = None
        if inner is None:
            break
        function = inner
    call = getattr(type(function), "__call__", None)
    return call if isinstance(call, types.FunctionType) else None


def is_step(item: Any) -> bool:
    """Whether *item* is a step: an object of the framework that holds a function."""
    kind = type(item)
    return kind.__module__.partition(".")[0] == "pfl" and isinstance(
        getattr(item, "function", None), types.FunctionType
    )


def first_seen(owner: Any, name: str, value: Any) -> Any:
    """
    A value that code sets while it runs, as it was when first seen in this process.

    So the second fingerprint of a process equals the first, whatever ran in between.
    """
    return _FIRST.setdefault((id(owner), name), (owner, value))[1]


def is_instance(value: Any, kinds: Any) -> bool:
    """``isinstance`` that asks the type only: a proxy may run code to say what it is."""
    return issubclass(type(value), kinds)
