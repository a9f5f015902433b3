"""
Prefect's tag concurrency limits, as far as steps run under them.

    id=abc:task-b     step b of one ID (Prefect allows no slash in the name of a limit)
    task-b            step b across IDs

That a limit is meant for us is also written in the store, ``limits/<tag>.json``: so a step without one asks Prefect nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from pfl.handler.core.cache import lease
from pfl.handler.core.errors import (
    BusyError,
    InvalidRequestError,
    NotFoundError,
    PflError,
    UnavailableError,
)
from pfl.handler.core.store import records
from pfl.handler.core.store.keys import encode_id
from pfl.handler.core.store.objects import Store
from pfl.handler.core.tags import is_id_limit, limit_tag
from pfl.handler.engine.prefect import environment
from pfl.handler.engine.prefect.client import FINAL, Api, ask, pages, patiently, pause, set_state

if TYPE_CHECKING:
    from pfl.handler.engine.invocation import Invocation

_SLOT_S = 60  # Prefect gives slots for no shorter time.
_made: set[tuple[str, str, int]] = set()


def tags_of(invocation: Invocation, name: str, api: Api) -> list[str]:
    """The tags under which a step has to wait for a slot; none, and nobody asked, where it has no limit."""
    step, tags = invocation.flow.steps[name], []
    automatic = 1 if invocation.settings.tag_limits == "per-id" else None
    for tag, limit in (
        (limit_tag(invocation.request.id, name), automatic),
        (limit_tag(None, name), step.limit),
    ):
        if _path(tag) in invocation.limited:
            tags.append(tag)  # What was set by hand counts, not what the code says.
        elif limit is not None:
            if (api.url, tag, limit) not in _made:
                patiently(lambda tag=tag, limit=limit: _set(api, tag, limit))
                if tag == limit_tag(None, name):
                    _made.add(
                        (api.url, tag, limit)
                    )  # Those of an ID may be collected while it is idle.
            tags.append(tag)
    return tags


@contextmanager
def slot(api: Api, names: list[str], occupy: int, holder: object) -> Iterator[None]:
    """
    Hold a slot of each limit, as Prefect's engine does around a task run.

    Prefect's own waits in another thread: it asks again after ten seconds or more, asks on for one who was interrupted, and keeps
    the process until it has its slot.

    Args:
        api: Prefect's.
        names: The limits, as ``tag:task-b``; one that does not exist limits nothing.
        occupy: How many slots.
        holder: Whose they are: its ``type``, as ``task_run``, and ``id``.

    Raises:
        BusyError: A limit lets none run.
        UnavailableError: Prefect did not answer.
    """
    if not names:
        yield
        return
    body = {"names": names, "slots": occupy, "mode": "concurrency", "lease_duration": _SLOT_S}
    body["holder"] = {"type": holder.type, "id": str(holder.id)}
    while (taken := patiently(lambda: _take(api, body))) is None:
        pause()
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_SLOT_S / 3):
            with suppress(PflError):  # Two more tries fit before it runs out.
                ask(
                    api,
                    f"/v2/concurrency_limits/leases/{taken['lease_id']}/renew",
                    {"lease_duration": _SLOT_S},
                )

    if taken["limits"]:
        threading.Thread(target=renew, name="slot", daemon=True).start()

    def give_back() -> None:
        if taken["limits"]:
            ask(api, "/v2/concurrency_limits/decrement-with-lease", {"lease_id": taken["lease_id"]})

    try:
        yield
    except BaseException:
        over.set()
        with suppress(PflError):  # The end of its task run gives it back, too.
            give_back()
        raise
    over.set()
    with suppress(PflError):  # It runs out by itself.
        patiently(give_back)


def _take(api: Api, body: dict) -> dict | None:
    """What Prefect gave; None where all slots are taken."""
    try:
        return ask(api, "/v2/concurrency_limits/increment-with-lease", body, none=(423,))
    except UnavailableError as exc:
        if "greater than the limit" not in exc.why:
            raise
        what = f"{' and '.join(name.removeprefix('tag:') for name in body['names'])}: a limit of 0 lets nothing run"
        raise BusyError(what, why="it was set so", hint="pfl limits ls; pfl limits set") from exc


def check_tag(tag: str) -> str:
    """
    *tag*, if Prefect can give it a limit.

    Raises:
        InvalidRequestError: It cannot.
    """
    if bad := [c for c in tag if c in "/%&><?#" or not c.isprintable()]:
        raise InvalidRequestError(
            f"the tag {tag!r} cannot have a limit", why=f"Prefect allows no {bad[0]!r} in its name"
        )
    return tag


def put(api: Api, store: Store, tag: str, limit: int) -> None:
    """Set a limit; those who hold slots of it keep them."""
    _set(api, tag, limit)
    store.put(_path(tag), records.seal({"version": 1, "tag": tag, "limit": limit}))


def ls(api: Api, store: Store, *, tag: str | None = None, holders: bool = True) -> Iterator[dict]:
    """
    The limits on tags, each with who holds its slots since when; a leaked slot is one whose holder is no more.

    Args:
        api: Prefect's.
        store: Where calls are on record.
        tag: Only this one.
        holders: Whether to ask who they are.
    """
    slots = {
        f"tag:{one['tag']}": one["active_slots"] for one in pages(api, "/concurrency_limits/filter")
    }
    alive: dict[str, bool] = {}
    for limit in pages(api, "/v2/concurrency_limits/filter"):
        if not limit["name"].startswith("tag:") or (
            tag is not None and limit["name"] != f"tag:{tag}"
        ):
            continue
        ids = slots.get(limit["name"], [])
        row = {
            "tag": limit["name"][4:],
            "limit": limit["limit"],
            "taken": limit["active_slots"],
            "limit_id": limit["id"],
        }
        row |= {"updated_at": limit["updated"], "set_by_pfl": False, "holders": []}
        if holders:
            row["set_by_pfl"] = store.get(_path(row["tag"])) is not None
            row["holders"] = [_holder(api, store, run, alive) for run in ids]
        dead = sum(each["is_dead"] for each in row["holders"])
        row["leaked"] = max(0, limit["active_slots"] - len(ids)) + dead
        yield row


def waiting(api: Api, tag: str) -> int:
    """How many task runs wait for a slot of *tag*."""
    chosen = {"tags": {"all_": [tag]}, "state": {"type": {"any_": ["PENDING"]}}}
    return len(list(pages(api, "/task_runs/filter", {"task_runs": chosen})))


def one(api: Api, store: Store, tag: str) -> dict:
    """
    The limit of *tag*.

    Raises:
        NotFoundError: It has none.
    """
    for row in ls(api, store, tag=tag):
        return row
    raise NotFoundError(f"there is no limit on {tag}", hint="pfl limits ls")


def reset(api: Api, row: dict) -> list[str]:
    """
    Free the leaked slots of a limit, and no others; say what was freed.

    Prefect's own reset revokes leases and leaves their slots taken, for ever. So: a dead holder's task run becomes Crashed,
    which gives back its slot and lease; then the count is set to that of the leases that are left.
    """
    freed = []
    for each in row["holders"]:
        if each["is_dead"]:
            set_state(
                api,
                "task_runs",
                each["task_run_id"],
                "CRASHED",
                "Its process is dead.\nIts slot was reset.",
                force=True,
            )
            freed.append(
                f"{each['name'] or each['task_run_id']}, held since {each['since'] or '?'}, its process is dead"
            )
    left = [each for each in row["holders"] if not each["is_dead"]]
    path = f"/v2/concurrency_limits/{row['limit_id']}"
    more = (ask(api, path) or {"active_slots": 0})["active_slots"] - len(left)
    if more > 0:
        freed += [f"a slot without a holder ({more} in all)"]
        if not left:
            ask(
                api, f"/concurrency_limits/tag/{quote(row['tag'])}/reset", {}
            )  # Else leases of the dead would give back slots once more.
        ask(api, path, {"active_slots": len(left)}, method="PATCH")
    return freed


def rm(api: Api, store: Store, tag: str) -> None:
    """Remove a limit: whoever waits for it, runs."""
    store.delete([_path(tag)])
    ask(api, f"/concurrency_limits/tag/{quote(tag)}", method="DELETE")


def idle(api: Api, store: Store, seconds: float) -> list[str]:
    """The tags of single IDs that were made for a run, and not used for so long."""
    before = time.time() - seconds
    kept = {entry.key for entry in store.list("limits")}
    return [
        row["tag"]
        for row in ls(api, store, holders=False)
        if is_id_limit(row["tag"]) and not row["taken"] and _path(row["tag"]) not in kept
        and row["updated_at"] < records.now_iso(before)
    ]  # fmt: skip


def _set(api: Api, tag: str, limit: int) -> None:
    ask(api, "/concurrency_limits/", {"tag": tag, "concurrency_limit": limit})


def _holder(api: Api, store: Store, task_run_id: str, alive: dict[str, bool]) -> dict:
    row = {
        "task_run_id": task_run_id,
        "name": None,
        "since": None,
        "state": None,
        "is_dead": False,
        "url": None,
    }
    if (task := ask(api, f"/task_runs/{task_run_id}")) is None:
        return row  # It has just begun, and Prefect has not heard of it.
    row |= {"name": task["name"], "state": task["state_name"], "since": task["start_time"]}
    run = ask(api, f"/flow_runs/{task['flow_run_id']}") if task["flow_run_id"] else None
    row["url"] = run and environment.flow_run_url(api.url, run["id"])
    call = next((tag[5:] for tag in run["tags"] if tag.startswith("call=")), None) if run else None
    if call is not None and call not in alive:
        life = lease.call_state(store, call)
        alive[call] = (
            life.is_alive or not life.entries
        )  # One of another store is none of our business.
    row["is_dead"] = task["state_type"] in FINAL or not alive.get(call or "", True)
    return row


def _path(tag: str) -> str:
    return f"limits/{encode_id(tag)}.json"
