"""Calls one step's function, plain or async, with copies of its arguments."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import cast

from ..core import errors
from ..core.declare.flow import Flow
from ..core.declare.location import location
from ..core.declare.step import AnyStep
from ..core.errors import ErrorBody, PflError, StepFailedError, UnstorableValueError
from ..core.fingerprint import ownership
from .interrupt import Interruptible


class _TimeUp(BaseException):
    """Raised in a step that has timed out; no ``except Exception`` of the step catches it."""


def call_step(step: AnyStep, arguments: dict[str, object], *, in_prefect: bool = False) -> object:
    """
    Call the function and return what it returned.

    Args:
        step: The step.
        arguments: JSON values by name. The function receives copies, so that no change it makes to
            them reaches another step.
        in_prefect: Whether Prefect enforces the timeout.

    Raises:
        TimeoutError: The step ran for longer than its ``timeout_s``.
        RuntimeError: The step raised something that would end the process, such as SystemExit.
            KeyboardInterrupt is not converted.
    """
    copies = {name: json.loads(json.dumps(value)) for name, value in arguments.items()}
    timeout_s = None if in_prefect else step.timeout_s
    try:
        if step.is_async:
            awaitable = cast("Awaitable[object]", step.function(**copies))
            return _call_outside_loop(lambda: _run(_with_timeout(awaitable, timeout_s)))
        if timeout_s is None:
            return step.function(**copies)
        return _call_within(timeout_s, lambda: step.function(**copies))
    except Exception:
        raise
    except BaseException as exc:
        if _is_interruption(exc):
            raise
        what = f"the step raised {shown(exc)}"
        raise RuntimeError(what).with_traceback(exc.__traceback__) from exc


async def _with_timeout(awaitable: Awaitable[object], timeout_s: float | None) -> object:
    try:
        async with asyncio.timeout(timeout_s) as scope:
            return await awaitable
    except TimeoutError:
        if timeout_s is not None and scope.expired():
            raise timed_out(timeout_s) from None
        raise


def _run(main: Coroutine[object, object, object]) -> object:
    """
    What an async step returns.

    Not with ``asyncio.run()``. When that puts the handler of Ctrl-C back, it shows its task, with
    all that this returned or raised. If that cannot be shown, every later ``asyncio.run()`` fails.
    """
    with asyncio.Runner() as runner:
        return runner.get_loop().run_until_complete(main)


def _call_outside_loop(call: Callable[[], object]) -> object:
    """Call it here, or in another thread if this one already runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    return ThreadPoolExecutor(1).submit(copy_context().run, call).result()


def _call_within(timeout_s: float, call: Callable[[], object]) -> object:
    """Call it, and interrupt it after *timeout_s* seconds, as Prefect does."""

    def watch(scope: Interruptible) -> None:
        if not scope.over.wait(timeout_s):
            scope.poke()

    try:
        with Interruptible("timeout", watch, lambda: _TimeUp):
            return call()
    except _TimeUp:
        raise timed_out(timeout_s) from None


def timed_out(timeout_s: float) -> TimeoutError:
    """The error of a step that has timed out, in either engine."""
    return TimeoutError(f"no result within {timeout_s:g} s")


def as_error(step: str, exc: BaseException, flow: Flow) -> PflError:
    """The error that a reply shows for *exc*: the exception, and the user's line that raised it."""
    if isinstance(exc, PflError):
        return exc
    error = from_record(step, describe(step, exc, flow))
    error.__cause__ = exc
    return error


def describe(step: str, exc: BaseException, flow: Flow) -> ErrorBody:
    """What *step* raised, as a record of history keeps it."""
    if isinstance(exc, PflError):
        return exc.to_json()
    at = flow.steps[step].location
    for frame, line in traceback.walk_tb(exc.__traceback__):
        filename = frame.f_code.co_filename
        if ownership.kind_of_file(filename) == ownership.PROJECT:
            at = location(filename, line)
    if isinstance(exc, SyntaxError) and exc.filename:
        at = location(exc.filename, exc.lineno or 0)
    return {
        "type": type(exc).__name__,
        "what": text_of(exc)[:1_000],
        "why": "",
        "hint": f"see {at}",
    }


def from_record(step: str, error: ErrorBody) -> StepFailedError:
    """The error that a reply shows for what :func:`describe` returned."""
    if error["type"] in (StepFailedError.__name__, UnstorableValueError.__name__):
        return StepFailedError(error["what"], why=error["why"], hint=error["hint"])
    why = f"{error['type']}: {error['what']}".rstrip(": ")
    return StepFailedError(f"step {step} failed", why=why[:1_000], hint=error["hint"])


def is_repeatable(error: ErrorBody) -> bool:
    """Whether a call that computes the same would fail in the same way."""
    kind = getattr(errors, error["type"], None)
    return kind is None or issubclass(kind, StepFailedError)


def shown(exc: BaseException) -> str:
    """An exception as Python shows it."""
    try:
        return repr(exc)
    except BaseException as trouble:
        if _is_interruption(trouble):
            raise
        return f"{type(exc).__name__}({text_of(exc)!r})"


def text_of(exc: BaseException, *, levels: int = 5) -> str:
    """
    The text of an exception, which may raise instead of returning one.

    Args:
        exc: The exception.
        levels: The texts of the exceptions in a group are included, and so on for so many levels.
    """
    try:
        text = str(exc)
    except BaseException as trouble:
        if _is_interruption(trouble):
            raise
        return f"its text cannot be shown: str() raised {type(trouble).__name__}"
    if isinstance(exc, BaseExceptionGroup) and levels:
        texts = (
            f"{type(each).__name__}: {text_of(each, levels=levels - 1)}" for each in exc.exceptions
        )
        return f"{text}: {'; '.join(texts)}"
    return text


def _is_interruption(exc: BaseException) -> bool:
    """Whether the user, pfl or Prefect interrupts a step; the step itself did not raise this."""
    is_ours = type(exc).__module__.split(".")[0] in ("pfl", "prefect")
    return isinstance(exc, KeyboardInterrupt) or (is_ours and not isinstance(exc, Exception))
