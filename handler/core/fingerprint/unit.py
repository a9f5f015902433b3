"""
What one piece of source says and which outside names it reads, found without running it.

``canonical`` writes the syntax tree in a form of our own rather than ``ast.dump``, because the same source must give
the same text on every Python: fields without a value are left out, and what parsers represent differently (the pieces
of f-strings) is brought to one form. What changes nothing is left out too: docstrings, ``pass``, annotations of plain
functions, blocks for type checkers.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from handler.core.fingerprint.source import blocks, bound_by, docstring_of, expressions, is_type_checking

OWN_MODULE = "globals()"  # a read whose root is the module it stands in
CHOSEN = "\0"  # an attribute whose name is chosen at run time; followed by the global that holds it, if one does

_DOC_READERS = {"__doc__", "getdoc", "model_json_schema", "schema_json", "json_schema", "TypeAdapter"}
_ANNOTATION_READERS = {
    "__annotations__", "__annotate__", "get_type_hints", "get_annotations", "signature", "getfullargspec",
    "__signature__", "validate_call", "TypeAdapter",
}  # fmt: skip
_PLUGIN_READERS = {"entry_points", "iter_entry_points", "run_path", "run_module", "walk_packages", "iter_modules"}
_NO_SUCH = (None, "", [])


class Read(NamedTuple):
    """
    An outside name that is read, and the attributes taken from it.

    Args:
        root: A name of the closure or module, or, with a level, a module's name.
        attrs: The attributes that follow.
        level: Leading dots of a relative import; 0 for an absolute one; -1 where *root* is a name.
        escapes: False where a module is only written to or imported, and nothing can be asked of it.
    """

    root: str
    attrs: tuple[str, ...] = ()
    level: int = -1
    escapes: bool = True


class Unit(NamedTuple):
    """What a piece of source says (*text*, canonical), reads (with lines), and leaves open (reason, line)."""

    text: str
    reads: dict[Read, int]
    notes: tuple[tuple[str, int], ...]
    reads_docs: bool
    reads_annotations: bool


class Options(NamedTuple):
    """What counts besides code: docstrings and annotations, where the program reads them."""

    docs: bool = False
    annotations: bool = False


def analyse(nodes: Sequence[ast.AST], options: Options, *, skip: Iterable[ast.expr] = (), body_only: bool = False) -> Unit:
    """
    Read *nodes*, which stand in one module.

    Args:
        nodes: Statements or expressions.
        options: What counts besides code.
        skip: Decorators that do not count.
        body_only: Of functions, leave the defaults' reads to their live values.
    """
    reader = _Reader(options, set(map(id, skip)), body_only)
    for node in nodes:
        reader.visit(node)
    text = "".join(canonical(node, options, frozenset(reader.skip)) for node in nodes)
    return Unit(text, reader.reads, tuple(reader.notes), reader.reads_docs, reader.reads_annotations)


# --- what it says -----------------------------------------------------------------------------------------------------


def canonical(node: object, options: Options, skip: frozenset[int] = frozenset(), *, in_function: bool = False) -> str:
    """The tree below *node* as text that every Python writes alike."""
    if isinstance(node, list):
        if node and isinstance(node[0], ast.stmt):
            node = statements(node)
        return "[" + ",".join(canonical(item, options, skip, in_function=in_function) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__}:{node!a}"
    if isinstance(node, ast.Constant):
        return f"<{constant(node.value)}>"
    if isinstance(node, ast.AnnAssign) and in_function and not options.annotations:
        if node.value is None:
            return "()"
        node = ast.Assign(targets=[node.target], value=node.value)
    in_function = _enters_function(node, in_function)
    fields = []
    for name, value in _fields(node, options, skip):
        if value not in _NO_SUCH:
            fields.append(f"{name}={canonical(value, options, skip, in_function=in_function)}")
    return f"{type(node).__name__}({' '.join(fields)})"


def constant(value: object) -> str:
    """A literal with its type, so that ``1``, ``1.0`` and ``True`` stay apart."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"int:{value:x}"
    return f"{type(value).__name__}:{value!a}"


def statements(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """A block without what does nothing: ``pass``, bare constants, and blocks for type checkers."""
    kept: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            kept.extend(statements(node.orelse))
        elif not isinstance(node, ast.Pass) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            kept.append(node)
    return kept


def _fields(node: ast.AST, options: Options, skip: frozenset[int]) -> Iterable[tuple[str, object]]:
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "type_comment", "kind"):
            continue
        if name in ("annotation", "returns") and isinstance(node, ast.arg | ast.FunctionDef | ast.AsyncFunctionDef):
            value = unquoted(value) if options.annotations else None
        elif name == "annotation":
            value = unquoted(value)
        elif name == "decorator_list":
            value = [item for item in value if id(item) not in skip]
        elif name == "values" and isinstance(node, ast.JoinedStr):
            value = _pieces(node)
        elif name == "format_spec" and isinstance(value, ast.JoinedStr) and not _pieces(value):
            value = None
        yield name, value
    if options.docs and (doc := docstring_of(node)) is not None:
        yield "doc", ast.Constant(value=inspect.cleandoc(doc.value.value))  # type: ignore[attr-defined]


def _pieces(node: ast.JoinedStr) -> list[ast.expr]:
    """The pieces of an f-string with neighbouring texts joined and empty ones dropped."""
    pieces: list[ast.expr] = []
    for piece in node.values:
        if isinstance(piece, ast.Constant) and pieces and isinstance(pieces[-1], ast.Constant):
            pieces[-1] = ast.Constant(value=pieces[-1].value + piece.value)  # type: ignore[operator]
        elif not (isinstance(piece, ast.Constant) and piece.value == ""):
            pieces.append(piece)
    return pieces


def unquoted(node: ast.expr | None) -> ast.expr | None:
    """An annotation, parsed if it is written as a string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return node
    return node


def _enters_function(node: ast.AST, inside: bool) -> bool:
    if isinstance(node, ast.ClassDef):  # fields of a dataclass are said by annotations
        return not (node.bases or node.keywords or node.decorator_list)
    return inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


# --- what it reads ----------------------------------------------------------------------------------------------------


class _Scope:
    def __init__(self, names: Iterable[str] = (), *, is_class: bool = False) -> None:
        self.names = set(names)
        self.is_class = is_class
        self.imports: dict[str, list[Read]] = {}
        self.globals: set[str] = set()


def _scope_of(body: Sequence[ast.stmt], names: Iterable[str] = (), *, is_class: bool = False) -> _Scope:
    scope = _Scope(names, is_class=is_class)
    outer: set[str] = set()
    pending = list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and is_type_checking(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Global):
            scope.globals.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            outer.update(node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name, read in imported(node):
                scope.imports.setdefault(name, []).append(read)
        else:
            scope.names.update(bound_by(node))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for block in blocks(node):
                pending.extend(block)
    scope.names -= outer | scope.globals
    return scope


def imported(node: ast.Import | ast.ImportFrom) -> Iterable[tuple[str, Read]]:
    """Each name that an import binds, with what it is bound to."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, Read(node.module or "", (alias.name,), node.level)
        elif alias.asname:
            yield alias.asname, Read(alias.name, (), 0)
        else:
            yield alias.name.partition(".")[0], Read(alias.name.partition(".")[0], (), 0)


class _Reader(ast.NodeVisitor):
    def __init__(self, options: Options, skip: set[int], body_only: bool) -> None:
        self.options, self.skip, self.body_only = options, skip, body_only
        self.reads: dict[Read, int] = {}
        self.notes: list[tuple[str, int]] = []
        self.reads_docs = self.reads_annotations = False
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
                        self.read(origin._replace(attrs=origin.attrs + chain.attrs, escapes=chain.escapes), line)
                    return
                if chain.root in scope.names and not scope.is_class:
                    return
        self.reads.setdefault(chain, line)
        self._watch(chain, line)

    def _watch(self, chain: Read, line: int) -> None:
        words = (chain.root, *chain.attrs)
        dotted = ".".join(words)
        if dotted in ("open", "io.open", "builtins.open"):
            self.note("reads a file at run time", line)
        elif dotted.startswith(("os.environ", "os.getenv")) or chain.root in ("environ", "getenv"):
            self.note("reads the environment at run time", line)
        elif _PLUGIN_READERS.intersection(words):
            self.note(f"`{dotted}` finds code at run time", line)
        self._watch_word(words)

    def _watch_word(self, words: Iterable[str]) -> None:
        self.reads_docs |= not _DOC_READERS.isdisjoint(words)
        self.reads_annotations |= not _ANNOTATION_READERS.isdisjoint(words)

    def note(self, reason: str, line: int) -> None:
        """Leave word of a place where nothing can be known."""
        if (reason, line) not in self.notes:
            self.notes.append((reason, line))

    def chain(self, node: ast.expr) -> Read | None:
        """``a.b.c`` as a read, also where it is spelled with ``getattr``, ``globals`` or ``import_module``."""
        if isinstance(node, ast.Name):
            return Read(node.id)
        if isinstance(node, ast.Attribute):
            return self._extend(self.chain(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            table = self.chain(node.value)
            key = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if table is None or not (table.root == OWN_MODULE or "__dict__" in table.attrs[-1:] or self._is_modules(table)):
                return None
            if self._is_modules(table):
                own = isinstance(node.slice, ast.Name) and node.slice.id == "__name__"
                return Read(OWN_MODULE) if own else Read(key, (), 0) if isinstance(key, str) else None
            table = table._replace(attrs=tuple(attr for attr in table.attrs if attr != "__dict__"))
            return self._extend(table, key if isinstance(key, str) else self._chosen(node.slice))
        return self._chain_of_call(node) if isinstance(node, ast.Call) else None

    def _chain_of_call(self, node: ast.Call) -> Read | None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        literal = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
        if name == "getattr" and isinstance(node.func, ast.Name) and len(node.args) > 1:
            key = node.args[1]
            known = isinstance(key, ast.Constant) and isinstance(key.value, str)
            return self._extend(self.chain(node.args[0]), key.value if known else self._chosen(key))  # type: ignore[attr-defined]
        if name in ("import_module", "__import__") and literal is not None:
            level = len(literal) - len(literal.lstrip("."))
            top = literal.partition(".")[0] if name == "__import__" and not level else literal.lstrip(".")
            return Read(top, (), level)
        if name == "globals" and isinstance(node.func, ast.Name):
            return Read(OWN_MODULE)
        if name == "vars" and isinstance(node.func, ast.Name) and first is not None:
            return self._extend(self.chain(first), "__dict__")
        if name == "get" and isinstance(node.func, ast.Attribute) and literal is not None:
            table = self.chain(node.func.value)
            return self._extend(table, literal) if table is not None and table.root == OWN_MODULE else None
        return None

    def _chosen(self, key: ast.expr) -> str:
        """An attribute named by a global whose value can be looked up, or by something unknown."""
        if isinstance(key, ast.Name) and not any(key.id in scope.names or key.id in scope.imports for scope in self.scopes):
            return CHOSEN + key.id
        return CHOSEN

    @staticmethod
    def _extend(read: Read | None, attr: str) -> Read | None:
        return read and read._replace(attrs=(*read.attrs, attr))

    @staticmethod
    def _is_modules(read: Read) -> bool:
        return (read.root, *read.attrs) in (("sys", "modules"), ("modules",))

    # --- one method per kind of node, as ast.NodeVisitor wants them

    def visit_Name(self, node: ast.Name) -> None:
        """A bare name."""
        if isinstance(node.ctx, ast.Load):
            self.read(Read(node.id), node.lineno)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A chain of attributes; one that is written to does not escape."""
        if node.attr in ("read_text", "read_bytes"):
            self.note("reads a file at run time", node.lineno)
        elif node.attr in ("getsource", "getsourcelines", "co_code", "co_consts"):
            self.note("reads its own source or bytecode", node.lineno)
        self._watch_word([node.attr])
        chain = self.chain(node if isinstance(node.ctx, ast.Load) else node.value)
        if chain is None:
            self.visit(node.value)
            return
        self.read(chain if isinstance(node.ctx, ast.Load) else chain._replace(escapes=False), node.lineno)
        self._visit_rest(node)

    def _visit_rest(self, node: ast.expr) -> None:
        """What a chain passed over: the name and default of ``getattr``, the key of ``globals()``."""
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Call):
                self._mark_used(node.func)
                inner = node.args[0] if _called(node) in ("getattr", "vars") else None
                for argument in node.args[1:] if inner is not None else node.args:
                    self.visit(argument)
                if inner is None and isinstance(node.func, ast.Attribute) and _called(node) == "get":
                    inner = node.func.value
                if inner is None:
                    return
                node = inner
            elif isinstance(node, ast.Subscript):
                self.visit(node.slice)
                node = node.value
            elif isinstance(node, ast.Attribute):
                node = node.value
            else:
                return

    def _mark_used(self, func: ast.expr) -> None:
        if isinstance(func, ast.Name):
            self.read(Read(func.id), func.lineno)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """``globals()["x"]`` and the like; otherwise what it holds."""
        chain = self.chain(node) if isinstance(node.ctx, ast.Load) else None
        if chain is None:
            self.generic_visit(node)
            return
        self.read(chain, node.lineno)
        self._visit_rest(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A call; those that take names or code as text are looked into."""
        name = _called(node)
        if (chain := self.chain(node)) is not None:
            self.read(chain, node.lineno)
            self._visit_rest(node)
            for keyword in node.keywords:
                self.visit(keyword)
            return
        if name in ("eval", "exec") and isinstance(node.func, ast.Name) and node.args:
            self._visit_evaluated(node.args[0], name)
        elif name in ("import_module", "__import__"):
            self.note("imports a module chosen at run time", node.lineno)
        elif name == "setattr" and len(node.args) == 3 and (target := self.chain(node.args[0])) is not None:
            self.read(target._replace(escapes=False), node.lineno)
            for argument in node.args[1:]:
                self.visit(argument)
            return
        self.generic_visit(node)

    def _visit_evaluated(self, code: ast.expr, name: str) -> None:
        if isinstance(code, ast.Constant) and isinstance(code.value, str):
            try:
                for statement in ast.parse(code.value).body:
                    self.visit(ast.fix_missing_locations(statement))
                return
            except SyntaxError:
                pass
        self.note(f"`{name}` runs code that is made at run time", code.lineno)
        self.read(Read(OWN_MODULE), code.lineno)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        """An import runs the module, whether or not a name of it is read."""
        for alias in node.names:
            if isinstance(node, ast.Import):
                self.reads.setdefault(Read(alias.name, (), 0, escapes=False), node.lineno)
            else:
                attrs = () if alias.name == "*" else (alias.name,)
                self.reads.setdefault(Read(node.module or "", attrs, node.level, escapes=False), node.lineno)

    visit_ImportFrom = visit_Import

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
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)
        if self.options.annotations or not self.scopes or self.scopes[-1].is_class:
            self._visit_annotation(node.annotation)

    def _visit_annotation(self, node: ast.expr | None) -> None:
        if node is not None:
            self.visit(unquoted(node))  # type: ignore[arg-type]

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Decorators and defaults belong outside, the body inside."""
        outermost = not self.scopes
        self._visit_all(item for item in node.decorator_list if id(item) not in self.skip)
        self._visit_function(node.args, node.body, outermost)
        if self.options.annotations:
            self._visit_annotation(node.returns)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A function whose body is an expression."""
        self._visit_function(node.args, [ast.copy_location(ast.Expr(node.body), node)], not self.scopes)

    def _visit_function(self, args: ast.arguments, body: Sequence[ast.stmt], outermost: bool) -> None:
        if not (outermost and self.body_only):
            self._visit_all([*args.defaults, *args.kw_defaults])
        every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
        if self.options.annotations:
            for arg in every:
                self._visit_annotation(arg.annotation)
        self.scopes.append(_scope_of(body, [arg.arg for arg in every] + ["__class__"]))
        self._visit_all(body)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A class inside a function; its names are seen in its body only."""
        self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
        self.scopes.append(_scope_of(node.body, is_class=True))
        self._visit_all(node.body)
        self.scopes.pop()

    def visit_comprehension_like(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        """The first iterable belongs outside, everything else inside."""
        self.visit(node.generators[0].iter)
        targets = [inner.id for part in node.generators for inner in ast.walk(part.target) if isinstance(inner, ast.Name)]
        self.scopes.append(_Scope(targets))
        for position, part in enumerate(node.generators):
            self.visit(part.target)
            self._visit_all([*([part.iter] if position else []), *part.ifs])
        self._visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self.scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_like


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


__all__ = ["CHOSEN", "OWN_MODULE", "Options", "Read", "Unit", "analyse", "canonical", "expressions", "imported"]
