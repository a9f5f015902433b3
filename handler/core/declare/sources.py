"""What a manifest was made from, and whether any of it has changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from .. import files


class Sources(TypedDict):
    """
    What a manifest was made from.

    Attributes:
        process: The project, Python, and the working directory or None if it does not matter.
        seen: By kind and name: its state, or None if it did not exist; see
            :func:`pfl.handler.core.files.state`.
    """

    process: list[object]
    seen: files.Seen


def snapshot(root: Path, names: Mapping[str, Iterable[str]], *, asked_folder: bool) -> Sources:
    """
    The sources as they are now.

    Args:
        root: The project.
        names: The names of the sources by kind.
        asked_folder: Whether the flows depend on the working directory.
    """
    seen = {
        kind: {name: files.state(kind, name) for name in sorted(some)}
        for kind, some in names.items()
    }
    return {"process": _process(root, asked_folder), "seen": seen}


def is_current(sources: Sources, root: Path) -> bool:
    """Whether all sources are as they were."""
    process = _process(root, sources["process"][-1] is not None)
    return sources["process"] == process and not files.changed(sources["seen"])


def _process(root: Path, asked_folder: bool) -> list[object]:
    return [str(root), *sys.version_info[:2], sys.prefix, os.getcwd() if asked_folder else None]
