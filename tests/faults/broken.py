"""
Real faults of a store, switched on and off: a full disk, a limit of the system, an S3 that refuses.

Those of a directory are switched by the process that makes a call, before and after some of its
requests; those of S3 by a proxy before it.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Switch = Callable[[bool], None]
# The first and the last of some requests, counted from 0; None: all that follow.
Window = tuple[int, int | None]
DISK_BYTES = 24 << 20
# Capabilities that let root read and write whatever the permissions are.
# Source: linux/capability.h and linux/prctl.h.
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


def full(store: str) -> Switch:
    """No space is left on the disk of a store, which is one of :func:`disk`."""
    ballast = f"{os.path.dirname(store)}/ballast"

    def switch(is_on: bool) -> None:
        with open(ballast, "wb", buffering=0) as file:
            for size in (1 << 20, 4_096) if is_on else ():
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    return switch


def forbidden(store: str) -> Switch:
    """The permissions of a store are taken away."""
    return lambda is_on: os.chmod(store, 0 if is_on else 0o700)


def file_size(store: str) -> Switch:
    """This process may not write to a file, and may create and delete files."""
    return _limit(resource.RLIMIT_FSIZE, lambda: 0)


def open_files(store: str) -> Switch:
    """This process may not open another file."""

    def lowest_free() -> int:
        os.close(number := os.dup(0))
        return number

    return _limit(resource.RLIMIT_NOFILE, lowest_free)


def _limit(kind: int, lowest: Callable[[], int]) -> Switch:
    usual, most = resource.getrlimit(kind)

    def switch(is_on: bool) -> None:
        resource.setrlimit(kind, (lowest() if is_on else usual, most))

    return switch


# Faults of a directory.
SWITCHES = {
    "disk full": full,
    "permissions": forbidden,
    "file size": file_size,
    "open files": open_files,
}


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """
    A small disk of its own, mounted at *folder*.

    Raises:
        PermissionError: This process may not mount it.
    """
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def obey_permissions() -> None:
    """From the next program on, root can do to its files what their permissions allow."""
    import ctypes

    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


class Requests:
    """
    Counts the requests of a process to a store, and switches a fault on during some of them.

    Requests of other threads in that time fail, too.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count = 0
        self._switch: Switch = lambda is_on: None
        self._windows: Sequence[Window] = ()
        self._failing = 0
        self._lock = threading.Lock()

    def fail(self, switch: Switch, windows: Sequence[Window]) -> None:
        """Use this switch in these windows."""
        self._switch = switch
        self._windows = windows

    def watch(self, owner: type, names: Sequence[str]) -> None:
        """Count the calls of these methods of a class."""
        for name in names:
            setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            with self._lock:
                lasts = [last for first, last in self._windows if _is_in(self.count, first, last)]
                self.count += 1
                if lasts:
                    self._change(1)
            try:
                result = real(*args, **more)
                # What is listed is listed now, not when it is looked at.
                return iter(list(result)) if hasattr(result, "__next__") else result
            finally:
                if lasts and None not in lasts:
                    with self._lock:
                        self._change(-1)

        return wrapped

    def _change(self, change: int) -> None:
        before = self._failing
        self._failing += change
        if (before > 0) != (self._failing > 0):
            self._switch(self._failing > 0)

    def mend(self) -> None:
        """Switch the fault off."""
        with self._lock:
            self._windows = ()
            if self._failing:
                self._failing = 0
                self._switch(False)


def _is_in(number: int, first: int, last: int | None) -> bool:
    return first <= number and (last is None or number <= last)


class Proxied:
    """
    An answer that a proxy before S3 gives to some requests.

    Args:
        answer: What it gives; see :class:`servers.Loopback`.
        tries: How often the client sends a request that fails so; all of them fail.

    Attributes:
        count: How many requests there were, without repeated ones.
    """

    def __init__(self, answer: object, tries: int) -> None:
        self.count = 0
        self._given = answer
        self._tries = tries
        self._windows: Sequence[Window] = ()
        self._left: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def fail(self, windows: Sequence[Window]) -> None:
        """Count from 0 again, and fail in these windows."""
        with self._lock:
            self.count = 0
            self._windows = windows
            self._left.clear()

    def answer(self, method: str, path: str) -> object:
        """What the proxy gives; None: it passes the request on."""
        request = (method, re.sub("continuation-token=[^&]*", "", path))
        with self._lock:
            if self._left[request] > 0:
                self._left[request] -= 1
                return self._given
            number = self.count
            self.count += 1
            if not any(_is_in(number, first, last) for first, last in self._windows):
                return None
            self._left[request] = self._tries - 1
            return self._given
