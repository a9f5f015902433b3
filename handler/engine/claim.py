"""
A flow run that Prefect has scheduled, run in this process: claimed once, however often Lambda delivers its event.

    Scheduled ─ Pending (the worker) ─ Pending "Claimed" (here, refused to all but one) ─ Running ─ final

Once claimed, the run is on record as a call, so that a process that dies in it is found by ``pfl runs reap``.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote
from uuid import UUID

from handler.core import event, lease, project, store
from handler.core.declare import Flow
from handler.core.errors import InvalidRequestError, NotFoundError, OutOfTimeError, PflError, StepFailedError, UnavailableError
from handler.core.settings import Settings
from handler.engine import prefect_api, prefect_env, prefect_run
from handler.engine.execute import Notify

HEARTBEAT_S = 30  # Of ordinary flows; the least that Prefect allows.
CLAIMED = "Claimed"
_LOST_S = 900  # A run that was handed over and has not begun after so long, will not: no invocation lasts longer.
_PAUSES_S = (1, 2, 4, 8)
_POLLED = 20  # Runs that one poll takes care of.


def run(
    flow_run_id: object, settings: Settings, *, request_id: str, deadline: float | None, results: store.Store, notify: Notify
) -> dict[str, object]:
    """
    Run a scheduled flow run here, if nobody else does or did.

    Args:
        flow_run_id: Its ID, as text.
        settings: The settings.
        request_id: Lambda's name of the call.
        deadline: When the process will be killed, as a ``time.monotonic()`` reading.
        results: The store.
        notify: Told what is done.

    Returns:
        A reply; where the run was not ours to run, ``claimed`` is false and ``why`` says so.

    Raises:
        InvalidRequestError: That is no ID.
        NotFoundError: Prefect knows no such run.
        UnavailableError: Prefect or the store did not answer.
    """
    try:
        run_id = UUID(str(flow_run_id))
    except ValueError as exc:
        raise InvalidRequestError(f"{flow_run_id!r} is no flow run ID", hint='{"flow_run_id": "9e3cfa79-…"}') from exc
    with prefect_run.session(settings, notify) as api:
        about = {"flow": None, "step": None, "request_id": request_id, "engine": "prefect", "flow_run_id": str(run_id)}
        call = lease.Call(results, str(run_id), about, ttl_s=settings.lease_s, deadline=deadline)
        said = {"flow_run_id": str(run_id), "url": prefect_env.flow_run_url(api.url, str(run_id))}
        flow_run, name, why = _patiently(lambda: _take(api, run_id, call.token))
        if flow_run is None:
            return event.reply(id=None, flow=name, status="completed", claimed=False, why=why, **said)
        left = "it was claimed, and Prefect did not take its end"
        try:
            # Not before the claim: burying a second delivery would end the run of the first. Who dies here is lost, see end_lost.
            call.begin()
            reply = _run(api, flow_run, name, settings, request_id, deadline, results, notify)
            if (reply.get("error") or {}).get("type") != "UnavailableError":
                left = ""
            return {**reply, "claimed": True, **said}
        except PflError as exc:
            if not isinstance(exc, UnavailableError) or isinstance(exc, OutOfTimeError):
                left = ""
            raise
        finally:
            call.end(left)


def _patiently(take: Callable[[], tuple]) -> tuple:
    """The event is not delivered again once it was answered, so Prefect is given time to answer it."""
    for pause_s in _PAUSES_S:
        try:
            return take()
        except UnavailableError:
            time.sleep(pause_s)
    return take()


def _take(api: prefect_env.Api, run_id: UUID, token: str) -> tuple[dict | None, str | None, str]:
    """The flow run, if it is ours now, its flow's name, and else why it is not."""
    path = f"/flow_runs/{run_id}"
    run = prefect_api.ask(api, path)
    if run is None:
        raise NotFoundError(f"there is no flow run {run_id}", why="it was deleted, or is of another Prefect")
    name = (prefect_api.ask(api, f"/flows/{run['flow_id']}") or {}).get("name")
    if run["state_type"] == "CANCELLING":
        prefect_api.set_state(api, "flow_runs", str(run_id), "CANCELLED", "cancelled before it began", force=True)
    if run["state_type"] not in ("SCHEDULED", "PENDING"):
        return None, name, f"it is {run['state_name']} already"
    # The name is the same for all: Prefect refuses a second state of one name, and so all but one of those who claim.
    state = {"type": "PENDING", "name": CLAIMED, "message": f"by call {token}"}
    answer = prefect_api.ask(api, f"{path}/set_state", {"state": state, "force": False}) or {}
    if answer.get("status") == "ACCEPT":
        return run, name, ""
    now = (prefect_api.ask(api, path) or {}).get("state") or {}
    if (now.get("name"), now.get("message")) == (CLAIMED, state["message"]):
        return run, name, ""  # The answer to our claim was lost, and it was sent again.
    return None, name, f"another has it: it is {now.get('name')}"


def _run(
    api: prefect_env.Api, run: dict, name: str, settings: Settings, request_id: str, deadline: float | None,
    results: store.Store, notify: Notify,
) -> dict[str, object]:
    from prefect.client.schemas.objects import FlowRun

    flow_run = FlowRun.model_validate(run)

    def fail(words: str) -> None:
        prefect_api.set_state(api, "flow_runs", run["id"], "FAILED", words, force=True)

    try:
        declared = project.load(settings).flows.get(name)
        if declared is not None:
            from handler import entry

            raw = _event(declared, flow_run.parameters)
            reply = entry.handle(
                raw, settings, request_id=request_id, deadline=deadline, results=results, notify=notify, flow_run=flow_run
            )
            if reply["status"] in ("invalid", "miss"):
                error = reply["error"]
                fail("\n".join(filter(None, (error["what"], error["why"], error["hint"]))))
            return reply
        plain = ordinary(settings).get(name)
        if plain is None:
            known = ", ".join([*project.load(settings).flows, *ordinary(settings)])
            raise InvalidRequestError(f"the image has no flow {name!r}", why=f"its flows are {known}", hint="deploy the image again, or run pfl setup deployments")
        return _run_ordinary(api, plain[0], flow_run, settings, deadline)
    except InvalidRequestError as exc:
        fail(exc.lines)
        raise


def _event(flow: Flow, parameters: Mapping[str, object]) -> dict[str, object]:
    own = {name: value for name, value in parameters.items() if name in flow.params}
    asked = {name: value for name, value in parameters.items() if name not in own and value not in (None, [], "")}
    return {**asked, "flow": flow.name, "params": own, "engine": "prefect"}


# Ordinary Prefect flows.


def ordinary(settings: Settings) -> dict[str, tuple[object, str]]:
    """
    The ``@flow`` functions that stand in ``flows/``, by their Prefect name, each with its place as ``flows/report.py:nightly``.

    Raises:
        InvalidRequestError: A module that uses Prefect cannot be imported.
    """
    root, found = settings.root, {}
    for path in sorted((root / "flows").rglob("*.py")):
        if b"prefect" not in path.read_bytes():
            continue
        from prefect import Flow as PrefectFlow

        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        try:
            names = vars(importlib.import_module(module))
        except Exception as exc:
            raise InvalidRequestError(f"{path.relative_to(root)} cannot be imported", why=f"{type(exc).__name__}: {exc}") from exc
        for attribute, value in names.items():
            if isinstance(value, PrefectFlow) and value.fn.__module__ == module:
                found[value.name] = (value, f"{path.relative_to(root)}:{attribute}")
    return found


@dataclass
class _Watched:
    """As much of an invocation as those need that watch one: for the deadline, and for a cancellation in Prefect."""

    settings: Settings
    deadline: float | None
    flow_run_id: str
    may_stop: bool = True
    outcomes: dict = field(default_factory=dict)

    @property
    def stop_at(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - self.settings.margin_s


def _run_ordinary(api: prefect_env.Api, flow: object, flow_run: object, settings: Settings, deadline: float | None) -> dict[str, object]:
    from prefect import settings as knobs
    from prefect.flow_engine import run_flow
    from prefect.logging.handlers import APILogWorker

    from handler.engine import cancel
    from handler.engine import deadline as deadlines

    started, watched = time.perf_counter(), _Watched(settings, deadline, str(flow_run.id))
    said = {"id": None, "flow": flow.name, "engine": "prefect"}
    error: PflError | None = None
    try:
        with (
            knobs.temporary_settings({knobs.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_S}),
            deadlines.watch(watched),
            cancel.watch(watched, api) as cancelled,
        ):
            state = run_flow(flow, flow_run=flow_run, return_type="state")
            if inspect.iscoroutine(state):
                state = asyncio.run(state)
        if not state.is_completed():
            error = StepFailedError(f"flow {flow.name} ended as {state.name}", why=(state.message or "")[:500])
    except KeyboardInterrupt:
        _end(api, str(flow_run.id), "CANCELLED", "interrupted")
        if not cancelled.is_set():
            raise
        return event.reply(**said, status="cancelled")
    except (deadlines.Stopped, deadlines.GivenUp):
        why, hint = f"the Lambda deadline was {settings.margin_s} s away (PFL_MARGIN_S)", "give the function more time, or make the flow smaller"
        error = OutOfTimeError(f"flow {flow.name} was stopped", why=why, hint=hint)
        with suppress(PflError):
            _end(api, str(flow_run.id), "CRASHED", error.lines)
    finally:
        APILogWorker.drain_all(timeout=prefect_run.FLUSH_S if deadline is None else max(0.1, min(prefect_run.FLUSH_S, deadline - time.monotonic() - 0.5)))
    ms = round((time.perf_counter() - started) * 1e3, 3)
    return event.reply(**said, status=error.status if error else "completed", error=error, ms=ms)


def _end(api: prefect_env.Api, run_id: str, type: str, words: str) -> None:
    prefect_api.end(api, type, words, flow_runs=[run_id], force=True)
    # Prefect's engine has called it Crashed by then, with no word of why.
    prefect_api.set_state(api, "flow_runs", run_id, type, words, force=True)


# Without a worker.


def poll(
    pool: str, settings: Settings, *, request_id: str, deadline: float | None, results: store.Store, notify: Notify
) -> list[dict[str, object]]:
    """
    Take care of the runs of a work pool that are due: inside Lambda each gets an invocation of its own, elsewhere they run here.

    Raises:
        NotFoundError: There is no such work pool.
        UnavailableError: Prefect did not answer.
    """
    api = prefect_env.choose(settings, lambda text: notify("", text))
    end_lost(api, pool)
    due = prefect_api.ask(api, f"/work_pools/{quote(pool)}/get_scheduled_flow_runs", {"scheduled_before": datetime.now(UTC).isoformat()})
    if due is None:
        raise NotFoundError(f"there is no work pool {pool}", hint="pfl setup deployments")
    rows, function = [], os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    for number, each in enumerate(due[:_POLLED]):
        row: dict[str, object] = {"flow_run_id": each["flow_run"]["id"], "name": each["flow_run"]["name"], "invoked": False}
        if function and (why := _invoke(function, each["flow_run"]["id"])) is None:
            rows.append(row | {"invoked": True})
            continue
        if function and number:
            rows.append(row | {"why": f"left for the next poll: {why}"})
            continue  # This invocation has time for one.
        reply = run(each["flow_run"]["id"], settings, request_id=request_id, deadline=deadline, results=results, notify=notify)
        rows.append(row | {name: reply[name] for name in ("status", "claimed", "why") if name in reply})
    return rows


def _invoke(function: str, flow_run_id: str) -> str | None:
    """Call this very function for a run, asynchronously; why not, where that is not allowed."""
    import json

    from handler.engine import aws_api

    try:
        payload, path = json.dumps({"flow_run_id": flow_run_id}).encode(), f"/2015-03-31/functions/{function}/invocations"
        aws_api.post("lambda", os.environ.get("AWS_REGION", ""), payload, {"x-amz-invocation-type": "Event"}, path=path)
    except PflError as exc:
        return str(exc)
    return None


def end_lost(api: prefect_env.Api, pool: str) -> list[str]:
    """Mark runs of a work pool Crashed that were handed over, and never began; their names."""
    before, names = (datetime.now(UTC) - timedelta(seconds=_LOST_S)).isoformat(), []
    chosen = {"flow_runs": {"state": {"type": {"any_": ["PENDING"]}}}, "work_pools": {"name": {"any_": [pool]}}}
    for run in list(prefect_api.pages(api, "/flow_runs/filter", chosen)):
        if run["state"]["timestamp"].replace("Z", "+00:00") < before:
            text = f"It was handed to the function {_LOST_S // 60} minutes ago or more, and never began.\nLook at the function's log: it is gone, throttled, or cannot be imported."
            prefect_api.end(api, "CRASHED", text, flow_runs=[run["id"]])
            names.append(run["name"])
    return names
