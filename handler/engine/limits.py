"""
Prefect's tag concurrency limits, as far as steps run under them.

    id=abc:task-b     step b of one ID (Prefect allows no slash in the name of a limit)
    task-b            step b across IDs

That a limit is meant for us is also written in the store, ``limits/<tag>.json``: so a step without one asks Prefect nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

from handler.core import lease, records
from handler.core.errors import InvalidRequestError, NotFoundError
from handler.core.keys import encode_id
from handler.core.store import Store
from handler.engine import prefect_env, prefect_run
from handler.engine.execute import Invocation

_PLAIN = "-_.@+"  # Beside letters and digits; a slash, which Prefect's names may not have, is written ~2F.
_PAGE = 200
_made: set[tuple[str, str, int]] = set()


def tag_of(id: str | None, step: str) -> str:
    """The tag of a step, of one ID or of all."""
    if id is None:
        return f"task-{step}"
    return "id=" + "".join(c if c.isalnum() or c in _PLAIN else f"~{ord(c):02X}" for c in id) + f":task-{step}"


def tags_of(invocation: Invocation, name: str, api_url: str) -> list[str]:
    """The tags under which a step has to wait for a slot; none, and nobody asked, where it has no limit."""
    step, tags = invocation.flow.steps[name], []
    automatic = 1 if invocation.settings.tag_limits == "per-id" else None
    for tag, limit in ((tag_of(invocation.request.id, name), automatic), (tag_of(None, name), step.limit)):
        if _path(tag) in invocation.limited:
            tags.append(tag)  # What was set by hand counts, not what the code says.
        elif limit is not None:
            if (api_url, tag, limit) not in _made:
                with prefect_run.asking() as client:
                    client.create_concurrency_limit(tag, limit)
                if tag == tag_of(None, name):
                    _made.add((api_url, tag, limit))  # Those of an ID may be collected while it is idle.
            tags.append(tag)
    return tags


def check_tag(tag: str) -> str:
    """
    *tag*, if Prefect can give it a limit.

    Raises:
        InvalidRequestError: It cannot.
    """
    if bad := [c for c in tag if c in "/%&><?#" or not c.isprintable()]:
        raise InvalidRequestError(f"the tag {tag!r} cannot have a limit", why=f"Prefect allows no {bad[0]!r} in its name")
    return tag


def put(client, store: Store, tag: str, limit: int) -> None:
    """Set a limit; those who hold slots of it keep them."""
    client.create_concurrency_limit(tag, limit)
    store.put(_path(tag), records.seal({"version": 1, "tag": tag, "limit": limit}))


def ls(client, store: Store, api_url: str, *, tag: str | None = None, holders: bool = True) -> Iterator[dict]:
    """
    The limits on tags, each with who holds its slots since when; a leaked slot is one whose holder is no more.

    Args:
        client: Prefect's.
        store: Where calls are on record.
        api_url: For links.
        tag: Only this one.
        holders: Whether to ask who they are.
    """
    slots = {f"tag:{one.tag}": one for one in _pages(lambda offset: client.read_concurrency_limits(limit=_PAGE, offset=offset))}
    alive: dict[str, bool] = {}
    for limit in _pages(lambda offset: client.read_global_concurrency_limits(limit=_PAGE, offset=offset)):
        if not limit.name.startswith("tag:") or (tag is not None and limit.name != f"tag:{tag}"):
            continue
        ids = slots[limit.name].active_slots if limit.name in slots else []
        row = {"tag": limit.name[4:], "limit": limit.limit, "taken": limit.active_slots, "limit_id": str(limit.id)}
        row |= {"updated_at": limit.updated.isoformat().replace("+00:00", "Z"), "set_by_pfl": False, "holders": []}
        if holders:
            row["set_by_pfl"] = store.get(_path(row["tag"])) is not None
            row["holders"] = [_holder(client, store, str(run), alive, api_url) for run in ids]
        dead = sum(each["is_dead"] for each in row["holders"])
        row["leaked"] = max(0, limit.active_slots - len(ids)) + dead
        yield row


def waiting(client, tag: str) -> int:
    """How many task runs wait for a slot of *tag*."""
    from prefect.client.schemas import filters
    from prefect.states import StateType

    state = filters.TaskRunFilterState(type=filters.TaskRunFilterStateType(any_=[StateType.PENDING]))
    chosen = filters.TaskRunFilter(tags=filters.TaskRunFilterTags(all_=[tag]), state=state)
    return len(client.read_task_runs(task_run_filter=chosen, limit=_PAGE))


def one(client, store: Store, api_url: str, tag: str) -> dict:
    """
    The limit of *tag*.

    Raises:
        NotFoundError: It has none.
    """
    for row in ls(client, store, api_url, tag=tag):
        return row
    raise NotFoundError(f"there is no limit on {tag}", hint="pfl limits ls")


def reset(client, row: dict) -> list[str]:
    """
    Free the leaked slots of a limit, and no others; say what was freed.

    Prefect's own reset revokes leases and leaves their slots taken, for ever. So: a dead holder's task run becomes Crashed,
    which gives back its slot and lease; then the count is set to that of the leases that are left.
    """
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.states import Crashed

    freed = []
    for each in row["holders"]:
        if each["is_dead"]:
            client.set_task_run_state(each["task_run_id"], Crashed(message="Its process is dead.\nIts slot was reset."), force=True)
            freed.append(f"{each['name'] or each['task_run_id']}, held since {each['since'] or '?'}, its process is dead")
    left = [each for each in row["holders"] if not each["is_dead"]]
    now = client.read_global_concurrency_limit_by_name(f"tag:{row['tag']}")
    if now.active_slots > len(left):
        freed += [f"a slot without a holder ({now.active_slots - len(left)} in all)"]
        if not left:
            client.reset_concurrency_limit_by_tag(row["tag"])  # Else leases of the dead would give back slots once more.
        client.update_global_concurrency_limit(f"tag:{row['tag']}", GlobalConcurrencyLimitUpdate(active_slots=len(left)))
    return freed


def rm(client, store: Store, tag: str) -> None:
    """Remove a limit: whoever waits for it, runs."""
    from prefect.exceptions import ObjectNotFound

    store.delete([_path(tag)])
    with suppress(ObjectNotFound):  # Another was faster.
        client.delete_concurrency_limit_by_tag(tag)


def idle(client, store: Store, api_url: str, seconds: float) -> list[str]:
    """The tags of single IDs that were made for a run, and not used for so long."""
    before = time.time() - seconds
    rows = ls(client, store, api_url, holders=False)
    kept = {entry.key for entry in store.list("limits")}
    return [
        row["tag"]
        for row in rows
        if row["tag"].startswith("id=") and ":task-" in row["tag"] and not row["taken"] and _path(row["tag"]) not in kept
        and row["updated_at"] < records.now_iso(before)
    ]  # fmt: skip


def _holder(client, store: Store, task_run_id: str, alive: dict[str, bool], api_url: str) -> dict:
    from prefect.exceptions import ObjectNotFound

    row = {"task_run_id": task_run_id, "name": None, "since": None, "state": None, "is_dead": False, "url": None}
    try:
        task = client.read_task_run(task_run_id)
        run = client.read_flow_run(task.flow_run_id) if task.flow_run_id else None
    except ObjectNotFound:
        return row  # It has just begun, and Prefect has not heard of it.
    row |= {"name": task.name, "state": task.state.name if task.state else None}
    row["since"] = task.start_time.isoformat().replace("+00:00", "Z") if task.start_time else None
    row["url"] = prefect_env.flow_run_url(api_url, str(task.flow_run_id)) if task.flow_run_id else None
    call = next((tag[5:] for tag in run.tags if tag.startswith("call=")), None) if run else None
    if call is not None and call not in alive:
        life = lease.life_of(store, call)
        alive[call] = life.is_alive or not life.entries  # One of another store is none of our business.
    row["is_dead"] = bool(task.state and task.state.is_final()) or not alive.get(call or "", True)
    return row


def _pages(read) -> Iterator[object]:
    offset = 0
    while page := read(offset):
        yield from page
        offset += _PAGE
        if len(page) < _PAGE:
            return


def _path(tag: str) -> str:
    return f"limits/{encode_id(tag)}.json"
