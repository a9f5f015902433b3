"""
``python tests/fingerprint/command.py MODULE:FUNCTION [--json]`` prints a fingerprint.
"""

from __future__ import annotations

import importlib
import operator
import os
import sys
from contextlib import redirect_stdout

# Bound now, because the project's modules may replace it when they are imported.
from json import dumps

from pfl.handler.core.errors import InvalidRequestError, PflError
from pfl.handler.core.fingerprint import Fingerprint, fingerprint, ownership

USAGE = "usage: python tests/fingerprint/command.py MODULE:FUNCTION [--json]\n"


def main(arguments: list[str]) -> int:
    """
    Print the fingerprint of one function.

    Returns:
        The exit code: 0, or 2 for an invalid request.
    """
    target, *options = arguments or [""]
    if target in ("", "-h", "--help") or options not in ([], ["--json"]):
        sys.stderr.write(USAGE)
        return 2 if options or not target else 0
    try:
        # What a module prints when it is imported is not data.
        with redirect_stdout(sys.stderr):
            found = fingerprint(find(target))
    except PflError as error:
        hint = f"hint: {error.hint}\n" if error.hint else ""
        sys.stderr.write(f"error: {error}\n{hint}")
        return error.exit_code
    sys.stdout.write(f"{dumps(found.to_json()) if options else table(found)}\n")
    return 0


def find(target: str) -> object:
    """
    The function that *target* names.

    Args:
        target: ``MODULE:FUNCTION``, importable from ``sys.path``; FUNCTION may have dots.

    Raises:
        InvalidRequestError: It does not exist, or its module cannot be imported.
    """
    name, _, path = target.partition(":")
    if not name or not path or name.startswith("."):
        raise InvalidRequestError(
            f"invalid function {target!r}", why="it must be MODULE:FUNCTION", hint="flows.b:b"
        )
    folder = os.getcwd()
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as exc:
        raise InvalidRequestError(
            f"module {name} cannot be imported in {folder}", why=ownership.describe(exc, folder)
        ) from exc
    try:
        return operator.attrgetter(path)(module)
    except Exception as exc:
        raise InvalidRequestError(
            f"{name} has no {path}", why=ownership.describe(exc, folder)
        ) from exc


def table(found: Fingerprint) -> str:
    """A line for each part."""
    rows = [found.digest]
    for part in (*found.parts, *found.opaque):
        place = f"{part.file}:{part.line}" if part.line else part.file or ""
        text = "" if part.kind in ("function", "class", "module") else part.text[:80]
        row = f"{part.digest[:12]}  {part.kind:<9} {part.name:<32} {place:<28} {text}"
        rows.append(row.rstrip())
    return "\n".join(rows)


if __name__ == "__main__":
    # The project, instead of the folder of this file.
    sys.path[0] = os.getcwd()
    sys.exit(main(sys.argv[1:]))
