"""
From a function to everything it rests on.

Source says which names are read, the live modules say what these are bound to. Reading starts at one function and
follows links until nothing new is found; what is reached gets one part. Nothing of the project is called. Modules that
a function imports when it runs are imported here, as its first call would do.
"""

from __future__ import annotations

import ast
import builtins
import collections
import importlib
import importlib.util
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from handler.core.errors import InvalidRequestError
from handler.core.fingerprint import place
from handler.core.fingerprint.model import Fingerprint, Part, digest_of, tagged
from handler.core.fingerprint.source import Source, docstring_of, first_line, load, root_name
from handler.core.fingerprint.unit import CHOSEN, OWN_MODULE, Options, Read, Unit, analyse, canonical, imported, unquoted
from handler.core.fingerprint.values import Encoded, Encoder, Package
from handler.core.fingerprint.words import shown

_MISSING = object()
_SILENT_ROOTS = {"logging", "warnings", "print", "sys", "typing", "super", "faulthandler"}
_VERSION_READS = {("sys", "version_info"), ("sys", "version"), ("sys", "hexversion"), ("platform", "python_version")}
_VERSION_MODULES = {"ast", "dis", "opcode", "symtable", "marshal", "tokenize"}
_CLASS_NOISE = {"_abc_impl", "_is_protocol", "_is_runtime_protocol"}
_ALWAYS_GENERATED = ("__pydantic", "_member_", "_value2member_", "_unhashable_values", "_hashable_values", "_sort_order_")
_TUPLE_GETTER = type(vars(collections.namedtuple("_", "x"))["x"])
_SUBCLASSES = "__subclasses__"

_memo: dict[int, tuple[Any, Encoded]] = {}
_first: dict[tuple[int, str], tuple[Any, Any]] = {}


class _Value(NamedTuple):
    """A value that gets a part of its own."""

    key: tuple[Any, ...]
    name: str
    kind: str
    value: Any
    file: str | None
    line: int | None
    nodes: tuple[ast.AST, ...]
    home: types.ModuleType | None


class _Restart(Exception):
    """What was found changes what counts: read again from the start."""


def crawl(function: Any) -> Fingerprint:
    """
    The fingerprint of *function*.

    Raises:
        InvalidRequestError: *function* has no Python source.
    """
    options = Options()
    for _ in range(8):
        reading = Crawl(function, options)
        try:
            found = reading.run()
        except _Restart:
            options = Options(options.docs or reading.reads_docs, options.annotations or reading.reads_annotations)
            continue
        _memo.update(reading.encoder.roots)
        return found
    raise InvalidRequestError(f"{function!r} imports new modules each time it is read")


class Crawl:
    """One reading, from one function."""

    def __init__(self, function: Any, options: Options) -> None:
        self.options = options
        self.reads_docs = self.reads_annotations = False
        self.root, self.own = self._origin(function)
        self.function = function
        self.encoder = Encoder(self.kind_of_file, self._shortener(), _memo)
        self.labels: dict[Any, str] = {}
        self.taken: dict[str, int] = {}
        self.held: list[Any] = []  # so that no identity is given twice
        self.queue: collections.deque[tuple[str, Any]] = collections.deque()
        self.parts: list[Part] = []
        self.opaque: dict[tuple[str, str | None, int | None], Part] = {}
        self.files: set[str] = set()
        self.sources: dict[str, Source | None] = {}
        self.relatives: dict[str, str] = {}
        self.touched: set[str] = set()
        self.loaded = False

    def run(self) -> Fingerprint:
        """
        Follow every link.

        Raises:
            _Restart: Something reached reads docstrings or annotations, or was imported just now.
        """
        self.link(self.function)
        while self.queue:
            label, item = self.queue.popleft()
            self._visit(label, item)
            if (self.reads_docs, self.reads_annotations) > tuple(self.options) or self.loaded:
                if self.loaded or (self.reads_docs and not self.options.docs) or (
                    self.reads_annotations and not self.options.annotations
                ):
                    raise _Restart
        opaque = sorted(self.opaque.values(), key=lambda part: (part.file or "", part.line or 0, part.name, part.text))
        return Fingerprint(digest_of(self.parts), tuple(self.parts), tuple(opaque), frozenset(self.files))

    def _origin(self, function: Any) -> tuple[str, str]:
        """The project's root, and the folder or file that is the project's even inside site-packages."""
        inner = plain(function)
        code = getattr(inner, "__code__", None)
        name = getattr(inner, "__qualname__", None) or repr(function)
        if inner is None or (code is None and not isinstance(inner, type)):
            raise InvalidRequestError(
                f"`{name}` has no Python source to fingerprint",
                why=f"it is a {type(function).__name__}, written in C or not a function",
                hint="give a function that is written in Python",
            )
        module = getattr(inner, "__module__", None)
        file = code.co_filename if code is not None else place.file_of(sys.modules[module]) if module in sys.modules else ""
        if code is not None and load(file, inner.__globals__) is None:
            raise InvalidRequestError(
                f"`{name}` has no source to fingerprint",
                why=f"{file}:{code.co_firstlineno} cannot be read: made by exec, typed at a prompt, or piped in",
                hint="put the function in a module",
            )
        file = os.path.abspath(file or "")
        root = place.root_of(file, module)
        top = os.path.join(root, (module or "").partition(".")[0])
        return root, top + os.sep if file.startswith(top + os.sep) else file

    def _shortener(self) -> Callable[[str], str]:
        """Takes the checkout's folder out of texts: a path below it is the same path in another checkout."""
        folders = {self.root}
        parent = self.root
        for _ in range(3):
            if any(os.path.exists(os.path.join(parent, mark)) for mark in ("pyproject.toml", ".git", "setup.py")):
                folders.add(parent)
                break
            parent = os.path.dirname(parent)
        folders = {folder for folder in folders if len(folder.strip(os.sep)) > 3}
        if not folders:
            return lambda text: text
        longest = sorted(folders, key=len, reverse=True)
        pattern = re.compile("|".join(re.escape(folder) + r"(?![\w.-])" for folder in longest))
        return lambda text: pattern.sub("<root>", text) if os.sep in text else text

    def kind_of_file(self, path: str) -> str:
        """To whom a file belongs; the function's own package is the project's wherever it is installed."""
        return place.PROJECT if path.startswith(self.own) else place.kind_of_file(path)

    # --- links and parts ----------------------------------------------------------------------------------------------

    def link(self, item: Any) -> str:
        """The label of something reached; it is read later if it is new."""
        key = item.key if isinstance(item, _Value) else (Package, item.module) if isinstance(item, Package) else id(item)
        if isinstance(item, Package):
            key = (Package, place.distribution_of(item.module))
        if key in self.labels:
            return self.labels[key]
        name = self._name(item)
        self.taken[name] = count = self.taken.get(name, 0) + 1
        label = self.labels[key] = name if count == 1 else f"{name}#{count}"
        self.held.append(item)
        self.queue.append((label, item))
        return label

    def _name(self, item: Any) -> str:
        if isinstance(item, _Value):
            return item.name
        if isinstance(item, Package):
            return place.distribution_of(item.module)[0]
        if isinstance(item, types.FunctionType):
            return item.__code__.co_qualname
        if isinstance(item, types.ModuleType):
            return item.__name__.rpartition(".")[2]
        inner = getattr(item, "function", None) if not isinstance(item, type) else None
        return f"@{inner.__code__.co_qualname}" if isinstance(inner, types.FunctionType) else getattr(
            item, "__qualname__", type(item).__qualname__
        )

    def _visit(self, label: str, item: Any) -> None:
        if isinstance(item, _Value):
            self._visit_value(label, item)
        elif isinstance(item, Package):
            name, version = place.distribution_of(item.module)
            self._part(label, "package", None, None, tagged("package", name, version), version)
        elif isinstance(item, types.FunctionType):
            self._visit_function(label, item)
        elif isinstance(item, type):
            self._visit_class(label, item)
        elif isinstance(item, types.ModuleType):
            self._visit_module(label, item)
        elif is_step(item):
            self._visit_step(label, item)
        else:
            self._visit_callable(label, item)

    def _part(self, label: str, kind: str, file: str | None, line: int | None, digest: str, text: str) -> None:
        self.parts.append(Part(label, kind, file, line, digest, text))

    def _doubt(self, name: str, file: str | None, line: int | None, reason: str) -> None:
        where = (name, file, line)
        self.opaque.setdefault((*where, reason), Part(*(name, "opaque"), file, line, tagged("opaque", name, reason), reason))  # type: ignore[index]

    def _join(self, encoded: Encoded) -> str:
        return tagged("value", encoded.token, *map(self.link, encoded.links))

    def relative(self, file: str | None) -> str | None:
        """A path as people of the project know it."""
        if not file or file.startswith("<"):
            return file or None
        if file not in self.relatives:
            self.relatives[file] = os.path.relpath(os.path.abspath(file), self.root).replace(os.sep, "/")
        return self.relatives[file]

    def _source(self, module: types.ModuleType | None) -> Source | None:
        return self._load(place.file_of(module) or "", vars(module)) if module is not None else None

    def _load(self, path: str, names: dict[str, Any]) -> Source | None:
        """A file as it is at the start of this reading; asking the disk for each name would take a third of the time."""
        if path not in self.sources:
            self.sources[path] = load(path, names)
        return self.sources[path]

    def _touch(self, module: types.ModuleType | None) -> None:
        file = place.file_of(module) if module is not None else None
        if file and file not in self.touched:
            self.touched.add(file)
            if os.path.isfile(file) and self.kind_of_file(file) == place.PROJECT:
                self.files.add(os.path.abspath(file))

    # --- functions ----------------------------------------------------------------------------------------------------

    def _visit_function(self, label: str, function: types.FunctionType) -> None:
        code, module = function.__code__, sys.modules.get(function.__globals__.get("__name__", ""))
        source = self._load(code.co_filename, function.__globals__)
        nodes = source.function(code, function.__qualname__) if source else []
        file, line = self.relative(code.co_filename), code.co_firstlineno
        if source is None or not nodes:
            self._doubt(label, file, line, "there is no source; its bytecode counts, which differs between Python versions")
            encoded = self.encoder.top(code)
            self._part(label, "function", file, line, self._join(encoded), f"<bytecode of {label}>")
            return
        self._touch(module)
        cells = self._cells(function, source)
        skipped = [item for node in nodes for item in self._framework_decorators(node, function.__globals__)]
        unit = self._unit(source, nodes, self._options_for(nodes, skipped, function), skip=skipped, body_only=True)
        items = [
            *self._resolve(unit, label, file, function.__globals__, cells, module),
            *self._defaults(label, function, nodes, file),
            *self._extras(label, function, file, line),
            *self._effects(source, function.__globals__, module, file),
        ]
        node = nodes[0]
        line = getattr(node, "lineno", line)
        text = "\n".join(source.text_of(item) for item in nodes)
        self._part(label, "function", file, line, tagged("function", unit.text, *items), text)

    def _options_for(self, nodes: Sequence[ast.AST], skipped: list[ast.expr], function: types.FunctionType) -> Options:
        """Annotations count where an installed package's decorator may read them."""
        names = (root_name(item) for node in nodes for item in getattr(node, "decorator_list", ()) if item not in skipped)
        for name in names:
            value = function.__globals__.get(name or "")
            owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(owner, str) and (place.kind_of_module(owner) == place.INSTALLED or name == "singledispatch"):
                return self.options._replace(annotations=True)
        return self.options

    def _unit(self, source: Source, nodes: Sequence[ast.AST], options: Options, **how: Any) -> Unit:
        key = (*map(id, nodes), options, how.get("body_only"), len(how.get("skip", ())))
        if key not in source.units:
            source.units[key] = analyse(nodes, options, **how)
        unit: Unit = source.units[key]
        self.reads_docs |= unit.reads_docs
        self.reads_annotations |= unit.reads_annotations
        return unit

    def _cells(self, function: types.FunctionType, source: Source) -> dict[str, Any]:
        cells = {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                value = _MISSING
            cells[name] = remembered(cell, "", value) if name in source.rebound else value
        return cells

    def _framework_decorators(self, node: ast.AST, names: dict[str, Any]) -> list[ast.expr]:
        """``@step(retries=2)`` says how a step runs, not what it computes."""
        found = []
        for item in getattr(node, "decorator_list", ()):
            value = names.get(root_name(item) or "")
            owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None) or ""
            if owner.partition(".")[0] == "handler" and place.kind_of_module(owner) == place.FRAMEWORK:
                found.append(item)
        return found

    def _defaults(self, label: str, function: types.FunctionType, nodes: Sequence[Any], file: str | None) -> list[str]:
        args = nodes[0].args
        names = [arg.arg for arg in (*args.posonlyargs, *args.args)][-len(function.__defaults__ or ()) or None :]
        values = dict(zip(names, function.__defaults__ or (), strict=False)) | (function.__kwdefaults__ or {})
        written = dict(zip(names, args.defaults, strict=False)) if len(args.defaults) == len(names) else {}
        written |= {arg.arg: node for arg, node in zip(args.kwonlyargs, args.kw_defaults, strict=True) if node}
        items = []
        for name, value in values.items():
            node = written.get(name)
            if isinstance(node, ast.Constant) and type(node.value) is type(value) and node.value == value:
                continue
            home = sys.modules.get(function.__module__ or "")
            nodes_ = (node,) if node is not None else ()
            items += [name, self._bind(label, name, "default", value, file, getattr(node, "lineno", None), nodes_, home)]
        return items

    def _extras(self, label: str, function: types.FunctionType, file: str | None, line: int) -> list[str]:
        items = []
        for name, value in sorted(vars(function).items()):
            if name in ("__wrapped__", "__type_params__", "__isabstractmethod__"):
                continue
            value = remembered(function, name, value)
            items += [name, self._bind(label, name, "constant", value, file, line, (), None)]
        if "__wrapped__" in vars(function):
            items.append(self._bind(label, "__wrapped__", "constant", function.__wrapped__, file, line, (), None))  # type: ignore[attr-defined]
        return items

    def _bind(
        self,
        owner: str,
        name: str,
        kind: str,
        value: Any,
        file: str | None,
        line: int | None,
        nodes: tuple[ast.AST, ...],
        home: types.ModuleType | None,
        mark: str = ".",
    ) -> str:
        """The label of a value that a function or class holds: its own part, unless it is code."""
        if value is _MISSING:
            return "unbound"
        encoded = self.encoder.top(value, remember=not name.startswith("("))
        if self._is_code(value, encoded):
            return encoded.token + self.link(encoded.links[0]) if encoded.links else encoded.token
        return self.link(_Value((owner, kind, name), f"{owner}{mark}{name}", kind, value, file, line, nodes, home))

    @staticmethod
    def _is_code(value: Any, encoded: Encoded) -> bool:
        """Whether a value is a function, class, module or step, which have parts of their own, or foreign code."""
        code = types.FunctionType | types.BuiltinFunctionType | type | types.ModuleType
        return len(encoded.links) < 2 and not encoded.token.startswith("#") and (isinstance(value, code) or is_step(value))

    def _effects(
        self, source: Source, names: dict[str, Any], module: types.ModuleType | None, file: str | None
    ) -> list[str]:
        """
        Statements of the module that change what is not its own: ``random.seed(3)``, ``getcontext().prec = 9``.

        What they change is read by no name, so their source counts.
        """
        nodes = []
        for root, statements in source.touches.items():
            value = names.get(root, _MISSING)
            if root in _SILENT_ROOTS or value is _MISSING or module is None:
                continue
            owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            is_code = isinstance(value, types.ModuleType | type | types.FunctionType | types.BuiltinFunctionType | types.MethodType)
            if not is_code or not isinstance(owner, str) or owner.partition(".")[0] in _SILENT_ROOTS:
                continue
            if place.kind_of_module(owner) in (place.STANDARD, place.INSTALLED):
                nodes += [node for node in statements if node not in nodes]
        if not nodes:
            return []
        nodes.sort(key=lambda node: node.lineno)
        key = ("effects", id(source))
        return [self.link(_Value(key, "(module)", "module", None, file, nodes[0].lineno, tuple(nodes), module))]

    # --- names --------------------------------------------------------------------------------------------------------

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
        if isinstance(value, types.ModuleType):
            return self._follow(value, read.attrs, None, names, where, escapes=read.escapes)
        return self._bind(*where[:1], read.root, "closure", value, *where[1:], (), None, mark=":")

    def _read_global(
        self, read: Read, names: dict[str, Any], module: types.ModuleType | None, where: tuple[str, str | None, int]
    ) -> str | None:
        if read.root in names:
            return self._follow(names[read.root], read.attrs, (module, read.root), names, where, escapes=read.escapes)
        value = getattr(builtins, read.root, _MISSING)
        if value is _MISSING:
            if module is not None and (fallback := names.get("__getattr__")) is not None and read.level >= 0:
                return self.link(fallback)
            return "unbound" if read.escapes else None
        if isinstance(value, types.FunctionType) and self.kind_of_file(value.__code__.co_filename) == place.PROJECT:
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
            text = _content(file) if file else b""
        except (ImportError, ValueError, OSError, SyntaxError, AttributeError):
            return
        if file:
            self.files.add(os.path.abspath(file))
            key = ("text", file)
            self.link(_Value(key, name.rpartition(".")[2], "module", text, self.relative(file), 1, (), None))

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
        while isinstance(value, types.ModuleType):
            self._touch(value)
            kind = place.kind_of_module(value.__name__) if not self._is_own(value) else place.PROJECT
            if kind == place.FRAMEWORK:
                return None
            if rest and rest[0].startswith(CHOSEN):
                name = names.get(rest[0][1:], _MISSING)
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
            held = vars(value).get(name, _MISSING)
            if held is _MISSING:
                held = self._submodule(value, name, where)
            if held is _MISSING:
                fallback = vars(value).get("__getattr__")
                return self.link(fallback) if isinstance(fallback, types.FunctionType) else "unbound"
            value, origin = held, (value, name)
        if not escapes and not rest and isinstance(value, types.ModuleType):
            return None
        return self._bound(value, rest, origin)

    def _is_own(self, module: types.ModuleType) -> bool:
        file = place.file_of(module)
        return bool(file) and self.kind_of_file(file) == place.PROJECT  # type: ignore[arg-type]

    def _is_replaced(self, module: types.ModuleType, name: str) -> bool:
        """Whether the project put something of its own into a foreign module, or a submodule is meant."""
        value = vars(module).get(name)
        if isinstance(value, types.ModuleType):
            return True
        return isinstance(value, types.FunctionType) and self.kind_of_file(value.__code__.co_filename) == place.PROJECT

    def _foreign_module(self, module: types.ModuleType, rest: Sequence[str]) -> str | None:
        name = module.__name__
        kind = place.kind_of_module(name)
        if kind == place.INSTALLED:
            return self.link(Package(name))
        if name in _VERSION_MODULES or any((name, *rest)[: len(read)] == read for read in _VERSION_READS):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            return self.link(_Value(("python",), "python", "python", version, None, None, (), None))
        return f"{name}" if not rest else None

    def _submodule(self, package: types.ModuleType, name: str, where: tuple[str, str | None, int]) -> Any:
        if "__path__" not in vars(package):  # hasattr would ask the module, which may run its __getattr__
            return _MISSING
        try:
            if importlib.util.find_spec(f"{package.__name__}.{name}") is None:
                return _MISSING
        except (ImportError, ValueError):
            return _MISSING
        module = self._import(f"{package.__name__}.{name}", where)
        return _MISSING if module is None else module

    def _bound(self, value: Any, rest: Sequence[str], origin: tuple[types.ModuleType | None, str] | None) -> str | None:
        """What a name is bound to, as an item of a digest."""
        module, name = origin if origin is not None else (None, "")
        if isinstance(value, type) and _SUBCLASSES in rest and self.encoder.kind_of_class(value) == place.PROJECT:
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
        if name in ("__doc__",) and isinstance(value, str):
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
        return self.link(_Value(key, short, "constant", value, file, line, nodes, module))

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
            if vars(held).get(name_there, _MISSING) is not value:
                return module, name, nodes
            self._touch(module)
            module, name = held, name_there
        return module, name, ()

    def _star(self, source: Source, name: str, value: Any, package: str) -> str | None:
        for node in reversed(source.stars):
            target = self._absolute(Read(node.module or "", (), node.level), package)
            if target in sys.modules and vars(sys.modules[target]).get(name, _MISSING) is value:
                return target
        return None

    @staticmethod
    def _absolute(read: Read, package: str) -> str:
        try:
            return importlib.util.resolve_name("." * read.level + read.root, package) if read.level else read.root
        except (ImportError, ValueError):
            return read.root

    # --- values, modules, steps ---------------------------------------------------------------------------------------

    def _visit_value(self, label: str, item: _Value) -> None:
        if item.kind == "module" and item.value is None:
            self._part(label, "module", item.file, item.line, tagged("module", *self._initial(label, item)), self._said(item))
            return
        lasts = item.kind not in ("declared", "module") and "(" not in item.name
        encoded = self.encoder.top(item.value, remember=lasts)
        extra: list[str] = []
        if encoded.doubts:
            extra = self._initial(label, item)
            for reason in filter(None, encoded.doubts):
                self._doubt(label, item.file, item.line, reason)
        digest = tagged(item.kind, self._join(encoded), *extra)
        text = self._text(item, lasts)
        self._part(label, item.kind, item.file, item.line, digest, text)

    def _text(self, item: _Value, lasts: bool) -> str:
        if item.kind == "python":
            return str(item.value)
        key = (id(item.value), f"({item.name})")
        if lasts and id(item.value) in _memo and key in _first:
            return str(_first[key][1])  # as it was when its digest was made
        text = shown(item.name, item.value)
        if lasts and id(item.value) in self.encoder.roots:
            _first[key] = (item.value, text)
        return text

    def _initial(self, label: str, item: _Value) -> list[str]:
        """The statements that make a value, where the value itself says too little."""
        if item.home is None or not item.nodes:
            return []
        source = self._source(item.home)
        if source is None:
            return []
        skipped = [skip for node in item.nodes for skip in self._framework_decorators(node, vars(item.home))]
        unit = self._unit(source, item.nodes, self.options, skip=skipped)
        names = vars(item.home)
        unit = unit._replace(notes=(), reads={read: line for read, line in unit.reads.items() if read.root != item.name})
        return [unit.text, *self._resolve(unit, label, item.file, names, {}, item.home)]

    def _said(self, item: _Value) -> str:
        source = self._source(item.home)
        return "\n".join(source.text_of(node) for node in item.nodes) if source else ""

    def _visit_module(self, label: str, module: types.ModuleType) -> None:
        """A module of which anything may be asked: every name that it binds itself."""
        file, items = self.relative(place.file_of(module)), []
        for name, value in sorted(vars(module).items()):
            if (name.startswith("__") and name != "__getattr__") or isinstance(value, types.ModuleType):
                continue
            items += [name, self._bound(value, (), (module, name)) or ""]
        self._part(label, "module", file, 1, tagged("module", *items), "\n".join(items[::2]))

    def _visit_step(self, label: str, step: Any) -> None:
        function = step.function
        file, line = self.relative(function.__code__.co_filename), function.__code__.co_firstlineno
        items = [self.link(function)]
        if (version := getattr(step, "version", None)) is not None:
            key = (id(step), "version")
            items.append(self.link(_Value(key, f"{function.__qualname__}.version", "declared", str(version), file, line, (), None)))
        for position, item in enumerate(getattr(step, "depends_on", ()) or ()):
            items.append(self._declared(function, item, position, file, line))
        self._part(label, "declared", file, line, tagged("step", *items), " ".join(items))

    def _declared(self, function: types.FunctionType, item: Any, position: int, file: str | None, line: int) -> str:
        if isinstance(item, os.PathLike):
            path = self._find(os.fspath(item), function)
            if path is None:
                raise InvalidRequestError(
                    f"step `{function.__name__}` depends on a file that is not there",
                    why=f"{os.fspath(item)}, declared in {file}:{line}",
                    hint="name it relative to the step's file or to the project's root",
                )
            content = {}
            for each in [path] if os.path.isfile(path) else _files_below(path):
                self.files.add(os.path.abspath(each))
                content[os.path.relpath(each, path).replace(os.sep, "/")] = _content(each)
            name = self.relative(path) or path
            return self.link(_Value(("file", path), name, "declared", content, name, None, (), None))
        encoded = self.encoder.top(item)
        if self._is_code(item, encoded) and encoded.links:
            return self.link(encoded.links[0])
        name = f"{function.__qualname__}.depends_on[{position}]"
        return self.link(_Value((id(function), "declared", position), name, "declared", item, file, line, (), None))

    def _find(self, path: str, function: types.FunctionType) -> str | None:
        folders = (os.path.dirname(function.__code__.co_filename), self.root, os.getcwd())
        return next((found for folder in folders if os.path.exists(found := os.path.join(folder, path))), None)

    def _visit_callable(self, label: str, item: Any) -> None:
        """A partial, a cached function, an object that can be called: its value."""
        encoded = self.encoder.top(item)
        inner = plain(item)
        code = getattr(inner, "__code__", None)
        file, line = (self.relative(code.co_filename), code.co_firstlineno) if code else (None, None)
        for reason in filter(None, encoded.doubts):
            self._doubt(label, file, line, reason)
        self._part(label, "constant", file, line, self._join(encoded), shown(label, item))

    # --- classes ------------------------------------------------------------------------------------------------------

    def _visit_class(self, label: str, klass: type) -> None:
        module = sys.modules.get(klass.__module__)
        module = module if module is not None and self._is_own(module) else None
        self._touch(module)
        source = self._source(module)
        node = self._class_node(source, klass)
        file = self.relative(place.file_of(module)) if module is not None else None
        items = [klass.__qualname__]
        for base in (*klass.__bases__, type(klass)):
            encoded = self.encoder.type(base)
            items += [encoded.token, *map(self.link, encoded.links)]
        text, line = klass.__qualname__, None
        if source is not None and node is not None:
            line = node.lineno
            items += self._header(label, klass, source, node, file, module)
            text = source.text_of(node, without=tuple(item for item in node.body if hasattr(item, "body")))
        items += self._members(label, klass, node, file, line, module)
        self._part(label, "class", file, line, tagged("class", *items), text)

    @staticmethod
    def _class_node(source: Source | None, klass: type) -> ast.ClassDef | None:
        found = [node for node in (source.defs.get(klass.__qualname__, ()) if source else ()) if isinstance(node, ast.ClassDef)]
        lines = {item.__code__.co_firstlineno for item in vars(klass).values() if isinstance(item, types.FunctionType)}
        said = vars(klass).get("__firstlineno__")
        fits = [node for node in found if said == first_line(node) or any(node.lineno <= n <= (node.end_lineno or 0) for n in lines)]
        return (fits or found or [None])[-1]  # type: ignore[list-item]

    def _header(
        self, label: str, klass: type, source: Source, node: ast.ClassDef, file: str | None, module: types.ModuleType | None
    ) -> list[str]:
        """Decorators, bases and keywords as written, and, unless the class is plain, its annotated fields."""
        pieces: list[ast.AST] = [*node.decorator_list, *node.bases, *node.keywords]
        if pieces or type(klass) is not type or self.options.annotations:
            for item in node.body:
                if isinstance(item, ast.AnnAssign):
                    pieces += [item.target, unquoted(item.annotation)]  # type: ignore[list-item]
        unit = self._unit(source, pieces, self.options)
        if self.options.docs and (doc := docstring_of(node)) is not None:
            unit = unit._replace(text=unit.text + inspect.cleandoc(doc.value.value))  # type: ignore[attr-defined]
        names = vars(module) if module is not None else {}
        known = {**vars(klass), **names}
        return [unit.text, *self._resolve(unit, label, file, known, {}, module)]

    def _members(
        self,
        label: str,
        klass: type,
        node: ast.ClassDef | None,
        file: str | None,
        line: int | None,
        module: types.ModuleType | None,
    ) -> list[str]:
        written: dict[str, list[ast.stmt]] = {}
        for statement in node.body if node is not None else ():
            for name in _bound_in_class(statement):
                written.setdefault(name, []).append(statement)
        source = self._source(module)
        items: list[str] = []
        for name, value in sorted(self._own_members(klass, set(written)).items()):
            if source is not None and name in source.rebound:
                value = remembered(klass, name, value)
            nodes = tuple(written.get(name, ()))
            at = nodes[0].lineno if nodes else line
            items += [name, self._bind(label, name, "constant", value, file, at, nodes, module)]
        return items

    def _own_members(self, klass: type, written: set[str]) -> dict[str, Any]:
        """What a class holds, without what Python and the makers of dataclasses, enums and models derive from it."""
        members = dict(vars(klass))
        generated = self._generated(klass)
        kept: dict[str, Any] = {}
        if "__dataclass_fields__" in members:
            names = ("name", "default", "default_factory", "init", "repr", "hash", "compare", "kw_only", "metadata")
            fields = members["__dataclass_fields__"].values()
            kept["(fields)"] = [[str(field._field_type), *(_field(field, name) for name in names)] for field in fields]
            params = members.get("__dataclass_params__")
            kept["(params)"] = [getattr(params, name, None) for name in ("init", "repr", "eq", "order", "unsafe_hash", "frozen")]
        if "__attrs_attrs__" in members:
            names = ("name", "default", "validator", "converter", "init", "repr", "eq", "order", "hash", "kw_only", "alias")
            kept["(fields)"] = [[getattr(field, name, None) for name in names] for field in members["__attrs_attrs__"]]
        if isinstance(models := members.get("__pydantic_fields__"), dict):
            names = ("default", "default_factory", "metadata", "alias")
            kept["(fields)"] = [[key, *(_field(item, name) for name in names)] for key, item in models.items()]
        if issubclass(klass, tuple) and "_fields" in members:
            kept["(fields)"] = [members["_fields"], members.get("_field_defaults")]
        if isinstance(enum := members.get("_member_map_"), dict):
            state = {name: (item._value_, _plain_state(item)) for name, item in enum.items()}
            kept |= {name: _Pair(value, extra) if extra else value for name, (value, extra) in state.items()}
            kept["(members)"] = list(enum)
            members = {name: value for name, value in members.items() if name not in enum and not isinstance(value, klass)}
        for name, value in members.items():
            if name in ("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__slots__"):
                if name != "__slots__" or "__slots__" not in written:
                    continue
            if name in _CLASS_NOISE or name.startswith(_ALWAYS_GENERATED):
                continue
            if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType | _TUPLE_GETTER):
                continue
            is_theirs = name in written or self._is_project_code(value)
            if (name.startswith("__") and name.endswith("__") or generated) and not is_theirs:
                if not (generated == "data" and not callable(value) and not name.startswith("_")):
                    continue
            kept[name] = value
        return kept

    def _generated(self, klass: type) -> str:
        """Whether a maker of classes wrote some members: enum, namedtuple, protocol, model."""
        if "_member_map_" in vars(klass) or getattr(klass, "_is_protocol", False):
            return "code"
        if issubclass(klass, tuple) and "_fields" in vars(klass):
            return "code"
        return "data" if "__pydantic_fields__" in vars(klass) else ""

    def _is_project_code(self, value: Any) -> bool:
        value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if isinstance(value, type):
            return self.encoder.kind_of_class(value) == place.PROJECT
        code = getattr(value, "__code__", None)
        return code is not None and self.kind_of_file(code.co_filename) == place.PROJECT


class _Pair(NamedTuple):
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
    return _first.setdefault((id(owner), name), (owner, value))[1]


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


def _bound_in_class(node: ast.stmt) -> Iterable[str]:
    from handler.core.fingerprint.source import blocks, bound_by

    yield from bound_by(node)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for block in blocks(node):
            for inner in block:
                yield from _bound_in_class(inner)


def _field(field: Any, name: str) -> Any:
    value = getattr(field, name, None)
    return None if type(value).__name__ in ("_MISSING_TYPE", "PydanticUndefinedType") else value


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _files_below(folder: str) -> list[str]:
    found = []
    for place_, _, names in os.walk(folder):
        found += [os.path.join(place_, name) for name in names if "__pycache__" not in place_]
    return sorted(found)


def _plain_state(member: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in sorted(vars(member).items()) if not name.startswith("_")]


__all__ = ["Crawl", "canonical", "crawl", "describe", "is_step", "plain"]
