"""
A parsed source file: where its functions and classes are, and which statements bind its names.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from types import CodeType
from typing import Any, NamedTuple

from .normal import Definition, Function, normalized

Bindings = dict[str, list[ast.stmt]]
Globals = dict[str, Any]


class Read(NamedTuple):
    """
    An outside name that is read, and the attributes taken from it.

    Args:
        root: A name of the closure or module, or, with a level, a module's name.
        attrs: The attributes that follow.
        level: Leading dots of a relative import; 0 for an absolute one; -1 if *root* is a name.
    """

    root: str
    attrs: tuple[str, ...] = ()
    level: int = -1


class Source:
    """
    One file, parsed once, without what changes nothing.

    A statement that contains others, such as ``if``, counts as a whole.

    Args:
        text: Its source.
        extras: What else counts; see :func:`pfl.handler.core.fingerprint.normal.normalized`.

    Raises:
        SyntaxError: This version of Python cannot parse *text*.
    """

    def __init__(self, text: str, extras: frozenset[str]) -> None:
        self.text = text
        self.is_read = "text" in extras
        self.tree = normalized(text, extras)
        self.defs: dict[str, list[Definition]] = {}
        # The statements that bind a name, by the scope: "" is the module, "Box." a class.
        self.bindings: dict[str, Bindings] = {"": {}}
        # Those that may change the value of a name of the module.
        self.touching: Bindings = {}
        # What each name of the module is imported from.
        self.imports: dict[str, list[Read]] = {}
        # Names and attributes that functions set while they run.
        self.reassigned: set[Any] = set()
        # The statements that may change other modules, once they are known.
        self.effects: list[ast.stmt] | None = None
        self._index(self.tree.body, "")

    def _index(self, body: list[ast.stmt], prefix: str) -> None:
        is_function = prefix.endswith("<locals>.")
        for statement in body:
            is_touching = not prefix and may_change(statement)
            for node in running(statement):
                if isinstance(node, Definition):
                    name = prefix + node.name
                    self.defs.setdefault(name, []).append(node)
                    is_class = isinstance(node, ast.ClassDef)
                    self._index(node.body, f"{name}." if is_class else f"{name}.<locals>.")
                if is_function:
                    self.reassigned.update(getattr(node, "names", ()))
                    if isinstance(getattr(node, "ctx", None), ast.Store):
                        self.reassigned.add(getattr(node, "attr", None))
                    continue
                for name in bound_by(node):
                    scope = self.bindings.setdefault(prefix, {})
                    scope.setdefault(name, []).append(statement)
                if not prefix and isinstance(node, ast.Import | ast.ImportFrom):
                    for name, read in imported(node):
                        # The last one wins.
                        self.imports.setdefault(name, []).insert(0, read)
                if is_touching and isinstance(node, ast.Name):
                    touching = self.touching.setdefault(node.id, [])
                    if statement not in touching[-1:]:
                        touching.append(statement)

    def statements_of(self, name: str) -> list[ast.stmt]:
        """The statements that give a name of the module its value, or may change it."""
        return [*self.bindings[""].get(name, ()), *self.touching.get(name, ())]

    @functools.cached_property
    def imported_for_effect(self) -> list[Read]:
        """Imports whose names are never used: ``import patches  # noqa``, ``import pkg.more``."""
        used = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        return [reads[0] for name, reads in self.imports.items() if name not in used]

    def function(self, code: CodeType, qualname: str) -> list[Function | ast.Lambda]:
        """The definition that made *code*, or all lambdas on its line; empty if there is none."""
        line = code.co_firstlineno
        if code.co_name == "<lambda>":
            return [node for node in self._lambdas if node.lineno == line]
        named = self.defs.get(code.co_qualname) or self.defs.get(qualname) or ()
        # It begins with its first decorator, and the next definition of this name is another.
        found = [node for node in named if node.lineno >= line and isinstance(node, Function)]
        return [*sorted(found, key=lambda node: node.lineno)[:1]]

    @functools.cached_property
    def _lambdas(self) -> list[ast.Lambda]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Lambda)]


@functools.lru_cache(maxsize=1 << 16)
def text_of(node: ast.AST, body: tuple[ast.stmt, ...] | None = None) -> str:
    """Source of *node* without comments and docstrings; *body* is what is shown of a class."""
    if body is not None:
        node = ast.ClassDef(**{**vars(node), "body": list(body)})
    try:
        return ast.unparse(node)
    except (ValueError, RecursionError):
        # Before Python 3.12, not every f-string can be written.
        return ast.dump(node)


def text_of_file(path: str, module_globals: Globals) -> str:
    """
    The source at *path*, or that which its loader has; empty if there is none.

    It is read again when its time or size has changed, so that an edit is seen in the same process.
    """
    linecache.checkcache(path)
    return "".join(linecache.getlines(path, module_globals))


@functools.lru_cache(maxsize=4096)
def parse(path: str, text: str, extras: frozenset[str] = frozenset()) -> Source | None:
    """The parsed file at *path*, whose content is *text*; None if that is empty or wrong."""
    # Two files of one text are two sources, because their relative imports differ.
    try:
        return Source(text, extras) if text else None
    except (SyntaxError, ValueError):
        return None


def running(statement: ast.AST) -> Iterator[ast.AST]:
    """A statement and all inside it that runs with it: definitions without their bodies."""
    todo: list[ast.AST] = [statement]
    for node in todo:
        yield node
        if isinstance(node, Definition):
            todo += node.decorator_list
        elif isinstance(node, ast.comprehension):
            # Its target is a name of its own.
            todo += [node.iter, *node.ifs]
        elif not isinstance(node, ast.Lambda):
            todo += ast.iter_child_nodes(node)


def may_change(statement: ast.stmt) -> bool:
    """Whether a statement may change what it names, other than by binding names."""
    if isinstance(statement, Definition | ast.Import | ast.ImportFrom):
        return False
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return True
    return any(
        isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store)
        for node in ast.walk(statement)
    )


def bound_by(node: ast.AST) -> Iterable[str]:
    """The names that one node binds itself."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return dict(imported(node))
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    name = getattr(node, "name", None) or getattr(node, "rest", None)
    return [name] if isinstance(name, str) and not isinstance(node, ast.alias) else []


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Read]]:
    """Each name that an import binds, with what it is bound to."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, Read(node.module or "", (alias.name,), node.level)
        else:
            top = alias.name.partition(".")[0]
            yield alias.asname or top, Read(alias.name if alias.asname else top, (), 0)
            if not alias.asname:
                # What ``import a.b`` runs, although it binds ``a``.
                yield alias.name, Read(alias.name, (), 0)


def absolute(read: Read, package: str) -> str:
    """The absolute name of the module that an import in *package* means."""
    try:
        return resolve_name("." * read.level + read.root, package)
    except (ImportError, ValueError):
        return read.root
