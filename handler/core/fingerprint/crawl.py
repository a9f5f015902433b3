"""
From a function to everything it rests on.

Source says which names are read, the live modules say what these are bound to. Reading starts at one function and
follows links until nothing new is found; what is reached gets one part. Nothing of the project is called. Modules that
a function imports when it runs are imported here, as its first call would do.
"""

from __future__ import annotations

import ast
import collections
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from handler.core.errors import InvalidRequestError
from handler.core.fingerprint import place
from handler.core.fingerprint.classes import Classes
from handler.core.fingerprint.model import Fingerprint, Part, digest_of, tagged
from handler.core.fingerprint.names import Names, content_of
from handler.core.fingerprint.pieces import FIRST, MEMO, MISSING, Value, is_step, isa, plain, remembered
from handler.core.fingerprint.source import Source, load, root_name
from handler.core.fingerprint.unit import Options, Unit, analyse
from handler.core.fingerprint.values import Encoded, Encoder, Package
from handler.core.fingerprint.words import shown

_SILENT_ROOTS = {"logging", "warnings", "print", "sys", "typing", "super", "faulthandler"}


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
        MEMO.update(reading.encoder.roots)
        return found
    raise InvalidRequestError(f"{function!r} imports new modules each time it is read")


class Crawl(Names, Classes):
    """One reading, from one function."""

    def __init__(self, function: Any, options: Options) -> None:
        self.options = options
        self.reads_docs = self.reads_annotations = False
        self.root, self.own = self._origin(function)
        self.function = function
        self.encoder = Encoder(self.kind_of_file, self._shortener(), MEMO)
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
        key = item.key if isinstance(item, Value) else (Package, item.module) if isinstance(item, Package) else id(item)
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
        if isinstance(item, Value):
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
        if isinstance(item, Value):
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
            owner = value.__name__ if isa(value, types.ModuleType) else getattr(value, "__module__", None)
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
                value = MISSING
            cells[name] = remembered(cell, "", value) if name in source.rebound else value
        return cells

    def _framework_decorators(self, node: ast.AST, names: dict[str, Any]) -> list[ast.expr]:
        """``@step(retries=2)`` says how a step runs, not what it computes."""
        found = []
        for item in getattr(node, "decorator_list", ()):
            value = names.get(root_name(item) or "")
            owner = value.__name__ if isa(value, types.ModuleType) else getattr(value, "__module__", None) or ""
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
        if value is MISSING:
            return "unbound"
        encoded = self.encoder.top(value, remember=not name.startswith("("))
        if self._is_code(value, encoded):
            return encoded.token + self.link(encoded.links[0]) if encoded.links else encoded.token
        return self.link(Value((owner, kind, name), f"{owner}{mark}{name}", kind, value, file, line, nodes, home))

    @staticmethod
    def _is_code(value: Any, encoded: Encoded) -> bool:
        """Whether a value is a function, class, module or step, which have parts of their own, or foreign code."""
        code = types.FunctionType | types.BuiltinFunctionType | type | types.ModuleType
        return len(encoded.links) < 2 and not encoded.token.startswith("#") and (isa(value, code) or is_step(value))

    def _effects(
        self, source: Source, names: dict[str, Any], module: types.ModuleType | None, file: str | None
    ) -> list[str]:
        """
        Statements of the module that change what is not its own: ``random.seed(3)``, ``getcontext().prec = 9``.

        What they change is read by no name, so their source counts.
        """
        nodes = []
        for root, statements in source.touches.items():
            value = names.get(root, MISSING)
            if root in _SILENT_ROOTS or value is MISSING or module is None:
                continue
            owner = value.__name__ if isa(value, types.ModuleType) else getattr(value, "__module__", None)
            is_code = isa(value, types.ModuleType | type | types.FunctionType | types.BuiltinFunctionType | types.MethodType)
            if not is_code or not isinstance(owner, str) or owner.partition(".")[0] in _SILENT_ROOTS:
                continue
            if place.kind_of_module(owner) in (place.STANDARD, place.INSTALLED):
                nodes += [node for node in statements if node not in nodes]
        if not nodes:
            return []
        nodes.sort(key=lambda node: node.lineno)
        key = ("effects", id(source))
        return [self.link(Value(key, "(module)", "module", None, file, nodes[0].lineno, tuple(nodes), module))]

    # --- values, modules, steps ---------------------------------------------------------------------------------------

    def _visit_value(self, label: str, item: Value) -> None:
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

    def _text(self, item: Value, lasts: bool) -> str:
        if item.kind == "python":
            return str(item.value)
        key = (id(item.value), f"({item.name})")
        if lasts and id(item.value) in MEMO and key in FIRST:
            return str(FIRST[key][1])  # as it was when its digest was made
        text = shown(item.name, item.value)
        if lasts and id(item.value) in self.encoder.roots:
            FIRST[key] = (item.value, text)
        return text

    def _initial(self, label: str, item: Value) -> list[str]:
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

    def _said(self, item: Value) -> str:
        source = self._source(item.home)
        return "\n".join(source.text_of(node) for node in item.nodes) if source else ""

    def _visit_module(self, label: str, module: types.ModuleType) -> None:
        """A module of which anything may be asked: every name that it binds itself."""
        file, items = self.relative(place.file_of(module)), []
        for name, value in sorted(vars(module).items()):
            if (name.startswith("__") and name != "__getattr__") or isa(value, types.ModuleType):
                continue
            items += [name, self._bound(value, (), (module, name)) or ""]
        self._part(label, "module", file, 1, tagged("module", *items), "\n".join(items[::2]))

    def _visit_step(self, label: str, step: Any) -> None:
        function = step.function
        file, line = self.relative(function.__code__.co_filename), function.__code__.co_firstlineno
        items = [self.link(function)]
        if (version := getattr(step, "version", None)) is not None:
            key = (id(step), "version")
            items.append(self.link(Value(key, f"{function.__qualname__}.version", "declared", str(version), file, line, (), None)))
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
                content[os.path.relpath(each, path).replace(os.sep, "/")] = content_of(each)
            name = self.relative(path) or path
            return self.link(Value(("file", path), name, "declared", content, name, None, (), None))
        encoded = self.encoder.top(item)
        if self._is_code(item, encoded) and encoded.links:
            return self.link(encoded.links[0])
        name = f"{function.__qualname__}.depends_on[{position}]"
        return self.link(Value((id(function), "declared", position), name, "declared", item, file, line, (), None))

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


def _files_below(folder: str) -> list[str]:
    found = []
    for place_, _, names in os.walk(folder):
        found += [os.path.join(place_, name) for name in names if "__pycache__" not in place_]
    return sorted(found)
