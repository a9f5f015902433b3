"""
What an import reads besides source: files, folders, environment variables, other processes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .. import files
from . import ownership

# What the project's code read, by name, while anything was recorded.
recorded_variables: dict[str, str] = {}
_active: Reads | None = None


class Reads:
    """
    What an import read.

    Attributes:
        seen: By kind and name: the state when it was first read, which is what the import used; see
            :func:`pfl.handler.core.files.state`. ``files`` and ``listings`` are outside the
            standard library and installed packages, also those that do not exist, without the
            sources of modules. ``looked``: paths whose existence or times were checked. ``env``:
            ``*`` if all names were listed.
        asked_others: File and line where a process was started or a connection made: what these
            return is not in a file.
    """

    def __init__(self) -> None:
        self.seen: files.Seen = {kind: {} for kind in ("files", "env", "listings", "looked")}
        self.asked_others = ""
        # What these do is no part of the import.
        self.other_threads = sys._current_frames().keys() - {threading.get_ident()}


@contextmanager
def record_reads() -> Iterator[Reads]:
    """
    Record what the code in this block reads, if the project's code asks for it.

    A block inside another records instead of it.

    Yields:
        What was read so far; complete after the block.
    """
    global _active
    outer = _active
    reads = _active = Reads()
    _watch(_watched_stat, _WatchedEnviron)
    try:
        yield reads
    finally:
        _active = outer
        if outer is None:
            _watch(_stat, os._Environ)
        for module in list(sys.modules.values()):
            source = ownership.file_of(module) or ""
            for kind in ("files", "looked"):
                reads.seen[kind].pop(source, None)


def _watch(stat: Any, environ: type) -> None:
    vars(os).update(stat=stat)
    for each in (os.environ, os.environb):
        each.__class__ = environ


_OTHERS = {"subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect"}


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _active is None:
        return
    if event in ("os.listdir", "os.scandir"):
        _record_path("listings", args[0] or ".")
    elif event == "sqlite3.connect":
        _record_path("files", args[0])
    elif event in _OTHERS:
        _active.asked_others = _active.asked_others or _reader()
    elif event == "open":
        path, mode, flags = args
        is_written = bool(set(mode) & set("wax")) if mode else isinstance(flags, int) and flags & 3
        if not is_written:
            _record_path("files", path)


def _record_path(kind: str, given: Any) -> None:
    """Record a path if it does not belong to a package, and the project's code reads it."""
    if not isinstance(given, str | bytes | os.PathLike):
        return
    path = os.path.abspath(os.fsdecode(given))
    if path.endswith(".pyc") or path.startswith(("/proc/", "/sys/", "/dev/")):
        return
    # First who reads: finding the owner of the path reads folders, too.
    if _reader() and ownership.kind_of_file(path) in (ownership.PROJECT, ownership.GENERATED):
        _record(kind, path)


# It has no audit event, so it is replaced while something is recorded.
_stat = os.stat


def _watched_stat(path: Any, *args: Any, **options: Any) -> Any:
    _record_path("looked", path)
    return _stat(path, *args, **options)


class _WatchedEnviron(os._Environ[Any]):
    def __getitem__(self, key: Any) -> Any:
        is_recorded = _record("env", os.fsdecode(key))
        value = super().__getitem__(key)
        if is_recorded:
            recorded_variables[os.fsdecode(key)] = os.fsdecode(value)
        return value

    def __iter__(self) -> Iterator[Any]:
        _record("env", "*")
        return super().__iter__()


def _record(kind: str, name: str) -> bool:
    if _active is None or not _reader():
        return False
    if name not in _active.seen[kind]:
        _active.seen[kind][name] = files.state(kind, name)
    return True


# What pfl reads to make a fingerprint, and what Python reads to import a library, do not count.
_OTHER_READERS = ("<frozen importlib", os.path.dirname(__file__) + os.sep, files.__file__)


def _reader() -> str:
    """
    File and line where the project's code reads, itself or through a library.

    Empty if other code reads, or nothing is recorded in this thread.
    """
    is_recording = _active is not None and threading.get_ident() not in _active.other_threads
    frame: FrameType | None = sys._getframe(1) if is_recording else None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OTHER_READERS) and file != __file__:
            break
        if ownership.kind_of_file(file) == ownership.PROJECT:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# It cannot be removed. It does nothing while nothing is recorded.
sys.addaudithook(_audit)
