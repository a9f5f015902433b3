"""
Small changes of code that ran, for ``histories.py``: another constant, operator or comparison.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.UAdd: ast.USub,
    ast.USub: ast.UAdd,
}

Change = tuple[str, Callable[[], None], Callable[[], None]]


@dataclass(frozen=True)
class Mutant:
    """A file with one change, and what was changed."""

    file: str
    change: str
    text: str


def mutants_of(
    folder: Path, lines: dict[str, list[int]], reads: Iterable[str], count: int
) -> list[Mutant]:
    """
    Change code that ran, one change for each mutant.

    Args:
        folder: The project's files.
        lines: The lines that ran, by file.
        reads: Names of globals that were read; the statements at module level that set them, and
            the bodies of classes, are also changed.
        count: How many to make at most; they are chosen by chance, and the same each time.
    """
    names = set(reads)
    found = []
    for file, numbers in sorted(lines.items()):
        tree = ast.parse((folder / file).read_text("utf-8"))
        nodes = nodes_that_ran(tree, set(numbers), names)
        sites = [change for node in nodes for change in changes_of(node)]
        found += [(file, tree, change) for change in sites]
    chosen = random.Random(count).sample(found, min(count, len(found)))
    made = []
    for file, tree, (what, do, undo) in chosen:
        do()
        made.append(Mutant(file, what, ast.unparse(tree)))
        undo()
    return made


def nodes_that_ran(tree: ast.Module, lines: set[int], names: set[str]) -> Iterator[ast.AST]:
    """Nodes on lines that ran in functions, and of statements that set what was read."""
    if not lines:
        return
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and names & {
            each.id for each in ast.walk(statement) if isinstance(each, ast.Name)
        }:
            yield from inside(statement)
        for each in ast.walk(statement):
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and lines.intersection(
                range(each.lineno, (each.end_lineno or 0) + 1)
            ):
                yield from inside(each.args)
                ran = [node for node in each.body if not is_text(node)]
                for node in (node for body in ran for node in inside(body)):
                    # Operators have no line; they are changed with the expression around them.
                    if getattr(node, "lineno", 0) in lines:
                        yield node
            elif isinstance(each, ast.ClassDef):
                for node in each.body:
                    if isinstance(node, ast.Assign | ast.AnnAssign):
                        yield from inside(node)


def is_text(node: ast.AST) -> bool:
    """Whether it is a docstring, or a statement like one."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without annotations and functions inside it."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST) and not isinstance(
                each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            ):
                yield from inside(each)


def changes_of(node: ast.AST) -> Iterator[Change]:
    """What can be changed of one node: what, how, and how to take it back."""
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.Constant):
        new = other_value(node.value)
        if new is not None:
            yield setting(node, "value", new, f"line {line}: {node.value!r} -> {new!r}")
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.AugAssign):
        if type(node.op) in OPERATORS:
            new = OPERATORS[type(node.op)]()
            what = f"line {line}: {type(node.op).__name__} -> {type(new).__name__}"
            yield setting(node, "op", new, what)
    elif isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            new = OPERATORS[type(operator)]()
            what = f"line {line}: {type(operator).__name__} -> {type(new).__name__}"
            ops = [*node.ops]
            ops[place] = new  # type: ignore[call-overload]
            yield setting(node, "ops", ops, what)


def setting(node: ast.AST, name: str, new: object, what: str) -> Change:
    """The change of one field."""
    old = getattr(node, name)
    return what, lambda: setattr(node, name, new), lambda: setattr(node, name, old)


def other_value(value: object) -> object:
    """Another constant of the same kind; None if there is none."""
    if value is None:
        return 0
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, bytes):
        return value + b"x"
    return None
