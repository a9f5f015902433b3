"""Calling one step's function, plain or async, with copies of its arguments."""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context

from pfl.handler.core.declare.flows import Flow, Step, short_place
from pfl.handler.core.errors import PflError, StepFailedError
from pfl.handler.core.fingerprint import ownership
from pfl.handler.engine.interrupt import Interruptible


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
        if type(exc).__module__.split(".")[0] in ("pfl", "prefect"):
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


def time_up(timeout_s: float) -> TimeoutError:
    """What a step fails with when its time is over, whoever watched it."""
    return TimeoutError(f"no result within {timeout_s:g} s")


def as_error(step: str, exc: BaseException, flow: Flow) -> PflError:
    """What a step raised, as a reply tells it: the exception, and the line of the user's code it came from."""
    if isinstance(exc, PflError):
        return exc
    at = flow.steps[step].where
    for frame, line in traceback.walk_tb(exc.__traceback__):
        if ownership.kind_of_file(frame.f_code.co_filename) == ownership.PROJECT:
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
