"""
What the names that a piece of source reads are bound to, through any number of modules.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import os
import sys
import types
from typing import Any, NamedTuple

from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.fingerprint.analysis import CHOSEN, OWN_MODULE, Unit
from pfl.handler.core.fingerprint.collector import (
    MISSING,
    Collector,
    Location,
    Value,
    first_seen,
    is_instance,
)
from pfl.handler.core.fingerprint.source import Read, Source
from pfl.handler.core.fingerprint.values import Package

_VERSION_READS = {
    ("sys", "version_info"),
    ("sys", "version"),
    ("sys", "hexversion"),
    ("platform", "python_version"),
}
_VERSION_MODULES = {"ast", "dis", "opcode", "symtable", "marshal", "tokenize"}
_NOT_VALUES = ("__builtins__", "__spec__", "__loader__", "__cached__")


class Resolver:
    """
    Where a piece of source looks names up.

    Args:
        reading: Takes what is found.
        label: Of the part that the source belongs to.
        file: Where it stands, relative.
        names: Its globals.
        module: Its module, where that is known.
        cells: What it closes over.
    """

    def __init__(
        self,
        collector: Collector,
        label: str,
        file: str | None,
        names: dict[str, Any],
        module: types.ModuleType | None,
        cells: dict[str, Any] | None = None,
    ) -> None:
        self.collector, self.label, self.names, self.module, self.cells = (
            collector,
            label,
            names,
            module,
            cells or {},
        )
        self.file, self.line = file, 0

    def resolve(self, unit: Unit) -> list[str]:
        """What every name that *unit* reads is bound to, as items of a digest."""
        items: list[str] = []
        for reason, line in unit.notes:
            self.collector.add_opaque(self.label, Location(self.file, line), reason)
        for read, self.line in unit.reads.items():
            if (found := self._find(read)) is not None:
                items += [".".join((read.root, *read.attrs)), found]
        return items

    def _find(self, read: Read) -> str | None:
        if read.level >= 0:
            return self._find_imported(read)
        if read.root == OWN_MODULE:
            return self._follow(self.module, read)
        if read.root in self.cells:
            value = self.cells[read.root]
            if is_instance(value, types.ModuleType):
                return self._follow(value, read)
            return self.collector.bind(
                self.label, read.root, "closure", value, Location(self.file, self.line), mark=":"
            )
        if read.root in self.names:
            return self._follow(self.names[read.root], read, self.module, read.root)
        value = getattr(builtins, read.root, MISSING)
        if value is MISSING:
            return "unbound" if read.escapes else None
        is_ours = is_instance(value, types.FunctionType) and self.collector.codebase.owns(value)
        return self.collector.link(value) if is_ours else None  # the project replaced a builtin

    # --- imports

    def _find_imported(self, read: Read) -> str | None:
        if read.root.startswith(CHOSEN):
            held, _, name = read.root[1:].partition(CHOSEN)
            chosen = self.names.get(held)
            if not name and type(chosen) in (dict, list, tuple) and chosen:
                texts = list(chosen.values() if type(chosen) is dict else chosen)
                if all(
                    type(text) is str and text.replace(".", "").isidentifier() for text in texts
                ):
                    levels = [len(text) - len(text.lstrip(".")) for text in texts]
                    found = [
                        self._find_imported(Read(text[level:], (), level))
                        for text, level in zip(texts, levels, strict=True)
                    ]
                    return " ".join(item for item in found if item)
            if not isinstance(chosen, str):
                self._add_opaque("imports a module chosen at run time")
                return None
            relative = name or chosen
            level = len(relative) - len(relative.lstrip("."))
            read = read._replace(root=_absolute(Read(relative[level:], (), level), chosen))
        package = (
            self.names.get("__package__") or (self.names.get("__name__") or "").rpartition(".")[0]
        )
        name = _absolute(read, package)
        if name in ("", "__future__"):
            return None
        module = self._import(name)
        return f"failing import {name}" if module is None else self._follow(module, read)

    def _import(self, name: str) -> types.ModuleType | None:
        """The module of that name, imported now if it is the project's; None if that fails."""
        if name in sys.modules:
            return sys.modules[name]
        kind = ownership.kind_of_module(name)
        if kind != ownership.PROJECT:
            if kind == ownership.INSTALLED:
                self.collector.link(Package(name))
            return types.ModuleType(name)
        before = len(sys.modules)
        try:
            module = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except ModuleNotFoundError as error:
            self._add_opaque(f"import of {error.name or name} fails: there is no such module")
            return None
        except BaseException as error:
            self._add_opaque(
                f"import of {name} fails: {ownership.describe(error, self.collector.codebase.root)}"
            )
            self._cover_text(name)
            return None
        self.collector.has_imported |= len(sys.modules) != before
        return module

    def _cover_text(self, name: str) -> None:
        """A module that cannot be imported counts by its text."""
        try:
            spec = importlib.util.find_spec(name)
            file = spec.origin if spec and spec.has_location else None
            text = ownership.content_of(file) if file else b""
        except (ImportError, ValueError, OSError, SyntaxError, AttributeError):
            return
        if file:
            self.collector.files.add(os.path.abspath(file))
            location = Location(self.collector.codebase.relative(file), 1)
            self.collector.link(
                Value(
                    ("text", file),
                    name.rpartition(".")[2],
                    "module",
                    text,
                    location,
                    is_lasting=False,
                )
            )

    def _add_opaque(self, reason: str) -> None:
        self.collector.add_opaque(self.label, Location(self.file, self.line), reason)

    # --- attributes of modules

    def _follow(
        self, value: Any, read: Read, module: types.ModuleType | None = None, name: str = ""
    ) -> str | None:
        """Walk attributes through modules, to what is read in the end; *module* holds *value* as *name*."""
        codebase, rest = self.collector.codebase, list(read.attrs)
        while is_instance(value, types.ModuleType):
            kind = self.collector.module_info(value).kind
            if kind == ownership.FRAMEWORK:
                return None
            if rest and rest[0].startswith(CHOSEN):
                chosen = self.names.get(rest[0][1:])
                if not isinstance(chosen, str):
                    if kind == ownership.PROJECT:
                        self._add_opaque(
                            f"an attribute of `{value.__name__}` is chosen at run time"
                        )
                        return self.collector.link(value)
                    return self._foreign(value.__name__)
                rest[0] = chosen
            if kind != ownership.PROJECT and not (rest and self._is_replaced(value, rest[0])):
                return self._foreign(value.__name__, *rest)
            if not rest or rest[0] == "__dict__":
                return self.collector.link(value) if read.escapes else None
            module, name = value, rest.pop(0)
            value = vars(module).get(name, MISSING)
            if value is MISSING:
                value = self._submodule(module, name)
            if value is MISSING:
                fallback = vars(module).get("__getattr__") or type(module)
                return self.collector.code(fallback) if codebase.owns(fallback) else "unbound"
        return self._bound(value, module, name)

    def _is_replaced(self, module: types.ModuleType, name: str) -> bool:
        """Whether the project put something of its own into a foreign module, or a submodule is meant."""
        value = vars(module).get(name)
        return (
            is_instance(value, types.ModuleType)
            or is_instance(value, types.FunctionType)
            and self.collector.codebase.owns(value)
        )

    def _foreign(self, module: str, *rest: str) -> str:
        """Something of another's module: a package by its version, the standard library by name."""
        if ownership.kind_of_module(module) == ownership.INSTALLED:
            return self.collector.link(Package(module))
        if module in _VERSION_MODULES or any(
            (module, *rest)[: len(read)] == read for read in _VERSION_READS
        ):
            return self.collector.link(
                Value(
                    ("python",),
                    "python",
                    "python",
                    f"{sys.version_info.major}.{sys.version_info.minor}",
                )
            )
        return ".".join((module, *rest))

    def _submodule(self, package: types.ModuleType, name: str) -> Any:
        if "__path__" not in vars(
            package
        ):  # hasattr would ask the module, which may run its __getattr__
            return MISSING
        try:
            if importlib.util.find_spec(f"{package.__name__}.{name}") is None:
                return MISSING
        except (ImportError, ValueError):
            return MISSING
        return self._import(f"{package.__name__}.{name}") or MISSING

    def _bound(self, value: Any, module: types.ModuleType | None, name: str) -> str | None:
        """What *module* holds as *name*, as an item of a digest."""
        if module is None:
            return self.collector.bind(
                self.label, name, "constant", value, Location(self.file, self.line)
            )
        origin = self._origin(module, name, value)
        module, name, file = origin.module, origin.name, None
        if isinstance(
            module, str
        ):  # imported from elsewhere: the package's version says it all, or it is Python's own
            if not (is_instance(value, types.FunctionType) and self.collector.codebase.owns(value)):
                return self._foreign(module, name)
            module = None
        else:
            _, _, file, source = self.collector.module_info(module)
            if source is not None and name in source.reassigned:
                value = first_seen(
                    vars(module).get("__spec__") or module, name, value
                )  # a reload makes a new spec
            if name == "__doc__" and is_instance(value, str):
                value = inspect.cleandoc(value)  # 3.13 does so itself
            if name in _NOT_VALUES:
                return None
        if (
            type(value) is types.FunctionType
            and value.__closure__ is None
            and (code := self.collector.code(value)) is not None
        ):
            return code  # most of a project; what a closure holds may be known by the statements that made it
        location = Location(
            file, origin.nodes[0].lineno if origin.nodes else None, origin.nodes, module
        )
        if (code := self.collector.code(value, location)) is not None:
            return code
        return self.collector.link(Value((id(module), name), name, "constant", value, location))

    def members_of(self, module: types.ModuleType) -> list[str]:
        """Every name that a module binds itself, with what it is bound to."""
        items = []
        for name, value in sorted(vars(module).items()):
            if (name.startswith("__") and name != "__getattr__") or is_instance(
                value, types.ModuleType
            ):
                continue
            items += [name, self._bound(value, module, name) or ""]
        return items

    def made(self, name: str, value: Any) -> Location | None:
        """The statements that bind a name of the module, behind imports."""
        origin = (
            self._origin(self.module, name, value) if self.module is not None else _Origin("", "")
        )
        return (
            None
            if isinstance(origin.module, str)
            else Location(
                self.collector.module_info(origin.module).file, None, origin.nodes, origin.module
            )
        )

    def _origin(self, module: types.ModuleType, name: str, value: Any) -> _Origin:
        """Where a module's name gets its value, behind imports and re-exports."""
        nodes: tuple[ast.stmt, ...] = ()
        for _ in range(32):
            source = self.collector.module_info(module).source
            nodes, read = source.origin(name) if source else ((), None)
            if source is not None and not nodes:
                read = _star(source, name, value, vars(module).get("__package__") or "")
            if read is None:
                break
            target, there = _absolute(read, vars(module).get("__package__") or ""), read.attrs[0]
            held = sys.modules.get(target)
            if held is None or self.collector.module_info(held).kind != ownership.PROJECT:
                if ownership.kind_of_module(target) in (ownership.STANDARD, ownership.INSTALLED):
                    return _Origin(target, there)
                break
            if vars(held).get(there, MISSING) is not value:
                break
            module, name = held, there
        return _Origin(module, name, nodes)


def statements(
    collector: Collector, label: str, location: Location, without: str = ""
) -> list[str]:
    """What the statements at *spot*, and what decides whether they run, say and read, as items of a digest."""
    source = collector.module_info(location.module).source
    if source is None or location.module is None or not location.nodes:
        return []
    names = vars(location.module)
    nodes = {
        id(node): node
        for each in location.nodes
        for node in (*source.around.get(id(each), ()), each)
    }
    unit = collector.analyse(source, tuple(nodes.values()), names)
    unit = unit._replace(
        notes=(), reads={read: line for read, line in unit.reads.items() if read.root != without}
    )
    return [
        unit.text,
        *Resolver(collector, label, location.file, names, location.module).resolve(unit),
    ]


class _Origin(NamedTuple):
    """The module, or the name of another's module; the name in it; and the statements that bind it."""

    module: types.ModuleType | str
    name: str
    nodes: tuple[Any, ...] = ()


def _star(source: Source, name: str, value: Any, package: str) -> Read | None:
    for node in reversed(source.stars):
        target = _absolute(Read(node.module or "", (), node.level), package)
        if target in sys.modules and vars(sys.modules[target]).get(name, MISSING) is value:
            return Read(target, (name,), 0)
    return None


def _absolute(read: Read, package: str) -> str:
    try:
        return (
            importlib.util.resolve_name("." * read.level + read.root, package)
            if read.level
            else read.root
        )
    except (ImportError, ValueError):
        return read.root
