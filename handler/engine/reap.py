"""
Burying calls that died: their runs become Crashed, their leases free, and history tells of it.

A call is taken by one reaper at a time; it may do everything twice and still do it once: a terminal state is refused by
Prefect, a lease is freed by a numbered create, and a record of history has the name of its claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from handler.core import history, keys, lease, records
from handler.core.errors import PflError
from handler.core.settings import Settings
from handler.core.store import Store
from handler.engine.deadline import message
from handler.engine.execute import Invocation, Notify

_ARRIVAL_S = 3  # How long an event of Prefect's takes to become a task run, at most.

# Cause: what happened, and what to do about it.
ADVICE = {
    "timeout": ("ran into the function's time limit", "raise its timeout, or give the step less to do at once"),
    "memory": ("ran out of memory", "raise the function's memory, or keep less in it at once"),
    "exit": ("ended by itself, with os._exit or in a crash of native code", "look at the last lines of its log"),
    "import": ("could not import the flows", "build the image again with what they import; pfl plan shows the error here"),
    "killed": ("was killed", "if nobody did it by hand it ran out of memory, most likely: give it more"),
    "gone": (
        "ended without a word: by its time limit, out of memory, killed, or its sandbox is gone",
        "look at the last lines of its log; raise timeout or memory",
    ),
    "left": ("ended, but Prefect did not take the end of its run", "nothing, if its results are there: pfl cache ls"),
}


def reap(
    store: Store,
    settings: Settings,
    *,
    only: Iterable[str] | None = None,
    dry_run: bool = False,
    prefect_is_set_up: bool = False,
    causes: dict[str, str] | None = None,
    notify: Notify = lambda step, doing: None,
) -> Iterator[dict]:
    """
    Bury every call on record that died, each told as it is done.

    Args:
        store: Where the calls are on record.
        settings: Which Prefect to tell.
        only: Just these calls.
        dry_run: Say which, and do nothing.
        prefect_is_set_up: We are inside a run already.
        causes: Why a call died, of :data:`ADVICE`, where someone knows.
        notify: Told what is waited for.

    Raises:
        UnavailableError: Prefect or the store did not answer; what is not told yet can be reaped again.
    """
    for call in list(lease.calls(store)) if only is None else only:
        life = lease.life_of(store, call) if dry_run else lease.take_dead(store, call)
        if life is None or life.is_alive or not life.entries:
            continue
        claims = lease.claims_of(store, life.body["id"], call) if "id" in life.body else []
        cause = (causes or {}).get(call) or _cause(life)
        error = _error(life, claims, cause)
        row = {name: life.body.get(name) for name in ("call", "id", "flow", "request_id", "engine")}
        row |= {"steps": [claim["step"] for claim in claims], "cause": cause, "what": error.what, "hint": error.hint}
        if dry_run:
            yield row | {"runs": None}
            continue
        try:
            runs = []
            if life.body.get("engine") == "prefect":
                runs = _tell_prefect(life, claims, error, settings, prefect_is_set_up, notify)
            for claim in claims:
                _remember(store, claim, cause, error)
                lease.free(store, claim)
        except BaseException:
            lease.give_back(store, call, life)
            raise
        lease.bury(store, call)
        yield row | {"runs": runs}


def followed(invocation: Invocation, *, direct: bool) -> None:
    """Bury those whose claims this invocation took over, before it computes: a slot of theirs might be what it waits for."""
    while invocation.call.dead:
        call = invocation.call.dead.pop()
        if direct and lease.life_of(invocation.store, call).body.get("engine") == "prefect":
            continue  # It would load Prefect, which was not asked for.
        try:
            for row in reap(invocation.store, invocation.settings, only=[call], prefect_is_set_up=True):
                invocation.notify("", f"{row['what']}: its runs are marked as Crashed")
        except PflError as exc:
            invocation.finding.warnings.append(f"a dead call could not be buried ({exc}); pfl runs reap does it")


def _cause(life: lease.Life) -> str:
    if life.body.get("state") == "ended":
        return "left"
    return "killed" if lease.is_gone(life.body.get("host")) else "gone"


def _error(life: lease.Life, claims: list[dict], cause: str) -> PflError:
    happened, advice = ADVICE[cause]
    body = life.body
    doing = f" while it computed {', '.join(claim['step'] for claim in claims)}" if claims else ""
    last = records.now_iso(life.entries[-1].modified)[:19]
    why = f"last sign of life {last}Z, on record until {str(body.get('expires_at'))[:19]}Z, request {body.get('request_id') or '?'}"
    return PflError(f"{lease.holder(body | {'flow_run_id': None})} {happened}{doing}", why=why, hint=advice)


def _tell_prefect(
    life: lease.Life, claims: list[dict], error: PflError, settings: Settings, is_set_up: bool, notify: Notify
) -> list[str]:
    from handler.engine import prefect_run

    known = {each["flow_run_id"] for each in (life.body, *claims) if each.get("flow_run_id")}
    with nullcontext() if is_set_up else prefect_run.session(settings, notify):
        # A process of this machine is missed at once; of another one only when all it sent has long arrived.
        wait_s = _ARRIVAL_S if lease.is_gone(life.body.get("host")) else 0
        tasks = [claim.get("task_run_id") for claim in claims]
        return prefect_run.crash(life.body["call"], known, tasks, message(error), wait_s=wait_s)


def _remember(store: Store, claim: dict, cause: str, error: PflError) -> None:
    since = claim["since"]
    about = {name: value for name, value in claim.items() if name not in ("state", "number", "host", "noted_at", "expires_at")}
    body = about | {"status": "crashed", "cause": cause, "started_at": since, "error": error.to_json()}
    token = keys.digest(f"{claim['call']} {claim['step']}")[:8]  # A reaper before us that died gave it the same name.
    name = history.new_name(keys.encode_id(claim["id"]), claim["step"], records.CRASHED, time_ns=history.ns_of(since), token=token)
    history.append(store, name, body)
