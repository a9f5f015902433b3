"""
What a piece of source says, as text that every Python writes alike.

Not ``ast.dump``: fields without a value are left out, and what parsers represent differently (the pieces of f-strings)
is brought to one form. What changes nothing is left out too: docstrings, ``pass``, annotations of plain functions,
blocks for type checkers.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable

from pfl.handler.core.fingerprint.source import docstring_of, is_type_checking

_NO_SUCH = (None, "", [])


def canonical(
    node: object,
    extras: frozenset[str],
    skip: frozenset[int] = frozenset(),
    *,
    in_function: bool = False,
) -> str:
    """
    The tree below *node* as text.

    Args:
        node: A statement, an expression, or a list of these.
        asked: ``docs`` or ``annotations`` where the program reads them, so that they count.
        skip: Identities of decorators that do not count.
        in_function: Whether annotations of variables are never evaluated.
    """
    if isinstance(node, list):
        if node and isinstance(node[0], ast.stmt):
            node = _statements(node)
        return (
            "["
            + ",".join(canonical(item, extras, skip, in_function=in_function) for item in node)
            + "]"
        )
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__}:{node!a}"
    if isinstance(node, ast.Constant):
        return f"<{_constant(node.value)}>"
    if isinstance(node, ast.Set) and {
        type(item.value) if isinstance(item, ast.Constant) else None for item in node.elts
    } <= {str, int, bytes}:
        return f"Set(elts=[{','.join(sorted(canonical(item, extras) for item in node.elts))}])"  # as in values, order says nothing
    if isinstance(node, ast.AnnAssign) and in_function and "annotations" not in extras:
        if node.value is None:
            return "()"
        node = ast.Assign(targets=[node.target], value=node.value)
    in_function = _enters_function(node, in_function)
    fields = [
        f"{name}={canonical(value, extras, skip, in_function=in_function)}"
        for name, value in _fields(node, extras, skip)
        if value not in _NO_SUCH
    ]
    return f"{type(node).__name__}({' '.join(fields)})"


def unquoted(node: ast.expr) -> ast.expr:
    """An annotation, parsed if it is written as a string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return node
    return node


def _constant(value: object) -> str:
    if type(value) is int:
        return f"int:{value:x}"  # decimal digits of a large one are refused
    return f"{type(value).__name__}:{value!a}"


def _statements(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """A block without what does nothing: ``pass``, bare constants, and blocks for type checkers."""
    kept: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            kept.extend(_statements(node.orelse))
        elif not isinstance(node, ast.Pass) and not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            kept.append(node)
    return kept


def _fields(
    node: ast.AST, extras: frozenset[str], skip: frozenset[int]
) -> Iterable[tuple[str, object]]:
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "type_comment", "kind"):
            continue
        if name in ("annotation", "returns") and value is not None:
            is_read = "annotations" in extras or isinstance(node, ast.AnnAssign)
            value = unquoted(value) if is_read else None
        elif name == "decorator_list":
            value = [item for item in value if id(item) not in skip]
        elif name == "values" and isinstance(node, ast.JoinedStr):
            value = _pieces(node)
        elif name == "format_spec" and isinstance(value, ast.JoinedStr) and not _pieces(value):
            value = None
        yield name, value
    if "docs" in extras and (doc := docstring_of(node)) is not None:
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


def _enters_function(node: ast.AST, inside: bool) -> bool:
    if isinstance(node, ast.ClassDef):  # fields of a dataclass are said by annotations
        return not (node.bases or node.keywords or node.decorator_list)
    return inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
