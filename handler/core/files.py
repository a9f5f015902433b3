"""
What an import may depend on besides code: the state of files, folders and variables, as digests.

The content of a file is not read again while its identity, size and times stay the same. That is
safe if it was last changed longer ago than the clock of its file system can resolve: any later
write gets a newer time. The digest of a younger file is not kept, because a second write could get
the same time. Of the two times, ``mtime`` can be set to an old one (``cp -p``, ``rsync``, ``tar``),
and ``ctime`` cannot. A write while a file is read changes the times that its digest is kept with.
On a network file system, a change is seen as soon as ``stat`` reports it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time

# By kind and name: a state.
Seen = dict[str, dict[str, str | None]]

# The coarsest clock of a file system (FAT), which also covers clocks that differ by this much.
_RESOLUTION_NS = 2_000_000_000
# By kind and path: identity, size and times, and the digest.
_known: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}


def state(kind: str, name: str) -> str | None:
    """
    The state of a source; None if it does not exist.

    Args:
        kind: One of

            - ``looked``: a path, and whether it is a file or a folder.
            - ``files``: a file and its content.
            - ``listings``: a folder that the flows list, and its names.
            - ``folders``: a folder of modules, and the names that an import could find.
            - ``packages``: a folder of installed packages, and their names and versions.
            - ``env``: a variable and its value, or ``*`` for the names of all.
            - ``process``: ``python``, its version and where its packages are; ``folder``, the
              working directory.
        name: Its path or name.
    """
    try:
        if kind == "looked":
            if os.path.isdir(name):
                return "folder"
            return "file" if os.path.exists(name) else None
        if kind == "process":
            return os.getcwd() if name == "folder" else f"{sys.hexversion >> 16:x} {sys.prefix}"
        if kind != "env":
            return _content(kind, name)
        return _digest_of(sorted(os.environ) if name == "*" else [os.environ[name]])
    except (OSError, KeyError):
        return None


def changed(seen: Seen) -> list[str]:
    """The names of the sources that are not as they were."""
    return [
        name
        for kind, states in seen.items()
        for name, was in states.items()
        if state(kind, name) != was
    ]


def _content(kind: str, path: str) -> str:
    """The digest of what a file or folder contains; see above when it is read again."""
    now_ns = time.time_ns()
    status = os.stat(path)
    changed_ns = (status.st_mtime_ns, status.st_ctime_ns)
    signature = (status.st_dev, status.st_ino, status.st_size, *changed_ns)
    known = _known.get((kind, path))
    if known is not None and known[0] == signature:
        return known[1]
    if kind == "files":
        with open(path, "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
    else:
        found = _digest_of(sorted(filter(_COUNTS[kind].fullmatch, os.listdir(path))))
    if max(changed_ns) < now_ns - _RESOLUTION_NS:
        _known[kind, path] = (signature, found)
    return found


def _digest_of(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()


# By kind of folder: the names in it that count.
_COUNTS = {
    "listings": re.compile(r"(?s)(?!__pycache__$).*"),
    "folders": re.compile(r"(?s)(?!\.|__pycache__)([^.]*|.*\.py)"),  # A module can shadow another.
    "packages": re.compile(r"(?s).*\.(dist|egg)-info"),
}
