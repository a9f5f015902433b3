"""Runs as people look at them: those that Prefect knows, and those that only their calls on record tell of."""

from __future__ import annotations

from collections.abc import Iterator

from handler.core import lease
from handler.core.errors import InvalidRequestError, NotFoundError
from handler.core.settings import Settings
from handler.core.store import Store
from handler.engine import prefect_env, prefect_run
from handler.engine.execute import Notify

STATES = ("scheduled", "pending", "running", "completed", "failed", "cancelled", "crashed", "paused", "cancelling")
_OPEN = {"scheduled", "pending", "running", "paused", "cancelling"}


def ls(
    store: Store, settings: Settings, *, id: str | None, status: str | None, stuck: bool, limit: int, notify: Notify
) -> Iterator[dict]:
    """
    Runs, newest first; a stuck one is open, and its process is dead.

    Raises:
        InvalidRequestError: There is no such status.
        UnavailableError: Prefect or the store did not answer.
    """
    if status is not None and status not in STATES:
        raise InvalidRequestError(f"unknown status {status!r}", hint=f"one of {', '.join(STATES)}")
    lives = {call: lease.life_of(store, call) for call in lease.calls(store)}
    seen = set()
    for row in _of_prefect(settings, id, status, stuck, limit, notify):
        life = lives.get(row["call"])
        seen.add(row["call"])
        row["stuck"] = row["status"] in _OPEN and life is not None and not life.is_alive
        row["holder"] = lease.holder(life.body | {"flow_run_id": None}) if life else None
        if row["stuck"] or not stuck:
            yield row
    for call, life in lives.items():
        body = life.body
        if call in seen or body.get("engine") == "prefect" or (id is not None and body.get("id") != id):
            continue  # A call of Prefect's that has no run yet is about to get one.
        if (stuck and life.is_alive) or status not in (None, "running"):
            continue
        about = {name: body.get(name) for name in ("id", "flow", "step")} | {"status": "running", "name": None, "call": call}
        about |= {"started_at": None, "flow_run_id": None, "url": None, "message": None}
        yield about | {"stuck": not life.is_alive, "holder": lease.holder(body)}


def link(settings: Settings, run: str, notify: Notify) -> str:
    """
    The page of a flow run.

    Raises:
        InvalidRequestError: *run* is no run ID.
        NotFoundError: Prefect knows no such run.
    """
    from uuid import UUID

    try:
        run_id = UUID(run)
    except ValueError as exc:
        raise InvalidRequestError(f"{run!r} is no run ID", hint="pfl runs ls shows them") from exc
    with prefect_run.session(settings, notify) as api, prefect_run.asking() as client:
        from prefect.exceptions import ObjectNotFound

        try:
            client.read_flow_run(run_id)
        except ObjectNotFound as exc:
            raise NotFoundError(f"there is no flow run {run}", why=f"Prefect at {api.url} knows none", hint="pfl runs ls") from exc
        return prefect_env.flow_run_url(api.url, run)


def _of_prefect(settings: Settings, id: str | None, status: str | None, stuck: bool, limit: int, notify: Notify) -> Iterator[dict]:
    with prefect_run.session(settings, notify) as api, prefect_run.asking() as client:
        from prefect.client.schemas import filters
        from prefect.client.schemas.sorting import FlowRunSort
        from prefect.states import StateType

        wanted = [status] if status else sorted(_OPEN) if stuck else list(STATES)
        types = filters.FlowRunFilterStateType(any_=[StateType(each.upper()) for each in wanted])
        chosen = filters.FlowRunFilter(state=filters.FlowRunFilterState(type=types))
        if id is not None:
            chosen.tags = filters.FlowRunFilterTags(all_=[f"id={id.replace(',', '%2C')}"])
        offset = 0
        while offset < limit:
            page = client.read_flow_runs(
                flow_run_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=min(200, limit - offset), offset=offset
            )
            for run in page:
                tags = dict(tag.split("=", 1) for tag in run.tags if "=" in tag)
                yield {
                    "id": run.parameters.get("id", tags.get("id")),
                    "flow": run.name.split("/")[0] if "call" in tags else None,
                    "step": run.parameters.get("step"),
                    "status": run.state.type.value.lower() if run.state else None,
                    "name": run.name,
                    "call": tags.get("call"),
                    "started_at": run.start_time.isoformat().replace("+00:00", "Z") if run.start_time else None,
                    "flow_run_id": str(run.id),
                    "url": prefect_env.flow_run_url(api.url, str(run.id)),
                    "message": run.state.message if run.state else None,
                }
            offset += 200
            if len(page) < 200:
                return
