"""
A parsed source file: where its functions and classes are, and which statements give its names their values.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import os
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any, NamedTuple

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
_BLOCKS = ("body", "orelse", "finalbody")


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


class Source:
    """
    One file, parsed once.

    Args:
        text: Its source.

    Raises:
        SyntaxError: *text* is no Python of this version.
    """

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.lines = text.splitlines()
        self.defs: dict[str, list[Definition]] = {}
        self.bindings: dict[
            str, list[ast.stmt]
        ] = {}  # what binds a name of the module or of a class: assignment, def, import
        self.touches: dict[
            str, list[ast.stmt]
        ] = {}  # what acts on it at import: TABLE.update(…), X.y = …
        self.around: dict[
            int, tuple[ast.AST, ...]
        ] = {}  # what decides whether a statement runs, by the statement's identity
        self.statements: list[
            ast.stmt
        ] = []  # all that run when the module is imported, those of classes included
        self.stars: list[ast.ImportFrom] = []
        self.reassigned: set[str] = set()  # names and attributes that functions set while they run
        self.units: dict[Any, Any] = {}  # analyses made of this file's nodes, kept by their maker
        self._origins: dict[str, tuple[tuple[ast.stmt, ...], Read | None]] = {}
        self._index(self.tree.body, "", "module")

    def _index(
        self, body: list[ast.stmt], prefix: str, where: str, around: tuple[ast.AST, ...] = ()
    ) -> None:
        for node in body:
            if where == "function":
                self.reassigned.update(_reassigned_by(node))
            else:
                self._bind(node, prefix)
                self.statements.append(node)
                self.around[id(node)] = around
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.defs.setdefault(prefix + node.name, []).append(node)
                is_class = isinstance(node, ast.ClassDef)
                self._index(
                    node.body,
                    prefix + node.name + ("." if is_class else ".<locals>."),
                    "class" if is_class else "function",
                )
            elif isinstance(node, ast.If) and (is_type_checking(node.test) or _is_main(node.test)):
                self._index(node.orelse, prefix, where, around)
            else:
                for block in blocks(node):
                    self._index(block, prefix, where, (*around, *_deciders(node, block)))

    def _bind(self, node: ast.stmt, prefix: str) -> None:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            self.stars.append(node)
        for name in bound_by(node):
            self.bindings.setdefault(prefix + name, []).append(node)
        if prefix:
            return
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            targets = [call] + (
                [call.args[0]] if _is_name(call.func, "setattr") and call.args else []
            )
        elif isinstance(node, ast.Delete):
            targets = node.targets
        for target in targets:
            if not isinstance(target, ast.Name) and (root := root_name(target)):
                self.touches.setdefault(root, []).append(node)

    def origin(self, name: str) -> tuple[tuple[ast.stmt, ...], Read | None]:
        """The statements that give a module's name its value, and what it imports by the last of them."""
        if name not in self._origins:
            nodes = self.bindings.get(name, [])
            read = (
                dict(imported(nodes[-1]))[name]
                if nodes and isinstance(nodes[-1], ast.ImportFrom)
                else None
            )
            self._origins[name] = (*nodes, *self.touches.get(name, ())), read
        return self._origins[name]

    @functools.cached_property
    def imported_for_effect(self) -> list[str]:
        """Modules that the module imports, and whose names it never uses: ``import patches  # noqa``."""
        imports = {
            name: node
            for name, nodes in self.bindings.items()
            for node in nodes
            if isinstance(node, ast.Import)
        }
        used = (
            {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
            if imports
            else set()
        )
        return [
            alias.name for name, node in imports.items() if name not in used for alias in node.names
        ]

    def function(self, code: CodeType, qualname: str) -> list[Definition]:
        """
        The definitions that may have made *code*: one, unless the file has several alike on one line.
        """
        if code.co_name == "<lambda>":
            return self._lambda(code)
        found = self.defs.get(code.co_qualname) or self.defs.get(qualname) or []
        return [
            node for node in found if first_line(node) == code.co_firstlineno and _is_function(node)
        ]

    @functools.cached_property
    def _lambdas(self) -> dict[int, list[ast.Lambda]]:
        found: dict[int, list[ast.Lambda]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Lambda):
                found.setdefault(node.lineno, []).append(node)
        return found

    def _lambda(self, code: CodeType) -> list[Definition]:
        found = self._lambdas.get(code.co_firstlineno, [])
        if len(found) < 2:
            return list(found)
        spots = [
            location for location in code.co_positions() if None not in location and location[3]
        ]
        if not spots:  # 3.12 forgets where a lambda is that returns a constant
            values = [(type(item), item) for item in code.co_consts]
            same = [
                node
                for node in found
                if isinstance(node.body, ast.Constant)
                and (type(node.body.value), node.body.value) in values
            ]
            return list(same or found)
        fits = [node for node in found if all(_contains(node.body, location) for location in spots)]
        fits.sort(
            key=lambda node: (
                node.body.end_lineno or 0,
                node.body.end_col_offset or 0,
                -node.body.lineno,
                -node.body.col_offset,
            )
        )
        return list(fits[:1] or found)

    def verbatim(self, node: ast.AST) -> str:
        """What ``inspect.getsource`` says of a definition, and the comments above it."""
        start = first_line(node) - 1
        above = start
        while above and self.lines[above - 1].lstrip().startswith("#"):
            above -= 1
        lines = [f"{line}\n" for line in self.lines[start:]]
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        block = (
            inspect.getblock(lines) if is_definition else lines[: (node.end_lineno or 0) - start]
        )  # type: ignore[attr-defined]
        return "\n".join(self.lines[above:start]) + "".join(block)

    def text_of(self, node: ast.AST, *, without: tuple[ast.stmt, ...] = ()) -> str:
        """Source lines of *node* without comment lines, docstrings and the statements *without*."""
        key = ("text", id(node), len(without))
        if key not in self.units:
            self.units[key] = self._text_of(node, without)
        return str(self.units[key])

    def _text_of(self, node: ast.AST, without: tuple[ast.stmt, ...]) -> str:
        start, end = first_line(node), getattr(node, "end_lineno", None) or first_line(node)
        if isinstance(node, ast.Lambda):
            return ast.get_source_segment("\n".join(self.lines), node) or ""
        hidden = set()
        for statement in without:
            hidden.update(range(first_line(statement), (statement.end_lineno or 0) + 1))
        for inner in ast.walk(node):
            doc = docstring_of(inner)
            if doc is not None and len(inner.body) > 1:  # type: ignore[attr-defined]
                hidden.update(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
        lines = [
            line.rstrip()
            for number, line in enumerate(self.lines[start - 1 : end], start)
            if number not in hidden and line.strip() and not line.lstrip().startswith("#")
        ]
        indent = min((len(line) - len(line.lstrip()) for line in lines[:1]), default=0)
        return "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines)


def load(path: str, module_globals: dict[str, Any] | None = None) -> Source | None:
    """
    The parsed file at *path*, or None where there is no source or it does not parse.

    Read again when the file has another time or size, so that an edit is seen in a process that goes on.
    """
    try:
        stat = os.stat(path)
    except OSError:
        if module_globals is None:
            return None
        return _parse("".join(linecache.getlines(path, module_globals)))
    return _load(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4096)
def _load(path: str, mtime_ns: int, size: int) -> Source | None:
    from importlib.util import decode_source

    try:
        with open(path, "rb") as file:
            return _parse(decode_source(file.read()))
    except (OSError, UnicodeDecodeError, SyntaxError):
        return None


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> Source | None:
    try:
        return Source(text) if text else None
    except (SyntaxError, ValueError):
        return None


def first_line(node: Any) -> int:
    """Where Python says a definition begins: at its first decorator."""
    decorators = getattr(node, "decorator_list", None)
    return decorators[0].lineno if decorators else node.lineno


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The statement lists inside a statement."""
    for field in _BLOCKS:
        if isinstance(block := getattr(node, field, None), list):
            yield block
    for inner in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield inner.body


def _deciders(node: ast.stmt, block: list[ast.stmt]) -> Iterator[ast.AST]:
    """What decides whether *block* of the statement *node* runs: conditions, contexts, what is looped over, what may raise."""
    for name in ("test", "iter", "subject"):
        if isinstance(inner := getattr(node, name, None), ast.AST):
            yield inner
    yield from getattr(node, "items", ())
    for handler in getattr(node, "handlers", ()):
        if handler.type is not None:
            yield handler.type
        if handler.body is block:
            yield from node.body  # type: ignore[attr-defined]
    for case in getattr(node, "cases", ()):
        yield from filter(None, (case.pattern, case.guard))


def bound_by(node: ast.AST) -> Iterator[str]:
    """The names that one statement binds, without those bound in its inner blocks, functions and comprehensions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
        return
    for inner in expressions(node):
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
            yield inner.id
        elif isinstance(inner, ast.MatchAs | ast.MatchStar) and inner.name:
            yield inner.name
        elif isinstance(inner, ast.MatchMapping) and inner.rest:
            yield inner.rest
        elif isinstance(inner, ast.ExceptHandler) and inner.name:
            yield inner.name


def imported(node: ast.Import | ast.ImportFrom) -> Iterable[tuple[str, Read]]:
    """Each name that an import binds, with what it is bound to."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, Read(node.module or "", (alias.name,), node.level)
        elif alias.asname:
            yield alias.asname, Read(alias.name, (), 0)
        else:
            yield alias.name.partition(".")[0], Read(alias.name.partition(".")[0], (), 0)


def expressions(node: ast.AST, *, with_lambdas: bool = False) -> Iterator[ast.AST]:
    """
    What one statement holds, without inner blocks, lambdas, and the targets of comprehensions.
    """
    for field, value in ast.iter_fields(node):
        if field in _BLOCKS and isinstance(value, list):
            continue
        for inner in value if isinstance(value, list) else [value]:
            if not isinstance(inner, ast.AST) or (
                isinstance(inner, ast.Lambda) and not with_lambdas
            ):
                continue
            if isinstance(node, ast.comprehension) and field == "target":
                continue
            yield inner
            yield from expressions(inner, with_lambdas=with_lambdas)


def docstring_of(node: ast.AST) -> ast.Expr | None:
    """The statement that is the docstring of a function, class or module."""
    if (
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
        and node.body
    ):
        first = node.body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            return first
    return None


def is_type_checking(test: ast.expr) -> bool:
    """Whether an ``if`` is for type checkers only."""
    return _is_name(test, "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def root_name(node: ast.AST) -> str | None:
    """``a`` of ``a.b(c)[d].e``."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and _is_name(test.left, "__name__")


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _reassigned_by(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Global | ast.Nonlocal):
        yield from node.names
    for inner in (
        expressions(node) if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) else ()
    ):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner.attr


def _contains(node: ast.expr, location: tuple[Any, ...]) -> bool:
    line, end_line, column, end_column = location
    start, end = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    return start <= (line, column) and (end_line, end_column) <= end
