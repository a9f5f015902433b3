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
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote
from uuid import UUID

from pfl.handler.core import event
from pfl.handler.core.cache import lease
from pfl.handler.core.declare import project
from pfl.handler.core.declare.flow import Flow
from pfl.handler.core.errors import (
    ErrorBody,
    InvalidRequestError,
    NotFoundError,
    PflError,
    StepFailedError,
)
from pfl.handler.core.event import Notify, Reply
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.objects import Store
from pfl.handler.core.store.values import JsonObject
from pfl.handler.engine.prefect import client, environment, session
from pfl.handler.engine.prefect.environment import Api

HEARTBEAT_S = 30  # Of ordinary flows; the least that Prefect allows.
CLAIMED = "Claimed"
_LOST_S = 900  # A run that was handed over and has not begun after so long, will not: no invocation lasts longer.
_EARLY_S = (
    60  # How long before its time a run is taken: a worker is ahead by some seconds, a clock too.
)
_UNRECORDED_END = "it was claimed, and Prefect did not take its end"
_POLLED = 20  # Runs that one poll takes care of.


class Caller(NamedTuple):
    """
    What a flow run is run with in this process.

    Attributes:
        settings: The settings.
        results: The store.
        request_id: Lambda's name of the call.
        deadline: When the process will be killed, as a ``time.monotonic()`` reading; None: never.
        notify: Called with a step and what happens to it.
    """

    settings: Settings
    results: Store
    request_id: str
    deadline: float | None
    notify: Notify


def run(flow_run_id: object, caller: Caller) -> Reply:
    """
    Run a scheduled flow run here, unless another process runs it or did.

    Args:
        flow_run_id: Its ID, as text.
        caller: What it is run with.

    Returns:
        A reply. If the run was not ours to run, ``claimed`` is false and ``why`` is the reason.

    Raises:
        InvalidRequestError: That is not an ID.
        NotFoundError: Prefect does not have this run.
        UnavailableError: Prefect or the store did not answer.
    """
    try:
        run_id = UUID(str(flow_run_id))
    except ValueError as exc:
        raise InvalidRequestError(
            f"{flow_run_id!r} is not a flow run ID", hint='{"flow_run_id": "9e3cfa79-…"}'
        ) from exc
    settings = caller.settings
    with session.session(settings, caller.notify) as api:
        call = lease.LeaseHolder(
            caller.results,
            str(run_id),
            {
                "flow": None,
                "step": None,
                "request_id": caller.request_id,
                "engine": "prefect",
                "flow_run_id": str(run_id),
            },
            ttl_s=settings.lease_s,
            deadline=caller.deadline,
        )
        flow_run, name, why = _take_patiently(api, run_id, call.token, caller)
        if flow_run is None:
            reply = event.new_reply(id=None, flow=name, status="completed")
            reply["claimed"] = False
            reply["why"] = why
        else:
            reply = _run_claimed(api, flow_run, name, call, caller)
            reply["claimed"] = True
        reply["flow_run_id"] = str(run_id)
        reply["url"] = environment.flow_run_url(api.url, str(run_id))
        return reply


def _run_claimed(
    api: Api, flow_run: JsonObject, name: str, call: lease.LeaseHolder, caller: Caller
) -> Reply:
    """Run what was claimed, and leave it in a final state in Prefect, or on record for a reaper."""
    reap_reason = _UNRECORDED_END
    try:
        # After the claim: ending a second delivery as dead would end the run of the first. A process
        # that dies between the two is found by end_lost.
        call.begin()
        reply = _run(api, flow_run, name, caller)
        reap_reason = _end_after_error(api, flow_run["id"], reply.get("error"))
    except PflError as exc:
        reply = event.new_reply(id=None, flow=name, status=exc.status)
        event.add_error(reply, exc)
        reap_reason = _end_after_error(api, flow_run["id"], reply["error"])
    finally:
        call.end(reap_reason)
    return reply


def _take_patiently(
    api: Api, run_id: UUID, token: str, caller: Caller
) -> tuple[JsonObject | None, str, str]:
    """:func:`_take`, with time for Prefect to answer: once answered, the event is not delivered again."""
    longest_s: float = client.AWAY_S
    if caller.deadline is not None:
        left_s = caller.deadline - caller.settings.margin_s - time.monotonic()
        longest_s = min(longest_s, left_s)

    def take() -> tuple[JsonObject | None, str, str]:
        return client.patiently(lambda: _take(api, run_id, token), longest_s=longest_s)

    try:
        return take()
    except NotFoundError:
        # The server sends a run to an automation before it saves the run.
        time.sleep(1)
        return take()


def _end_after_error(api: Api, run_id: str, error: ErrorBody | None) -> str:
    """End a run that failed, in Prefect; returns what is left for a reaper, if Prefect does not answer."""
    if (
        error is None or error["type"] == "OutOfTimeError"
    ):  # There is time left to reply, and whoever stopped the run told so.
        return ""
    kind = "FAILED" if error["type"] in ("InvalidRequestError", "NotFoundError") else "CRASHED"
    text = "\n".join(filter(None, (error["what"], error["why"], error["hint"])))
    try:
        # By force, for a flow with retries would be scheduled again, and fail as before.
        if (
            (client.ask(api, f"/flow_runs/{run_id}") or {}).get("state_type") or "COMPLETED"
        ) not in client.FINAL:
            client.end(api, kind, text, flow_runs=[run_id], force=True, wait_s=1)
    except PflError:
        return _UNRECORDED_END
    return ""


def _take(api: Api, run_id: UUID, token: str) -> tuple[JsonObject | None, str, str]:
    """The flow run, if it is ours now, its flow's name, and else why it is not."""
    path = f"/flow_runs/{run_id}"
    run = client.ask(api, path)
    if run is None:
        raise NotFoundError(
            f"there is no flow run {run_id}", why="it was deleted, or is of another Prefect"
        )
    name = (client.ask(api, f"/flows/{run['flow_id']}") or {}).get("name")
    if run["state_type"] == "CANCELLING":
        client.set_state(
            api, "flow_runs", str(run_id), "CANCELLED", "cancelled before it began", force=True
        )
    if run["state_type"] not in ("SCHEDULED", "PENDING"):
        return None, name, f"it is {run['state_name']} already"
    starts = run["next_scheduled_start_time"] if run["state_type"] == "SCHEDULED" else None
    if starts and datetime.fromisoformat(starts) > datetime.now(UTC) + timedelta(seconds=_EARLY_S):
        return (
            None,
            name,
            f"it is scheduled for {starts}",
        )  # Prefect's engine would wait for that here, and be paid for it.
    # The name is the same for all: Prefect refuses a second state of one name, and so all but one of those who claim.
    state = {"type": "PENDING", "name": CLAIMED, "message": f"by call {token}"}
    answer = client.ask(api, f"{path}/set_state", {"state": state, "force": False}) or {}
    if answer.get("status") == "ACCEPT":
        return run, name, ""
    now = (client.ask(api, path) or {}).get("state") or {}
    if (now.get("name"), now.get("message")) == (CLAIMED, state["message"]):
        return run, name, ""  # The answer to our claim was lost, and it was sent again.
    return None, name, f"another has it: it is {now.get('name')}"


def _run(api: Api, run: JsonObject, name: str, caller: Caller) -> Reply:
    from prefect.client.schemas.objects import FlowRun

    flow_run = FlowRun.model_validate(run)
    settings = caller.settings
    flows = project.load(settings).flows
    if name in flows:
        from pfl.handler import answer

        return answer.answer(
            _event(flows[name], flow_run.parameters),
            settings,
            results=caller.results,
            request_id=caller.request_id,
            deadline=caller.deadline,
            notify=caller.notify,
            flow_run=flow_run,
        )
    plain = ordinary(settings)
    if name not in plain:
        raise InvalidRequestError(
            f"the image has no flow {name!r}",
            why=f"its flows are {', '.join([*flows, *plain])}",
            hint="deploy the image again, or run pfl setup deployments",
        )
    return _run_ordinary(api, plain[name][0], flow_run, settings, caller.deadline)


def _event(flow: Flow, parameters: Mapping[str, object]) -> dict[str, object]:
    own = {name: value for name, value in parameters.items() if name in flow.params}
    asked = {
        name: value
        for name, value in parameters.items()
        if name not in own and value not in (None, [], "")
    }
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
            raise InvalidRequestError(
                f"{path.relative_to(root)} cannot be imported", why=f"{type(exc).__name__}: {exc}"
            ) from exc
        for attribute, value in names.items():
            if isinstance(value, PrefectFlow) and value.fn.__module__ == module:
                found[value.name] = (value, f"{path.relative_to(root)}:{attribute}")
    return found


def _run_ordinary(
    api: Api, flow: object, flow_run: object, settings: Settings, deadline: float | None
) -> Reply:
    from pfl.handler.engine import causes
    from pfl.handler.engine import deadline as deadlines
    from prefect import settings as knobs
    from prefect.exceptions import ParameterBindError, ParameterTypeError, SignatureMismatchError
    from prefect.flow_engine import run_flow

    started = time.perf_counter()
    reply = event.reply(id=None, flow=flow.name, status="completed")
    reply["engine"] = "prefect"
    error: PflError | None = None
    try:
        with (
            knobs.temporary_settings({knobs.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_S}),
            deadlines.watch(deadline, settings.margin_s, lambda: True),
            session.watch_cancellation(api, lambda: str(flow_run.id)) as in_prefect,
        ):
            state = run_flow(flow, flow_run=flow_run, return_type="state")
            if inspect.iscoroutine(state):
                state = asyncio.run(state)
        if not state.is_completed():
            error = StepFailedError(
                f"flow {flow.name} ended as {state.name}", why=(state.message or "")[:500]
            )
    except (SignatureMismatchError, ParameterBindError, ParameterTypeError) as exc:
        what, hint = (
            f"the parameters do not fit flow {flow.name}",
            "pfl setup deployments makes the form anew",
        )
        error = InvalidRequestError(what, why=str(exc), hint=hint)
    except KeyboardInterrupt:
        client.end(api, "CANCELLED", "interrupted", flow_runs=[str(flow_run.id)], force=True)
        if not in_prefect.was_poked:
            raise
        reply["status"] = "cancelled"
        return reply
    except Exception as exc:
        error = session.unavailable(api, exc)
    except (deadlines.Stopped, deadlines.Abandoned):
        error = causes.out_of_time(
            f"flow {flow.name} was stopped",
            settings.margin_s,
            hint="give the function more time, or make the flow smaller",
        )
        client.end(api, "CRASHED", error.lines, flow_runs=[str(flow_run.id)], force=True)
    finally:
        session.flush(deadline)
    reply["ms"] = round((time.perf_counter() - started) * 1e3, 3)
    if error is not None:
        event.add_error(reply, error)
    return reply


# Without a worker.


def poll(pool: str, caller: Caller) -> list[JsonObject]:
    """
    Take care of the runs of a work pool that are due.

    Inside Lambda each gets an invocation of its own; elsewhere they run here.

    Raises:
        NotFoundError: The work pool does not exist.
        UnavailableError: Prefect did not answer.
    """
    api = environment.choose(caller.settings, lambda text: caller.notify("", text))
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
        row: JsonObject = {
            "flow_run_id": run_id,
            "name": each["flow_run"]["name"],
            "invoked": False,
        }
        rows.append(row)
        why_not = None
        if function:
            why_not = _invoke(function, run_id)
            if why_not is None:
                row["invoked"] = True
                continue
            if number:  # This invocation has time for one run.
                row["why"] = f"left for the next poll: {why_not}"
                continue
        reply = run(run_id, caller)
        row["status"] = reply["status"]
        row["claimed"] = reply["claimed"]
        if "why" in reply:
            row["why"] = reply["why"]
    return rows


def _invoke(function: str, flow_run_id: str) -> str | None:
    """Call this very function for a run, asynchronously; why not, where that is not allowed."""
    import json

    from pfl.handler.engine import aws

    try:
        payload, path = (
            json.dumps({"flow_run_id": flow_run_id}).encode(),
            f"/2015-03-31/functions/{function}/invocations",
        )
        aws.post(
            "lambda",
            os.environ.get("AWS_REGION", ""),
            payload,
            {"x-amz-invocation-type": "Event"},
            path=path,
        )
    except PflError as exc:
        return str(exc)
    return None


def end_lost(api: Api, pool: str) -> list[str]:
    """End runs of a work pool that were handed over, or cancelled after that, and of which nothing was heard since; their names."""
    before, names = datetime.now(UTC) - timedelta(seconds=_LOST_S), []
    chosen = {
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "CANCELLING"]}}},
        "work_pools": {"name": {"any_": [pool]}},
    }
    for run in list(client.pages(api, "/flow_runs/filter", chosen)):
        if datetime.fromisoformat(run["state"]["timestamp"]) < before:
            text = f"It was handed to the function {_LOST_S // 60} minutes ago or more, and never began.\nLook at the function's log: it is gone, throttled, or cannot be imported."
            type = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
            client.end(api, type, text, flow_runs=[run["id"]])
            names.append(run["name"])
    return names
