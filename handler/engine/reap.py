"""
Cleans up calls that died: marks runs as Crashed, frees leases, and adds a record to history.

One reaper at a time takes a call. Doing everything twice has the effect of doing it once: Prefect
refuses a second terminal state, a lease is freed by a numbered create, and a record of history has
the name of its claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypedDict

from ..core.cache import history, lease
from ..core.cache.entry import ignore
from ..core.cache.lease import CallBody, ClaimBody
from ..core.errors import PflError
from ..core.event import Notify, notify_nobody
from ..core.settings import Settings
from ..core.store import keys, layout, records
from ..core.store.objects import Store
from ..core.store.values import JsonObject
from .causes import CAUSES
from .prefect import client, environment

if TYPE_CHECKING:
    # Not at run time: the extension of a dying sandbox has two seconds, imports included.
    from .invocation import Invocation

# The longest time in which an event of Prefect's becomes a task run, in seconds.
_ARRIVAL_S = 3
_FIELDS_OF_CLAIM_ONLY = ("state", "number", "host", "noted_at", "expires_at", "ttl_s", "tags")


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
    only: Iterable[str] | None = None,
    dry_run: bool = False,
    api: environment.Api | None = None,
    arrival_s: float = _ARRIVAL_S,
    notify: Notify = notify_nobody,
) -> Iterator[ReapedRow]:
    """
    Clean up every call on record that died, and yield each one.

    Args:
        store: The store with the calls.
        settings: The settings; they name the Prefect to report to.
        only: Only these calls.
        dry_run: Yield the calls, and do nothing.
        api: The Prefect to report to, if it is already known.
        arrival_s: How long to wait for events of a process that died just now, in seconds.
        notify: Called with what the reaper waits for.

    Raises:
        UnavailableError: Prefect or the store did not answer; the rest can be reaped later.
    """
    for call in list(lease.calls(store)) if only is None else only:
        if dry_run:
            state: lease.CallState | None = lease.call_state(store, call)
        else:
            layout.check(store)
            state = lease.claim_dead_call(store, call)
        if state is None or state.is_alive or not state.entries:
            continue
        body = state.body
        claims = lease.claims_of(store, body["id"], call) if "id" in body else []
        # If a call has expired, all of its events arrived long ago.
        is_recent = body.get("state") == "ended" or lease.is_gone(body.get("host"))
        cause = body.get("cause") or ("killed" if is_recent else "gone")
        error = _error(state, claims, cause)
        row: ReapedRow = {
            "call": call,
            "id": body.get("id"),
            "flow": body.get("flow"),
            "request_id": body.get("request_id"),
            "engine": body.get("engine"),
            "steps": [claim["step"] for claim in claims],
            "cause": cause,
            "what": error.what,
            "hint": error.hint,
            "runs": None,
        }
        if dry_run:
            yield row
            continue
        try:
            row["runs"] = []
            if row["engine"] == "prefect":
                flow_runs = (each.get("flow_run_id") for each in (body, *claims))
                api = api or environment.choose(settings, notify)
                row["runs"] = client.end(
                    api,
                    body.get("outcome", "CRASHED"),
                    error.lines,
                    call=call,
                    flow_runs=filter(None, flow_runs),
                    finished=body.get("finished") or _find_saved(store, body),
                    tasks={id: claim for claim in claims if (id := claim.get("task_run_id"))},
                    wait_s=arrival_s * is_recent,
                )
            for claim in claims:
                _record_crash(store, claim, cause, error)
                lease.free(store, claim)
        except BaseException:
            lease.release_dead_call(store, call, state)
            raise
        lease.forget_call(store, call)
        yield row


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
    for call in lease.calls(store):
        body = lease.call_state(store, call).body
        if body.get("request_id") != request_id:
            continue
        is_dead = lease.report(store, call, cause, why) or body.get("state") == "ended"
        # With no Prefect configured here, the call used the function's own: a reaper there ends it.
        if is_dead and (body.get("engine") != "prefect" or environment.configured(settings)):
            dead.append(call)
    return list(reap(store, settings, only=dead))


def reap_predecessors(invocation: Invocation, *, api: environment.Api | None) -> None:
    """
    Clean up the calls whose claims this one took over, before it computes: it may need their slots.

    Args:
        invocation: The call that is about to compute.
        api: Its Prefect; without one, calls that Prefect knows are left to other reapers.
    """
    store = invocation.store
    dead = invocation.call.dead
    while dead:
        call = dead.pop()
        if api is None and lease.call_state(store, call).body.get("engine") == "prefect":
            continue
        try:
            for row in reap(store, invocation.settings, only=[call], api=api):
                invocation.notify("", f"{row['what']}: its runs are marked as Crashed")
        except PflError as exc:
            invocation.finding.warnings.append(
                f"a dead call could not be cleaned up ({exc}); run pfl runs reap"
            )


def _error(state: lease.CallState, claims: list[ClaimBody], cause: str) -> PflError:
    body = state.body
    holder = lease.describe_holder({**body, "flow_run_id": None})
    steps = ", ".join(claim["step"] for claim in claims)
    doing = f" while computing {steps}" if steps else ""
    last = records.now_iso(state.entries[-1].modified)[:19]
    why = (
        f"last seen {last}Z, lease until {str(body.get('expires_at'))[:19]}Z, "
        f"request {body.get('request_id') or '?'}"
    )
    if body.get("why"):
        why = f"{body['why']}; {why}"
    return PflError(f"{holder} {CAUSES[cause].what}{doing}", why=why, hint=CAUSES[cause].hint)


def _find_saved(store: Store, body: CallBody) -> dict[str, JsonObject]:
    """The task runs of a dead call whose results are saved, and so are complete."""
    found: dict[str, JsonObject] = {}
    folder = keys.encode_id(body["id"])
    for step in store.folders(f"history/{folder}"):
        newest = islice(history.list_computed(store, folder, step, ignore), 1)
        for _, record in newest:
            task_run_id = record["task_run_id"]
            if task_run_id and record.get("request_id") == body.get("request_id"):
                found[task_run_id] = {**record, "type": "COMPLETED"}
    return found


def _record_crash(store: Store, claim: ClaimBody, cause: str, error: PflError) -> None:
    name = history.new_name(
        keys.encode_id(claim["id"]),
        claim["step"],
        history.CRASHED,
        time_ns=history.parse_time_ns(claim["since"]),
        # The same name for every reaper, so that one that follows a dead one adds no second record.
        token=keys.digest(f"{claim['call']} {claim['step']}")[:8],
    )
    fields = {name: item for name, item in claim.items() if name not in _FIELDS_OF_CLAIM_ONLY}
    fields |= {
        "status": history.CRASHED,
        "cause": cause,
        "started_at": claim["since"],
        "error": error.to_json(),
    }
    history.append(store, name, fields)
