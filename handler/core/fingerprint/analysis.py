"""
Which outside names a piece of source reads, found without running it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .canonical import canonical, unquoted
from .model import tagged
from .source import (
    Definition,
    Read,
    Source,
    absolute,
    blocks,
    bound_by,
    imported,
    is_type_checking,
    last_name,
    module_read,
    text_of,
)

# A read whose root is the module that it is part of.
OWN_MODULE = "globals()"
# An attribute whose name is chosen at run time. The global that holds the name follows, if any.
CHOSEN = "\0"

# The names that make docstrings, annotations, subclasses or source text count.
_EXTRAS = {
    "docs": {*"__doc__ getdoc model_json_schema schema_json json_schema TypeAdapter".split()},
    "annotations": {
        *"__annotations__ __annotate__ __signature__ signature getfullargspec".split(),
        *"get_type_hints get_annotations validate_call TypeAdapter".split(),
    },
    "subclasses": {"__subclasses__"},
    "text": {"getsource", "getsourcelines", "getcomments", "findsource"},
}
_FILE_READERS = (
    "read_text read_bytes read_csv read_table read_fwf read_json read_parquet read_excel"
    " read_feather read_pickle read_xml read_orc read_hdf loadtxt genfromtxt fromfile get_data"
    " FileSystemLoader PackageLoader"
).split()
_CODE_FINDERS = "entry_points iter_entry_points run_path run_module walk_packages iter_modules"
_NOTES = {
    **dict.fromkeys(_FILE_READERS, "reads a file at run time"),
    **dict.fromkeys("listdir scandir iterdir rglob".split(), "lists a folder at run time"),
    **dict.fromkeys(("co_code", "co_consts"), "reads bytecode"),
    **{word: f"`{word}` finds code at run time" for word in _CODE_FINDERS.split()},
}
_NOTES_OF_CHAINS = {
    re.compile(r"((io|builtins)\.)?open$"): "reads a file at run time",
    re.compile(r"(os\.)?(environ|getenv)b?\b"): "reads the environment at run time",
}
_LOOKUPS = "getattr setattr vars globals eval exec import_module __import__ open environ getenv"
# These are also found if they are renamed.
_WATCHED = {*_LOOKUPS.split(), *_CODE_FINDERS.split()}.union(*_EXTRAS.values())


class Unit(NamedTuple):
    """
    What was found in a piece of source.

    Args:
        text: Digest of its canonical text.
        reads: Outside names, each with its line.
        notes: What cannot be known: reason and line.
        extras: What it reads that otherwise does not count: ``docs``, ``annotations``,
            ``subclasses``, ``text``.
    """

    text: str
    reads: dict[Read, int]
    notes: tuple[tuple[str, int], ...]
    extras: frozenset[str]


@functools.lru_cache(maxsize=1 << 16)
def analyse(
    source: Source,
    nodes: tuple[ast.AST, ...],
    extras: frozenset[str],
    skip: frozenset[int],
    body_only: bool,
) -> Unit:
    """
    Read *nodes*, which are part of *source*.

    Args:
        source: A module.
        nodes: Statements or expressions of it.
        extras: What counts besides code.
        skip: Identities of decorators that do not count.
        body_only: Leave out the defaults of functions, because their live values count.
    """
    reader = _Analyzer("annotations" in extras, skip, dict(_aliases_in(source)), body_only)
    try:
        for node in nodes:
            reader.visit(node)
        texts = [canonical(node, extras, skip) for node in nodes]
    except RecursionError:
        line = getattr(nodes[0], "lineno", 0)
        reader.reads = {Read(OWN_MODULE): line}
        reader.notes = {("nested too deeply to be read", line): None}
        texts = [text_of(source, node) for node in nodes]
    if "text" in extras:
        texts += map(source.verbatim, nodes)
    text = tagged("source", *texts)
    return Unit(text, reader.reads, tuple(reader.notes), frozenset(reader.extras))


@functools.lru_cache(maxsize=4096)
def _aliases_in(source: Source) -> dict[str, str]:
    """Other names that a module gives to watched functions."""
    aliases: dict[str, str] = {}
    for node in source.statements:
        aliases.update(_renamed(node))
    return aliases


def _renamed(node: ast.AST) -> Iterator[tuple[str, str]]:
    """New and old names, such as ``load`` and ``import_module`` of ``import_module as load``."""
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            if alias.asname and alias.name in _WATCHED:
                yield alias.asname, alias.name
    elif isinstance(node, ast.Assign):
        name = last_name(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name) and name in _WATCHED:
                yield target.id, name


def _text_in(node: ast.AST | None) -> str | None:
    """The text that an expression of literals evaluates to; None if it contains anything else."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.FormattedValue(value, -1, None):
            return _text_in(value)
        case ast.BinOp(left, ast.Add(), right):
            pieces = [left, right]
        case ast.JoinedStr(values):
            pieces = values
        case _:
            return None
    texts = [text for text in map(_text_in, pieces) if text is not None]
    return "".join(texts) if len(texts) == len(pieces) else None


class _Scope:
    """
    The names of one function, class or comprehension.

    Args:
        names: The names that its header binds.
        body: The statements that bind other names.
        is_class: Whether it is a class: functions inside do not see its names.
    """

    def __init__(
        self, names: Iterable[str], body: Iterable[ast.stmt] = (), *, is_class: bool = False
    ) -> None:
        # Each name, with what it imports, if anything.
        self.names: dict[str, list[Read]] = {name: [] for name in names}
        self.is_class = is_class
        self.globals: set[str] = set()
        self._outer: set[str] = set()
        self._add(body)
        for name in self._outer | self.globals:
            self.names.pop(name, None)

    def _add(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.If) and is_type_checking(node.test):
                self._add(node.orelse)
                continue
            if isinstance(node, ast.Global):
                self.globals.update(node.names)
            elif isinstance(node, ast.Nonlocal):
                self._outer.update(node.names)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for name, read in imported(node):
                    self.names.setdefault(name, []).append(read)
            else:
                for name in bound_by(node):
                    self.names.setdefault(name, [])
            if not isinstance(node, Definition):
                for block in blocks(node):
                    self._add(block)


@dataclass
class _Analyzer(ast.NodeVisitor):
    with_annotations: bool
    skip: frozenset[int]
    aliases: dict[str, str]
    body_only: bool
    reads: dict[Read, int] = field(default_factory=dict)
    notes: dict[tuple[str, int], None] = field(default_factory=dict)
    extras: set[str] = field(default_factory=set)
    scopes: list[_Scope] = field(default_factory=list)

    def read(self, chain: Read | None, line: int) -> None:
        """Resolve a chain's root by Python's scoping, and note it if it comes from outside."""
        if chain is None:
            return
        if chain.level < 0 and chain.root != OWN_MODULE:
            for scope in reversed(self.scopes):
                if scope.is_class and scope is not self.scopes[-1]:
                    continue
                if chain.root in scope.globals:
                    break
                origins = scope.names.get(chain.root)
                for origin in origins or ():
                    inner = origin._replace(escapes=chain.escapes)
                    self.read(_extend(inner, *chain.attrs), line)
                if origins or (origins is not None and not scope.is_class):
                    return
        self.reads.setdefault(chain, line)
        words = (self.aliases.get(chain.root, chain.root), *chain.attrs)
        for pattern, reason in _NOTES_OF_CHAINS.items():
            if pattern.match(".".join(words)):
                self.notes[reason, line] = None
        for word in words:
            self._check_word(word, line)

    def _check_word(self, word: str, line: int) -> None:
        if word in _NOTES:
            self.notes[_NOTES[word], line] = None
        self.extras.update(extra for extra, readers in _EXTRAS.items() if word in readers)

    # --- chains: ``a.b.c``, also spelled with ``getattr``, ``globals`` or ``import_module``

    def chain(self, node: ast.expr) -> Read | None:
        """The outside name that *node* means; for anything else None, after visiting its parts."""
        match node:
            case ast.Name(name):
                return Read(name)
            case ast.Attribute(value, attr):
                self._check_word(attr, node.lineno)
                return _extend(self.chain(value), attr)
            case ast.Subscript(value, key):
                return self._chain_of_item(value, key)
            case ast.Call():
                return self._chain_of_call(node)
        super().visit(node)
        return None

    def _chain_of_item(
        self, value: ast.expr, key: ast.expr, attrs: tuple[str, ...] = ()
    ) -> Read | None:
        table = self.chain(value)
        self.visit(key)
        if table is None:
            return None
        if (table.root, *table.attrs) in (("sys", "modules"), ("modules",)):
            if isinstance(key, ast.Name) and key.id == "__name__":
                return Read(OWN_MODULE)
            if (name := _text_in(key)) is not None:
                return Read(name, (), 0)
        elif table.root == OWN_MODULE or "__dict__" in table.attrs[-1:]:
            names = tuple(attr for attr in table.attrs if attr != "__dict__")
            return _extend(table._replace(attrs=names), self._key(key))
        self.read(_extend(table, *attrs), value.lineno)
        return None

    def _chain_of_call(self, node: ast.Call) -> Read | None:
        function = node.func
        arguments = node.args
        name = last_name(function)
        is_bare = isinstance(function, ast.Name)
        if is_bare:
            name = self.aliases.get(name, name)
        found: Read | None = None
        match name, arguments:
            case "globals", _ if is_bare:
                found = Read(OWN_MODULE)
            case "vars", [first, *_] if is_bare:
                found = _extend(self.chain(first), "__dict__")
                arguments = []
            case "getattr", [first, key, *_] if is_bare:
                found = _extend(self.chain(first), self._key(key))
                arguments = arguments[1:]
            case "eval" | "exec", [first, *_] if is_bare:
                self._visit_evaluated(first, name)
            case "import_module" | "__import__", _:
                found = self._chain_of_import(node, name)
            case "setattr", [first, _, _]:
                self._read_target(first)
                arguments = arguments[1:]
            case "get", [key, *others] if isinstance(function, ast.Attribute):
                self._visit_all([*others, *node.keywords])
                return self._chain_of_item(function.value, key, ("get",))
        self._visit_all([function, *arguments, *node.keywords])
        return found

    def _chain_of_import(self, node: ast.Call, function: str) -> Read | None:
        """The module that ``import_module`` or ``__import__`` returns."""
        options = {item.arg: item.value for item in node.keywords}
        first, second = (*node.args, None, None)[:2]
        name = _text_in(first)
        if name is None:
            # ``TABLE`` of ``TABLE[name]``.
            chosen = self._chosen(first.value if isinstance(first, ast.Subscript) else first)
            if chosen != CHOSEN:
                return Read(chosen, (), 0)
            self.notes["imports a module chosen at run time", node.lineno] = None
            return None
        read = module_read(name)
        package = options.get("package", second)
        if function == "import_module" and read.level and package is not None:
            known = _text_in(package)
            # If a global holds the package: that global, and the relative name.
            chosen = f"{self._chosen(package)}{CHOSEN}{name}"
            read = Read(chosen if known is None else absolute(read, known), (), 0)
        self.reads.setdefault(read._replace(escapes=False), node.lineno)
        returns_top = function == "__import__" and len(node.args) < 4 and "fromlist" not in options
        if returns_top and not read.level:
            return read._replace(root=read.root.partition(".")[0])
        return read

    def _key(self, node: ast.expr) -> str:
        """The name of an attribute that is given as a text."""
        known = _text_in(node)
        return self._chosen(node) if known is None else known

    def _chosen(self, key: ast.expr | None) -> str:
        """An attribute named by a global whose value can be looked up, or by something unknown."""
        if not isinstance(key, ast.Name) or any(key.id in scope.names for scope in self.scopes):
            return CHOSEN
        return CHOSEN + key.id

    def _read_target(self, node: ast.expr) -> None:
        """An object that an attribute is set on does not escape."""
        target = self.chain(node)
        self.read(target and target._replace(escapes=False), node.lineno)

    def _visit_evaluated(self, code: ast.expr, name: str) -> None:
        if (text := _text_in(code)) is not None:
            try:
                return self._visit_all(ast.parse(text).body)
            except SyntaxError:
                pass
        self.notes[f"`{name}` runs code that is created at run time", code.lineno] = None
        self.read(Read(OWN_MODULE), code.lineno)

    # --- one method per kind of node, as ast.NodeVisitor calls them

    def visit_Name(self, node: ast.Name | ast.Attribute | ast.Subscript | ast.Call) -> None:
        """Read what may be a chain."""
        match node:
            case ast.Name(ctx=ast.Store() | ast.Del()):
                pass
            case ast.Attribute(value, ctx=ast.Store() | ast.Del()):
                self._read_target(value)
            case ast.Subscript(ctx=ast.Store() | ast.Del()):
                self.generic_visit(node)
            case _:
                self.read(self.chain(node), node.lineno)

    visit_Attribute = visit_Subscript = visit_Call = visit_Name  # noqa: N815

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        """An import runs the module, whether or not one of its names is read."""
        for alias in node.names:
            read = Read(alias.name, (), 0, escapes=False)
            if isinstance(node, ast.ImportFrom):
                attrs = () if alias.name == "*" else (alias.name,)
                read = Read(node.module or "", attrs, node.level, escapes=False)
            self.reads.setdefault(read, node.lineno)
        self.aliases.update(_renamed(node))

    visit_ImportFrom = visit_Import  # noqa: N815

    def visit_Assign(self, node: ast.Assign) -> None:
        """An assignment may rename a watched function: ``load = importlib.import_module``."""
        self.aliases.update(_renamed(node))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """A block for type checkers does not exist at run time."""
        if is_type_checking(node.test):
            self._visit_all(node.orelse)
        else:
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """``x += 1`` reads x."""
        if isinstance(node.target, ast.Name):
            self.read(Read(node.target.id), node.lineno)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Annotations inside functions are never evaluated; elsewhere they may matter."""
        self._visit_all([node.target, node.value])
        if self.with_annotations or not self.scopes or self.scopes[-1].is_class:
            self.visit(unquoted(node.annotation))

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Decorators and defaults belong outside, the body inside."""
        self._visit_all(item for item in node.decorator_list if id(item) not in self.skip)
        self._visit_annotation(node.returns)
        self._visit_function(node.args, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A function whose body is an expression."""
        self._visit_function(node.args, [ast.Expr(node.body)])

    def _visit_function(self, args: ast.arguments, body: Sequence[ast.stmt]) -> None:
        if self.scopes or not self.body_only:
            self._visit_all([*args.defaults, *args.kw_defaults])
        names = ["__class__"]
        for arg in ast.iter_child_nodes(args):
            if isinstance(arg, ast.arg):
                names.append(arg.arg)
                self._visit_annotation(arg.annotation)
        self.scopes.append(_Scope(names, body))
        self._visit_all(body)
        self.scopes.pop()

    def _visit_annotation(self, annotation: ast.expr | None) -> None:
        if self.with_annotations and annotation is not None:
            self.visit(unquoted(annotation))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A class inside a function; its names are seen in its body only."""
        self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
        self.scopes.append(_Scope((), node.body, is_class=True))
        self._visit_all(node.body)
        self.scopes.pop()

    def visit_ListComp(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> None:
        """The first iterable belongs outside, everything else inside."""
        self.visit(node.generators[0].iter)
        names: list[str] = []
        for part in node.generators:
            names += (inner.id for inner in ast.walk(part.target) if isinstance(inner, ast.Name))
        self.scopes.append(_Scope(names))
        self.generic_visit(node)
        self.scopes.pop()

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp  # noqa: N815


def _extend(read: Read | None, *attrs: str) -> Read | None:
    return read and read._replace(attrs=read.attrs + attrs)
