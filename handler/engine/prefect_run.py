"""One invocation as one Prefect flow run: started, told apart from Prefect's own failures, and flushed before the reply."""

from __future__ import annotations

import time
from math import inf
from contextlib import suppress
from uuid import UUID

from handler.core.errors import OutOfTimeError, PflError, UnavailableError
from handler.engine import prefect_env
from handler.engine.deadline import message
from handler.engine.execute import Invocation

FLUSH_S = 10  # Longest wait for what Prefect still has to send: task states exist only as events.


def run(invocation: Invocation) -> None:
    """
    Compute what is missing inside a Prefect flow run.

    Raises:
        UnavailableError: The API did not take the run.
        KeyboardInterrupt: Someone pressed Ctrl-C; the run ends as ``Cancelled``.
    """
    api = prefect_env.choose(invocation.settings, lambda text: invocation.notify("", text))
    invocation.notify("", f"Prefect: {api.url} ({api.source})")
    prefect_env.prepare(invocation.settings)
    import prefect
    from prefect import settings as knobs
    from prefect.logging.handlers import APILogWorker
    from prefect.states import Cancelled, Crashed

    from handler.engine import prefect_flow

    updates = {
        knobs.PREFECT_API_URL: api.url,
        knobs.PREFECT_API_KEY: api.key or None,
        # Prefect joins this thread for a second at the end of every flow run; the lease does its work here.
        knobs.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    request = invocation.request
    with knobs.temporary_settings(updates=updates):
        flow = prefect_flow.build(invocation.flow)
        arguments = {"id": request.id, "step": request.step, "bust": sorted(request.bust), "skip": sorted(request.skip)}
        token = prefect_flow.current.set(invocation)
        try:
            # By this tag a run is found whose process died before it could say that it had one.
            with prefect.tags(*prefect_flow.tags(request.id, request.step), f"call={invocation.call.token}"):
                state = flow(**arguments, **request.params, return_state=True)
            if state.is_cancelled():
                raise KeyboardInterrupt
            if isinstance(invocation.error, OutOfTimeError):
                APILogWorker.drain_all(timeout=1)
                end(invocation.flow_run_id, Crashed(message=message(invocation.error)))
        except KeyboardInterrupt:
            with suppress(Exception):  # Prefect is away; the lease is what tells of the run later.
                end(invocation.flow_run_id, Cancelled(message="interrupted"))
            raise
        except PflError:
            raise
        except Exception as exc:
            if any(isinstance(outcome.error, KeyboardInterrupt) for outcome in invocation.outcomes.values()):
                raise KeyboardInterrupt from exc
            raise _unavailable(api, exc, invocation) from exc
        finally:
            prefect_flow.current.reset(token)
            APILogWorker.drain_all(timeout=min(FLUSH_S, max(0.1, (invocation.deadline or inf) - time.monotonic() - 0.5)))
    if not state.is_completed() and invocation.error is None:
        raise _unavailable(api, state.result(raise_on_failure=False), invocation)


def end(flow_run_id: str | None, state: object) -> list[str]:
    """
    Leave nothing ``Running`` behind a run: task runs first, for that frees their slots.

    Returns:
        The IDs of what was not in a terminal state, and now is.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    if flow_run_id is None:
        return []
    run_id, changed = UUID(flow_run_id), []
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        # Without force the server itself refuses to let a terminal state that came meanwhile become Crashed.
        for task_run in client.read_task_runs(flow_run_filter=of_run):
            if task_run.state is None or not task_run.state.is_final():
                client.set_task_run_state(task_run.id, state, force=state.is_cancelled())
                changed.append(str(task_run.id))
        flow_run = client.read_flow_run(run_id)
        if flow_run.state is None or not flow_run.state.is_final():
            client.set_flow_run_state(run_id, state, force=state.is_cancelled())
            changed.append(flow_run_id)
    return changed


def _unavailable(api: prefect_env.Api, exc: object, invocation: Invocation) -> UnavailableError:
    why = " ".join(str(exc).split()) or type(exc).__name__
    status = getattr(getattr(exc, "response", None), "status_code", None)
    hint = "pfl invoke --engine direct computes without Prefect"
    if status in (401, 403):
        hint = f"check PREFECT_API_KEY; {hint}"
    if saved := [name for name, outcome in invocation.outcomes.items() if outcome.status == "computed"]:
        what = f"Prefect at {api.url} went away during the run"
        return UnavailableError(what, why=why[:500], hint=f"{' and '.join(saved)}: computed and saved; call again, it is a hit")
    return UnavailableError(f"Prefect at {api.url} did not take the run", why=why[:500], hint=hint)
