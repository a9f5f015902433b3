"""Runs as people look at them: those that Prefect knows, and those that only their calls on record tell of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice

from pfl.handler.core import links
from pfl.handler.core.cache import lease
from pfl.handler.core.errors import InvalidRequestError, NotFoundError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.objects import Store
from pfl.handler.core.tags import id_tag
from pfl.handler.engine.prefect import environment, server
from pfl.handler.engine.prefect.client import Api, ask, pages

STATES = (
    "scheduled",
    "pending",
    "running",
    "completed",
    "failed",
    "cancelled",
    "crashed",
    "paused",
    "cancelling",
)
_OPEN = {"scheduled", "pending", "running", "paused", "cancelling"}


def known(settings: Settings) -> Api | None:
    """The Prefect that the user named, else the project's embedded server, if it runs: to look at runs none is started."""
    if (api := environment.configured(settings)) is not None:
        return api
    running = server.find(settings.home)
    return running and Api(running.url, "", "embedded server")


def ls(
    store: Store, api: Api | None, *, id: str | None, status: str | None, stuck: bool, limit: int
) -> Iterator[dict]:
    """
    Runs, newest first; a stuck one is open, and its process is dead. Without an *api*, those that their calls on record tell of.

    Raises:
        InvalidRequestError: There is no such status.
        UnavailableError: Prefect or the store did not answer.
    """
    if status is not None and status not in STATES:
        raise InvalidRequestError(f"unknown status {status!r}", hint=f"one of {', '.join(STATES)}")
    lives = {call: lease.call_state(store, call) for call in lease.calls(store)}
    seen = set()
    for row in _of_prefect(api, id, status, stuck, limit) if api is not None else ():
        life = lives.get(row["call"])
        seen.add(row["call"])
        row["stuck"] = row["status"] in _OPEN and life is not None and not life.is_alive
        row["holder"] = lease.describe_holder(life.body | {"flow_run_id": None}) if life else None
        if row["stuck"] or not stuck:
            yield row
    for call, life in lives.items():
        body = life.body
        if (
            call in seen
            or (api is not None and body.get("engine") == "prefect")
            or (id is not None and body.get("id") != id)
        ):
            continue  # A call of Prefect's that has no run yet is about to get one.
        if (stuck and life.is_alive) or status not in (None, "running"):
            continue
        about = {name: body.get(name) for name in ("id", "flow", "step")} | {
            "status": "running",
            "name": None,
            "call": call,
        }
        about |= {
            "started_at": None,
            "flow_run_id": body.get("flow_run_id"),
            "url": None,
            "message": None,
        }
        yield about | {"stuck": not life.is_alive, "holder": lease.describe_holder(body)}


def link(settings: Settings, run: str, notify: Callable[[str, str], None]) -> str:
    """
    The page of a flow run, or of a task run, open at its inputs.

    Raises:
        InvalidRequestError: *run* is no run ID.
        NotFoundError: Prefect knows no such run.
    """
    from uuid import UUID

    try:
        UUID(run)
    except ValueError as exc:
        raise InvalidRequestError(f"{run!r} is no run ID", hint="pfl runs ls shows them") from exc
    api = environment.choose(settings, lambda text: notify("", text))
    if ask(api, f"/flow_runs/{run}") is not None:
        return environment.flow_run_url(api.url, run)
    if ask(api, f"/task_runs/{run}") is not None:
        return links.task_run(links.base_of(api.url, os.environ), run)
    raise NotFoundError(
        f"there is no flow run {run}",
        why=f"Prefect at {api.url} knows none, and no task run",
        hint="pfl runs ls",
    )


def _of_prefect(
    api: Api, id: str | None, status: str | None, stuck: bool, limit: int
) -> Iterator[dict]:
    wanted = [status] if status else sorted(_OPEN) if stuck else list(STATES)
    chosen: dict[str, object] = {"state": {"type": {"any_": [each.upper() for each in wanted]}}}
    if id is not None:
        chosen["tags"] = {"all_": [id_tag(id)]}
    for run in islice(
        pages(api, "/flow_runs/filter", {"flow_runs": chosen, "sort": "EXPECTED_START_TIME_DESC"}),
        limit,
    ):
        tags = dict(tag.split("=", 1) for tag in run["tags"] if "=" in tag)
        yield {
            "id": run["parameters"].get("id", tags.get("id")),
            "flow": run["name"].split("/")[0] if "call" in tags else None,
            "step": run["parameters"].get("step"),
            "status": run["state_type"] and run["state_type"].lower(),
            "name": run["name"],
            "call": tags.get("call"),
            "started_at": run["start_time"],
            "flow_run_id": run["id"],
            "url": environment.flow_run_url(api.url, run["id"]),
            "message": (run["state"] or {}).get("message"),
        }
