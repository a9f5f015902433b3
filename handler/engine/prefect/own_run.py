"""
A flow run of pfl: created as ``Running`` by one request, and ended by one.

Prefect's flow engine makes seven requests for this, one after another. Its task engine runs the
steps, as ever. A run that Prefect has scheduled is named, tagged and set to ``Running`` instead.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ...core import retry
from ...core.errors import RunCancelledError, UnavailableError
from ...core.store.values import JsonObject
from ..invocation import Invocation
from . import client, plain
from .environment import Api
from .outbox import FLUSH_S, Outbox

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.context import SyncClientContext

T = TypeVar("T")
# The longest wait for a busy server to create the run: SQLite needs 40 s for 64 at once.
BUSY_S = 60
# The longest wait for one that does not answer: a call may then be computed without it.
AWAY_S = 1
# How Prefect refuses a run of a flow that it does not know: its database is a new one.
_NO_FLOW = 409


def start(invocation: Invocation, api: Api) -> Future[Any]:
    """Begin the flow run in Prefect while Prefect is imported here; returns the run."""
    begin = _create if invocation.call.flow_run is None else _adopt
    longest_s = min(BUSY_S, invocation.call.stop_at - time.monotonic())
    request = partial(
        retry.retry,
        partial(begin, api, invocation),
        retry.pauses_for(longest_s),
        # A busy server has created no run, or returns the same one next time.
        may_pass=lambda exc: client.status_of(exc) in (_NO_FLOW, *client.BUSY),
    )
    return _beside(request)


def _beside(act: Callable[[], T]) -> Future[T]:
    """What *act* returns, once it has; it is done beside other work."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as exc:
            future.set_exception(exc)

    # A daemon: a Prefect that does not answer does not keep the process alive.
    threading.Thread(target=run, name="flow run", daemon=True).start()
    return future


def run(invocation: Invocation, api: Api, box: Outbox, created: Future[Any]) -> str:
    """
    Run the flow of *invocation*, and return the type of the state in which it ended.

    Raises:
        UnavailableError: Prefect did not create the run, or did not record its end.
    """
    from prefect.client.schemas.objects import FlowRun
    from prefect.logging.loggers import flow_run_logger

    from . import builder

    flow = builder.build_once(invocation.call.flow)
    flow_run = FlowRun.model_validate(created.result())
    builder.begin(invocation, flow_run)
    ending: list[Future[object]] = []

    def end(type: str, message: str, *, force: bool = False) -> object:
        set_state = partial(
            client.set_state,
            api,
            "flow_runs",
            str(flow_run.id),
            type,
            message,
            force=force,
            longest_s=min(FLUSH_S, invocation.call.stop_at - time.monotonic()),
        )
        return box.flush(invocation.call.deadline, set_state)

    def when_computed() -> None:
        ending.append(_beside(lambda: end("COMPLETED", "")))

    with _run_context(flow, flow_run, _parameters(invocation), _client_context(api)):
        stopped = builder.run_steps(invocation, box, when_computed)
    is_completed = bool(ending and ending[0].result())
    type, message = "COMPLETED", ""
    if stopped is not None:
        type, message = stopped.type.value, stopped.message or ""
    elif invocation.error is not None:
        described = plain.describe(invocation.error)
        type, message = "FAILED", f"Flow run encountered an exception: {described}"
        flow_run_logger(flow_run, flow).error(message)
    if is_completed and type == "COMPLETED":
        return type
    # If it was completed, its last step could not be published after that.
    if (is_completed or not ending) and end(type, message, force=is_completed):
        return type
    # Somebody else ended it meanwhile.
    return str((client.ask(api, f"/flow_runs/{flow_run.id}") or {}).get("state_type"))


def _parameters(invocation: Invocation) -> dict[str, Any]:
    request = invocation.call.request
    return {
        "id": request.id,
        "step": request.step,
        "bust": sorted(request.bust),
        "skip": sorted(request.skip),
        **request.params,
    }


@contextmanager
def _run_context(
    flow: Any, flow_run: FlowRun, parameters: dict[str, Any], clients: SyncClientContext
) -> Iterator[None]:
    """What Prefect's flow engine provides to tasks, loggers and ``prefect.runtime``."""
    from prefect.context import FlowRunContext, SyncClientContext
    from prefect.results import ResultStore

    token = SyncClientContext.__var__.set(clients)
    try:
        with (
            flow.task_runner.duplicate() as runner,
            FlowRunContext(
                flow=flow,
                flow_run=flow_run,
                parameters=parameters,
                client=clients.client,
                task_runner=runner,
                result_store=cast("Any", ResultStore().update_for_flow)(flow, _sync=True),
                persist_result=False,
            ),
        ):
            yield
    finally:
        SyncClientContext.__var__.reset(token)


@cache
def _client_context(api: Api) -> SyncClientContext:
    """
    Prefect's client for an API, for what a step itself does with Prefect.

    It stays open: each takes 20 ms to create.
    """
    from prefect.context import SyncClientContext

    return contextvars.copy_context().run(SyncClientContext().__enter__)


@cache
def _flow_id(api: Api, name: str) -> str:
    """The ID of a flow; it stays the same for as long as the server's database."""
    return str(client.ask(api, "/flows/", {"name": name}, longest_s=AWAY_S)["id"])


def _create(api: Api, invocation: Invocation) -> JsonObject:
    """Create the flow run; the call's token makes sure that repeating this creates no other."""
    parameters = _parameters(invocation).items()
    body = {
        **plain.named(invocation),
        "flow_id": _flow_id(api, invocation.call.flow.name),
        "parameters": {each: plain.parameter(value) for each, value in parameters},
        "state": {"type": "RUNNING", "name": "Running"},
        "idempotency_key": invocation.claims.holder.token,
    }
    try:
        created: JsonObject = client.ask(api, "/flow_runs/", body, longest_s=AWAY_S)
    except UnavailableError as exc:
        if client.status_of(exc) == _NO_FLOW:
            _flow_id.cache_clear()
        raise
    return created


def _adopt(api: Api, invocation: Invocation) -> FlowRun:
    """Begin a flow run that Prefect has scheduled, and that was claimed for this call."""
    run = invocation.call.flow_run
    assert run is not None
    client.ask(api, f"/flow_runs/{run.id}", plain.named(invocation, run.tags), method="PATCH")
    if not client.set_state(api, "flow_runs", str(run.id), "RUNNING", ""):
        raise RunCancelledError("the run was cancelled in Prefect", hint="run it again")
    return run
