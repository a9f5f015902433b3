"""What a record of history tells of the process that wrote it."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from handler import __version__

try:
    import resource
except ImportError:  # There is none on Windows.
    resource = None  # type: ignore[assignment]


def process(is_cold: bool, root: Path) -> dict[str, object]:
    """Cold start, the most memory that the process had so far, in bytes, and the version of its code."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else None
    # Kibibytes on Linux, bytes on macOS.
    peak_bytes = peak * (1 if sys.platform == "darwin" else 1_024) if peak else None
    return {"cold_start": is_cold, "memory_peak_bytes": peak_bytes, "code_version": code_version(root), "pfl_version": __version__}


@functools.cache
def code_version(root: Path) -> str | None:
    """In Lambda the function and its version; elsewhere the commit that the project's checkout is at, if there is one."""
    if name := os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        return f"{name}:{os.environ.get('AWS_LAMBDA_FUNCTION_VERSION', '$LATEST')}"
    try:
        git = root / ".git"
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text().strip()
        return next((line.split()[0] for line in (git / "packed-refs").read_text().splitlines() if line.endswith(f" {ref}")), None)
    except OSError:
        return None
