"""Step measure of the flow *audit*: every module parsed and counted, without importing any."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Literal, TypedDict

from flows.audit.collect import Collected, digest, distribution, files
from pfl import step

LONGEST = 100  # Functions that are kept by name; a report shows some of them.
_BRANCHES = (
    ast.If | ast.IfExp | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.match_case
)


class ChangedError(RuntimeError):
    """A module changed after it was collected."""


class Function(TypedDict):
    """The length of a function in lines."""

    name: str
    lines: int


class FunctionOf(Function):
    """The length of a function, and the module it is in."""

    module: str


class Module(TypedDict):
    """What one module consists of; *imports* holds the top-level names that it imports."""

    lines: int
    functions: int
    classes: int
    branches: int
    longest: Function | None
    imports: list[str]


class Measured(TypedDict):
    """
    What a distribution consists of.

    Attributes:
        totals: The sums over all modules.
        longest: The longest functions, the longest first.
        imports: By top-level name: how many modules import it.
        unparsed: By module: why it cannot be parsed.
        modules: The modules by path.
    """

    totals: dict[str, int]
    longest: list[FunctionOf]
    imports: dict[str, int]
    unparsed: dict[str, str]
    modules: dict[str, Module]


@step
def measure(id: str, collect: Collected) -> Measured:
    """
    What the modules of the distribution consist of.

    Raises:
        ChangedError: A module has changed; its numbers would be stored under the old digest.
    """
    installed = files(distribution(id))
    modules: dict[str, Module] = {}
    longest: list[FunctionOf] = []
    unparsed: dict[str, str] = {}
    for path, (_, collected) in collect["files"].items():
        if not path.endswith(".py"):
            continue
        source = installed[path].read_bytes() if path in installed else b""
        if digest(source) != collected:
            raise ChangedError(f"{path} changed after it was collected: collect must run again")
        try:
            modules[path], functions = count(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            unparsed[path] = str(exc).replace("(<unknown>, ", "(") or type(exc).__name__
            continue
        longest += [{"name": name, "module": path, "lines": lines} for lines, name in functions]
    longest.sort(key=lambda each: (-each["lines"], each["module"], each["name"]))
    totals = Counter(modules=len(modules))
    imports: Counter[str] = Counter()
    for module in modules.values():
        imports.update(module["imports"])
        what: Literal["lines", "functions", "classes", "branches"]
        for what in ("lines", "functions", "classes", "branches"):
            totals[what] += module[what]
    return {
        "totals": totals,
        "longest": longest[:LONGEST],
        "imports": dict(sorted(imports.items())),
        "unparsed": unparsed,
        "modules": modules,
    }


def count(source: bytes) -> tuple[Module, list[tuple[int, str]]]:
    """
    The numbers of one module, and the length in lines and qualified name of each function.

    A branch is a place where the control flow forks: ``if``, ``elif``, a conditional expression, a
    loop, ``except``, ``case``, a loop or condition of a comprehension, and each operand of ``and``
    and ``or`` after the first.

    Raises:
        SyntaxError: The source is not text, or not valid in this version of Python.
        ValueError: The source contains a null byte.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # For example about invalid escapes in another project.
        tree = ast.parse(source)
    functions: list[tuple[int, str]] = []
    imports: set[str] = set()
    classes = 0
    branches = 0
    for node, name in _named(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions.append(((node.end_lineno or 0) - node.lineno + 1, name))
            case ast.ClassDef():
                classes += 1
            case ast.comprehension():
                branches += 1 + len(node.ifs)
            case ast.BoolOp():
                branches += len(node.values) - 1
            case ast.Import():
                imports.update(alias.name.split(".")[0] for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                imports.add(module.split(".")[0])
        branches += isinstance(node, _BRANCHES)
    longest: Function | None = None
    if functions:
        length, name = min(functions, key=lambda each: (-each[0], each[1]))
        longest = {"name": name, "lines": length}
    numbers: Module = {
        "lines": source.count(b"\n") + bool(source and not source.endswith(b"\n")),
        "functions": len(functions),
        "classes": classes,
        "branches": branches,
        "longest": longest,
        "imports": sorted(imports),
    }
    return numbers, functions


def _named(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every node, with the qualified name of the innermost function or class that it is part of."""
    # A list instead of recursion: generated code can be nested more deeply than Python's stack.
    todo = [(tree, "")]
    while todo:
        node, name = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}" if name else node.name
        yield node, name
        todo.extend((child, name) for child in ast.iter_child_nodes(node))
