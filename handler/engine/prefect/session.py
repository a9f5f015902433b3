"""One call as one flow run in Prefect: started, watched, and reported before the reply."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from ...core.errors import OutOfTimeError, PflError, RunCancelledError, UnavailableError
from ...core.event import Notify
from ...core.settings import Settings
from ..causes import END_NOT_RECORDED
from ..deadline import end_of
from ..interrupt import Interruptible
from ..invocation import Invocation
from . import client, environment, outbox, own_run

# How often a run asks whether it was cancelled; a shorter run costs Prefect no request for that.
POLL_S = 5


def compute(invocation: Invocation) -> None:
    """
    Compute what is missing in a flow run in Prefect.

    Raises:
        UnavailableError: Prefect did not accept the run.
        RunCancelledError: Someone cancelled the run in Prefect.
        KeyboardInterrupt: Someone pressed Ctrl-C; the run ends as ``Cancelled``.
    """
    call = invocation.call
    api = _connect(call.settings, call.notify)
    created = own_run.start(invocation, api)
    with _reporting_to(api), outbox.collecting(api) as box:
        invocation.run.reap_reason = END_NOT_RECORDED
        try:
            state_type = _run_to_its_end(invocation, api, box, created)
        finally:
            box.flush(call.deadline)
            call.warnings.extend(box.warnings())
    if state_type != "COMPLETED" and invocation.error is None:
        why = f"the run ended as {state_type}"
        raise unavailable(api, why)


def _run_to_its_end(
    invocation: Invocation, api: environment.Api, box: outbox.Outbox, created: Future[Any]
) -> str:
    """Run the flow, and end in Prefect what an interruption or an error leaves open."""
    try:
        # A reaper finds the run by its tag if the process dies before it knows its run.
        with watch_cancellation(api, lambda: invocation.run.flow_run_id) as watched:
            state_type = own_run.run(invocation, api, box, created)
        error = invocation.error
        if invocation.run.interrupted is not None or state_type == "CANCELLED":
            raise invocation.run.interrupted or KeyboardInterrupt
        if state_type == "COMPLETED" or error is not None:
            invocation.run.reap_reason = ""
        if isinstance(error, PflError) and (
            invocation.run.tasks or isinstance(error, OutOfTimeError)
        ):
            _end(invocation, api, "CRASHED", error.lines)
    except KeyboardInterrupt as exc:
        _end(invocation, api, *end_of(exc), force=True)
        if watched.was_poked:
            raise RunCancelledError(
                "the run was cancelled in Prefect", hint="call again to compute it"
            ) from None
        raise
    except Exception as exc:
        if invocation.run.interrupted is not None:
            raise invocation.run.interrupted from exc
        if isinstance(exc, PflError) and not isinstance(exc, UnavailableError):
            raise
        raise unavailable(api, exc) from exc
    return state_type


def watch_cancellation(
    api: environment.Api, flow_run_id: Callable[[], str | None]
) -> Interruptible:
    """
    Interrupt this thread, as Ctrl-C would, once its flow run is cancelled in Prefect.

    Args:
        api: The Prefect to ask.
        flow_run_id: The ID of the run; None before it has one.
    """

    def watch(scope: Interruptible) -> None:
        while not scope.over.wait(POLL_S):
            if (run_id := flow_run_id()) is None:
                continue
            with suppress(PflError):  # Prefect may answer next time.
                run = client.ask(api, f"/flow_runs/{run_id}")
                if run is not None and run["state_type"] in ("CANCELLED", "CANCELLING"):
                    return scope.poke()

    # Not SIGINT, which a shell lets its background jobs ignore.
    return Interruptible("cancel", watch, lambda: KeyboardInterrupt, signal.SIGUSR2)


def _end(
    invocation: Invocation, api: environment.Api, type: str, message: str, *, force: bool = False
) -> None:
    """End what Prefect's engine left open: a step that hangs, or was interrupted too early."""
    invocation.run.reap_reason = END_NOT_RECORDED
    with suppress(PflError):  # Prefect does not answer: a reaper ends the call.
        client.end(
            api,
            type,
            message,
            client.runs_of_call(api, invocation.claims.holder.token),
            tasks=invocation.run.tasks,
            finished=invocation.run.finished,
            is_over=False,
            force=force,
            wait_s=1,
        )
        invocation.run.reap_reason = ""


@contextmanager
def session(settings: Settings, notify: Notify) -> Iterator[environment.Api]:
    """
    Configure Prefect for the API to report to; the embedded one is started if necessary.

    Args:
        settings: The settings; they name the API.
        notify: Called with what it waits for.

    Raises:
        UnavailableError: No API is configured, or the embedded server does not start.
    """
    api = _connect(settings, notify)
    with _reporting_to(api):
        yield api


def _connect(settings: Settings, notify: Notify) -> environment.Api:
    """The API to report to, for which Prefect can now be imported."""
    api = environment.choose(settings, notify)
    notify("", f"Prefect: {api.url} ({api.source})")
    environment.prepare(settings)
    return api


@contextmanager
def _reporting_to(api: environment.Api) -> Iterator[None]:
    environment.load()
    from prefect.context import SettingsContext, get_settings_context
    from pydantic import SecretStr

    outer = get_settings_context()
    # Prefect's temporary_settings would read and validate all settings again, which takes 40 ms.
    secrets = {
        name: SecretStr(value) if value else None
        for name, value in (("key", api.key), ("auth_string", api.auth))
    }
    inner = outer.settings.model_copy(
        update={
            "api": outer.settings.api.model_copy(update={"url": api.url, **secrets}),
            # Prefect would wait a second for its heartbeat at the end of every flow run; the lease
            # does its work here.
            "flows": outer.settings.flows.model_copy(update={"heartbeat_frequency": None}),
        }
    )
    # Prefect would write late to stderr that its API takes no logs; the reply reports that.
    logging.raiseExceptions = False
    with SettingsContext(profile=outer.profile, settings=inner):
        yield


def unavailable(api: environment.Api, exc: object) -> UnavailableError:
    """The error for a Prefect that did not answer, or refused."""
    why = " ".join(str(exc).split())[:500] or type(exc).__name__
    hint = "finished steps are saved; to compute without Prefect: pfl invoke --engine direct"
    if isinstance(exc, UnavailableError):
        why = exc.why
        hint = "; ".join(filter(None, (exc.hint, hint)))
    return UnavailableError(f"Prefect at {api.url} did not accept the run", why=why, hint=hint)
