"""
Stopping: in time, when the process is told to end, and when someone cancels the run in Prefect.

Shortly before Lambda kills the process, what computes is stopped, and what is finished is saved and told:

    start ─ steps ............... stop_at ─ save, mark as Crashed, give back ─ give_up_at ─ reply ─ deadline
                                     └ Stopped is raised in a step              └ GivenUp is raised wherever we are

In the main thread a signal does it, see :class:`pfl.handler.engine.interrupt.Interruptible`. SIGALRM is Prefect's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

from pfl.handler.core.errors import OutOfTimeError, PflError
from pfl.handler.engine.interrupt import Interruptible
from pfl.handler.engine.prefect import client

if TYPE_CHECKING:
    from pfl.handler.engine.invocation import Invocation


POLL_S = 5  # A run that is shorter costs Prefect no request for this.


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
    signal.signal(
        signal.SIGTERM, signal.SIG_DFL if os.environ.get("AWS_LAMBDA_FUNCTION_NAME") else end
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def watch(invocation: Invocation) -> AbstractContextManager[object]:
    """
    Stop *invocation* in time, if it has a deadline.

    Raises:
        GivenUp: It did not end by itself.
    """
    if invocation.deadline is None:
        return nullcontext()
    is_late = threading.Event()

    def due() -> type[BaseException] | None:
        if is_late.is_set():
            return GivenUp
        if invocation.may_stop:
            return Stopped
        invocation.stop_is_due = (
            True  # There is one such moment: it stops as soon as it waits for steps again.
        )
        return None

    def wake(scope: Interruptible) -> None:
        _until(invocation.stop_at, scope.over)
        scope.poke()
        _until(invocation.deadline - invocation.settings.margin_s / 4, scope.over)
        is_late.set()
        while not scope.over.wait(
            0.05
        ):  # Prefect catches what is raised, and waits again to tell its server.
            scope.poke()

    return Interruptible("deadline", wake, due, signal.SIGUSR1)


def watch_prefect(invocation: Invocation, api: client.Api) -> Interruptible:
    """Interrupt this thread, as Ctrl-C would, once the flow run of *invocation* is cancelled in Prefect; ``was_poked`` says that it was."""

    def look(scope: Interruptible) -> None:
        while not scope.over.wait(POLL_S):
            try:
                run = (
                    client.ask(api, f"/flow_runs/{invocation.flow_run_id}")
                    if invocation.flow_run_id
                    else None
                )
            except PflError:
                continue  # Prefect does not answer now.
            if run is not None and run["state_type"] in ("CANCELLED", "CANCELLING"):
                return scope.poke()

    # Not SIGINT, which a shell lets its background jobs ignore.
    return Interruptible("cancel", look, lambda: KeyboardInterrupt, signal.SIGUSR2)


def _until(when: float, over: threading.Event) -> None:
    over.wait(max(0.0, when - time.monotonic()))


def out_of_time(step: str, what: str, margin_s: int) -> OutOfTimeError:
    """What a step is told to have met that was stopped, or not started."""
    return OutOfTimeError(
        f"step {step} {what}",
        why=f"the Lambda deadline was {margin_s} s away (PFL_MARGIN_S)",
        hint="call again: what was finished is saved; if it happens again, give the function more time",
    )
