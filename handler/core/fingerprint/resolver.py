"""
What the names that a piece of source reads are bound to, through any number of modules.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field
from importlib.util import resolve_name
from types import ModuleType
from typing import Any

from .analysis import EXTRAS, FINDERS, OWN_MODULE, Unit, analyse, meanings_of, texts_in
from .collector import CODE, Collector, Location, Value, is_instance
from .ownership import FRAMEWORK, INSTALLED, PROJECT, STANDARD, describe, spec_of
from .source import Globals, Read, absolute
from .values import MISSING, Package

_DEPENDS_ON_VERSION = re.compile(
    r"(?:sys\.(?:version_info|version|hexversion)|platform\.python_version"
    r"|ast|dis|opcode|symtable|marshal|tokenize)(?:\.|$)"
)


@dataclass
class Resolver:
    """
    Looks up the names of a piece of source.

    Args:
        collector: Receives what is found.
        location: Where the source is, and its module if that is known.
        names: Its globals.
        cells: What it closes over.
        at_import: Whether it runs at import: what it reads then is in the values it makes.
    """

    collector: Collector
    location: Location
    names: Globals
    cells: Globals = field(default_factory=dict)
    at_import: bool = False

    def __post_init__(self) -> None:
        self.package = self.names.get("__package__") or ""
        self.cells = {OWN_MODULE: self.location.module, **self.cells}
        self.words: set[str] = set()
        self.kind_of = self.collector.codebase.kind_of_name

    def resolve(self, unit: Unit) -> list[str]:
        """What every name that *unit* reads is bound to, as items of a digest."""
        items: list[str] = []
        for word, line in unit.words.items():
            self._at(line)
            self._note(word)
        for read, line in unit.imports.items():
            self._at(line)
            self._find_imported(read)
        for read, line in unit.reads.items():
            self._at(line)
            if (found := self._find(read)) is not None:
                items += [".".join((read.root, *read.attrs)), found]
        if not FINDERS.isdisjoint(self.words):
            items += self._find_named(unit)
        return items

    def _at(self, line: int) -> None:
        self.location = self.location._replace(line=line)

    def _note(self, word: str) -> None:
        self.words.add(word)
        meanings = meanings_of(word)
        self.collector.found_extras |= meanings & EXTRAS
        for reason in () if self.at_import else meanings - EXTRAS:
            self.collector.add_opaque(self.location, reason.format(word))

    def _find(self, read: Read) -> str | None:
        if read.level >= 0:
            return self._find_imported(read)
        if read.root in self.cells:
            return self.follow(self.cells[read.root], read)
        if read.root in self.names:
            return self.follow(self.names[read.root], read, self.location.module)
        return None

    # --- imported modules

    def _find_imported(self, read: Read) -> str | None:
        name = absolute(read, self.package)
        if name in ("", "__future__"):
            return None
        module = self._import(name)
        if module is None:
            return f"failing import {name}"
        if self.collector.module_named(name).kind == PROJECT:
            self.collector.late[name] = module
        return self.follow(module, read)

    def _find_named(self, unit: Unit) -> list[str]:
        """The modules that texts name: those in *unit*, and in the values that it reads."""
        texts = dict.fromkeys(texts_in(unit.nodes))
        for read in unit.reads:
            texts |= dict.fromkeys(_texts_of(self.names.get(read.root)))
        packages = [self.package, *(text for text in texts if text in sys.modules)]
        found: list[str] = []
        for text in texts:
            for package in packages if text.startswith(".") else packages[:1]:
                found += filter(None, [self._find_text(text, package)])
        if "__name__" in unit.words:
            found.append(self.collector.link(self.location.module))
        if not found and not self.at_import:
            self.collector.add_opaque(self.location, "imports a module chosen at run time")
        return found

    def _find_text(self, text: str, package: str) -> str | None:
        """What the dotted name of a module of the project, or of something in one, leads to."""
        try:
            root, *attrs = resolve_name(text.replace(":", "."), package).split(".")
        except ImportError:
            return None
        is_ours = root.isidentifier() and self.kind_of(root) == PROJECT
        if not is_ours or spec_of(root) is None:
            return None
        return self._find_imported(Read(root, tuple(attrs), 0))

    def _import(self, name: str) -> ModuleType | None:
        """The module of that name, imported now if it is the project's; None if that fails."""
        if name in sys.modules:
            return sys.modules[name]
        kind = self.kind_of(name)
        if kind == INSTALLED:
            self.collector.link(Package(name))
        if kind != PROJECT:
            return ModuleType(name)
        before = len(sys.modules)
        try:
            module = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A module may raise anything, SystemExit included.
            reason = describe(error, self.collector.codebase.root)
            self.collector.add_opaque(self.location, f"import of {name} fails: {reason}")
            # Its text counts.
            spec = spec_of(name)
            if spec is not None and spec.origin:
                self.collector.link_files(spec.origin)
            return None
        self.collector.has_imported |= len(sys.modules) != before
        return module

    # --- attributes of modules

    def follow(self, value: Any, read: Read, module: ModuleType | None = None) -> str | None:
        """Walk attributes through modules to the value; *module* holds the first one."""
        name = read.root
        rest = list(read.attrs)
        while is_instance(value, ModuleType):
            kind = self.collector.module_info(value).kind
            if kind == FRAMEWORK:
                return None
            held = vars(value).get(rest[0]) if rest else None
            if kind != PROJECT and not is_instance(held, ModuleType):
                return self._foreign(value.__name__, *rest)
            if not rest or rest[0] == "__dict__":
                return self.collector.link(value)
            module = value
            name = rest.pop(0)
            value = vars(module).get(name, MISSING)
            if value is MISSING:
                value = self._submodule(module, name)
            if value is MISSING:
                fallback = vars(module).get("__getattr__") or type(module)
                if self.collector.owns(fallback):
                    return self.collector.code(fallback)
                # A library loads it when it is first read.
                value = getattr(module, name, MISSING)
        return self._bound(value, module, name)

    def _foreign(self, module: str, *rest: str) -> str:
        """A package by its version, something of the standard library by its name."""
        path = ".".join((module, *rest))
        for word in (module, *rest, path):
            self._note(word)
        if self.kind_of(module) == INSTALLED:
            return f"{self.collector.link(Package(module))}:{path}"
        if _DEPENDS_ON_VERSION.match(path):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            return self.collector.link(Value("python", "python", version))
        return path

    def _submodule(self, package: ModuleType, name: str) -> Any:
        # hasattr would run the module's __getattr__.
        if "__path__" not in vars(package):
            return MISSING
        name = f"{package.__name__}.{name}"
        return (spec_of(name) and self._import(name)) or MISSING

    def _bound(self, value: Any, module: ModuleType | None, name: str) -> str | None:
        """What *module* holds as *name*, as an item of a digest."""
        if module is None:
            return self.collector.bind(name, "closure", value, self.location)
        if is_instance(value, CODE[:3]):
            self._note(value.__name__)
        location, name = origin_of(self.collector, module, name, value)
        if isinstance(location, str):
            return self._foreign(location, name)
        module = location.module or module
        source = self.collector.module_info(module).source
        if source is not None and name in source.reassigned:
            # A reload makes a new spec.
            spec = vars(module).get("__spec__") or module
            value = self.collector.first_seen(spec, name, value)
        item = Value(name, "constant", value, location, (id(module), name))
        # What a closure holds may be known only by the statements that create it.
        return self.collector.reach(item, location)


def origin_of(
    collector: Collector, module: ModuleType, name: str, value: Any
) -> tuple[Location | str, str]:
    """
    Where a module's name is bound to its value, behind imports and re-exports.

    Returns:
        Its location there, or the name of a foreign module; and its name there.
    """
    for _ in range(32):
        source = collector.module_info(module).source
        if source is None:
            break
        package = vars(module).get("__package__") or ""
        stars = [read._replace(attrs=(name,)) for read in source.imports.get("*", ())]
        for read in source.imports.get(name, () if name in source.bindings[""] else stars):
            target = absolute(read, package)
            held = sys.modules.get(target) if read.attrs else None
            if held is None or vars(held).get(read.attrs[0], value) is not value:
                continue
            if collector.codebase.kind_of_name(target) in (STANDARD, INSTALLED):
                return target, read.attrs[0]
            if read.attrs[0] in vars(held):
                break
        else:
            break
        module = held
        name = read.attrs[0]
    nodes = source.statements_of(name) if source else []
    line = nodes[0].lineno if nodes else None
    return Location(collector.module_info(module).file, line, tuple(nodes), module), name


def statements(collector: Collector, location: Location, at_import: bool = True) -> list[str]:
    """The statements at *location* and what these read, as items of a digest."""
    source = collector.module_info(location.module).source
    if source is None or not location.nodes:
        return []
    names = vars(location.module)
    unit = analyse(source, location.nodes)
    return [unit.text, *Resolver(collector, location, names, at_import=at_import).resolve(unit)]


def _texts_of(value: Any) -> list[str]:
    """A text, or the texts in a plain container."""
    items = [value]
    if type(value) in (list, tuple):
        items += value
    if type(value) is dict:
        items += value.values()
    return [item for item in items if type(item) is str]
