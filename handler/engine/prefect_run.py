"""One invocation as one Prefect flow run: started, told apart from Prefect's own failures, and flushed before the reply."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from uuid import UUID

from handler.core.errors import OutOfTimeError, PflError, RunCancelledError, UnavailableError
from handler.core.settings import Settings
from handler.engine import prefect_env
from handler.engine.deadline import message
from handler.engine.execute import Invocation, Notify

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
        from prefect.flow_engine import run_flow
        from prefect.logging.handlers import APILogWorker
        from prefect.states import Cancelled, Crashed

        from handler.engine import cancel, prefect_flow

        request = invocation.request
        flow = prefect_flow.build(invocation.flow)
        arguments = {"id": request.id, "step": request.step, "bust": sorted(request.bust), "skip": sorted(request.skip)}
        token = prefect_flow.current.set(invocation)
        try:
            # By this tag a run is found whose process died before it could say that it had one.
            with (
                prefect.tags(*prefect_flow.tags(request.id, request.step), f"call={invocation.call.token}"),
                cancel.watch(invocation) as cancelled,
            ):
                if invocation.flow_run is None:
                    state = flow(**arguments, **request.params, return_state=True)
                else:
                    prefect_flow.tell_apart(invocation)
                    state = run_flow(flow, flow_run=invocation.flow_run, return_type="state")
            if state.is_cancelled():
                raise KeyboardInterrupt
            if isinstance(invocation.error, OutOfTimeError):
                APILogWorker.drain_all(timeout=1)
                end(invocation.flow_run_id, Crashed(message=message(invocation.error)))
        except KeyboardInterrupt:
            with suppress(Exception):  # Prefect is away; the lease is what tells of the run later.
                end(invocation.flow_run_id, Cancelled(message="interrupted"))
            if cancelled.is_set():
                raise RunCancelledError("the run was cancelled in Prefect", hint="call again to compute it") from None
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


@contextmanager
def session(settings: Settings, notify: Notify) -> Iterator[prefect_env.Api]:
    """
    Prefect set up for the API to report to, which is started if it is the embedded one.

    Raises:
        UnavailableError: There is none.
    """
    api = prefect_env.choose(settings, lambda text: notify("", text))
    notify("", f"Prefect: {api.url} ({api.source})")
    prefect_env.prepare(settings)
    from prefect import settings as knobs

    updates = {
        knobs.PREFECT_API_URL: api.url,
        knobs.PREFECT_API_KEY: api.key or None,
        # Prefect joins this thread for a second at the end of every flow run; the lease does its work here.
        knobs.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with knobs.temporary_settings(updates=updates):
        yield api


@contextmanager
def asking() -> Iterator[object]:
    """
    Prefect's client, inside a :func:`session`.

    Raises:
        UnavailableError: The API did not answer, or refused.
    """
    import httpx
    from prefect import settings as knobs
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as exc:
        url = str(knobs.PREFECT_API_URL.value())
        raise UnavailableError(f"Prefect at {url} did not answer", why=" ".join(str(exc).split())[:500] or type(exc).__name__) from exc


def crash(call: str, flow_run_ids: Iterable[str], task_run_ids: Iterable[str | None], text: str, *, wait_s: float) -> list[str]:
    """
    Mark the runs of a dead call ``Crashed``, also one that it had not told us of.

    Args:
        call: The call; its flow run has it as a tag.
        flow_run_ids: Those that it told of.
        task_run_ids: Those that it told of; None for a step that was about to have one.
        text: The message of the state.
        wait_s: How long Prefect may take to hear of the task runs: their states are events, some still on their way.

    Returns:
        The IDs of the runs that were not in a terminal state.
    """
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with asking() as client:
        tagged = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[f"call={call}"])))
    changed: list[str] = []
    run_ids, wanted, until = {*flow_run_ids, *(str(run.id) for run in tagged)}, set(task_run_ids), time.monotonic() + wait_s
    while run_ids:
        for run_id in list(run_ids):
            try:
                changed += end(run_id, Crashed(message=text))
            except ObjectNotFound:
                run_ids.remove(run_id)  # Deleted, or of another Prefect.
        if wanted <= set(changed) or time.monotonic() >= until:
            break
        time.sleep(0.25)
    return changed


def end(flow_run_id: str | None, state: object) -> list[str]:
    """
    Leave nothing ``Running`` behind a run: task runs first, for that frees their slots.

    Returns:
        The IDs of what was not in a terminal state, and now is.
    """
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    if flow_run_id is None:
        return []
    run_id, changed = UUID(flow_run_id), []
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    with asking() as client:
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
