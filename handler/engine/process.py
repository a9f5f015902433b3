"""What steps may change in the process, and what is put back after them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


@contextmanager
def left_unchanged() -> Iterator[None]:
    """
    Put the working directory back after the steps of a call, and standard streams that they closed.

    Otherwise relative paths in the steps of the next call lead elsewhere, and their prints fail.
    """
    directory = None
    # It may have been deleted.
    with suppress(OSError):
        directory = os.getcwd()
    stdout, stderr = sys.stdout, sys.stderr
    try:
        yield
    finally:
        if directory is not None:
            with suppress(OSError):
                os.chdir(directory)
        if not _is_usable(sys.stdout):
            sys.stdout = usable(stdout, 1)
        if not _is_usable(sys.stderr):
            sys.stderr = usable(stderr, 2)


def usable(stream: TextIO, descriptor: int) -> TextIO:
    """*stream*, or a new one for the same descriptor if a step has closed it."""
    if _is_usable(stream):
        return stream
    return open(descriptor, "w", buffering=1, closefd=False)


def _is_usable(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed
