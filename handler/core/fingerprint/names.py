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
from collections.abc import Sequence
from typing import Any

from handler.core.fingerprint import place
from handler.core.fingerprint.model import tagged
from handler.core.fingerprint.pieces import MISSING, Value, describe, isa, remembered
from handler.core.fingerprint.source import Source
from handler.core.fingerprint.unit import CHOSEN, OWN_MODULE, Read, Unit, imported
from handler.core.fingerprint.values import Package

_VERSION_READS = {("sys", "version_info"), ("sys", "version"), ("sys", "hexversion"), ("platform", "python_version")}
_VERSION_MODULES = {"ast", "dis", "opcode", "symtable", "marshal", "tokenize"}
_SUBCLASSES = "__subclasses__"


class Names:
    """The part of a reading that follows names; `Crawl` holds its state."""

    def _resolve(
        self,
        unit: Unit,
        label: str,
        file: str | None,
        names: dict[str, Any],
        cells: dict[str, Any],
        module: types.ModuleType | None,
    ) -> list[str]:
        """What every name that a piece of source reads is bound to, as items of a digest."""
        items: list[str] = []
        package = names.get("__package__") or (names.get("__name__") or "").rpartition(".")[0]
        for reason, line in unit.notes:
            self._doubt(label, file, line, reason)
        for read, line in unit.reads.items():
            where = (label, file, line)
            if read.level >= 0:
                found = self._read_import(read, package, where)
            elif read.root == OWN_MODULE:
                found = self._follow(module, read.attrs, None, names, where, escapes=read.escapes)
            elif read.root in cells:
                found = self._read_cell(read, cells[read.root], names, where)
            else:
                found = self._read_global(read, names, module, where)
            if found is not None:
                items += [".".join((read.root, *read.attrs)), found]
        return items

    def _read_cell(self, read: Read, value: Any, names: dict[str, Any], where: tuple[str, str | None, int]) -> str | None:
        if isa(value, types.ModuleType):
            return self._follow(value, read.attrs, None, names, where, escapes=read.escapes)
        return self._bind(*where[:1], read.root, "closure", value, *where[1:], (), None, mark=":")

    def _read_global(
        self, read: Read, names: dict[str, Any], module: types.ModuleType | None, where: tuple[str, str | None, int]
    ) -> str | None:
        if read.root in names:
            return self._follow(names[read.root], read.attrs, (module, read.root), names, where, escapes=read.escapes)
        value = getattr(builtins, read.root, MISSING)
        if value is MISSING:
            if module is not None and (fallback := names.get("__getattr__")) is not None and read.level >= 0:
                return self.link(fallback)
            return "unbound" if read.escapes else None
        if isa(value, types.FunctionType) and self.kind_of_file(value.__code__.co_filename) == place.PROJECT:
            return self.link(value)  # the project replaced a builtin
        return None

    def _read_import(self, read: Read, package: str, where: tuple[str, str | None, int]) -> str | None:
        try:
            name = importlib.util.resolve_name("." * read.level + read.root, package) if read.level else read.root
        except (ImportError, ValueError) as error:
            self._doubt(*where, f"import fails: {error}")
            return "unbound"
        if name in ("", "__future__"):
            return None
        module = self._import(name, where)
        if module is None:
            return f"failing import {name}"
        return self._follow(module, read.attrs, None, {}, where, escapes=read.escapes)

    def _import(self, name: str, where: tuple[str, str | None, int]) -> types.ModuleType | None:
        """The module of that name, imported now if it is the project's; None if that fails."""
        if name in sys.modules:
            return sys.modules[name]
        kind = place.kind_of_module(name)
        if kind != place.PROJECT:
            stand_in = types.ModuleType(name)
            if kind == place.INSTALLED:
                self.link(Package(name))
            return stand_in
        before = len(sys.modules)
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            self._doubt(*where, f"import of {error.name or name} fails: there is no such module")
            return None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._doubt(*where, f"import of {name} fails: {describe(error, self.relative)}")
            self._cover_text(name)
            return None
        self.loaded |= len(sys.modules) != before
        return module

    def _cover_text(self, name: str) -> None:
        """A module that cannot be imported counts by its text."""
        try:
            spec = importlib.util.find_spec(name)
            file = spec.origin if spec else None
            text = content_of(file) if file else b""
        except (ImportError, ValueError, OSError, SyntaxError, AttributeError):
            return
        if file:
            self.files.add(os.path.abspath(file))
            key = ("text", file)
            self.link(Value(key, name.rpartition(".")[2], "module", text, self.relative(file), 1, (), None))

    def _follow(
        self,
        value: Any,
        attrs: tuple[str, ...],
        origin: tuple[types.ModuleType | None, str] | None,
        names: dict[str, Any],
        where: tuple[str, str | None, int],
        *,
        escapes: bool,
    ) -> str | None:
        """Walk attributes through modules, to what is read in the end."""
        rest = list(attrs)
        while isa(value, types.ModuleType):
            self._touch(value)
            kind = place.kind_of_module(value.__name__) if not self._is_own(value) else place.PROJECT
            if kind == place.FRAMEWORK:
                return None
            if rest and rest[0].startswith(CHOSEN):
                name = names.get(rest[0][1:], MISSING)
                if not isinstance(name, str):
                    if kind == place.PROJECT:
                        self._doubt(*where, f"an attribute of `{value.__name__}` is chosen at run time")
                        return self.link(value)
                    return self._foreign_module(value, ())
                rest[0] = name
            if kind != place.PROJECT and not (rest and self._is_replaced(value, rest[0])):
                return self._foreign_module(value, rest)
            if not rest or rest[0] == "__dict__":
                return self.link(value) if escapes else None
            name = rest.pop(0)
            held = vars(value).get(name, MISSING)
            if held is MISSING:
                held = self._submodule(value, name, where)
            if held is MISSING:
                fallback = vars(value).get("__getattr__")
                return self.link(fallback) if isinstance(fallback, types.FunctionType) else "unbound"
            value, origin = held, (value, name)
        if not escapes and not rest and isa(value, types.ModuleType):
            return None
        return self._bound(value, rest, origin)

    def _is_own(self, module: types.ModuleType) -> bool:
        file = place.file_of(module)
        return bool(file) and self.kind_of_file(file) == place.PROJECT  # type: ignore[arg-type]

    def _is_replaced(self, module: types.ModuleType, name: str) -> bool:
        """Whether the project put something of its own into a foreign module, or a submodule is meant."""
        value = vars(module).get(name)
        if isa(value, types.ModuleType):
            return True
        return isa(value, types.FunctionType) and self.kind_of_file(value.__code__.co_filename) == place.PROJECT

    def _foreign_module(self, module: types.ModuleType, rest: Sequence[str]) -> str | None:
        name = module.__name__
        kind = place.kind_of_module(name)
        if kind == place.INSTALLED:
            return self.link(Package(name))
        if name in _VERSION_MODULES or any((name, *rest)[: len(read)] == read for read in _VERSION_READS):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            return self.link(Value(("python",), "python", "python", version, None, None, (), None))
        return f"{name}" if not rest else None

    def _submodule(self, package: types.ModuleType, name: str, where: tuple[str, str | None, int]) -> Any:
        if "__path__" not in vars(package):  # hasattr would ask the module, which may run its __getattr__
            return MISSING
        try:
            if importlib.util.find_spec(f"{package.__name__}.{name}") is None:
                return MISSING
        except (ImportError, ValueError):
            return MISSING
        module = self._import(f"{package.__name__}.{name}", where)
        return MISSING if module is None else module

    def _bound(self, value: Any, rest: Sequence[str], origin: tuple[types.ModuleType | None, str] | None) -> str | None:
        """What a name is bound to, as an item of a digest."""
        module, name = origin if origin is not None else (None, "")
        if isa(value, type) and _SUBCLASSES in rest and self.encoder.kind_of_class(value) == place.PROJECT:
            self._link_subclasses(value)
        if module is None:
            encoded = self.encoder.top(value)
            return tagged("value", encoded.token, *map(self.link, encoded.links))
        module, name, nodes = self._home(module, name, value)
        self._touch(module)
        if module is None:  # imported from elsewhere: the package's version says it all, or it is Python's own
            owner = name.partition(":")[0]
            stand_in = sys.modules.get(owner) or types.ModuleType(owner)
            if not self._reaches_project(value):
                return self._foreign_module(stand_in, [name.partition(":")[2]]) or name
            module = None
        source = self._source(module)
        if source is not None and name in source.rebound:
            value = remembered(vars(module).get("__spec__") or module, name, value)  # a reload makes a new spec
        if name in ("__doc__",) and isa(value, str):
            value = inspect.cleandoc(value)  # 3.13 does so itself
        if name in ("__builtins__", "__spec__", "__loader__", "__cached__"):
            return None
        encoded = self.encoder.top(value)
        if self._is_code(value, encoded):
            return encoded.token + (" " + self.link(encoded.links[0]) if encoded.links else "")
        file = self.relative(place.file_of(module)) if module is not None else None
        line = nodes[0].lineno if nodes else None
        short = name.rpartition(":")[2]
        key = (id(module) if module is not None else name, short)
        if module is not None:
            self.held.append(module)
        return self.link(Value(key, short, "constant", value, file, line, nodes, module))

    def _reaches_project(self, value: Any) -> bool:
        code = getattr(value, "__code__", None)
        return code is not None and self.kind_of_file(code.co_filename) == place.PROJECT

    def _link_subclasses(self, value: type) -> None:
        for inner in sorted(type.__subclasses__(value), key=lambda item: (item.__qualname__, item.__module__)):
            if self.encoder.kind_of_class(inner) == place.PROJECT:
                self.link(inner)
                self._link_subclasses(inner)

    def _home(
        self, module: types.ModuleType, name: str, value: Any
    ) -> tuple[types.ModuleType | None, str, tuple[ast.stmt, ...]]:
        """
        Where a module's name gets its value, behind imports and re-exports.

        Returns:
            The module, its name there, and the statements that bind it. For a name imported from elsewhere: None and
            ``module:name``.
        """
        for _ in range(32):
            source = self._source(module)
            nodes = tuple(source.bindings.get(name, ())) if source else ()
            last = nodes[-1] if nodes else None
            package = vars(module).get("__package__") or ""
            if isinstance(last, ast.ImportFrom):
                for bound, read in imported(last):
                    if bound == name:
                        break
                target = self._absolute(read, package)
                name_there = read.attrs[0]
            elif last is None and source is not None and (star := self._star(source, name, value, package)):
                target, name_there = star, name
            else:
                touches = tuple(source.touches.get(name, ())) if source else ()
                return module, name, nodes + touches
            held = sys.modules.get(target)
            if held is None or not self._is_own(held):
                if place.kind_of_module(target) in (place.STANDARD, place.INSTALLED):
                    return None, f"{target}:{name_there}", nodes
                return module, name, nodes
            if vars(held).get(name_there, MISSING) is not value:
                return module, name, nodes
            self._touch(module)
            module, name = held, name_there
        return module, name, ()

    def _star(self, source: Source, name: str, value: Any, package: str) -> str | None:
        for node in reversed(source.stars):
            target = self._absolute(Read(node.module or "", (), node.level), package)
            if target in sys.modules and vars(sys.modules[target]).get(name, MISSING) is value:
                return target
        return None

    @staticmethod
    def _absolute(read: Read, package: str) -> str:
        try:
            return importlib.util.resolve_name("." * read.level + read.root, package) if read.level else read.root
        except (ImportError, ValueError):
            return read.root


def content_of(path: str) -> bytes:
    """A file's bytes."""
    with open(path, "rb") as file:
        return file.read()
