"""What a manifest was made from, and whether any of it has changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from ..store.keys import digest


class Sources(TypedDict):
    """
    What a manifest was made from.

    Attributes:
        process: The project, Python, and the working directory or None if it does not matter.
        seen: By kind and name: its state, or None if it did not exist. The kinds:

            - ``looked``: paths, and whether each is a file or a folder.
            - ``files``: files and their content.
            - ``listings``: folders that the flows list, and their names.
            - ``folders``: folders of modules, and the names that an import could find.
            - ``packages``: folders of installed packages, and their names and versions.
            - ``env``: variables, and their values as digests, since one may be a secret.
    """

    process: list[object]
    seen: dict[str, dict[str, str | None]]


def snapshot(root: Path, names: Mapping[str, Iterable[str]], *, asked_folder: bool) -> Sources:
    """
    The sources as they are now.

    Args:
        root: The project.
        names: The names of the sources by kind.
        asked_folder: Whether the flows depend on the working directory.
    """
    seen = {
        kind: {name: _state(kind, name) for name in sorted(some)} for kind, some in names.items()
    }
    return {"process": _process(root, asked_folder), "seen": seen}


def is_current(sources: Sources, root: Path) -> bool:
    """Whether all sources are as they were."""
    if sources["process"] != _process(root, sources["process"][-1] is not None):
        return False
    for kind, seen in sources["seen"].items():
        for name, state in seen.items():
            if _state(kind, name) != state:
                return False
    return True


def _process(root: Path, asked_folder: bool) -> list[object]:
    return [str(root), *sys.version_info[:2], sys.executable, os.getcwd() if asked_folder else None]


def _state(kind: str, name: str) -> str | None:
    try:
        if kind == "files":
            with open(name, "rb") as file:
                return digest(file.read())
        if kind == "looked":
            if os.path.isdir(name):
                return "folder"
            return "file" if os.path.exists(name) else None
        if kind == "env":
            text = "\0".join(sorted(os.environ)) if name == "*" else os.environ[name]
        else:
            counts = _COUNTS[kind]
            text = "\0".join(sorted(each for each in os.listdir(name) if counts(each)))
        return digest(text.encode(errors="surrogateescape"))
    except (OSError, KeyError):
        return None


def _is_importable(name: str) -> bool:
    # A new module can shadow an old one.
    if name.startswith((".", "__pycache__")):
        return False
    return "." not in name or name.endswith(".py")


# By kind of folder: whether a name in it counts.
_COUNTS: dict[str, Callable[[str], bool]] = {
    "listings": lambda name: name != "__pycache__",
    "folders": _is_importable,
    "packages": lambda name: name.endswith((".dist-info", ".egg-info")),
}
