"""
A flow run that Prefect has scheduled, run in this process: claimed once, however often Lambda
delivers its event.

    Scheduled ─ Pending (the worker) ─ Pending "Claimed" (by one process) ─ Running ─ final

Once claimed, the run is on record as a call, so ``pfl runs reap`` finds it if its process dies.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

from ...core import event, retry
from ...core.cache import lease
from ...core.declare import project
from ...core.errors import (
    ErrorBody,
    InvalidRequestError,
    NotFoundError,
    PflError,
    RunCancelledError,
    StepFailedError,
)
from ...core.event import Caller, Reply
from ...core.settings import Settings
from ...core.store.values import JsonObject
from .. import aws, causes, deadline
from . import client, environment, outbox, session
from .environment import Api

if TYPE_CHECKING:
    from prefect import Flow as PrefectFlow
    from prefect.client.schemas.objects import FlowRun

# Between heartbeats of ordinary flows; the least that Prefect allows.
HEARTBEAT_S = 30
CLAIMED = "Claimed"
# No invocation lasts longer, so a run that was handed over this long ago will not begin.
_LOST_S = 900
# How early a run is claimed: a worker is some seconds ahead, and clocks differ.
_EARLY_S = 60
# How many runs one poll handles.
_POLLED = 20
_UNRECORDED_END = "it was claimed, but Prefect did not record its end"
# How a run ends after an error; after any other as ``CRASHED``.
_ENDS = {
    "InvalidRequestError": "FAILED",
    "NotFoundError": "FAILED",
    "RunCancelledError": "CANCELLED",
}
# :func:`pfl.handler.answer.answer`, which runs a flow of pfl.
Answer = Callable[[object, Caller, "FlowRun"], Reply]


def run(flow_run_id: object, caller: Caller, answer: Answer) -> Reply:
    """
    Run a scheduled flow run here, unless another process runs it or did.

    Args:
        flow_run_id: Its ID, as text.
        caller: Who sent the event.
        answer: Runs a flow of pfl.

    Returns:
        A reply. If the run was not ours to run, ``claimed`` is false and ``why`` is the reason.

    Raises:
        InvalidRequestError: *flow_run_id* is not a valid ID.
        NotFoundError: Prefect does not have this run.
        UnavailableError: Prefect or the store did not answer.
    """
    try:
        run_id = str(UUID(str(flow_run_id)))
    except ValueError as exc:
        raise InvalidRequestError(
            f"{flow_run_id!r} is not a flow run ID", hint='{"flow_run_id": "9e3cfa79-…"}'
        ) from exc
    settings = caller.settings
    with session.session(settings, caller.notify) as api:
        call = lease.LeaseHolder(
            caller.store,
            run_id,
            {"request_id": caller.request_id, "engine": "prefect", "flow_run_id": run_id},
            ttl_s=settings.lease_s,
            deadline=caller.deadline,
        )
        # It waits while Prefect does not answer: the event will not be delivered again.
        remaining_s = (caller.deadline or inf) - settings.margin_s - time.monotonic()
        reply = event.new_reply()
        longest_s = min(client.AWAY_S, remaining_s)
        # The server sends a run to an automation before it saves the run.
        flow_run = retry.retry(
            partial(_claim, api, run_id, call.token, reply, longest_s),
            [1],
            may_pass=lambda exc: isinstance(exc, NotFoundError),
        )
        reply["claimed"] = flow_run is not None
        if flow_run is not None:
            _run_claimed(api, flow_run, call, caller, answer, reply)
        reply["flow_run_id"] = run_id
        reply["url"] = environment.flow_run_url(api.url, run_id)
        return reply


def _run_claimed(
    api: Api,
    flow_run: JsonObject,
    call: lease.LeaseHolder,
    caller: Caller,
    answer: Answer,
    reply: Reply,
) -> None:
    """Run what was claimed, and leave it in a final state in Prefect, or on record for a reaper."""
    reap_reason = _UNRECORDED_END
    try:
        with event.answering(reply):
            # Not before the claim: a second delivery that is ended as dead would end the run of the
            # first. A process that dies between the two is found by end_lost.
            call.claim({lease.WHOLE_RUN: {}})
            _run(api, flow_run, caller, answer, reply)
        reap_reason = _end_after_error(api, flow_run["id"], reply.get("error"))
    except KeyboardInterrupt as exc:
        reap_reason = _end(api, flow_run["id"], *deadline.end_of(exc))
        raise
    finally:
        call.end(reap_reason)


def _claim(
    api: Api, run_id: str, token: str, reply: Reply, longest_s: float = client.AWAY_S
) -> JsonObject | None:
    """
    Claim a flow run; None if another process has it or it is not due, and *reply* receives why.
    """
    ask = partial(client.ask, api, longest_s=longest_s)
    path = f"/flow_runs/{run_id}"
    run: JsonObject | None = ask(path)
    if run is None:
        raise NotFoundError(
            f"flow run {run_id} does not exist", why="it was deleted, or is on another server"
        )
    reply["flow"] = (ask(f"/flows/{run['flow_id']}") or {}).get("name", "")
    state_type = run["state_type"]
    if state_type == "CANCELLING":
        client.set_state(
            api, "flow_runs", run_id, "CANCELLED", "cancelled before it started", force=True
        )
    if state_type not in ("SCHEDULED", "PENDING"):
        reply["why"] = f"it is already {run['state_name']}"
        return None
    starts_at = run["next_scheduled_start_time"]
    latest = datetime.now(UTC) + timedelta(seconds=_EARLY_S)
    if state_type == "SCHEDULED" and starts_at and datetime.fromisoformat(starts_at) > latest:
        # Prefect's engine would wait for that time here, and Lambda bills the wait.
        reply["why"] = f"it is scheduled for {starts_at}"
        return None
    # All claimants use the same name: Prefect accepts only the first state of one name.
    state = {"type": "PENDING", "name": CLAIMED, "message": f"by call {token}"}
    ask(f"{path}/set_state", {"state": state, "force": False})
    # Not the answer to the claim, which may have been lost and sent again.
    current = (ask(path) or {}).get("state") or {}
    if current.get("message") == state["message"]:
        return run
    reply["why"] = f"another process has claimed it: it is {current.get('name')}"
    return None


def _end_after_error(api: Api, run_id: str, error: ErrorBody | None) -> str:
    """End a failed run in Prefect; returns what is left for a reaper."""
    # A run that is stopped in time ends itself in Prefect.
    if error is None or error["type"] == "OutOfTimeError":
        return ""
    message = "\n".join(filter(None, (error["what"], error["why"], error["hint"])))
    return _end(api, run_id, _ENDS.get(error["type"], "CRASHED"), message)


def _end(api: Api, run_id: str, kind: str, message: str) -> str:
    """End a run in Prefect; returns what is left for a reaper, if Prefect does not answer."""
    try:
        # By force: a flow with retries would be scheduled again, and fail as before.
        client.end(api, kind, message, [run_id], force=True, wait_s=1)
    except PflError:
        return _UNRECORDED_END
    return ""


def _run(api: Api, run: JsonObject, caller: Caller, answer: Answer, reply: Reply) -> None:
    """Run a flow of pfl or of Prefect's own, and fill in *reply*."""
    from prefect.client.schemas.objects import FlowRun

    flow_run = FlowRun.model_validate(run)
    settings = caller.settings
    name = str(reply["flow"])
    flows = project.load(settings).flows
    if name in flows:
        from . import builder

        raw = builder.event_of(flows[name], flow_run.parameters)
        reply |= answer(raw, caller, flow_run)
        return
    ordinary = ordinary_flows(settings)
    if name not in ordinary:
        raise InvalidRequestError(
            f"the image lacks the flow {name!r}",
            why=f"its flows are {', '.join([*flows, *ordinary])}",
            hint="deploy the image again, or run pfl setup deployments",
        )
    _run_ordinary(api, ordinary[name][0], flow_run, caller, reply)


# Ordinary Prefect flows.


def ordinary_flows(settings: Settings) -> dict[str, tuple[PrefectFlow[..., Any], str]]:
    """
    The ``@flow`` functions in ``flows/``, by their Prefect name, each with its entrypoint:
    ``flows/report.py:nightly``.

    Raises:
        InvalidRequestError: A module that uses Prefect cannot be imported.
    """
    root = settings.root
    found: dict[str, tuple[PrefectFlow[..., Any], str]] = {}
    for path in sorted((root / "flows").rglob("*.py")):
        if b"prefect" not in path.read_bytes():
            continue
        from prefect import Flow as PrefectFlow

        file = path.relative_to(root)
        module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        try:
            names = vars(importlib.import_module(module))
        except Exception as exc:
            raise InvalidRequestError(
                f"{file} cannot be imported", why=f"{type(exc).__name__}: {exc}"
            ) from exc
        for attribute, value in names.items():
            if isinstance(value, PrefectFlow) and value.fn.__module__ == module:
                found[value.name] = (value, f"{file}:{attribute}")
    return found


def _run_ordinary(
    api: Api, flow: PrefectFlow[..., Any], flow_run: FlowRun, caller: Caller, reply: Reply
) -> None:
    from prefect import settings as knobs
    from prefect.client.schemas.objects import State
    from prefect.exceptions import ParameterBindError, ParameterTypeError, SignatureMismatchError
    from prefect.flow_engine import run_flow

    run_id = str(flow_run.id)
    margin_s = caller.settings.margin_s
    reply["engine"] = "prefect"
    try:
        with (
            knobs.temporary_settings({knobs.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_S}),
            deadline.watch(caller.deadline, margin_s, lambda: True),
            session.watch_cancellation(api, lambda: run_id) as cancellation,
        ):
            state = run_flow(flow, flow_run=flow_run, return_type="state")
            if inspect.iscoroutine(state):
                state = asyncio.run(state)
    except (SignatureMismatchError, ParameterBindError, ParameterTypeError) as exc:
        raise InvalidRequestError(
            f"the parameters do not match flow {flow.name}",
            why=str(exc),
            hint="to update the form: pfl setup deployments",
        ) from exc
    except KeyboardInterrupt:
        if cancellation.was_poked:
            raise RunCancelledError("the run was cancelled in Prefect") from None
        raise
    except Exception as exc:
        raise session.unavailable(api, exc) from exc
    except (deadline.Stopped, deadline.Abandoned):
        error = causes.out_of_time(
            f"flow {flow.name} was stopped",
            margin_s,
            hint="give the function more time, or split the flow",
        )
        client.end(api, "CRASHED", error.lines, [run_id], force=True)
        raise error from None
    finally:
        outbox.Outbox(api).flush(caller.deadline)
    assert isinstance(state, State)
    if not state.is_completed():
        why = (state.message or "")[:500]
        raise StepFailedError(f"flow {flow.name} ended as {state.name}", why=why)


# Without a worker.


def poll(pool: str, caller: Caller, answer: Answer) -> list[JsonObject]:
    """
    Run what is due in a work pool, and return a row for each run.

    Inside Lambda each run is sent to an invocation of its own; elsewhere they run here.

    Raises:
        NotFoundError: The work pool does not exist.
        UnavailableError: Prefect did not answer.
    """
    api = environment.choose(caller.settings, caller.notify)
    end_lost(api, pool)
    due = client.ask(
        api,
        f"/work_pools/{quote(pool)}/get_scheduled_flow_runs",
        {"scheduled_before": datetime.now(UTC).isoformat()},
    )
    if due is None:
        raise NotFoundError(f"work pool {pool} does not exist", hint="pfl setup deployments")
    rows: list[JsonObject] = []
    function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    for number, each in enumerate(due[:_POLLED]):
        run_id = each["flow_run"]["id"]
        row = {"flow_run_id": run_id, "name": each["flow_run"]["name"], "invoked": False}
        rows.append(row)
        if function:
            try:
                _invoke(function, run_id)
                row["invoked"] = True
                continue
            except PflError as exc:
                # The function may not call itself. This invocation has time for one run.
                if number:
                    row["why"] = f"left for the next poll: {exc}"
                    continue
        for name, value in run(run_id, caller, answer).items():
            if name in ("status", "claimed", "why"):
                row[name] = value
    return rows


def _invoke(function: str, flow_run_id: str) -> None:
    """
    Call this Lambda function itself for a run, asynchronously.

    Raises:
        UnavailableError: It may not call itself, or Lambda did not answer.
    """
    aws.post(
        "lambda",
        os.environ.get("AWS_REGION", ""),
        json.dumps({"flow_run_id": flow_run_id}).encode(),
        {"x-amz-invocation-type": "Event"},
        path=f"/2015-03-31/functions/{function}/invocations",
    )


def end_lost(api: Api, pool: str) -> list[str]:
    """
    End runs of a work pool that were handed over, or cancelled after that, and never began; returns
    their names.
    """
    oldest = datetime.now(UTC) - timedelta(seconds=_LOST_S)
    message = (
        f"It was sent to the function {_LOST_S // 60} minutes ago or more, but never started.\n"
        "Check the function: it may be deleted, throttled, or fail to import."
    )
    chosen = {
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "CANCELLING"]}}},
        "work_pools": {"name": {"any_": [pool]}},
    }
    names: list[str] = []
    # All pages first: ending a run takes it out of the filter, and moves the next page.
    for run in list(client.pages(api, "/flow_runs/filter", chosen)):
        if datetime.fromisoformat(run["state"]["timestamp"]) < oldest:
            type = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
            client.end(api, type, message, [run["id"]])
            names.append(run["name"])
    return names
