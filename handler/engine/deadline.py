"""
Stopping in time: shortly before Lambda kills the process, what computes is stopped, and what is finished is saved and told.

    start ─ steps ............... stop_at ─ save, mark as Crashed, give back ─ give_up_at ─ reply ─ deadline
                                     └ Stopped is raised in a step              └ GivenUp is raised wherever we are

In the main thread a signal does it, so that a sleep, a socket or a lock is left at once. SIGALRM is Prefect's.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from handler.core.errors import OutOfTimeError
from handler.engine.call import raise_in_thread

if TYPE_CHECKING:
    from handler.engine.execute import Invocation


class Stopped(BaseException):
    """Raised inside a step when there is only time left to save; no ``except Exception`` of the step's swallows it."""


class GivenUp(BaseException):
    """Raised in whatever still waits, Prefect's code too, when there is only time left to reply."""


@contextmanager
def watch(invocation: Invocation) -> Iterator[None]:
    """
    Stop *invocation* in time, if it has a deadline.

    Raises:
        GivenUp: It did not end by itself.
    """
    if invocation.deadline is None:
        yield
        return
    give_up_at = invocation.deadline - invocation.settings.margin_s / 4
    thread, lock, over = threading.get_ident(), threading.Lock(), threading.Event()
    is_main = threading.current_thread() is threading.main_thread()

    def due() -> type[BaseException] | None:
        if over.is_set():
            return None
        if time.monotonic() >= give_up_at:
            return GivenUp
        return Stopped if invocation.may_stop else None

    def on_signal(number: int, frame: object) -> None:
        if (kind := due()) is not None:
            raise kind

    def poke() -> None:
        with lock:
            if over.is_set():
                return
            if is_main:
                signal.pthread_kill(thread, signal.SIGUSR1)
            elif (kind := due()) is not None:
                raise_in_thread(thread, kind)

    def wake() -> None:
        over.wait(max(0.0, invocation.stop_at - time.monotonic()))
        poke()
        over.wait(max(0.0, give_up_at - time.monotonic()))
        while not over.wait(0.05):  # Prefect catches what is raised, and waits again to tell its server.
            poke()

    before = signal.signal(signal.SIGUSR1, on_signal) if is_main else None
    threading.Thread(target=wake, name="deadline", daemon=True).start()
    try:
        try:
            yield
        finally:
            over.set()
    finally:
        over.set()  # Again: a poke may have struck between the end of the call and the line above.
        with lock:  # None is under way any more.
            pass
        if is_main:
            signal.signal(signal.SIGUSR1, before)


def out_of_time(step: str, what: str, margin_s: int) -> OutOfTimeError:
    """What a step is told to have met that was stopped, or not started."""
    return OutOfTimeError(
        f"step {step} {what}",
        why=f"the Lambda deadline was {margin_s} s away (PFL_MARGIN_S)",
        hint="call again: what was finished is saved; if it happens again, give the function more time",
    )
