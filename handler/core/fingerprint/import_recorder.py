"""
What an import reads besides source: files, folders, environment variables, other processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from . import ownership

_active: list[Reads] = []
_is_hooked = False


@dataclass
class Reads:
    """
    What an import read.

    Args:
        files: Absolute paths outside the standard library and installed packages, also of files
            that do not exist; without the sources and bytecode of modules.
        env: Names of variables; "*" if all names were listed.
        folders: Folders whose names were listed.
        looked: Paths whose existence or times were checked.
        asked_folder: Whether the current folder, or a path relative to it, was read.
        asked_others: File and line where a process was started or a connection made: what these
            return is not in a file.
    """

    files: set[str] = field(default_factory=set)
    env: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    looked: set[str] = field(default_factory=set)
    asked_folder: bool = False
    asked_others: str = ""


@contextmanager
def record_reads() -> Iterator[Reads]:
    """
    Record what the code in this block reads, if the project's code asks for it.

    Yields:
        What was read so far; complete after the block.
    """
    global _is_hooked
    if not _is_hooked:
        # It cannot be removed, so it is added once and does nothing while nothing is recorded.
        sys.addaudithook(_audit)
        _is_hooked = True
    reads = Reads()
    before: Any = type(os.environ)
    os.environ.__class__ = os.environb.__class__ = _WatchedEnviron
    _active.append(reads)
    vars(os).update(_WATCHED)
    try:
        yield reads
    finally:
        _active.remove(reads)
        if not _active:
            vars(os).update(_ORIGINALS)
        os.environ.__class__ = os.environb.__class__ = before
        for module in list(sys.modules.values()):
            source = ownership.file_of(module) or ""
            reads.files.discard(source)
            reads.looked.discard(source)


_THIS_FOLDER = os.path.dirname(__file__) + os.sep
_OTHERS = {"subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect"}


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _active:
        return
    if event in ("os.listdir", "os.scandir"):
        _record_path("folders", args[0] or ".")
    elif event == "sqlite3.connect":
        _record_path("files", args[0])
    elif event in _OTHERS:
        if place := _reader():
            for reads in _active:
                reads.asked_others = reads.asked_others or place
    elif event == "open":
        path, mode, flags = args
        is_written = bool(set(mode) & set("wax")) if mode else isinstance(flags, int) and flags & 3
        if not is_written:
            _record_path("files", path)


def _record_path(kind: str, given: Any) -> None:
    """Record a path if it does not belong to a package, and the project's code reads it."""
    if not isinstance(given, str | bytes | os.PathLike):
        return
    path = os.fsdecode(given)
    is_relative = not os.path.isabs(path)
    path = os.path.normpath(os.path.join(_ORIGINALS["getcwd"](), path))
    if path.endswith(".pyc") or path.startswith(("/proc/", "/sys/", "/dev/")):
        return
    if ownership.kind_of_file(path) in (ownership.PROJECT, ownership.GENERATED) and _reader():
        for reads in _active:
            getattr(reads, kind).add(path)
            reads.asked_folder |= is_relative


def _stat(path: Any, *args: Any, **options: Any) -> Any:
    if _active:
        _record_path("looked", path)
    return _ORIGINALS["stat"](path, *args, **options)


def _current_folder(name: str) -> Any:
    if _active and _reader():
        for reads in _active:
            reads.asked_folder = True
    return _ORIGINALS[name]()


# These have no audit event, so they are replaced while something is recorded.
_ORIGINALS = {name: getattr(os, name) for name in ("stat", "getcwd", "getcwdb")}
_WATCHED = {
    "stat": _stat,
    "getcwd": lambda: _current_folder("getcwd"),
    "getcwdb": lambda: _current_folder("getcwdb"),
}


class _WatchedEnviron(os._Environ[Any]):
    def __getitem__(self, key: Any) -> Any:
        _record_variable(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        _record_variable(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        _record_variable("*")
        return super().__iter__()


def _record_variable(name: object) -> None:
    if isinstance(name, str | bytes) and _reader():
        for reads in _active:
            reads.env.add(os.fsdecode(name))


def _reader() -> str:
    """
    File and line where the project's code reads, itself or through a library.

    Empty while a library is imported, and for what is read to make a fingerprint.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(("<frozen importlib", _THIS_FOLDER)) and file != __file__:
            return ""
        if ownership.kind_of_file(file) == ownership.PROJECT:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
