"""
A parsed source file: where its functions and classes are, and which statements bind its names.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from types import CodeType
from typing import Any, NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Bindings = dict[str, list[ast.stmt]]
Globals = dict[str, Any]
Definition = Function | ast.ClassDef
_BLOCKS = ("body", "orelse", "finalbody")


class Read(NamedTuple):
    """
    An outside name that is read, and the attributes taken from it.

    Args:
        root: A name of the closure or module, or, with a level, a module's name.
        attrs: The attributes that follow.
        level: Leading dots of a relative import; 0 for an absolute one; -1 if *root* is a name.
        escapes: False if a module is only written to or imported, so that nothing else can read it.
    """

    root: str
    attrs: tuple[str, ...] = ()
    level: int = -1
    escapes: bool = True


class Source:
    """
    One file, parsed once.

    Args:
        text: Its source.

    Raises:
        SyntaxError: This version of Python cannot parse *text*.
    """

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.lines = text.splitlines()
        self.defs: dict[str, list[Definition]] = {}
        # What binds a name of the module or of a class: assignment, def, import.
        self.bindings: Bindings = {}
        # What changes a name's value at import: ``TABLE.update(…)``, ``X.y = …``.
        self.changes: Bindings = {}
        # What decides whether a statement runs, by the statement's identity.
        self.around: dict[int, tuple[ast.AST, ...]] = {}
        # All that run when the module is imported, those of classes included.
        self.statements: list[ast.stmt] = []
        self.stars: list[ast.ImportFrom] = []
        # Names and attributes that functions set while they run.
        self.reassigned: set[str] = set()
        # The statements that change other modules, once they are known.
        self.effects: tuple[ast.stmt, ...] | None = None
        self._index(self.tree.body, "")

    def _index(self, body: list[ast.stmt], prefix: str, around: tuple[ast.AST, ...] = ()) -> None:
        for node in body:
            if prefix.endswith("<locals>."):
                self.reassigned.update(_reassigned_by(node))
            else:
                self._bind(node, prefix)
                self.statements.append(node)
                self.around[id(node)] = around
            if isinstance(node, Definition):
                name = prefix + node.name
                self.defs.setdefault(name, []).append(node)
                is_class = isinstance(node, ast.ClassDef)
                self._index(node.body, f"{name}." if is_class else f"{name}.<locals>.")
            elif isinstance(node, ast.If) and (is_type_checking(node.test) or _is_main(node.test)):
                self._index(node.orelse, prefix, around)
            else:
                for block in blocks(node):
                    self._index(block, prefix, (*around, *_deciders(node, block)))

    def _bind(self, node: ast.stmt, prefix: str) -> None:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            self.stars.append(node)
        for name in bound_by(node):
            self.bindings.setdefault(prefix + name, []).append(node)
        if prefix:
            return
        targets = [getattr(node, "target", None), *getattr(node, "targets", ())]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            targets.append(node.value)
            if root_name(node.value) == "setattr":
                targets += node.value.args[:1]
        for target in targets:
            if not isinstance(target, ast.Name) and (root := root_name(target)):
                self.changes.setdefault(root, []).append(node)

    def origin(self, name: str) -> tuple[tuple[ast.stmt, ...], Read | None]:
        """The statements that give a name its value, and what the last binding imports."""
        nodes = self.bindings.get(name, [])
        read = None
        if nodes and isinstance(nodes[-1], ast.ImportFrom):
            read = dict(imported(nodes[-1]))[name]
        return (*nodes, *self.changes.get(name, ())), read

    @functools.cached_property
    def imported_for_effect(self) -> list[str]:
        """Modules that are imported, and whose names are never used: ``import patches  # noqa``."""
        used = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        modules = []
        for name, nodes in self.bindings.items():
            for node in nodes:
                if isinstance(node, ast.Import) and name not in used:
                    modules += [alias.name for alias in node.names]
        return modules

    def function(self, code: CodeType, qualname: str) -> list[Function | ast.Lambda]:
        """The definitions that may have made *code*: one, unless several on one line are alike."""
        if code.co_name == "<lambda>":
            return self._lambda(code)
        return [
            node
            for node in self.defs.get(code.co_qualname) or self.defs.get(qualname) or ()
            if first_line(node) == code.co_firstlineno and isinstance(node, Function)
        ]

    @functools.cached_property
    def _lambdas(self) -> list[ast.Lambda]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Lambda)]

    def _lambda(self, code: CodeType) -> list[Function | ast.Lambda]:
        found = [node for node in self._lambdas if node.lineno == code.co_firstlineno]
        positions = [each for each in code.co_positions() if None not in each and each[3]]
        if positions:
            # A lambda inside another follows it.
            fits = [node for node in found if _contains(node.body, positions[0])]
            return [*(fits[-1:] or found)]
        # Python 3.12 loses the position of a lambda that returns a constant.
        values = [repr(value) for value in code.co_consts]
        fits = [node for node in found if repr(getattr(node.body, "value", node)) in values]
        return [*(fits or found)]

    def verbatim(self, node: ast.AST) -> str:
        """What ``inspect.getsource`` returns for a definition, and the comments above it."""
        start = first_line(node) - 1
        above = start
        while above and self.lines[above - 1].lstrip().startswith("#"):
            above -= 1
        lines = [f"{line}\n" for line in self.lines[start:]]
        is_block = isinstance(node, Definition)
        block = inspect.getblock(lines) if is_block else lines[: len(lines_of(node))]
        return "\n".join(self.lines[above:start]) + "".join(block)


@functools.lru_cache(maxsize=1 << 16)
def text_of(source: Source, node: ast.AST) -> str:
    """Source of *node* without comment lines and docstrings; of a class, its header."""
    if isinstance(node, ast.Lambda):
        return ast.get_source_segment("\n".join(source.lines), node) or ""
    hidden_lines: set[int] = set()
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if hasattr(item, "body"):
                hidden_lines.update(lines_of(item))
    for inner in ast.walk(node):
        # A body that is only a docstring keeps it.
        if isinstance(inner, Definition) and len(inner.body) > 1:
            if ast.get_docstring(inner, clean=False) is not None:
                hidden_lines.update(lines_of(inner.body[0]))
    lines = []
    for number in lines_of(node):
        line = source.lines[number - 1].rstrip()
        if number not in hidden_lines and line and not line.lstrip().startswith("#"):
            lines.append(line)
    return textwrap.dedent("\n".join(lines))


def load(path: str, module_globals: Globals) -> Source | None:
    """
    The parsed file at *path*, or None if it cannot be read or parsed.

    It is read again when its time or size has changed, so that an edit is seen in the same process.
    """
    return _parse(path, text_of_file(path, module_globals))


def text_of_file(path: str, module_globals: Globals) -> str:
    """The source at *path*, or that which its loader has; empty if there is none."""
    linecache.checkcache(path)
    return "".join(linecache.getlines(path, module_globals))


@functools.lru_cache(maxsize=4096)
def _parse(path: str, text: str) -> Source | None:
    # Two files of one text are two sources, because their relative imports differ.
    try:
        return Source(text) if text else None
    except (SyntaxError, ValueError):
        return None


def first_line(node: ast.AST) -> int:
    """Where a definition begins for Python: at its first decorator."""
    line: int = (*getattr(node, "decorator_list", ()), node)[0].lineno
    return line


def lines_of(node: ast.AST) -> range:
    """The numbers of a node's lines, decorators included."""
    start = first_line(node)
    return range(start, (getattr(node, "end_lineno", None) or start) + 1)


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The statement lists inside a statement."""
    for field in _BLOCKS:
        yield getattr(node, field, [])
    for inner in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield inner.body


def _deciders(node: ast.stmt, block: list[ast.stmt]) -> Iterator[ast.AST]:
    """What decides whether *block* of *node* runs: conditions, iterables, what may raise."""
    for name in ("test", "iter", "subject"):
        if inner := getattr(node, name, None):
            yield inner
    yield from getattr(node, "items", ())
    for handler in getattr(node, "handlers", ()):
        if handler.type is not None:
            yield handler.type
        if handler.body is block:
            yield from getattr(node, "body", ())
    for case in getattr(node, "cases", ()):
        yield from filter(None, (case.pattern, case.guard))


def bound_by(node: ast.AST) -> Iterator[str]:
    """The names that one statement binds, without inner blocks, functions and comprehensions."""
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from dict(imported(node))
    else:
        for inner in expressions(node):
            if isinstance(inner, ast.Name):
                if not isinstance(inner.ctx, ast.Load):
                    yield inner.id
            elif isinstance(inner, ast.MatchAs | ast.MatchStar | ast.ExceptHandler) and inner.name:
                yield inner.name
            elif isinstance(inner, ast.MatchMapping) and inner.rest:
                yield inner.rest


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Read]]:
    """Each name that an import binds, with what it is bound to."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, Read(node.module or "", (alias.name,), node.level)
        else:
            top = alias.name.partition(".")[0]
            yield alias.asname or top, Read(alias.name if alias.asname else top, (), 0)


def module_read(name: str) -> Read:
    """A module by its name, which has leading dots if it is relative."""
    root = name.lstrip(".")
    return Read(root, (), len(name) - len(root))


def absolute(read: Read, package: str) -> str:
    """The absolute name of the module that an import in *package* means."""
    try:
        return resolve_name("." * read.level + read.root, package)
    except (ImportError, ValueError):
        return read.root


def expressions(node: ast.AST, *, with_lambdas: bool = False) -> Iterator[ast.AST]:
    """What one statement holds, without inner blocks, lambdas, and targets of comprehensions."""
    for field, value in ast.iter_fields(node):
        is_block = field in _BLOCKS and isinstance(value, list)
        if is_block or (isinstance(node, ast.comprehension) and field == "target"):
            continue
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, ast.AST) and (with_lambdas or not isinstance(inner, ast.Lambda)):
                yield inner
                yield from expressions(inner, with_lambdas=with_lambdas)


def is_type_checking(test: ast.expr) -> bool:
    """Whether an ``if`` is for type checkers only."""
    return last_name(test) == "TYPE_CHECKING"


def last_name(node: ast.expr) -> str:
    """``c`` of ``a.b.c``."""
    return getattr(node, "attr", "") or getattr(node, "id", "")


def dotted(node: ast.AST | None) -> tuple[str, list[str]]:
    """``a`` and ``["b", "d"]`` of ``a.b(c).d[e]``; "" if no name is in front."""
    attrs: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        if isinstance(node, ast.Attribute):
            attrs.insert(0, node.attr)
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else "", attrs


def root_name(node: ast.AST | None) -> str:
    """``a`` of ``a.b(c)[d].e``."""
    return dotted(node)[0]


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and root_name(test.left) == "__name__"


def _reassigned_by(node: ast.stmt) -> Iterable[str]:
    if isinstance(node, ast.Global | ast.Nonlocal):
        yield from node.names
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        for inner in expressions(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                yield inner.attr


def _contains(node: Any, position: tuple[Any, ...]) -> bool:
    start = (node.lineno, node.col_offset)
    return start <= (position[0], position[2]) < (node.end_lineno, node.end_col_offset)
