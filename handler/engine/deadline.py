"""
Stops a call in time: before Lambda kills the process, and on SIGTERM.

Shortly before the deadline the steps are stopped, and what is finished is saved and reported:

    start ─ steps ...... stop_at ─ save, mark as Crashed, release ─ abandon_at ─ reply ─ deadline
                            └ Stopped is raised in a step              └ Abandoned is raised

In the main thread a signal is used, see :mod:`pfl.handler.engine.interrupt`; SIGALRM is Prefect's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from .causes import TERMINATED
from .interrupt import Interruptible


class Stopped(BaseException):
    """Raised in a step when there is only time to save; no ``except Exception`` catches it."""


class Abandoned(BaseException):
    """Raised in whatever still waits, Prefect's code included, when there is only time to reply."""


class Terminated(KeyboardInterrupt):
    """Raised in the main thread on SIGTERM: like Ctrl-C, but its run becomes Crashed."""


def end_of(exc: KeyboardInterrupt) -> tuple[str, str]:
    """The type of the state in which an interrupted run ends, and its message."""
    if isinstance(exc, Terminated):
        return "CRASHED", TERMINATED.lines
    return "CANCELLED", "interrupted"


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM in the main thread, unless another handler is set."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    # In Lambda the process just dies: SIGTERM usually means its time limit there, and the extension
    # records the cause.
    in_lambda = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    if in_lambda or not is_main or before != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def watch(
    kill_at: float | None, margin_s: float, may_stop: Callable[[], bool]
) -> AbstractContextManager[object]:
    """
    Interrupt this thread before the deadline.

    Args:
        kill_at: The deadline, as a ``time.monotonic()`` reading; None: never.
        margin_s: The time to keep for saving, in seconds.
        may_stop: Returns whether the thread may be stopped; called once, when it is time to stop.

    Raises:
        Stopped: *margin_s* is left, and the thread may be stopped.
        Abandoned: A quarter of *margin_s* is left.
    """
    if kill_at is None:
        return nullcontext()
    stop_at = kill_at - margin_s
    abandon_at = kill_at - margin_s / 4
    is_late = threading.Event()

    def due() -> type[BaseException] | None:
        if is_late.is_set():
            return Abandoned
        return Stopped if may_stop() else None

    def wake(scope: Interruptible) -> None:
        _wait_until(stop_at, scope.over)
        scope.poke()
        _wait_until(abandon_at, scope.over)
        is_late.set()
        # Prefect catches what is raised, and waits again for its server.
        while not scope.over.wait(0.05):
            scope.poke()

    return Interruptible("deadline", wake, due, signal.SIGUSR1)


def _wait_until(when: float, over: threading.Event) -> None:
    over.wait(max(0.0, when - time.monotonic()))
