"""Step measure of the flow *audit*: each module parsed and counted, without importing any."""

import ast
from collections import Counter
from typing import TypedDict

from flows.audit.collect import Collected, digest, sources
from pfl import step

LONGEST = 100  # Functions that are kept by name; a report shows some of them.


class ChangedError(RuntimeError):
    """A module changed after it was collected."""


class Function(TypedDict):
    """The length of a function in lines, and the module it is in."""

    name: str
    module: str
    lines: int


class Measured(TypedDict):
    """The sums over all modules, and the longest functions, the longest first."""

    totals: dict[str, int]
    longest: list[Function]


@step
def measure(id: str, collect: Collected) -> Measured:
    """
    What the modules of the distribution consist of.

    Raises:
        ChangedError: A module has changed; its numbers would be stored under the old digest.
    """
    found = sources(id)
    if {path: digest(source) for path, source in found.items()} != collect["modules"]:
        raise ChangedError(f"{id} changed after it was collected: collect must run again")
    totals = Counter(modules=len(found), lines=0, functions=0, classes=0, unparsed=0)
    functions: list[Function] = []
    for path, source in found.items():
        totals["lines"] += count_lines(source)
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):  # Of another version of Python, or not text.
            totals["unparsed"] += 1
            continue
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                functions.append({"name": node.name, "module": path, "lines": lines})
            totals["classes"] += isinstance(node, ast.ClassDef)
    totals["functions"] = len(functions)
    functions.sort(key=lambda each: (-each["lines"], each["module"], each["name"]))
    return {"totals": dict(totals), "longest": functions[:LONGEST]}


def count_lines(source: bytes) -> int:
    """The number of lines, including a last one that does not end."""
    return len(source.splitlines())
