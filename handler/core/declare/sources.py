"""What a manifest was made from, and whether any of it has changed."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypedDict


class Sources(TypedDict):
    """
    What a manifest was made from.

    Attributes:
        process: The project, Python, and the working directory or None if it does not matter.
        seen: By kind and name: the state that was seen, or None for what does not exist.
    """

    process: list[object]
    seen: dict[str, dict[str, str | None]]


def snapshot(root: Path, names: Mapping[str, Iterable[str]], *, asked_folder: bool) -> Sources:
    """
    The state of these sources now.

    Args:
        root: The project.
        names: By kind: paths, or names of variables.
        asked_folder: Whether the flows depend on the working directory.
    """
    return {
        "process": _process(root, asked_folder),
        "seen": {
            kind: {name: _STATES[kind](name) for name in sorted(names)}
            for kind, names in names.items()
        },
    }


def is_current(sources: Sources, root: Path) -> bool:
    """Whether all sources are as they were: files by content, folders, variables, Python."""
    if sources["process"] != _process(root, sources["process"][-1] is not None):
        return False
    for kind, seen in sources["seen"].items():
        state_of = _STATES[kind]
        if any(state_of(name) != state for name, state in seen.items()):
            return False
    return True


def _process(root: Path, asked_folder: bool) -> list[object]:
    return [str(root), *sys.version_info[:2], sys.executable, os.getcwd() if asked_folder else None]


def _path(path: str) -> str | None:
    if os.path.isdir(path):
        return "folder"
    return "file" if os.path.exists(path) else None


def _file(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def _listing(path: str) -> str | None:
    return _names(path, lambda name: name != "__pycache__")


def _packages(path: str) -> str | None:
    return _names(path, lambda name: name.endswith((".dist-info", ".egg-info")))


def _modules(path: str) -> str | None:
    return _names(path, _is_importable)


def _is_importable(name: str) -> bool:
    if name.startswith((".", "__pycache__")):
        return False
    return "." not in name or name.endswith(".py")


def _names(path: str, counts: Callable[[str], bool]) -> str | None:
    try:
        return _digest("\0".join(sorted(name for name in os.listdir(path) if counts(name))))
    except OSError:
        return None


def _variable(name: str) -> str | None:
    if name == "*":
        return _digest("\0".join(sorted(os.environ)))
    value = os.environ.get(name)
    return None if value is None else _digest(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


# By kind of source: the function that returns its state, which changes with what matters.
_STATES: dict[str, Callable[[str], str | None]] = {
    # What is at a path.
    "looked": _path,
    # The names in a folder that the flows list.
    "listings": _listing,
    # The packages and versions in a site-packages folder.
    "packages": _packages,
    # Variables that the flows read when they are imported: as digests, since one may be a secret.
    "env": _variable,
    "files": _file,
    # The names in a folder that an import could find: a new module can shadow an old one.
    "folders": _modules,
}
