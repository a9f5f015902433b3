"""
What an import reads besides source: files and environment variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from handler.core.fingerprint import place

_active: list[Reads] = []
_is_hooked = False


@dataclass
class Reads:
    """
    Files and environment variables that were read.

    Args:
        files: Absolute paths outside the standard library and installed packages, also of files that were not there;
            without the sources and bytecode of modules.
        env: Names of variables.
    """

    files: set[str] = field(default_factory=set)
    env: set[str] = field(default_factory=set)  # "*" where all names were asked for.
    folders: set[str] = field(default_factory=set)  # Whose names were listed.


@contextmanager
def record_reads() -> Iterator[Reads]:
    """
    Note what the code in this block reads, as long as the project's code asks for it.

    Yields:
        Filled while the block runs; complete after it.
    """
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(_audit)  # it cannot be taken out again, so it is put in once and does nothing when none listens
        _is_hooked = True
    reads = Reads()
    before = type(os.environ)
    os.environ.__class__ = _WatchedEnviron
    _active.append(reads)
    try:
        yield reads
    finally:
        _active.remove(reads)
        os.environ.__class__ = before
        sources = {file for module in list(sys.modules.values()) if (file := place.file_of(module)) is not None}
        reads.files -= sources


_OURS = os.path.dirname(__file__) + os.sep


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in ("os.listdir", "os.scandir") and _active:
        if not isinstance(args[0], int) and _asked_by_project():
            path = os.path.abspath(os.fsdecode(args[0] or "."))
            if place.kind_of_file(path) in (place.PROJECT, place.GENERATED):
                for reads in _active:
                    reads.folders.add(path)
        return
    if event != "open" or not _active or not isinstance(args[0], str | bytes | os.PathLike):
        return
    mode, flags = args[1], args[2]
    if (isinstance(mode, str) and set(mode) & set("wax")) or (mode is None and isinstance(flags, int) and flags & 3):
        return
    path = os.path.abspath(os.fsdecode(args[0]))
    if path.endswith(".pyc") or place.kind_of_file(path) not in (place.PROJECT, place.GENERATED):
        return
    if path.startswith(("/proc/", "/sys/", "/dev/")) or not _asked_by_project():
        return
    for reads in _active:
        reads.files.add(path)


class _WatchedEnviron(type(os.environ)):  # type: ignore[misc]
    def __getitem__(self, key: str) -> str:
        _note(key)
        return super().__getitem__(key)  # type: ignore[no-any-return]

    def __contains__(self, key: object) -> bool:
        _note(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        _note("*")
        return super().__iter__()


def _note(variable: object) -> None:
    if _asked_by_project():
        for reads in _active:
            reads.env.add(str(variable))


def _asked_by_project() -> bool:
    """
    Whether the project's code asks, itself or through a library; not while a library is being imported, nor what is read to
    make a fingerprint.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(("<frozen importlib", _OURS)) and file != __file__:
            return False
        if place.kind_of_file(file) == place.PROJECT:
            return True
        frame = frame.f_back
    return False
