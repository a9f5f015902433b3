"""
A piece of source as text that is equal on every Python.

Not ``ast.dump``: fields without a value are left out, and what parsers represent differently (the
pieces of f-strings) has one form. What changes nothing is left out too: docstrings, ``pass``,
annotations of plain functions, blocks for type checkers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from .source import Definition, Function, is_type_checking


def canonical(
    node: object,
    extras: frozenset[str],
    skip: frozenset[int],
    *,
    in_function: bool = False,
) -> str:
    """
    The tree below *node* as text.

    Args:
        node: A statement, an expression, or a list of these.
        extras: ``docs`` or ``annotations`` if the program reads them, so that they count.
        skip: Identities of decorators that do not count.
        in_function: Whether annotations of variables are never evaluated.
    """

    def text_of(item: object) -> str:
        return canonical(item, extras, skip, in_function=in_function)

    if isinstance(node, list):
        if node and isinstance(node[0], ast.stmt):
            node = _statements(node)
        return f"[{','.join(map(text_of, node))}]"
    if isinstance(node, ast.Constant):
        return f"<{text_of(node.value)}>"
    if not isinstance(node, ast.AST):
        # Python refuses to write a large number in decimal digits.
        text = f"{node:x}" if type(node) is int else ascii(node)
        return f"{type(node).__name__}:{text}"
    if isinstance(node, ast.Set) and _is_plain(node):
        # As in values, the order does not matter.
        return f"Set(elts=[{','.join(sorted(map(text_of, node.elts)))}])"
    if isinstance(node, ast.AnnAssign) and in_function and "annotations" not in extras:
        if node.value is None:
            return "()"
        node = ast.Assign(targets=[node.target], value=node.value)
    if isinstance(node, ast.ClassDef):
        # Annotations are the fields of a dataclass.
        in_function = not (node.bases or node.keywords or node.decorator_list)
    elif isinstance(node, Function):
        in_function = True
    fields = []
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") and value is not None:
            is_read = "annotations" in extras or isinstance(node, ast.AnnAssign)
            value = unquoted(value) if is_read else None
        elif name == "decorator_list":
            value = [item for item in value if id(item) not in skip]
        elif isinstance(node, ast.JoinedStr):
            value = _pieces(node)
        elif name == "format_spec" and isinstance(value, ast.JoinedStr) and not _pieces(value):
            value = None
        if name not in ("ctx", "type_comment", "kind") and value not in (None, "", []):
            fields.append(f"{name}={text_of(value)}")
    if "docs" in extras and isinstance(node, Definition):
        fields.append(f"doc={ast.get_docstring(node)!a}")
    return f"{type(node).__name__}({' '.join(fields)})"


def unquoted(node: ast.expr) -> ast.expr:
    """An annotation, parsed if it is written as a string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return node
    return node


def _is_plain(node: ast.Set) -> bool:
    kinds = {type(getattr(item, "value", None)) for item in node.elts}
    return kinds <= {str, int, bytes}


def _statements(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """A block without what does nothing: ``pass``, bare constants, and blocks for type checkers."""
    kept: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            kept += _statements(node.orelse)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        elif not isinstance(node, ast.Pass):
            kept.append(node)
    return kept


def _pieces(node: ast.JoinedStr) -> list[ast.expr]:
    """The pieces of an f-string with neighbouring texts joined and empty ones dropped."""
    pieces: list[ast.expr] = []
    for piece in node.values:
        if not isinstance(piece, ast.Constant):
            pieces.append(piece)
        elif pieces and isinstance(pieces[-1], ast.Constant):
            pieces[-1] = ast.Constant(f"{pieces[-1].value!s}{piece.value!s}")
        elif piece.value:
            pieces.append(piece)
    return pieces
