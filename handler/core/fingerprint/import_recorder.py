"""
What an import reads besides source: files, folders, environment variables, where it was started, other processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from pfl.handler.core.fingerprint import ownership

_active: list[Reads] = []
_is_hooked = False


@dataclass
class Reads:
    """
    What was read.

    Args:
        files: Absolute paths outside the standard library and installed packages, also of files that were not there;
            without the sources and bytecode of modules.
        env: Names of variables; "*" where all names were asked for.
        folders: Whose names were listed.
        looked: Paths of which it was asked what is there.
        asked_folder: Whether the current folder was asked for, or a path read that is relative to it.
        asked_others: Where a process was started or a connection made, as file and line: what these said is in no file.
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
    Note what the code in this block reads, as long as the project's code asks for it.

    Yields:
        Filled while the block runs; complete after it.
    """
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(
            _audit
        )  # it cannot be taken out again, so it is put in once and does nothing when none listens
        _is_hooked = True
    reads = Reads()
    before = type(os.environ)
    os.environ.__class__ = os.environb.__class__ = _WatchedEnviron
    _active.append(reads)
    if len(_active) == 1:
        for name, watched in _WATCHED.items():
            setattr(os, name, watched)
    try:
        yield reads
    finally:
        _active.remove(reads)
        if not _active:
            for name, original in _ORIGINALS.items():
                setattr(os, name, original)
        os.environ.__class__ = os.environb.__class__ = before
        sources = {
            file
            for module in list(sys.modules.values())
            if (file := ownership.file_of(module)) is not None
        }
        reads.files -= sources
        reads.looked -= sources


_OURS = os.path.dirname(__file__) + os.sep
_OTHERS = {"subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect"}


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _active:
        return
    if event in ("os.listdir", "os.scandir"):
        _note("folders", args[0] or ".")
    elif event == "sqlite3.connect":
        _note("files", args[0])
    elif event in _OTHERS:
        if place_ := _asked_by_project():
            for reads in _active:
                reads.asked_others = reads.asked_others or place_
    elif event == "open":
        mode, flags = args[1], args[2]
        if not (
            isinstance(mode, str)
            and set(mode) & set("wax")
            or mode is None
            and isinstance(flags, int)
            and flags & 3
        ):
            _note("files", args[0])


def _note(what: str, given: Any) -> None:
    """Note a path as read, where it is the project's or nobody's, and the project asks."""
    if not isinstance(given, str | bytes | os.PathLike):
        return
    path = os.fsdecode(given)
    is_relative = not os.path.isabs(path)
    path = os.path.normpath(os.path.join(_ORIGINALS["getcwd"](), path))
    if path.endswith(".pyc") or path.startswith(("/proc/", "/sys/", "/dev/")):
        return
    if (
        ownership.kind_of_file(path) in (ownership.PROJECT, ownership.GENERATED)
        and _asked_by_project()
    ):
        for reads in _active:
            getattr(reads, what).add(path)
            reads.asked_folder |= is_relative


def _stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
    if _active:
        _note("looked", path)
    return _ORIGINALS["stat"](path, *args, **options)  # type: ignore[no-any-return]


def _folder(name: str) -> Any:
    if _active and _asked_by_project():
        for reads in _active:
            reads.asked_folder = True
    return _ORIGINALS[name]()


# There is no audit event for these. They stay what they are once nothing is recorded.
_ORIGINALS = {name: getattr(os, name) for name in ("stat", "getcwd", "getcwdb")}
_WATCHED = {
    "stat": _stat,
    "getcwd": lambda: _folder("getcwd"),
    "getcwdb": lambda: _folder("getcwdb"),
}


class _WatchedEnviron(type(os.environ)):  # type: ignore[misc]
    def __getitem__(self, key: str) -> str:
        _note_variable(key)
        return super().__getitem__(key)  # type: ignore[no-any-return]

    def __contains__(self, key: object) -> bool:
        _note_variable(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        _note_variable("*")
        return super().__iter__()


def _note_variable(name: object) -> None:
    if isinstance(name, str | bytes) and _asked_by_project():
        for reads in _active:
            reads.env.add(os.fsdecode(name))


def _asked_by_project() -> str:
    """
    File and line where the project's code asks, itself or through a library; not while a library is being imported, nor what is read to
    make a fingerprint; empty then.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(("<frozen importlib", _OURS)) and file != __file__:
            return ""
        if ownership.kind_of_file(file) == ownership.PROJECT:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
