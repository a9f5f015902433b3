"""Retries after a failure that may be temporary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def retry(
    call: Callable[[], T],
    pauses_s: Iterable[float],
    *,
    may_pass: Callable[[Exception], bool],
    on_retry: Callable[[int, float], None] = lambda number, pause_s: None,
) -> T:
    """
    What *call* returns; after a failure that may be temporary, it is called again.

    Args:
        call: What to call.
        pauses_s: The pauses before each retry, in seconds. After the last one a failure is raised.
        may_pass: Whether a failure may be temporary; if not, it is raised.
        on_retry: Called before each pause with the number of the retry and the pause in seconds.
    """
    number = 0
    pauses = iter(pauses_s)
    while True:
        try:
            return call()
        except Exception as exc:
            pause_s = next(pauses, None)
            if pause_s is None or not may_pass(exc):
                raise
        number += 1
        on_retry(number, pause_s)
        time.sleep(pause_s)


def jitter_s() -> float:
    """A short pause in seconds, random so that many waiters do not call at the same moment."""
    import random  # A hit does not need it.

    return random.uniform(0.25, 0.45)


def pauses_for(longest_s: float) -> Iterator[float]:
    """Short random pauses in seconds, until *longest_s* seconds from now."""
    until = time.monotonic() + longest_s

    def pauses() -> Iterator[float]:
        while time.monotonic() <= until:
            yield jitter_s()

    return pauses()
