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
from functools import partial
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
# The ID of a flow by API and name; it stays the same for as long as the server's database.
_flow_ids: dict[tuple[str, str], str] = {}
# Prefect's clients, for what a step itself does with Prefect: each takes 20 ms to create.
_clients: dict[Api, SyncClientContext] = {}


def start(invocation: Invocation, api: Api) -> Future[Any]:
    """Begin the flow run in Prefect while Prefect is imported here; returns the run."""
    begin = _create if invocation.call.flow_run is None else _adopt
    longest_s = min(BUSY_S, invocation.call.stop_at - time.monotonic())
    request = partial(
        retry.retry,
        partial(begin, api, invocation),
        retry.pauses_for(longest_s),
        # A busy server has created no run, or returns the same one next time.
        may_pass=lambda exc: _status(exc) in client.BUSY,
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
    ending: list[Future[bool]] = []

    def end(type: str, message: str, *, force: bool = False) -> bool:
        accepted: list[bool] = []

        def set_state() -> None:
            longest_s = min(FLUSH_S, invocation.call.stop_at - time.monotonic())
            answer = client.set_state(
                api, "flow_runs", str(flow_run.id), type, message, force=force, longest_s=longest_s
            )
            accepted.append(answer)

        box.flush(invocation.call.deadline, set_state)
        return accepted.pop()

    def when_computed() -> None:
        ending.append(_beside(lambda: end("COMPLETED", "")))

    with _run_context(flow, flow_run, _parameters(invocation), _client_context(api)):
        stopped = builder.run_steps(invocation, is_ours=True, when_computed=when_computed)
    is_completed = bool(ending) and ending[0].result()
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


def _client_context(api: Api) -> SyncClientContext:
    """Prefect's client for an API, which stays open."""
    from prefect.context import SyncClientContext

    if api not in _clients:
        _clients[api] = contextvars.copy_context().run(SyncClientContext().__enter__)
    return _clients[api]


def _status(exc: BaseException) -> int | None:
    """The status with which Prefect refused a request."""
    cause = exc.__cause__
    return cause.status if isinstance(cause, client.RefusedError) else None


def _create(api: Api, invocation: Invocation) -> JsonObject:
    """Create the flow run; the call's token makes sure that repeating this creates no other."""
    name = invocation.call.flow.name
    parameters = _parameters(invocation).items()
    key = (api.url, name)
    is_remembered = key in _flow_ids
    if not is_remembered:
        _flow_ids[key] = client.ask(api, "/flows/", {"name": name}, longest_s=AWAY_S)["id"]
    body = {
        **plain.named(invocation),
        "flow_id": _flow_ids[key],
        "parameters": {each: plain.parameter(value) for each, value in parameters},
        "state": {"type": "RUNNING", "name": "Running"},
        "idempotency_key": invocation.claims.holder.token,
    }
    try:
        created: JsonObject = client.ask(api, "/flow_runs/", body, longest_s=AWAY_S)
        return created
    except UnavailableError as exc:
        if not is_remembered or _status(exc) not in (404, 409):
            raise
    del _flow_ids[key]
    return _create(api, invocation)  # Its database may be a new one.


def _adopt(api: Api, invocation: Invocation) -> FlowRun:
    """Begin a flow run that Prefect has scheduled, and that was claimed for this call."""
    run = invocation.call.flow_run
    assert run is not None
    client.ask(api, f"/flow_runs/{run.id}", plain.named(invocation, run.tags), method="PATCH")
    if not client.set_state(api, "flow_runs", str(run.id), "RUNNING", ""):
        raise RunCancelledError("the run was cancelled in Prefect", hint="run it again")
    return run
