"""Step measure of the flow *audit*: every module parsed and counted; nothing of it is imported or run."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterator

from pfl import step

from flows.audit.collect import digest, distribution, files

LONGEST = 100  # Functions kept by name; a report shows some of them.
_COUNTED = ("lines", "functions", "classes", "branches")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.match_case,
    ast.comprehension,
)


class ChangedError(RuntimeError):
    """A module is not the one that was collected."""


@step
def measure(id: str, collect: dict) -> dict:
    """
    What the modules of the distribution consist of.

    Returns:
        ``modules`` (for each its lines, functions, classes, branches, longest function and the top-level packages it imports),
        their ``totals``, the ``longest`` functions, ``imports`` (how many modules import a package), and ``unparsed``: why a
        module could not be read, by path.

    Raises:
        ChangedError: A module changed since; its numbers would be kept under the digest of the old one.
    """
    places = files(distribution(id))
    modules, longest, unparsed = {}, [], {}
    for path, (_, collected) in collect["files"].items():
        if not path.endswith(".py"):
            continue
        source = places[path][0].read_bytes() if path in places else b""
        if digest(source) != collected:
            raise ChangedError(f"{path} changed after it was collected: collect has to run again")
        try:
            modules[path], functions = count(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            unparsed[path] = _said(exc)
            continue
        longest += [{"name": name, "module": path, "lines": lines} for lines, name in functions]
    longest.sort(key=lambda each: (-each["lines"], each["module"], each["name"]))
    return {
        "totals": {
            "modules": len(modules),
            **{what: sum(each[what] for each in modules.values()) for what in _COUNTED},
        },
        "longest": longest[:LONGEST],
        "imports": dict(
            sorted(Counter(name for each in modules.values() for name in each["imports"]).items())
        ),
        "unparsed": unparsed,
        "modules": modules,
    }


def count(source: bytes) -> tuple[dict, list[tuple[int, str]]]:
    """
    The numbers of one module, and the length in lines and qualified name of each of its functions.

    A branch is a place where the way through the code forks: ``if``, ``elif``, a conditional expression, a loop, ``except``,
    ``case``, a loop or condition of a comprehension, and each operand of ``and`` and ``or`` after the first.

    Raises:
        SyntaxError: It is not Python of this version, or not text.
        ValueError: It holds a null byte.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # What the parser thinks of other people's escapes is not for our reader.
        tree = ast.parse(source)
    functions, imports, classes, branches = [], set(), 0, 0
    for node, name in _named(tree):
        if isinstance(node, _FUNCTIONS):
            functions.append((node.end_lineno - node.lineno + 1, name))
        elif isinstance(node, _BRANCHES):
            branches += 1 + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
        elif isinstance(node, ast.BoolOp):
            branches += len(node.values) - 1
        elif isinstance(node, ast.Import):
            imports.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imports.add(node.module.split(".")[0])
        classes += isinstance(node, ast.ClassDef)
    lines = source.count(b"\n") + bool(source and not source.endswith(b"\n"))
    length, name = min(functions, key=lambda each: (-each[0], each[1]), default=(0, None))
    numbers = dict(zip(_COUNTED, (lines, len(functions), classes, branches), strict=True))
    return numbers | {
        "longest": name and {"name": name, "lines": length},
        "imports": sorted(imports),
    }, functions


def _named(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every node, with the qualified name of the innermost definition it is or stands in; deep nesting costs no stack."""
    todo = [(tree, "")]
    while todo:
        node, name = todo.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            name = f"{name}.{node.name}" if name else node.name
        yield node, name
        todo.extend((child, name) for child in ast.iter_child_nodes(node))


def _said(exc: BaseException) -> str:
    where = f" (line {exc.lineno})" if isinstance(exc, SyntaxError) and exc.lineno else ""
    return (getattr(exc, "msg", None) or str(exc) or type(exc).__name__) + where
