"""Calling one step's function, plain or async, with copies of its arguments."""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from types import FrameType

from pfl.handler.core.declare.flows import Flow, Step, short_place
from pfl.handler.core.errors import PflError, StepFailedError
from pfl.handler.core.fingerprint import place

_AGAIN_S = 0.01


class _TimeUp(BaseException):
    """Raised inside a step whose time is over; no ``except Exception`` of the step's swallows it."""


def call_step(step: Step, arguments: dict[str, object], *, in_prefect: bool = False) -> object:
    """
    Call the function and return what it returned.

    Args:
        step: The step.
        arguments: JSON values by name; the function gets copies, so that nothing it does to them reaches another step.
        in_prefect: Prefect watches the time itself.

    Raises:
        TimeoutError: The step's ``timeout_s`` is over.
        RuntimeError: The step raised what would end the process, such as SystemExit; Ctrl-C alone does.
    """
    own = {name: json.loads(json.dumps(value)) for name, value in arguments.items()}
    timeout_s = None if in_prefect else step.timeout_s
    try:
        if step.is_async:
            return _beside_any_loop(lambda: asyncio.run(_timed(step.function(**own), timeout_s)))
        return (
            step.function(**own)
            if timeout_s is None
            else _within(timeout_s, lambda: step.function(**own))
        )
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as exc:
        if type(exc).__module__.split(".")[0] in ("handler", "prefect"):
            raise  # Our own word, or Prefect's, that the time is over.
        raise RuntimeError(f"the step raised {exc!r}").with_traceback(exc.__traceback__) from exc


async def _timed(awaitable, timeout_s: float | None) -> object:
    try:
        async with asyncio.timeout(timeout_s) as scope:
            return await awaitable
    except TimeoutError:
        if scope.expired():
            raise time_up(timeout_s) from None
        raise


def _beside_any_loop(call: Callable[[], object]) -> object:
    """Call here, or in a thread of its own where this one runs an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    future: Future = Future()

    def run(context=copy_context()) -> None:  # noqa: B008
        try:
            future.set_result(context.run(call))
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future.result()


def _within(timeout_s: float, call: Callable[[], object]) -> object:
    """Call, and interrupt it between two bytecodes once *timeout_s* seconds are over, as Prefect does in a thread."""
    try:
        with Interruptible(
            "timeout", lambda scope: scope.over.wait(timeout_s) or scope.poke(), lambda: _TimeUp
        ):
            return call()
    except _TimeUp:
        raise time_up(timeout_s) from None


class Interruptible:
    """
    A part of what this thread does, which another one watches and interrupts; once it is left, nothing is raised any more.

    With a signal, in the main thread, a sleep, a socket or a lock is left at once; else a call into C ends first. It is no
    generator, so that its beginning and its end have frames by which they are known: what was raised in one of them would leave
    nobody to end the raising.

    Args:
        name: Of the thread that watches.
        watch: What it does, until ``over`` is set: it waits for something, and pokes.
        due: What to raise after a poke, asked in this thread where a signal came; None for nothing.
        number: The signal.

    ``was_poked`` says whether a poke came before the end.
    """

    def __init__(
        self,
        name: str,
        watch: Callable[[Interruptible], object],
        due: Callable[[], type[BaseException] | None],
        number: int = 0,
    ) -> None:
        self.over, self.was_poked, self._is_asked, self._lock, self._due = (
            threading.Event(),
            False,
            False,
            threading.Lock(),
            due,
        )
        self._number = number if threading.current_thread() is threading.main_thread() else 0
        self._interrupted = threading.get_ident()
        self._watching = threading.Thread(target=watch, args=(self,), name=name, daemon=True)

    def __enter__(self) -> Interruptible:
        if self._number:
            self._before = signal.signal(self._number, self._on_signal)
        self._watching.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        with self._lock:  # No poke is under way any more.
            pass
        if self._number:
            signal.signal(self._number, self._before)

    def poke(self) -> None:
        """Interrupt, if there is something due; while a part is being entered or left nothing is raised, and it is tried again."""
        self._is_asked = True
        while self._is_asked:
            with self._lock:
                if self.over.is_set():
                    return
                self.was_poked = True
                if self._number:
                    signal.pthread_kill(self._interrupted, self._number)
                elif (kind := self._kind(sys._current_frames().get(self._interrupted))) is not None:
                    raise_in_thread(self._interrupted, kind)
            self.over.wait(_AGAIN_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if (kind := self._kind(frame)) is not None:
            raise kind

    def _kind(self, frame: FrameType | None) -> type[BaseException] | None:
        while frame is not None and self._is_asked:
            if frame.f_code in (Interruptible.__enter__.__code__, Interruptible.__exit__.__code__):
                return None
            frame = frame.f_back
        if not self._is_asked or self.over.is_set():
            return None
        self._is_asked = False
        return self._due()


def raise_in_thread(thread_id: int, kind: type[BaseException]) -> None:
    """Raise *kind* in another thread at its next bytecode; a call into C ends first."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))


def time_up(timeout_s: float) -> TimeoutError:
    """What a step fails with when its time is over, whoever watched it."""
    return TimeoutError(f"no result within {timeout_s:g} s")


def as_error(step: str, exc: BaseException, flow: Flow) -> PflError:
    """What a step raised, as a reply tells it: the exception, and the line of the user's code it came from."""
    if isinstance(exc, PflError):
        return exc
    at = flow.steps[step].where
    for frame, line in traceback.walk_tb(exc.__traceback__):
        if place.kind_of_file(frame.f_code.co_filename) == place.PROJECT:
            at = short_place(frame.f_code.co_filename, line)
    if isinstance(exc, SyntaxError) and exc.filename:
        at = short_place(exc.filename, exc.lineno or 0)
    error = StepFailedError(
        f"step {step} failed",
        why=f"{type(exc).__name__}: {exc}".rstrip(": ")[:1_000],
        hint=f"see {at}",
    )
    error.__cause__ = exc
    return error
