"""
Which outside names a piece of source reads, found without running it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pfl.handler.core.fingerprint.canonical import canonical, unquoted
from pfl.handler.core.fingerprint.model import tagged
from pfl.handler.core.fingerprint.source import Read, blocks, bound_by, imported, is_type_checking

OWN_MODULE = "globals()"  # a read whose root is the module it stands in
CHOSEN = "\0"  # an attribute whose name is chosen at run time; followed by the global that holds it, if one does

# Words that read what otherwise changes nothing.
_EXTRAS = {
    **dict.fromkeys(("__doc__", "getdoc", "model_json_schema", "schema_json", "json_schema"), {"docs"}),
    **dict.fromkeys(
        ("__annotations__", "__annotate__", "get_type_hints", "get_annotations", "signature", "getfullargspec",
         "__signature__", "validate_call"),
        {"annotations"},
    ),
    "TypeAdapter": {"docs", "annotations"},
    "__subclasses__": {"subclasses"},
    **dict.fromkeys(("getsource", "getsourcelines", "getcomments", "findsource"), {"text"}),
}  # fmt: skip
_LOOKUPS = {"getattr", "setattr", "vars", "globals", "eval", "exec", "import_module", "__import__"}
_PLUGIN_READERS = {
    "entry_points",
    "iter_entry_points",
    "run_path",
    "run_module",
    "walk_packages",
    "iter_modules",
}
_WATCHED = {
    *_LOOKUPS,
    *_PLUGIN_READERS,
    *_EXTRAS,
    "open",
    "environ",
    "getenv",
}  # also under another name
_NOTES = {
    **dict.fromkeys(
        ("read_text", "read_bytes", "read_csv", "read_table", "read_fwf", "read_json", "read_parquet", "read_excel", "read_feather",
         "read_pickle", "read_xml", "read_orc", "read_hdf", "loadtxt", "genfromtxt", "fromfile", "get_data", "FileSystemLoader",
         "PackageLoader"),
        "reads a file at run time",
    ),
    **dict.fromkeys(("listdir", "scandir", "iterdir", "rglob"), "lists a folder at run time"),
    **dict.fromkeys(("co_code", "co_consts"), "reads bytecode"),
}  # fmt: skip


class Unit(NamedTuple):
    """
    A piece of source, read.

    Args:
        text: Digest of what it says.
        reads: Outside names, each with its line.
        notes: Places where nothing can be known: reason and line.
        asked: What it reads that otherwise does not count: ``docs``, ``annotations``, ``subclasses``, ``text``.
    """

    text: str
    reads: dict[Read, int]
    notes: tuple[tuple[str, int], ...]
    extras: frozenset[str]


def analyse(
    nodes: Sequence[ast.AST],
    extras: frozenset[str],
    *,
    skip: Iterable[ast.expr] = (),
    body_only: bool = False,
    aliases: dict[str, str] | None = None,
) -> Unit:
    """
    Read *nodes*, which stand in one module.

    Args:
        nodes: Statements or expressions.
        asked: What counts besides code.
        skip: Decorators that do not count.
        body_only: Of functions, leave the defaults' reads to their live values.
        aliases: What the module calls other than by its own name, as `renamed` gives it.
    """
    reader = _Analyzer(extras, frozenset(map(id, skip)), body_only, aliases or {})
    for node in nodes:
        reader.visit(node)
    text = tagged("source", *(canonical(node, extras, reader.skip) for node in nodes))
    return Unit(text, reader.reads, tuple(reader.notes), frozenset(reader.extras))


def renamed(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Other names that a statement gives to what is watched for: ``from importlib import import_module as load``."""
    if isinstance(node, ast.ImportFrom):
        yield from (
            (alias.asname, alias.name)
            for alias in node.names
            if alias.asname and alias.name in _WATCHED
        )
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
        name = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
        if name in _WATCHED:
            yield from (
                (target.id, name) for target in node.targets if isinstance(target, ast.Name)
            )


def text_in(node: ast.AST | None) -> str | None:
    """The text that an expression of literals says; None if it holds anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.FormattedValue):
        return text_in(node.value) if node.conversion < 0 and node.format_spec is None else None
    pieces = (
        [node.left, node.right]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        else getattr(node, "values", None)
    )
    if not pieces or isinstance(node, ast.BoolOp | ast.Dict):
        return None
    texts = [text_in(piece) for piece in pieces]
    return None if None in texts else "".join(texts)  # type: ignore[arg-type]


def _table_of(node: ast.expr) -> ast.expr:
    """``TABLE`` of ``TABLE[name]``, anything else as it is."""
    return node.value if isinstance(node, ast.Subscript) else node


class _Scope:
    """The names of one function, class or comprehension: bound, imported, or declared global."""

    def __init__(
        self, names: Iterable[str], body: Iterable[ast.stmt] = (), *, is_class: bool = False
    ) -> None:
        self.names, self.is_class = set(names), is_class
        self.imports: dict[str, list[Read]] = {}
        self.globals: set[str] = set()
        outer: set[str] = set()
        pending = list(body)
        while pending:
            node = pending.pop()
            if isinstance(node, ast.If) and is_type_checking(node.test):
                pending.extend(node.orelse)
                continue
            if isinstance(node, ast.Global):
                self.globals.update(node.names)
            elif isinstance(node, ast.Nonlocal):
                outer.update(node.names)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for name, read in imported(node):
                    self.imports.setdefault(name, []).append(read)
            else:
                self.names.update(bound_by(node))
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for block in blocks(node):
                    pending.extend(block)
        self.names -= outer | self.globals


class _Analyzer(ast.NodeVisitor):
    def __init__(
        self, extras: frozenset[str], skip: frozenset[int], body_only: bool, aliases: dict[str, str]
    ) -> None:
        self.aliases = dict(aliases)
        self.with_annotations, self.skip, self.body_only = "annotations" in extras, skip, body_only
        self.reads: dict[Read, int] = {}
        self.notes: dict[tuple[str, int], None] = {}
        self.extras: set[str] = set()
        self.scopes: list[_Scope] = []

    def read(self, chain: Read, line: int) -> None:
        """Resolve a chain's root by Python's scoping; note it where it comes from outside."""
        if chain.level < 0 and chain.root != OWN_MODULE:
            for position, scope in enumerate(reversed(self.scopes)):
                if scope.is_class and position:
                    continue
                if chain.root in scope.globals:
                    break
                if chain.root in scope.imports:
                    for origin in scope.imports[chain.root]:
                        self.read(
                            origin._replace(
                                attrs=origin.attrs + chain.attrs, escapes=chain.escapes
                            ),
                            line,
                        )
                    return
                if chain.root in scope.names and not scope.is_class:
                    return
        self.reads.setdefault(chain, line)
        self._watch(chain, line)

    def _watch(self, chain: Read, line: int) -> None:
        attrs = (self.aliases.get(chain.root, chain.root), *chain.attrs)
        dotted = ".".join(attrs)
        if dotted in ("open", "io.open", "builtins.open"):
            self.note("reads a file at run time", line)
        elif dotted.startswith(("os.environ", "os.getenv")) or attrs[0] in ("environ", "getenv"):
            self.note("reads the environment at run time", line)
        elif attrs[-1] in _NOTES:
            self.note(_NOTES[attrs[-1]], line)
        elif _PLUGIN_READERS.intersection(attrs):
            self.note(f"`{dotted}` finds code at run time", line)
        for word in attrs:
            self.extras |= _EXTRAS.get(word, set())

    def note(self, reason: str, line: int) -> None:
        """Leave word of a place where nothing can be known."""
        self.notes[reason, line] = None

    # --- chains: ``a.b.c``, also where it is spelled with ``getattr``, ``globals`` or ``import_module``

    def chain(self, node: ast.expr) -> Read | None:
        """The outside name that *node* stands for; None, after a visit to what it holds, if it is something else."""
        if isinstance(node, ast.Name):
            return Read(node.id)
        if isinstance(node, ast.Attribute):
            self.extras |= _EXTRAS.get(node.attr, set())
            if node.attr in _NOTES:
                self.note(_NOTES[node.attr], node.lineno)
            return self._extend(self.chain(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return self._chain_of_item(node)
        if isinstance(node, ast.Call):
            return self._chain_of_call(node)
        super().visit(node)
        return None

    def _chain_of_item(self, node: ast.Subscript) -> Read | None:
        table = self.chain(node.value)
        self.visit(node.slice)
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if table is not None and (table.root, *table.attrs) in (("sys", "modules"), ("modules",)):
            if isinstance(node.slice, ast.Name) and node.slice.id == "__name__":
                return Read(OWN_MODULE)
            if isinstance(key, str):
                return Read(key, (), 0)
        elif table is not None and (table.root == OWN_MODULE or "__dict__" in table.attrs[-1:]):
            table = table._replace(attrs=tuple(attr for attr in table.attrs if attr != "__dict__"))
            return self._extend(table, key if isinstance(key, str) else self._chosen(node.slice))
        self._note_read(table, node)
        return None

    def _chain_of_call(self, node: ast.Call) -> Read | None:
        bare = isinstance(node.func, ast.Name)
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        name = self.aliases.get(name, name) if bare else name
        first = node.args[0] if node.args else None
        literal = text_in(first)
        found: Read | None = None
        rest: list[ast.expr] = node.args
        if bare and name == "globals":
            found = Read(OWN_MODULE)
        elif (
            bare
            and name in ("getattr", "vars")
            and first is not None
            and (name == "vars" or len(node.args) > 1)
        ):
            rest = node.args[1:]
            key = "__dict__"
            if name == "getattr":
                known = text_in(rest[0])
                key = self._chosen(rest[0]) if known is None else known
            found = self._extend(self.chain(first), key)
        elif name in ("import_module", "__import__") and literal is not None:
            level = len(literal) - len(literal.lstrip("."))
            package = next(
                (item.value for item in node.keywords if item.arg == "package"),
                node.args[1] if len(node.args) > 1 else None,
            )
            if level and package is not None and name == "import_module":
                literal, level = self._within(literal, package), 0
            is_top = (
                name == "__import__"
                and len(node.args) < 4
                and not any(item.arg == "fromlist" for item in node.keywords)
            )
            found = Read(
                literal.partition(".")[0] if is_top and not level else literal[level:], (), level
            )
            self.reads.setdefault(Read(literal[level:], (), level, escapes=False), node.lineno)
        elif (
            name in ("import_module", "__import__")
            and first is not None
            and len(chosen := self._chosen(_table_of(first))) > 1
        ):
            found = Read(chosen, (), 0)
        elif name == "get" and isinstance(node.func, ast.Attribute) and literal is not None:
            table = self.chain(node.func.value)
            if table is not None and table.root == OWN_MODULE:
                return self._extend(table, literal)
            self._note_read(self._extend(table, "get"), node)
            self._visit_all([*node.args, *node.keywords])
            return None
        elif bare and name in ("eval", "exec") and first is not None:
            self._visit_evaluated(first, name)
        elif name in ("import_module", "__import__"):
            self.note("imports a module chosen at run time", node.lineno)
        elif name == "setattr" and len(node.args) == 3:
            target, rest = self.chain(node.args[0]), node.args[1:]
            self._note_read(target and target._replace(escapes=False), node)
        self._visit_all([node.func, *rest, *node.keywords])
        return found

    def _within(self, name: str, package: ast.expr) -> str:
        """The absolute name of a relative module; where a global holds the package's, `CHOSEN`, that global, `CHOSEN` and *name*."""
        known = text_in(package)
        if known is None:
            return f"{self._chosen(package)}{CHOSEN}{name}"
        parents = known.split(".")
        level = len(name) - len(name.lstrip("."))
        return ".".join([*parents[: len(parents) - level + 1], name[level:]])

    def _chosen(self, key: ast.expr) -> str:
        """An attribute named by a global whose value can be looked up, or by something unknown."""
        if isinstance(key, ast.Name) and not any(
            key.id in scope.names or key.id in scope.imports for scope in self.scopes
        ):
            return CHOSEN + key.id
        return CHOSEN

    @staticmethod
    def _extend(read: Read | None, attr: str) -> Read | None:
        return read and read._replace(attrs=(*read.attrs, attr))

    def _note_read(self, read: Read | None, node: ast.expr) -> None:
        if read is not None:
            self.read(read, node.lineno)

    def _visit_evaluated(self, code: ast.expr, name: str) -> None:
        if isinstance(code, ast.Constant) and isinstance(code.value, str):
            try:
                return self._visit_all(map(ast.fix_missing_locations, ast.parse(code.value).body))
            except SyntaxError:
                pass
        self.note(f"`{name}` runs code that is made at run time", code.lineno)
        self.read(Read(OWN_MODULE), code.lineno)

    # --- one method per kind of node, as ast.NodeVisitor wants them

    def visit_Name(self, node: ast.Name | ast.Attribute | ast.Subscript | ast.Call) -> None:
        """What may be a chain; an object that an attribute is set on does not escape."""
        if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            if isinstance(node, ast.Attribute):
                target = self.chain(node.value)
                self._note_read(target and target._replace(escapes=False), node)
            elif isinstance(node, ast.Subscript):
                self.generic_visit(node)
            return
        self._note_read(self.chain(node), node)

    visit_Attribute = visit_Subscript = visit_Call = visit_Name

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        """An import runs the module, whether or not a name of it is read."""
        for alias in node.names:
            if isinstance(node, ast.Import):
                self.reads.setdefault(Read(alias.name, (), 0, escapes=False), node.lineno)
            else:
                attrs = () if alias.name == "*" else (alias.name,)
                self.reads.setdefault(
                    Read(node.module or "", attrs, node.level, escapes=False), node.lineno
                )

        self.aliases.update(renamed(node))

    visit_ImportFrom = visit_Import

    def visit_Assign(self, node: ast.Assign) -> None:
        """``load = importlib.import_module``."""
        self.aliases.update(renamed(node))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """A block for type checkers is not there at run time."""
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
        if self.with_annotations and node.returns is not None:
            self.visit(unquoted(node.returns))
        self._visit_function(node.args, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A function whose body is an expression."""
        self._visit_function(node.args, [ast.copy_location(ast.Expr(node.body), node)])

    def _visit_function(self, args: ast.arguments, body: Sequence[ast.stmt]) -> None:
        if self.scopes or not self.body_only:
            self._visit_all([*args.defaults, *args.kw_defaults])
        every = [
            *args.posonlyargs,
            *args.args,
            *args.kwonlyargs,
            *filter(None, (args.vararg, args.kwarg)),
        ]
        if self.with_annotations:
            self._visit_all(unquoted(arg.annotation) for arg in every if arg.annotation is not None)
        self.scopes.append(_Scope(["__class__", *(arg.arg for arg in every)], body))
        self._visit_all(body)
        self.scopes.pop()

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
        self.scopes.append(
            _Scope(
                inner.id
                for part in node.generators
                for inner in ast.walk(part.target)
                if isinstance(inner, ast.Name)
            )
        )
        for position, part in enumerate(node.generators):
            self._visit_all([part.target, *([part.iter] if position else []), *part.ifs])
        self._visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self.scopes.pop()

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp
