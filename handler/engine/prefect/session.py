"""One invocation as one Prefect flow run: started, told apart from Prefect's own failures, and flushed before the reply."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf

from pfl.handler.core.errors import OutOfTimeError, PflError, RunCancelledError, UnavailableError
from pfl.handler.core.settings import Settings
from pfl.handler.core.tags import run_tags
from pfl.handler.engine.deadline import TERMINATED, Terminated, watch_prefect
from pfl.handler.engine.invocation import Invocation, Notify
from pfl.handler.engine.prefect import client, environment

BUSY_S = 60  # Longest wait for a server that is too busy to make the run: SQLite needs 40 s for 64 at once.
FLUSH_S = 10  # Longest wait for what Prefect still has to send: task states exist only as events.


def run(invocation: Invocation) -> None:
    """
    Compute what is missing inside a Prefect flow run.

    Raises:
        UnavailableError: The API did not take the run.
        RunCancelledError: Someone cancelled it in Prefect.
        KeyboardInterrupt: Someone pressed Ctrl-C; the run ends as ``Cancelled``.
    """
    with session(invocation.settings, invocation.notify) as api:
        import prefect
        from pfl.handler.engine.prefect import builder
        from prefect.exceptions import PrefectHTTPStatusError, TerminationSignal
        from prefect.flow_engine import run_flow

        request = invocation.request
        flow = builder.build(invocation.flow)
        flow.serialize_parameters = (
            dict  # They came as JSON; Prefect would import FastAPI to make sure.
        )
        results = prefect.settings.get_current_settings().results
        # Nothing of ours is kept there, and Prefect would ask its server twice a run where that is.
        flow.result_storage = None if results.default_storage_block else results.local_storage_path
        arguments = {
            "id": request.id,
            "step": request.step,
            "bust": sorted(request.bust),
            "skip": sorted(request.skip),
        }

        def begin() -> prefect.State:
            try:
                return flow(**arguments, **request.params, return_state=True)
            except PrefectHTTPStatusError as exc:
                if exc.response.status_code == 503 and exc.request.url.path.endswith("/flow_runs/"):
                    raise unavailable(
                        api, exc
                    ) from exc  # The server is busy and has made no run, so it can be asked again.
                raise

        token = builder.current.set(invocation)
        invocation.reap_reason, flush_s = "Prefect did not take the end of the run", FLUSH_S
        try:
            # By this tag a run is found whose process died before it could say that it had one.
            with (
                prefect.tags(*run_tags(request.id, request.step, invocation.call.token)),
                watch_prefect(invocation, api) as watched,
            ):
                if invocation.flow_run is None:
                    state = client.patiently(
                        begin, longest_s=min(BUSY_S, invocation.stop_at - time.monotonic())
                    )
                else:
                    builder.tell_apart(invocation)
                    state = run_flow(flow, flow_run=invocation.flow_run, return_type="state")
            if invocation.interrupted is not None or state.is_cancelled():
                raise invocation.interrupted or KeyboardInterrupt
            if state.is_completed() or invocation.error is not None:
                invocation.reap_reason = ""
            if isinstance(invocation.error, OutOfTimeError) or (
                invocation.tasks and isinstance(invocation.error, PflError)
            ):
                _end(invocation, api, "CRASHED", invocation.error.lines)
        except (KeyboardInterrupt, TerminationSignal) as exc:
            if isinstance(exc, (Terminated, TerminationSignal)):
                _end(invocation, api, "CRASHED", TERMINATED.lines, force=True)
                raise Terminated from exc
            _end(invocation, api, "CANCELLED", "interrupted", force=True)
            if watched.was_poked:
                raise RunCancelledError(
                    "the run was cancelled in Prefect", hint="call again to compute it"
                ) from None
            raise
        except PflError:
            raise
        except Exception as exc:
            if any(
                isinstance(outcome.error, KeyboardInterrupt)
                for outcome in invocation.outcomes.values()
            ):
                raise KeyboardInterrupt from exc
            flush_s = 1  # Nobody listens.
            raise unavailable(api, exc, invocation.outcomes) from exc
        finally:
            builder.current.reset(token)
            flush(invocation.deadline, flush_s)
    if not state.is_completed() and invocation.error is None:
        raise unavailable(api, state.result(raise_on_failure=False), invocation.outcomes)


def flush(deadline: float | None, longest_s: float = FLUSH_S) -> None:
    """Wait until Prefect has sent the logs, as long as there is time for that."""
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(
        timeout=min(longest_s, max(0.1, (deadline or inf) - time.monotonic() - 0.5))
    )


def _end(
    invocation: Invocation, api: environment.Api, type: str, message: str, *, force: bool = False
) -> None:
    """End what Prefect's own engine left open: a step that hangs, and what an interruption struck between two states."""
    invocation.reap_reason = "Prefect did not take the end of the run"
    with suppress(PflError):  # It is away: the call stays on record, and a reaper tells of it.
        client.end(
            api, type, message, call=invocation.call.token, tasks=invocation.tasks, finished=invocation.finished, is_over=False,
            force=force, wait_s=1,
        )  # fmt: skip
        invocation.reap_reason = ""


@contextmanager
def session(settings: Settings, notify: Notify) -> Iterator[environment.Api]:
    """
    Prefect set up for the API to report to, which is started if it is the embedded one.

    Raises:
        UnavailableError: There is none.
    """
    api = environment.choose(settings, lambda text: notify("", text))
    notify("", f"Prefect: {api.url} ({api.source})")
    environment.prepare(settings)
    environment.load()
    from prefect.context import SettingsContext, get_settings_context
    from pydantic import SecretStr

    around = get_settings_context()
    # Not Prefect's own temporary_settings, which reads and validates all of them again: 40 ms.
    told = around.settings.api.model_copy(
        update={"url": api.url, "key": SecretStr(api.key) if api.key else None}
    )
    # Prefect joins this thread for a second at the end of every flow run; the lease does its work here.
    flows = around.settings.flows.model_copy(update={"heartbeat_frequency": None})
    ours = around.settings.model_copy(update={"api": told, "flows": flows})
    # Else Prefect writes to stderr, past us and late, that its API takes no logs; the reply tells that it does not answer.
    logging.raiseExceptions = False
    with SettingsContext(profile=around.profile, settings=ours):
        yield api


def unavailable(api: environment.Api, exc: object, outcomes: Mapping = {}) -> UnavailableError:  # noqa: B006
    """What Prefect's engine raised that no step did: that its API was away, or refused."""
    why = " ".join(str(exc).split()) or type(exc).__name__
    status = getattr(getattr(exc, "response", None), "status_code", None)
    hint = "pfl invoke --engine direct computes without Prefect"
    if status in (401, 403):
        hint = f"check PREFECT_API_KEY; {hint}"
    elif status == 422:
        hint = f"its server may be too old: pfl doctor compares the versions; {hint}"
    if saved := [name for name, outcome in outcomes.items() if outcome.status == "computed"]:
        what = f"Prefect at {api.url} went away during the run"
        return UnavailableError(
            what,
            why=why[:500],
            hint=f"{' and '.join(saved)}: computed and saved; call again, it is a hit",
        )
    return UnavailableError(f"Prefect at {api.url} did not take the run", why=why[:500], hint=hint)
