"""
A parsed file without what changes nothing, and pieces of it as text that is equal on every Python.

Left out are docstrings, ``pass``, blocks for type checkers, annotations of functions, and pfl's
decorators: ``@step(retries=2)`` says how a step runs, not what it computes.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
# How the parser saw it, not what it means.
_UNSEEN = ("ctx", "kind", "type_comment")


def normalized(text: str, extras: Collection[str]) -> ast.Module:
    """
    Parse a file.

    Args:
        text: Its source.
        extras: ``docs`` or ``annotations`` if the program reads them, so that they count.
    """
    tree = ast.parse(text)
    try:
        _Normalizer(tree, extras).visit(tree)
    except RecursionError:
        return ast.parse(text)
    return tree


def canonical(node: object) -> str:
    """
    The tree below *node*, or below a list of nodes, as text.

    Not ``ast.dump``: its text differs between versions of Python.
    """
    if isinstance(node, list):
        return f"[{','.join(map(canonical, node))}]"
    if isinstance(node, ast.AST):
        is_constant = isinstance(node, ast.Constant)
        fields = [
            f"{name}={canonical(value)}"
            for name, value in ast.iter_fields(node)
            if name not in _UNSEEN and (is_constant or value not in (None, "", []))
        ]
        return f"{type(node).__name__}({' '.join(fields)})"
    # Python refuses to write a large number in decimal digits.
    text = f"{node:x}" if type(node) is int else ascii(node)
    return f"{type(node).__name__}:{text}"


class _Normalizer(ast.NodeTransformer):
    def __init__(self, tree: ast.Module, extras: Collection[str]) -> None:
        self.has_docs = "docs" in extras
        self.has_annotations = "annotations" in extras
        # Whether annotations of variables are evaluated here.
        self.is_evaluated = self.has_annotations
        self.framework = {
            alias.asname or alias.name
            for node in tree.body
            for alias in getattr(node, "names", ())
            if isinstance(alias, ast.alias)
            and (getattr(node, "module", None) or alias.name).partition(".")[0] == "pfl"
        }

    def visit_If(self, node: ast.If) -> object:
        self.generic_visit(node)
        # For type checkers, and where a module runs as a script.
        is_other = isinstance(node.test, ast.Compare) and root_name(node.test.left) == "__name__"
        return node.orelse if is_other or last_name(node.test) == "TYPE_CHECKING" else node

    def visit_Pass(self, _: ast.Pass) -> None:
        return None

    def visit_JoinedStr(self, node: ast.JoinedStr) -> object:
        # Some Pythons add empty pieces.
        node.values = [item for item in node.values if getattr(item, "value", "") != ""]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> object:
        if not isinstance(node.value, ast.Constant):
            return self.generic_visit(node)
        if not self.has_docs:
            return None
        # As Python does from 3.13 on.
        node.value = ast.Constant(inspect.cleandoc(str(node.value.value)))
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> object:
        self.generic_visit(node)
        if self.is_evaluated:
            node.annotation = _Unquoter().visit(node.annotation)
            return node
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_FunctionDef(self, node: Any) -> object:
        node.decorator_list = [
            item for item in node.decorator_list if root_name(item) not in self.framework
        ]
        # Any decorator may read them.
        is_read = self.has_annotations or bool(node.decorator_list)
        node.returns = _annotation(node.returns, is_read)
        for each in ast.walk(node.args):
            if isinstance(each, ast.arg):
                each.annotation = _annotation(each.annotation, is_read)
        return self._visit_inside(node, self.has_annotations)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> object:
        # Annotations are the fields of a dataclass.
        is_plain = not (node.bases or node.keywords or node.decorator_list)
        return self._visit_inside(node, self.has_annotations or not is_plain)

    def _visit_inside(self, node: ast.AST, is_evaluated: bool) -> object:
        outer = self.is_evaluated
        self.is_evaluated = is_evaluated
        self.generic_visit(node)
        self.is_evaluated = outer
        return node


class _Unquoter(ast.NodeTransformer):
    """Puts what a text in an annotation means beside it: it may be a type, or a literal."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        try:
            return ast.Tuple([node, ast.parse(str(node.value), mode="eval").body])
        except (SyntaxError, ValueError):
            return node


def _annotation(node: ast.expr | None, is_read: bool) -> ast.expr | None:
    return _Unquoter().visit(node) if node is not None and is_read else None


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
