"""
What the names that a piece of source reads are bound to, through any number of modules.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sys
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from .analysis import CHOSEN, OWN_MODULE, Unit
from .collector import Collector, Location, Value, first_seen, is_instance
from .ownership import FRAMEWORK, INSTALLED, PROJECT, STANDARD, describe, kind_of_module, spec_of
from .source import Globals, Read, Source, absolute, module_read
from .values import MISSING, Package

_DEPENDS_ON_VERSION = re.compile(
    r"(?:sys\.(?:version_info|version|hexversion)|platform\.python_version"
    r"|ast|dis|opcode|symtable|marshal|tokenize)(?:\.|$)"
)
_NOT_VALUES = ("__builtins__", "__spec__", "__loader__", "__cached__")


@dataclass
class Resolver:
    """
    Looks up the names of a piece of source.

    Args:
        collector: Receives what is found.
        location: Where the source is, and its module if that is known.
        names: Its globals.
        cells: What it closes over.
    """

    collector: Collector
    location: Location
    names: Globals
    cells: Globals = field(default_factory=dict)

    def resolve(self, unit: Unit) -> list[str]:
        """What every name that *unit* reads is bound to, as items of a digest."""
        items: list[str] = []
        for reason, line in unit.notes:
            self.collector.add_opaque(self.location._replace(line=line), reason)
        for read, line in unit.reads.items():
            self.location = self.location._replace(line=line)
            if (found := self._find(read)) is not None:
                items += [".".join((read.root, *read.attrs)), found]
        return items

    def _find(self, read: Read) -> str | None:
        if read.level >= 0:
            return self._find_imported(read)
        module = self.location.module
        if read.root == OWN_MODULE:
            return self._follow(module, read)
        if read.root in self.cells:
            return self._follow(self.cells[read.root], read)
        if read.root in self.names:
            return self._follow(self.names[read.root], read, module)
        value = getattr(builtins, read.root, MISSING)
        if value is MISSING:
            return "unbound" if read.escapes else None
        # The project may replace a builtin.
        return self._own_function(value)

    def _own_function(self, value: Any) -> str | None:
        if is_instance(value, FunctionType) and self.collector.owns(value):
            return self.collector.link(value)
        return None

    # --- imported modules

    def _find_imported(self, read: Read) -> str | None:
        if read.root.startswith(CHOSEN):
            return self._find_chosen(read)
        name = absolute(read, self.names.get("__package__") or "")
        if name in ("", "__future__"):
            return None
        module = self._import(name)
        if module is None:
            return f"failing import {name}"
        if self.collector.module_named(name).kind == PROJECT:
            self.collector.late[name] = module
        return self._follow(module, read)

    def _find_chosen(self, read: Read) -> str | None:
        """A module that a global names, or whose package it names, or one of those in a table."""
        held, _, name = read.root[1:].partition(CHOSEN)
        chosen: Any = self.names.get(held)
        if isinstance(chosen, str):
            root = absolute(module_read(name or chosen), chosen)
            return self._find_imported(read._replace(root=root))
        if type(chosen) is dict:
            chosen = list(chosen.values())
        if name or type(chosen) not in (list, tuple) or not all(map(_is_module_name, chosen)):
            self.collector.add_opaque(self.location, "imports a module chosen at run time")
            return None
        found = map(self._find_imported, map(module_read, chosen))
        return " ".join(filter(None, found))

    def _import(self, name: str) -> ModuleType | None:
        """The module of that name, imported now if it is the project's; None if that fails."""
        if name in sys.modules:
            return sys.modules[name]
        kind = kind_of_module(name)
        if kind != PROJECT:
            if kind == INSTALLED:
                self.collector.link(Package(name))
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

    def _follow(self, value: Any, read: Read, module: ModuleType | None = None) -> str | None:
        """Walk attributes through modules to the value; *module* holds the first one."""
        name = read.root
        rest = list(read.attrs)
        while is_instance(value, ModuleType):
            kind = self.collector.module_info(value).kind
            if kind == FRAMEWORK:
                return None
            if rest and rest[0].startswith(CHOSEN):
                chosen = self.names.get(rest[0][1:])
                if not isinstance(chosen, str):
                    if kind != PROJECT:
                        return self._foreign(value.__name__)
                    self.collector.add_opaque(
                        self.location, f"an attribute of `{value.__name__}` is chosen at run time"
                    )
                    return self.collector.link(value)
                rest[0] = chosen
            if kind != PROJECT and not (rest and self._is_replaced(value, rest[0])):
                return self._foreign(value.__name__, *rest)
            if not rest or rest[0] == "__dict__":
                return self.collector.link(value) if read.escapes else None
            module = value
            name = rest.pop(0)
            value = vars(module).get(name, MISSING)
            if value is MISSING:
                value = self._submodule(module, name)
            if value is MISSING:
                fallback = vars(module).get("__getattr__") or type(module)
                is_ours = self.collector.owns(fallback)
                return self.collector.code(fallback) if is_ours else "unbound"
        return self._bound(value, module, name)

    def _is_replaced(self, module: ModuleType, name: str) -> bool:
        """Whether the project put a function into a foreign module, or *name* is a submodule."""
        value = vars(module).get(name)
        is_replacement = is_instance(value, FunctionType) and self.collector.owns(value)
        return is_replacement or is_instance(value, ModuleType)

    def _foreign(self, module: str, *rest: str) -> str:
        """A package by its version, something of the standard library by its name."""
        if kind_of_module(module) == INSTALLED:
            return self.collector.link(Package(module))
        path = ".".join((module, *rest))
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
        location, name = origin_of(self.collector, module, name, value)
        if isinstance(location, str):
            # Its package's version is enough, unless the project replaced it.
            return self._own_function(value) or self._foreign(location, name)
        if name in _NOT_VALUES:
            return None
        module = location.module or module
        source = self.collector.module_info(module).source
        if source is not None and name in source.reassigned:
            # A reload makes a new spec.
            value = first_seen(vars(module).get("__spec__") or module, name, value)
        if name == "__doc__" and is_instance(value, str):
            # As Python does from 3.13 on.
            value = inspect.cleandoc(value)
        # What a closure holds may be known only by the statements that create it.
        is_plain = type(value) is FunctionType and value.__closure__ is None
        if (code := self.collector.code(value, None if is_plain else location)) is not None:
            return code
        return self.collector.link(Value(name, "constant", value, location, (id(module), name)))

    def members_of(self, module: ModuleType) -> list[str]:
        """Every name that a module binds itself, with what it is bound to."""
        items = []
        for name, value in sorted(vars(module).items()):
            is_hidden = name.startswith("__") and name != "__getattr__"
            if not is_hidden and not is_instance(value, ModuleType):
                items += [name, self._bound(value, module, name) or ""]
        return items


def origin_of(
    collector: Collector, module: ModuleType, name: str, value: Any
) -> tuple[Location | str, str]:
    """
    Where a module's name is bound to its value, behind imports and re-exports.

    Returns:
        Its location there, or the name of a foreign module; and its name there.
    """
    nodes: tuple[ast.stmt, ...] = ()
    for _ in range(32):
        source = collector.module_info(module).source
        if source is None:
            nodes = ()
            break
        package = vars(module).get("__package__") or ""
        nodes, read = source.origin(name)
        if not nodes:
            read = _star(source, name, value, package)
        if read is None:
            break
        target = absolute(read, package)
        inner = read.attrs[0]
        held = sys.modules.get(target)
        if held is None or collector.module_info(held).kind != PROJECT:
            if kind_of_module(target) in (STANDARD, INSTALLED):
                return target, inner
            break
        if vars(held).get(inner, MISSING) is not value:
            break
        module = held
        name = inner
    line = nodes[0].lineno if nodes else None
    return Location(collector.module_info(module).file, line, nodes, module), name


def statements(collector: Collector, location: Location) -> list[str]:
    """The statements at *location*, their conditions and what these read, as items of a digest."""
    source = collector.module_info(location.module).source
    if source is None or not location.nodes:
        return []
    nodes: dict[ast.AST, None] = {}
    for node in location.nodes:
        nodes |= dict.fromkeys((*source.around.get(id(node), ()), node))
    names = vars(location.module)
    unit = collector.analyse(source, nodes, names)._replace(notes=())
    return [unit.text, *Resolver(collector, location, names).resolve(unit)]


def _star(source: Source, name: str, value: Any, package: str) -> Read | None:
    for node in reversed(source.stars):
        target = absolute(Read(node.module or "", (), node.level), package)
        if target in sys.modules and vars(sys.modules[target]).get(name, MISSING) is value:
            return Read(target, (name,), 0)
    return None


def _is_module_name(text: object) -> bool:
    return type(text) is str and text.replace(".", "").isidentifier()
