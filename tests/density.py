"""
Prints how dense the code of pfl is: ``python tests/density.py [CHECKOUT] [--json]``.

Tokens are counted without comments and docstrings, since a count of lines rewards density. A code
line is one that is neither blank nor a comment nor part of a docstring.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections import Counter
from pathlib import Path

ROOMS = ("cli", "flows", "handler", "serverless")
LONG_COLUMNS = 100
LONG_FUNCTION_LINES = 60
_NOT_COUNTED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(tree: ast.Module) -> set[tuple[int, int]]:
    """Where the docstrings begin, as line and column."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | _DEFINITIONS[0] | _DEFINITIONS[1]):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            if isinstance(first.value.value, str):
                found.add((first.lineno, first.col_offset))
    return found


def count(text: str) -> Counter[str]:
    """What one file holds."""
    tree = ast.parse(text)
    docstrings = _docstrings(tree)
    lines = text.splitlines()
    counts: Counter[str] = Counter(lines=len(lines))
    counts["long lines"] = sum(len(line) > LONG_COLUMNS for line in lines)
    code_lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            counts["comments"] += 1
        elif token.type not in _NOT_COUNTED and token.start not in docstrings:
            counts["tokens"] += 1
            code_lines.update(range(token.start[0], token.end[0] + 1))
    counts["code lines"] = len(code_lines)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            counts["tuple assignments"] += isinstance(node.value, ast.Tuple)
        elif isinstance(node, ast.IfExp):
            counts["conditional expressions"] += 1
        elif isinstance(node, _COMPREHENSIONS):
            counts["comprehensions"] += 1
            counts["comprehensions over two loops"] += len(node.generators) > 1
        elif isinstance(node, _DEFINITIONS):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            counts["functions over 60 lines"] += length > LONG_FUNCTION_LINES
    return counts


def measure(checkout: Path) -> dict[str, float]:
    """The figures of all rooms of a checkout."""
    total: Counter[str] = Counter()
    for room in ROOMS:
        for path in sorted((checkout / room).rglob("*.py")):
            if "node_modules" not in path.parts:
                total += count(path.read_text(encoding="utf-8"))
    per_1000 = 1_000 / max(total["code lines"], 1)
    figures: dict[str, float] = {"tokens": total["tokens"], "lines": total["lines"]}
    figures["tokens a code line"] = round(total["tokens"] * per_1000 / 1_000, 2)
    for name in (
        "tuple assignments",
        "conditional expressions",
        "comprehensions",
        "comprehensions over two loops",
    ):
        figures[f"{name} per 1,000 code lines"] = round(total[name] * per_1000, 2)
    figures["functions over 60 lines"] = total["functions over 60 lines"]
    figures["lines over 100 columns, %"] = round(100 * total["long lines"] / total["lines"], 2)
    figures["comments, % of lines"] = round(100 * total["comments"] / total["lines"], 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("checkout", nargs="?", type=Path, default=here)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = measure(arguments.checkout)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{figure:>12,} {name}")


if __name__ == "__main__":
    main()
