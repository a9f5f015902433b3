"""
Stopping in time: shortly before Lambda kills the process, what computes is stopped, and what is finished is saved and told.

    start ─ steps ............... stop_at ─ save, mark as Crashed, give back ─ give_up_at ─ reply ─ deadline
                                     └ Stopped is raised in a step              └ GivenUp is raised wherever we are

In the main thread a signal does it, so that a sleep, a socket or a lock is left at once. SIGALRM is Prefect's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from handler.core.errors import OutOfTimeError, PflError
from handler.engine.call import raise_in_thread

if TYPE_CHECKING:
    from handler.engine.execute import Invocation


class Stopped(BaseException):
    """Raised inside a step when there is only time left to save; no ``except Exception`` of the step's swallows it."""


class GivenUp(BaseException):
    """Raised in whatever still waits, Prefect's code too, when there is only time left to reply."""


class Terminated(KeyboardInterrupt):
    """Raised in the main thread when the process is told to end: as Ctrl-C, but what it computed has crashed."""


TERMINATED = PflError(
    "the process was told to end", why="it got SIGTERM: from a supervisor, a container that stops, a timeout",
    hint="call again: what was finished is saved",
)  # fmt: skip


@contextmanager
def heed_sigterm(*, instead_of: object = signal.SIG_DFL) -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM, where nobody but *instead_of* takes care of it; None: whoever does."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if not is_main or (instead_of is not None and before != instead_of):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    # In Lambda the process just dies of it: that is its time limit, most often, and the extension knows and tells the cause.
    signal.signal(signal.SIGTERM, signal.SIG_DFL if os.environ.get("AWS_LAMBDA_FUNCTION_NAME") else end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class watch:
    """
    Stop *invocation* in time, if it has a deadline.

    A class, so that its beginning and its end have frames by which they are known: what was raised in one of them would leave
    nobody to end the raising.

    Raises:
        GivenUp: It did not end by itself.
    """

    def __init__(self, invocation: Invocation) -> None:
        self._invocation, self._over, self._lock = invocation, threading.Event(), threading.Lock()
        self._is_late = False
        self._thread, self._is_main = threading.get_ident(), threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._invocation.deadline is None:
            return
        self._before = signal.signal(signal.SIGUSR1, self._on_signal) if self._is_main else None
        threading.Thread(target=self._wake, name="deadline", daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        with self._lock:  # No poke is under way any more.
            pass
        if self._is_main and self._invocation.deadline is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _due(self, frame: FrameType | None) -> type[BaseException] | None:
        while frame is not None:
            if frame.f_code in (watch.__enter__.__code__, watch.__exit__.__code__):
                return None
            frame = frame.f_back
        if self._over.is_set():
            return None
        if self._is_late:
            return GivenUp
        if self._invocation.may_stop:
            return Stopped
        self._invocation.stop_is_due = True  # There is one such moment: it stops as soon as it waits for steps again.
        return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if (kind := self._due(frame)) is not None:
            raise kind

    def _poke(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            if self._is_main:
                signal.pthread_kill(self._thread, signal.SIGUSR1)
            elif (kind := self._due(sys._current_frames().get(self._thread))) is not None:
                raise_in_thread(self._thread, kind)

    def _wake(self) -> None:
        _until(self._invocation.stop_at, self._over)
        self._poke()
        _until(self._invocation.deadline - self._invocation.settings.margin_s / 4, self._over)
        self._is_late = True
        while not self._over.wait(0.05):  # Prefect catches what is raised, and waits again to tell its server.
            self._poke()


def _until(when: float, over: threading.Event) -> None:
    over.wait(max(0.0, when - time.monotonic()))


def out_of_time(step: str, what: str, margin_s: int) -> OutOfTimeError:
    """What a step is told to have met that was stopped, or not started."""
    return OutOfTimeError(
        f"step {step} {what}",
        why=f"the Lambda deadline was {margin_s} s away (PFL_MARGIN_S)",
        hint="call again: what was finished is saved; if it happens again, give the function more time",
    )
