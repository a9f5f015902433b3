"""
``python -m pfl.handler.core.fingerprint MODULE:FUNCTION [--json]``
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from json import dumps  # bound now: what the project's modules do to json at import is their affair

from pfl.handler.core.errors import PflError
from pfl.handler.core.fingerprint import Fingerprint, find, fingerprint

USAGE = "usage: python -m pfl.handler.core.fingerprint MODULE:FUNCTION [--json]"


def main(arguments: list[str]) -> int:
    """
    Print the fingerprint of one function.

    Returns:
        The exit code: 0, or 2 for a request that is wrong.
    """
    as_json = "--json" in arguments
    targets = [item for item in arguments if item != "--json"]
    if len(targets) != 1 or targets[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 0 if targets in (["-h"], ["--help"]) else 2
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with redirect_stdout(sys.stderr):  # What a module prints when it is imported is no data.
            found = fingerprint(find(targets[0]))
    except PflError as error:
        print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    print(dumps(found.to_json()) if as_json else _table(found))
    return 0


def _table(found: Fingerprint) -> str:
    rows = [found.digest]
    for part in (*found.parts, *found.opaque):
        where = f"{part.file}:{part.line}" if part.line else part.file or ""
        said = part.text if part.kind not in ("function", "class", "module") else ""
        rows.append(
            f"{part.digest[:12]}  {part.kind:<9} {part.name:<32} {where:<28} {said[:80]}".rstrip()
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
