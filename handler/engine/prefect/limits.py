"""
Prefect's concurrency limits on tags, under which steps run.

    id=abc:task-b     step b of one ID (Prefect allows no slash in the name of a limit)
    task-b            step b of all IDs

A limit that was set with pfl is also noted in the store, ``limits/<tag>.json``, so that a step
without a limit costs no request to Prefect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import quote

from ...core.cache import lease, shared
from ...core.declare.step import AnyStep
from ...core.errors import (
    BusyError,
    InvalidRequestError,
    NotFoundError,
    PflError,
    UnavailableError,
)
from ...core.retry import jitter_s
from ...core.store import records
from ...core.store.keys import encode_id
from ...core.store.objects import Store
from ...core.store.values import JsonObject
from ...core.tags import is_id_limit, limit_tag
from . import environment
from .client import AWAY_S, FINAL, ask, pages, set_state
from .environment import Api

if TYPE_CHECKING:
    from prefect.client.schemas.objects import ConcurrencyLeaseHolder

    from ..invocation import Invocation

# The shortest time for which Prefect leases a slot.
_SLOT_S = 60


class Holder(TypedDict):
    """A task run that holds a slot."""

    task_run_id: str
    name: str | None
    since: str | None
    state: str | None
    is_dead: bool
    url: str | None


class Limit(TypedDict):
    """A limit on a tag; ``leaked`` counts the slots whose holder is dead or unknown."""

    tag: str
    limit: int
    taken: int
    limit_id: str
    updated_at: str
    set_by_pfl: bool
    holders: list[Holder]
    leaked: int


def tags_for(invocation: Invocation, step: AnyStep, api: Api) -> list[str]:
    """The tags under which a step has to wait for a slot; a limit set in the code is created."""
    call = invocation.call
    per_id = 1 if call.settings.tag_limits == "per-id" else None
    limits = {limit_tag(call.request.id, step.name): per_id}
    limits[limit_tag(None, step.name)] = step.limit
    tags = []
    for tag, limit in limits.items():
        # A limit that was set by hand overrides the code.
        if _path(tag) in invocation.claims.shared["limits"]:
            tags.append(tag)
        elif limit is not None:
            tags.append(tag)
            # The limit of a single ID is removed while it is idle.
            post = _post_limit if is_id_limit(tag) else _post_limit_once
            post(api, tag, limit)
    return tags


@contextmanager
def slot(api: Api, names: list[str], occupy: int, holder: ConcurrencyLeaseHolder) -> Iterator[None]:
    """
    Hold a slot of each limit, as Prefect's engine does around a task run.

    Prefect's own function waits in another thread: it asks every ten seconds or more, goes on after
    an interruption, and keeps the process alive until it has its slot.

    Args:
        api: The Prefect that has the limits.
        names: The limits, as ``tag:task-b``; one that does not exist limits nothing.
        occupy: The number of slots.
        holder: What holds them: its ``type``, such as ``task_run``, and ``id``.

    Raises:
        BusyError: A limit is 0.
        UnavailableError: Prefect did not answer.
    """
    if not names:
        yield
        return
    body = {
        "names": names,
        "slots": occupy,
        "mode": "concurrency",
        "lease_duration": _SLOT_S,
        "holder": {"type": holder.type, "id": str(holder.id)},
    }
    while (taken := _take(api, body)) is None:
        time.sleep(jitter_s())
    if not taken["limits"]:
        yield
        return
    lease_id = taken["lease_id"]
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_SLOT_S / 3):
            with suppress(PflError):  # Two more tries fit before the lease expires.
                path = f"/v2/concurrency_limits/leases/{lease_id}/renew"
                ask(api, path, {"lease_duration": _SLOT_S})

    threading.Thread(target=renew, name="slot", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        path = "/v2/concurrency_limits/decrement-with-lease"
        # Otherwise the slot is released when its lease expires or its task run ends.
        with suppress(PflError):
            ask(api, path, {"lease_id": lease_id})


def _take(api: Api, body: JsonObject) -> JsonObject | None:
    """What Prefect granted; None if all slots are taken."""
    try:
        taken: JsonObject | None = ask(
            api,
            "/v2/concurrency_limits/increment-with-lease",
            body,
            none=(423,),
            longest_s=AWAY_S,
        )
        return taken
    except UnavailableError as exc:
        if "greater than the limit" not in exc.why:
            raise
        tags = " and ".join(name.removeprefix("tag:") for name in body["names"])
        raise BusyError(
            f"{tags}: a limit of 0 lets nothing run",
            why="the limit was set to 0",
            hint="to see it: pfl limits ls; to change it: pfl limits set",
        ) from exc


def check_tag(tag: str) -> str:
    """
    *tag*, if Prefect allows a limit on it.

    Raises:
        InvalidRequestError: Prefect does not.
    """
    if bad := [c for c in tag if c in "/%&><?#" or not c.isprintable()]:
        raise InvalidRequestError(
            f"the tag {tag!r} cannot have a limit", why=f"Prefect does not allow {bad[0]!r}"
        )
    return tag


def set_limit(api: Api, store: Store, tag: str, limit: int) -> None:
    """Set a limit; task runs that hold slots keep them."""
    _post_limit(api, tag, limit)
    store.put(_path(tag), records.seal({"version": 1, "tag": tag, "limit": limit}))
    shared.refresh(store)


def list_limits(api: Api, store: Store, *, tag: str | None = None) -> Iterator[Limit]:
    """
    Yield the limits on tags.

    Args:
        api: The Prefect that has the limits.
        store: The store with the calls.
        tag: Only the limit on this tag.
    """
    holders_by_tag = {
        one["tag"]: one["active_slots"] for one in pages(api, "/concurrency_limits/filter")
    }
    for name, limit in _tag_limits(api):
        if tag not in (None, name):
            continue
        ids = holders_by_tag.get(name, [])
        taken = limit["active_slots"]
        holders = [_holder(api, store, run) for run in ids]
        yield {
            "tag": name,
            "limit": limit["limit"],
            "taken": taken,
            "limit_id": limit["id"],
            "updated_at": limit["updated"],
            "set_by_pfl": store.get(_path(name)) is not None,
            "holders": holders,
            "leaked": max(0, taken - len(ids)) + sum(each["is_dead"] for each in holders),
        }


def _tag_limits(api: Api) -> Iterator[tuple[str, JsonObject]]:
    for limit in pages(api, "/v2/concurrency_limits/filter"):
        kind, _, tag = limit["name"].partition(":")
        if kind == "tag":
            yield tag, limit


def get_limit(api: Api, store: Store, tag: str) -> Limit:
    """
    The limit on *tag*.

    Raises:
        NotFoundError: The tag has no limit.
    """
    for row in list_limits(api, store, tag=tag):
        return row
    raise NotFoundError(f"the tag {tag} has no limit", hint="pfl limits ls")


def count_waiting(api: Api, tag: str) -> int:
    """The number of task runs that wait for a slot of *tag*."""
    chosen = {"tags": {"all_": [tag]}, "state": {"type": {"any_": ["PENDING"]}}}
    return len(list(pages(api, "/task_runs/filter", {"task_runs": chosen})))


def reset(api: Api, row: Limit) -> list[str]:
    """
    Free the leaked slots of a limit, and only those; return what was freed.

    Prefect's own reset revokes leases and leaves their slots taken forever. So the task run of a
    dead holder becomes Crashed, which releases its slot and lease, and then the count is set to the
    number of the remaining leases.
    """
    freed = []
    alive = 0
    for each in row["holders"]:
        if not each["is_dead"]:
            alive += 1
            continue
        id = each["task_run_id"]
        message = "Its process is dead.\nIts slot was reset."
        set_state(api, "task_runs", id, "CRASHED", message, force=True)
        freed.append(f"{each['name'] or id}, held by a dead process since {each['since'] or '?'}")
    path = f"/v2/concurrency_limits/{row['limit_id']}"
    current = ask(api, path)
    unheld = current["active_slots"] - alive if current else 0
    if unheld > 0:
        freed.append(f"slots without a holder: {unheld}")
        if not alive:
            # Otherwise leases of the dead would release slots once more.
            ask(api, f"/concurrency_limits/tag/{quote(row['tag'])}/reset", {})
        ask(api, path, {"active_slots": alive}, method="PATCH")
    return freed


def remove_limit(api: Api, store: Store, tag: str) -> None:
    """Remove a limit: everything that waits for it runs."""
    store.delete([_path(tag)])
    shared.refresh(store)
    ask(api, f"/concurrency_limits/tag/{quote(tag)}", method="DELETE")


def idle_tags(api: Api, store: Store, before_s: float) -> list[str]:
    """The tags of single IDs whose limit was last used before this time, and not set by hand."""
    before = records.now_iso(before_s)
    manual = {entry.key for entry in store.list("limits")}
    tags = []
    for tag, limit in _tag_limits(api):
        is_idle = not limit["active_slots"] and limit["updated"] < before
        if is_id_limit(tag) and is_idle and _path(tag) not in manual:
            tags.append(tag)
    return tags


def _post_limit(api: Api, tag: str, limit: int) -> None:
    body = {"tag": tag, "concurrency_limit": limit}
    ask(api, "/concurrency_limits/", body, longest_s=AWAY_S)


_post_limit_once = cache(_post_limit)


def _holder(api: Api, store: Store, task_run_id: str) -> Holder:
    # A task run that has just begun may be unknown to Prefect.
    task = ask(api, f"/task_runs/{task_run_id}") or {}
    run_id = task.get("flow_run_id")
    run = (ask(api, f"/flow_runs/{run_id}") if run_id else None) or {}
    is_dead = task.get("state_type") in FINAL
    for tag in run.get("tags", ()):
        if tag.startswith("call="):
            call = lease.open_calls(store).get(tag[5:])
            # Nothing is known about a call in another store.
            is_dead |= call is not None and not lease.is_call_alive(store, call)
    return {
        "task_run_id": task_run_id,
        "name": task.get("name"),
        "since": task.get("start_time"),
        "state": task.get("state_name"),
        "is_dead": is_dead,
        "url": environment.flow_run_url(api.url, run["id"]) if run else None,
    }


def _path(tag: str) -> str:
    return f"limits/{encode_id(tag)}.json"
