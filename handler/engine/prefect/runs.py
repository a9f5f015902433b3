"""Lists of runs: those in Prefect, and those that are only on record as calls."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypedDict
from uuid import UUID

from ...core import links
from ...core.cache import lease
from ...core.errors import InvalidRequestError, NotFoundError
from ...core.event import Notify
from ...core.settings import Settings
from ...core.store.objects import Store
from ...core.tags import id_tag
from . import environment, server
from .client import ask, pages
from .environment import Api

_OPEN = ("cancelling", "paused", "pending", "running", "scheduled")
STATES = (*_OPEN, "completed", "failed", "cancelled", "crashed")


class RunRow(TypedDict):
    """
    A run, as ``pfl runs ls`` prints it.

    A stuck one looks open, but its process is dead; *holder* describes that process.
    """

    id: object
    flow: str | None
    step: str | None
    status: str | None
    name: str | None
    call: str | None
    started_at: str | None
    flow_run_id: str | None
    url: str | None
    message: str | None
    stuck: bool
    holder: str | None


def find_api(settings: Settings) -> Api | None:
    """
    The API that the user chose, or else the project's embedded server if it runs; it is not started
    for this.
    """
    if (api := environment.configured(settings)) is not None:
        return api
    running = server.find(settings.home)
    return None if running is None else Api(running.url, "", "embedded server")


def list_runs(
    store: Store, api: Api | None, *, id: str | None, status: str | None, stuck: bool, limit: int
) -> Iterator[RunRow]:
    """
    Yield runs, newest first; without an *api*, only those on record as calls.

    Args:
        store: The store that holds the record of calls.
        api: Prefect's API.
        id: Only runs for this ID.
        status: Only runs in this state; one of :data:`STATES`.
        stuck: Only runs that look open, but whose process is dead.
        limit: At most this many of Prefect's runs.

    Raises:
        InvalidRequestError: The status does not exist.
        UnavailableError: Prefect or the store did not answer.
    """
    if status is not None and status not in STATES:
        raise InvalidRequestError(f"unknown status {status!r}", hint=f"one of {', '.join(STATES)}")
    calls = lease.open_calls(store)
    alive = {token for token, call in calls.items() if lease.is_call_alive(store, call)}
    if api is not None:
        for row in _runs_in_prefect(api, id, status, stuck, limit):
            # A flow run within another has the tag of the same call.
            if (call := calls.get(row["call"] or "")) is not None:
                row["stuck"] = row["status"] in _OPEN and call.call not in alive
                row["holder"] = lease.describe_holder(call.body)
            if row["stuck"] or not stuck:
                yield row
    if status not in (None, "running"):
        return
    for token, call in calls.items():
        body = call.body
        # A call that uses Prefect has a flow run, or will create one.
        if api is not None and body.get("engine") == "prefect":
            continue
        if (id is None or body.get("id") == id) and not (stuck and token in alive):
            yield {
                "id": body.get("id"),
                "flow": body.get("flow"),
                "step": body.get("target"),
                "status": "running",
                "name": None,
                "call": token,
                "started_at": None,
                "flow_run_id": body.get("flow_run_id"),
                "url": None,
                "message": None,
                "stuck": token not in alive,
                "holder": lease.describe_holder(body),
            }


def run_url(settings: Settings, run_id: str, notify: Notify) -> str:
    """
    The page of a flow run, or of a task run, open at its inputs.

    Raises:
        InvalidRequestError: *run_id* is not a run ID.
        NotFoundError: The run does not exist.
    """
    try:
        UUID(run_id)
    except ValueError as exc:
        raise InvalidRequestError(
            f"{run_id!r} is not a run ID", hint="to list runs: pfl runs ls"
        ) from exc
    api = environment.choose(settings, notify)
    if ask(api, f"/flow_runs/{run_id}") is not None:
        return environment.flow_run_url(api.url, run_id)
    if ask(api, f"/task_runs/{run_id}") is not None:
        return links.task_run(links.base_of(api.url, os.environ), run_id)
    raise NotFoundError(
        f"run {run_id} does not exist",
        why=f"Prefect at {api.url} has neither a flow run nor a task run with this ID",
        hint="pfl runs ls",
    )


def _runs_in_prefect(
    api: Api, id: str | None, status: str | None, stuck: bool, limit: int
) -> Iterator[RunRow]:
    statuses: Sequence[str] = _OPEN if stuck else STATES
    if status is not None:
        statuses = [status]
    chosen: dict[str, object] = {"state": {"type": {"any_": [each.upper() for each in statuses]}}}
    if id is not None:
        chosen["tags"] = {"all_": [id_tag(id)]}
    body = {"flow_runs": chosen, "sort": "EXPECTED_START_TIME_DESC"}
    for run in islice(pages(api, "/flow_runs/filter", body), limit):
        tags = dict(tag.split("=", 1) for tag in run["tags"] if "=" in tag)
        state_type = run["state_type"]
        yield {
            "id": run["parameters"].get("id", tags.get("id")),
            "flow": run["name"].split("/")[0] if "call" in tags else None,
            "step": run["parameters"].get("step"),
            "status": state_type.lower() if state_type else None,
            "name": run["name"],
            "call": tags.get("call"),
            "started_at": run["start_time"],
            "flow_run_id": run["id"],
            "url": environment.flow_run_url(api.url, run["id"]),
            "message": (run["state"] or {}).get("message"),
            "stuck": False,
            "holder": None,
        }
