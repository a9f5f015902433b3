"""File and line of a declaration or an error."""

from __future__ import annotations

import sys


def location(filename: str, line: int) -> str:
    """``flows/b.py:6``: the file is relative to the folder on Python's path that holds it."""
    folders = (entry.rstrip("/") + "/" for entry in sys.path if entry)
    prefix = max((each for each in folders if filename.startswith(each)), key=len, default="")
    return f"{filename.removeprefix(prefix)}:{line}"
