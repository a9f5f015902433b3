"""
Cleans up calls that died: marks runs as Crashed, frees leases, and adds records to history.

One reaper at a time takes a call, by taking over its leases. Doing everything twice has the effect
of doing it once: Prefect refuses a second terminal state, a record of history has the name of its
claim, and what a dead call had not yet written about a result is written under the same name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

from ..core.cache import history, lease
from ..core.cache.entry import (
    NOT_LOADED,
    Entry,
    entry_json,
    ignore,
    parse_result,
    read_plan,
)
from ..core.errors import PflError
from ..core.event import Notify, notify_nobody
from ..core.settings import Settings
from ..core.store import keys, layout, records
from ..core.store.objects import Store
from .causes import CAUSES
from .prefect import client, environment

if TYPE_CHECKING:
    # Not at run time: the extension of a dying sandbox has two seconds, imports included.
    from .invocation import Invocation

# How long a reaper counts as alive without a sign of life, in seconds.
_REAPING_S = 60
# The longest time in which an event of Prefect's becomes a task run, in seconds.
_ARRIVAL_S = 3
_FIELDS_OF_LEASE_ONLY = (
    "version",
    "host",
    "expires_at",
    "ttl_s",
    "is_bounded",
    "tags",
    "needs",
    "is_reaper",
)


class ReapedRow(TypedDict):
    """A call that died, and the runs in Prefect that were marked; None in a dry run."""

    call: str
    id: str | None
    flow: str | None
    request_id: str | None
    engine: str | None
    steps: list[str]
    cause: str
    what: str
    hint: str
    runs: list[str] | None


def reap(
    store: Store,
    settings: Settings,
    *,
    only: Collection[str] | None = None,
    folder: str | None = None,
    dry_run: bool = False,
    arrival_s: float = _ARRIVAL_S,
    notify: Notify = notify_nobody,
) -> Iterator[ReapedRow]:
    """
    Clean up every call on record that died, and yield each one.

    Args:
        store: The store with the calls.
        settings: The settings; they name the Prefect to report to.
        only: Only these calls.
        folder: Only calls for the ID of this folder.
        dry_run: Yield the calls, and do nothing.
        arrival_s: How long to wait for events of a process that died just now, in seconds.
        notify: Called with what the reaper waits for.

    Raises:
        UnavailableError: Prefect or the store did not answer; the rest can be reaped later.
    """
    if not dry_run:
        layout.check(store)
    has_dead = False
    for call in lease.open_calls(store, folder, with_reapers=True).values():
        if (only is not None and call.call not in only) or lease.is_call_alive(store, call):
            continue
        if "id" not in call.body:
            if not dry_run:  # It is damaged, so nothing more is known about it.
                store.delete(held.key for held in call.leases)
            continue
        # Nothing is left to do about a dead reaper but to delete its lease.
        is_done = call.body.get("is_reaper", False) or lease.is_reaped(store, call.call)
        if dry_run:
            if not is_done:
                yield _Dead(store, call).row
            continue
        info: lease.Body = {"request_id": "reaper", "is_reaper": True}
        reaper = lease.LeaseHolder(store, call.body["id"], info, ttl_s=_REAPING_S)
        try:
            # If other calls have taken over all its leases, they clean up, too.
            taken = [reaper.claim_after(held) for held in call.leases]
            if not any(taken):
                continue
            if is_done:
                _complete(store, call)  # It may have woken after it was reaped.
            else:
                yield _reap(store, settings, call, None, arrival_s, notify)
            reaper.reaped[call.call] = len(call.leases)
            has_dead = True
        finally:
            reaper.end()
    if has_dead:
        lease.sweep(store)


def _reap(
    store: Store,
    settings: Settings,
    call: lease.OpenCall,
    api: environment.Api | None,
    arrival_s: float,
    notify: Notify,
) -> ReapedRow:
    """Clean up one dead call."""
    dead = _Dead(store, call)
    row = dead.row
    row["runs"] = []
    flow_run_id = call.body.get("flow_run_id")
    if row["engine"] == "prefect":
        api = api or environment.choose(settings, notify)
        # It made a run of its own after it took its leases.
        flow_runs = client.runs_of_call(api, call.call)
        flow_run_id = flow_run_id or next(iter(flow_runs), None)
        in_run: lease.Body = {"flow_run_id": flow_run_id}
        row["runs"] = client.end(
            api,
            dead.end.get("outcome", "CRASHED"),
            dead.error.lines,
            flow_runs={*flow_runs, *filter(None, [flow_run_id])},
            finished=dead.end.get("finished") or _find_saved(store, call, in_run),
            tasks={
                id: {**body, **in_run} for body in dead.under_way if (id := body.get("task_run_id"))
            },
            wait_s=arrival_s * dead.is_recent,
        )
    _complete(store, call)
    for body in dead.under_way:
        _record_crash(store, {**body, "flow_run_id": flow_run_id}, dead.cause, dead.error)
    lease.mark_reaped(store, call.call)
    return row


class _Dead:
    """
    What is known about a call that died.

    Attributes:
        end: How it ended, if that is on record.
        is_recent: Whether events of it may still be on their way to Prefect.
        cause: Why it died.
        under_way: The leases of the steps that it was computing.
        error: What happened.
        row: The same for people.
    """

    def __init__(self, store: Store, call: lease.OpenCall) -> None:
        body = call.body
        self.end = lease.read_end(store, call.call)
        # If a call has expired, all of its events arrived long ago.
        self.is_recent = bool(self.end) or lease.is_gone(body.get("host"))
        self.cause = self.end.get("cause", "")
        if self.cause not in CAUSES:
            self.cause = "killed" if self.is_recent else "gone"
        open_steps = {held.body["step"] for held in call.leases if not _is_settled(store, held)}
        self.under_way = []
        for held in call.leases:
            needs = held.body.get("needs", ())
            is_next = held.body["step"] in open_steps and open_steps.isdisjoint(needs)
            if is_next and "outcome" not in self.end:
                self.under_way.append(held.body)
        steps = [each["step"] for each in self.under_way if each["step"] != lease.WHOLE_RUN]
        self.error = _error(call, self.end, steps, self.cause)
        self.row: ReapedRow = {
            "call": call.call,
            "id": body.get("id"),
            "flow": body.get("flow"),
            "request_id": body.get("request_id"),
            "engine": body.get("engine"),
            "steps": steps,
            "cause": self.cause,
            "what": self.error.what,
            "hint": self.error.hint,
            "runs": None,
        }


def reap_failed_request(
    store: Store, settings: Settings, request_id: str, cause: str, why: str
) -> list[ReapedRow]:
    """
    Clean up the call of a request that Lambda answered with a function error.

    Args:
        store: The store with the calls.
        settings: The settings; they name the Prefect to report to.
        request_id: Lambda's ID of the request.
        cause: Why it died; a key of :data:`pfl.handler.engine.causes.CAUSES`.
        why: Lambda's message.

    Raises:
        UnavailableError: Prefect or the store did not answer.
    """
    dead = []
    for call in lease.open_calls(store).values():
        if call.body.get("request_id") != request_id:
            continue
        lease.write_end(store, call.call, {"cause": cause, "why": why})
        # With no Prefect configured here, the call used the function's own: a reaper there ends it.
        if call.body.get("engine") != "prefect" or environment.configured(settings):
            dead.append(call.call)
    return list(reap(store, settings, only=dead))


def reap_predecessors(invocation: Invocation, *, api: environment.Api | None) -> None:
    """
    Clean up the calls whose leases this one took over, before it computes: it may need their slots.

    Args:
        invocation: The call that is about to compute.
        api: Its Prefect; without one, calls that Prefect knows are left to other reapers.
    """
    call = invocation.call
    claims = invocation.claims
    for token in list(claims.dead):
        dead = claims.dead.pop(token, None)
        if dead is None:
            continue  # A step that runs beside this one cleans it up.
        body = dead.body
        try:
            opened = lease.open_calls(call.store, call.folder).get(token)
            # It was reaped, and may wake; or its lease is damaged, and nothing is known about it.
            if opened is None or "id" not in body:
                continue
            if lease.is_reaped(call.store, token):
                _complete(call.store, opened)  # It may have woken since.
            elif api is not None or body.get("engine") != "prefect":
                row = _reap(call.store, call.settings, opened, api, _ARRIVAL_S, call.notify)
                call.notify("", f"{row['what']}: its runs are marked as Crashed")
            else:
                continue
            claims.holder.reaped[token] = len(opened.leases)
        except PflError as exc:
            call.warnings.append(f"a dead call could not be cleaned up ({exc}); run pfl runs reap")


def _error(call: lease.OpenCall, end: lease.Ended, steps: list[str], cause: str) -> PflError:
    body = call.body
    holder = lease.describe_holder(body)
    doing = f" while computing {', '.join(steps)}" if steps else ""
    last = records.now_iso(max(held.modified for held in call.leases))[:19]
    why = (
        f"last seen {last}Z, lease until {str(body.get('expires_at'))[:19]}Z, "
        f"request {body.get('request_id') or '?'}"
    )
    if end.get("why"):
        why = f"{end['why']}; {why}"
    return PflError(f"{holder} {CAUSES[cause].what}{doing}", why=why, hint=CAUSES[cause].hint)


def _find_saved(
    store: Store, call: lease.OpenCall, in_run: lease.Body
) -> dict[str, Mapping[str, object]]:
    """The task runs of a dead call whose results are saved, and so are complete."""
    found: dict[str, Mapping[str, object]] = {}
    for held in call.leases:
        task_run_id = held.body.get("task_run_id")
        if task_run_id and _has_written(store, held, "results"):
            found[task_run_id] = {**held.body, **in_run, "type": "COMPLETED"}
    return found


def _is_settled(store: Store, held: lease.Lease) -> bool:
    """Whether a dead call had a result for a step, its own or one that it found by its inputs."""
    # A bust may have left an older plan where it is until there is a new result.
    return _has_written(store, held, "results") or (
        held.body["step"] in _plan_entries(store, held.body) and _has_written(store, held, "plans")
    )


def _has_written(store: Store, held: lease.Lease, kind: str) -> bool:
    """Whether results or plans of its step were created while a dead call held a lease."""
    place = f"{kind}/{keys.encode_id(held.body['id'])}/{held.body['step']}"
    return any(each.modified >= held.modified for each in store.list(place))


def _plan_entries(store: Store, body: lease.Body) -> Mapping[str, Entry]:
    """What the plan of a dead call's step holds, by step; empty if it is not written."""
    plan_key = body.get("plan_key")
    if not plan_key:
        return {}
    stored = read_plan(store, records.plan_path(body["id"], body["step"], plan_key), ignore)
    return {} if stored is None else stored[1]


def _complete(store: Store, call: lease.OpenCall) -> None:
    """Write what a dead call had not yet written about its results that are in a plan."""
    plans = {held.body["step"]: _plan_entries(store, held.body) for held in call.leases}
    entries: dict[str, Entry] = {}
    for plan in plans.values():
        # It may be written before those of the steps that it needs, and is a hit from then on.
        entries |= plan
    entries |= {step: plan[step] for step, plan in plans.items() if plan}
    names: list[history.Name] = []
    for held in call.leases:
        entry = entries.get(held.body["step"])
        name = _write_record(store, held.body, entry) if entry is not None else None
        if name is not None:
            names.append(name)
    if names:
        history.point(store, names)


def _write_record(store: Store, body: lease.Body, entry: Entry) -> history.Name | None:
    """The record of a dead call's result, written if it is missing; None if the result is gone."""
    step = body["step"]
    path = records.result_path(body["id"], step, entry.file)
    data = store.get(path)
    file = None
    with suppress(PflError):  # It is gone or damaged.
        file = parse_result(data or b"", path).record
    if file is None:
        return None
    name = history.Name(keys.encode_id(body["id"]), step, file)
    fields = {
        "flow": body.get("flow"),
        "id": body["id"],
        "fingerprint": body.get("fingerprint"),
        "status": history.COMPUTED,
        "plan_key": body.get("plan_key"),
        "request_id": body.get("request_id"),
        "repaired": True,
    }
    if store.get(name.path) is None:
        has_value = entry.value is not NOT_LOADED
        history.append(store, name, {**entry_json(entry, with_value=has_value), **fields})
    return name


def _record_crash(store: Store, body: lease.Body, cause: str, error: PflError) -> None:
    since = body["since"]
    name = history.new_name(
        keys.encode_id(body["id"]),
        body["step"],
        history.CRASHED,
        time_ns=history.parse_time_ns(since),
        # The same name for every reaper, so that one that follows a dead one adds no second record.
        token=keys.digest(f"{body['call']} {body['step']}")[:8],
    )
    fields = {name: item for name, item in body.items() if name not in _FIELDS_OF_LEASE_ONLY}
    fields |= {
        "status": history.CRASHED,
        "cause": cause,
        "started_at": since,
        "error": error.to_json(),
    }
    history.append(store, name, fields)
    history.point(store, [name])
