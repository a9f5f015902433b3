"""One call as one flow run in Prefect: started, watched, and reported before the reply."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from typing import TYPE_CHECKING, Any, cast

from ...core.errors import OutOfTimeError, PflError, RunCancelledError, UnavailableError
from ...core.event import Notify
from ...core.settings import Settings
from ..causes import END_NOT_RECORDED, TERMINATED
from ..deadline import Terminated
from ..interrupt import Interruptible
from ..invocation import Invocation
from ..work import Outcome
from . import client, environment

if TYPE_CHECKING:
    from prefect import State

# The longest wait for a busy server to create the run: SQLite needs 40 s for 64 at once.
BUSY_S = 60
# The longest wait for what Prefect still has to send: task states exist only as events.
FLUSH_S = 10
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
    with session(invocation.call.settings, invocation.call.notify) as api:
        import prefect
        from prefect.exceptions import TerminationSignal

        from . import builder

        token = builder.current.set(invocation)
        invocation.run.reap_reason = END_NOT_RECORDED
        flush_s: float = FLUSH_S
        try:
            # A reaper finds the run by this tag if the process dies before it knows its run.
            with (
                prefect.tags(*invocation.run_tags),
                watch_cancellation(api, lambda: invocation.run.flow_run_id) as watched,
            ):
                state = _run(invocation, api)
            if invocation.run.interrupted is not None or state.is_cancelled():
                raise invocation.run.interrupted or KeyboardInterrupt
            error = invocation.error
            if state.is_completed() or error is not None:
                invocation.run.reap_reason = ""
            if isinstance(error, PflError) and (
                invocation.run.tasks or isinstance(error, OutOfTimeError)
            ):
                _end(invocation, api, "CRASHED", error.lines)
        except (Terminated, TerminationSignal) as exc:
            _end(invocation, api, "CRASHED", TERMINATED.lines, force=True)
            raise Terminated from exc
        except KeyboardInterrupt:
            _end(invocation, api, "CANCELLED", "interrupted", force=True)
            if watched.was_poked:
                raise RunCancelledError(
                    "the run was cancelled in Prefect", hint="call again to compute it"
                ) from None
            raise
        except PflError:
            raise
        except Exception as exc:
            outcomes = invocation.scheduler.outcomes.values()
            if any(isinstance(outcome.error, KeyboardInterrupt) for outcome in outcomes):
                raise KeyboardInterrupt from exc
            flush_s = 1  # Prefect does not answer.
            raise unavailable(api, exc, invocation.scheduler.outcomes) from exc
        finally:
            builder.current.reset(token)
            flush(invocation.call.deadline, flush_s)
    if not state.is_completed() and invocation.error is None:
        raise unavailable(api, state.result(raise_on_failure=False), invocation.scheduler.outcomes)


def _run(invocation: Invocation, api: environment.Api) -> State[Any]:
    """Run the flow: as the run that Prefect started, or as a new one."""
    import prefect
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.flow_engine import run_flow

    from . import builder

    flow = builder.build(invocation.call.flow)
    # The parameters came as JSON; Prefect would import FastAPI to convert them.
    vars(flow)["serialize_parameters"] = dict
    # Prefect stores no results here, but would ask its server twice per run where to store them.
    results = prefect.settings.get_current_settings().results
    flow.result_storage = None if results.default_storage_block else results.local_storage_path
    if invocation.call.flow_run is not None:
        builder.tag_scheduled_run(invocation.call.flow_run, invocation)
        return cast(
            "State[Any]", run_flow(flow, flow_run=invocation.call.flow_run, return_type="state")
        )
    request = invocation.call.request
    parameters = {
        "id": request.id,
        "step": request.step,
        "bust": sorted(request.bust),
        "skip": sorted(request.skip),
        **request.params,
    }

    def start() -> State[Any]:
        try:
            return cast("State[Any]", flow(**parameters, return_state=True))
        except PrefectHTTPStatusError as exc:
            if exc.response.status_code == 503 and exc.request.url.path.endswith("/flow_runs/"):
                # A busy server: it has created no run, so the request can be repeated.
                raise unavailable(api, exc) from exc
            raise

    longest_s = min(BUSY_S, invocation.call.stop_at - time.monotonic())
    return client.patiently(start, longest_s=longest_s)


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


def flush(deadline: float | None, longest_s: float = FLUSH_S) -> None:
    """Wait until Prefect has sent the logs, if there is time for that."""
    from prefect.logging.handlers import APILogWorker

    remaining_s = (deadline or inf) - time.monotonic() - 0.5
    APILogWorker.drain_all(timeout=min(longest_s, max(0.1, remaining_s)))


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
            call=invocation.claims.holder.token,
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

    Raises:
        UnavailableError: No API is configured, or the embedded server does not start.
    """
    api = environment.choose(settings, notify)
    notify("", f"Prefect: {api.url} ({api.source})")
    environment.prepare(settings)
    environment.load()
    from prefect.context import SettingsContext, get_settings_context
    from pydantic import SecretStr

    outer = get_settings_context()
    # Prefect's temporary_settings would read and validate all settings again, which takes 40 ms.
    key = SecretStr(api.key) if api.key else None
    inner = outer.settings.model_copy(
        update={
            "api": outer.settings.api.model_copy(update={"url": api.url, "key": key}),
            # Prefect would wait a second for its heartbeat at the end of every flow run; the lease
            # does its work here.
            "flows": outer.settings.flows.model_copy(update={"heartbeat_frequency": None}),
        }
    )
    # Prefect would write late to stderr that its API takes no logs; the reply reports that.
    logging.raiseExceptions = False
    with SettingsContext(profile=outer.profile, settings=inner):
        yield api


def unavailable(
    api: environment.Api, exc: object, outcomes: Mapping[str, Outcome] = {}
) -> UnavailableError:
    """The error for what Prefect's engine itself raised: its API did not answer, or refused."""
    why = (" ".join(str(exc).split()) or type(exc).__name__)[:500]
    saved = [name for name, each in outcomes.items() if each.status == "computed"]
    if saved:
        return UnavailableError(
            f"Prefect at {api.url} stopped answering during the run",
            why=why,
            hint=f"{' and '.join(saved)}: computed and saved; call again to get hits",
        )
    hint = "to compute without Prefect: pfl invoke --engine direct"
    status = getattr(getattr(exc, "response", None), "status_code", None)
    if status in (401, 403):
        hint = f"check PREFECT_API_KEY; {hint}"
    elif status == 422:
        hint = f"its server may be too old: check with pfl doctor; {hint}"
    return UnavailableError(f"Prefect at {api.url} did not accept the run", why=why, hint=hint)
