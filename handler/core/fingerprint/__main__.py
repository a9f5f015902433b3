"""
``python -m pfl.handler.core.fingerprint MODULE:FUNCTION [--json]``
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

# Bound now, because the project's modules may replace it when they are imported.
from json import dumps

from pfl.handler.core.errors import PflError
from pfl.handler.core.fingerprint import Fingerprint, find, fingerprint

USAGE = "usage: python -m pfl.handler.core.fingerprint MODULE:FUNCTION [--json]\n"


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
    sys.stdout.write(f"{dumps(found.to_json()) if options else _table(found)}\n")
    return 0


def _table(found: Fingerprint) -> str:
    rows = [found.digest]
    for part in (*found.parts, *found.opaque):
        place = f"{part.file}:{part.line}" if part.line else part.file or ""
        text = "" if part.kind in ("function", "class", "module") else part.text[:80]
        row = f"{part.digest[:12]}  {part.kind:<9} {part.name:<32} {place:<28} {text}"
        rows.append(row.rstrip())
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
