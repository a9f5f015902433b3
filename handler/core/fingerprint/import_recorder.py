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
_active: list[Reads] = []
_is_hooked = False


class Reads:
    """
    What an import read.

    Attributes:
        seen: By kind and name: the state when it was first read, which is what the import used; see
            :func:`pfl.handler.core.files.state`. ``files`` and ``listings`` are outside the
            standard library and installed packages, also those that do not exist, without the
            sources and bytecode of modules. ``looked``: paths whose existence or times were
            checked. ``env``: ``*`` if all names were listed.
        asked_others: File and line where a process was started or a connection made: what these
            return is not in a file.
    """

    def __init__(self) -> None:
        self.seen: files.Seen = {kind: {} for kind in ("files", "env", "listings", "looked")}
        self.asked_others = ""
        # What these do is no part of the import.
        self.other_threads = sys._current_frames().keys() - {threading.get_ident()}

    def add(self, kind: str, name: str) -> None:
        """Note that something was read."""
        if name not in self.seen[kind]:
            self.seen[kind][name] = files.state(kind, name)


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
    _active.append(reads)
    _watch(_watched_stat, _WatchedEnviron)
    try:
        yield reads
    finally:
        _active.remove(reads)
        if not _active:
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
    if not _active:
        return
    if event in ("os.listdir", "os.scandir"):
        _record_path("listings", args[0] or ".")
    elif event == "sqlite3.connect":
        _record_path("files", args[0])
    elif event in _OTHERS:
        for reads, place in _readers():
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
    path = os.path.abspath(path)
    if path.endswith(".pyc") or path.startswith(("/proc/", "/sys/", "/dev/")):
        return
    if ownership.kind_of_file(path) in (ownership.PROJECT, ownership.GENERATED):
        for reads, _ in _readers():
            reads.add(kind, path)


# It has no audit event, so it is replaced while something is recorded.
_stat = os.stat


def _watched_stat(path: Any, *args: Any, **options: Any) -> Any:
    if _active:
        _record_path("looked", path)
    return _stat(path, *args, **options)


class _WatchedEnviron(os._Environ[Any]):
    def __getitem__(self, key: Any) -> Any:
        _record_variable(key)
        value = super().__getitem__(key)
        if _readers():
            recorded_variables[os.fsdecode(key)] = os.fsdecode(value)
        return value

    def __contains__(self, key: object) -> bool:
        _record_variable(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        _record_variable("*")
        return super().__iter__()


def _record_variable(name: object) -> None:
    if isinstance(name, str | bytes):
        for reads, _ in _readers():
            reads.add("env", os.fsdecode(name))


# What pfl reads to make a fingerprint, and what Python reads to import a library, do not count.
_OTHER_READERS = ("<frozen importlib", os.path.dirname(__file__) + os.sep, files.__file__)


def _readers() -> list[tuple[Reads, str]]:
    """
    Who records what happens now, with file and line where the project's code reads.

    It reads itself or through a library. Empty if other code reads.
    """
    thread = threading.get_ident()
    recording = [reads for reads in _active if thread not in reads.other_threads]
    frame: FrameType | None = sys._getframe(1) if recording else None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OTHER_READERS) and file != __file__:
            break
        if ownership.kind_of_file(file) == ownership.PROJECT:
            return [(reads, f"{file}:{frame.f_lineno}") for reads in recording]
        frame = frame.f_back
    return []
