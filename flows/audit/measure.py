"""Step measure of the flow *audit*: each module parsed and counted, without importing any."""

import ast
from collections import Counter
from typing import TypedDict

from flows.audit.collect import Collected, digest, sources
from pfl import step


class ChangedError(RuntimeError):
    """A module changed after it was collected."""


class Measured(TypedDict):
    """The sums over all modules, and the number of lines of each module by its path."""

    totals: dict[str, int]
    lines: dict[str, int]


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
    lines = {path: count_lines(source) for path, source in found.items()}
    kinds = Counter(functions=0, classes=0, unparsed=0)
    for source in found.values():
        try:
            nodes = ast.walk(ast.parse(source))
        except (SyntaxError, ValueError):  # Of another version of Python, or not text.
            kinds["unparsed"] += 1
            continue
        for node in nodes:
            kinds["functions"] += isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            kinds["classes"] += isinstance(node, ast.ClassDef)
    totals = {"modules": len(lines), "lines": sum(lines.values()), **kinds}
    return {"totals": totals, "lines": lines}


def count_lines(source: bytes) -> int:
    """The number of lines, including a last one that does not end."""
    return len(source.splitlines())
