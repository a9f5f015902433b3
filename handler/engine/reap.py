"""
Burying calls that died: their runs become Crashed, their leases free, and history tells of it.

A call is taken by one reaper at a time; it may do everything twice and still do it once: a terminal state is refused by
Prefect, a lease is freed by a numbered create, and a record of history has the name of its claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pfl.handler.core.cache import history, lease
from pfl.handler.core.errors import PflError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import keys, layout, records
from pfl.handler.core.store.objects import Store
from pfl.handler.engine.prefect import client, environment

if TYPE_CHECKING:
    from pfl.handler.engine.invocation import Invocation

_ARRIVAL_S = 3  # How long an event of Prefect's takes to become a task run, at most.
# Cause: what happened, and what to do about it.
ADVICE = {
    "timeout": (
        "ran into the function's time limit",
        "raise its timeout, or give the step less to do at once",
    ),
    "memory": ("ran out of memory", "raise the function's memory, or keep less in it at once"),
    "exit": (
        "ended by itself, with os._exit or in a crash of native code",
        "look at the last lines of its log",
    ),
    "import": (
        "could not import the flows",
        "build the image again with what they import; pfl plan shows the error here",
    ),
    "killed": (
        "was killed",
        "if nobody did it by hand it ran out of memory, most likely: give it more",
    ),
    "failure": (
        "died: it ended by itself, or was killed",
        "look at the last lines of its log; where they say signal: killed, give it more memory",
    ),
    "gone": (
        "ended without a word: by its time limit, out of memory, killed, or its sandbox is gone",
        "look at the last lines of its log; raise timeout or memory",
    ),
    "left": (
        "ended, but Prefect did not take the end of its run",
        "nothing, if its results are there: pfl cache ls",
    ),
}


def reap(
    store: Store,
    settings: Settings,
    *,
    only: Iterable[str] | None = None,
    dry_run: bool = False,
    api: environment.Api | None = None,
    arrival_s: float = _ARRIVAL_S,
    notify: Callable[[str, str], None] = lambda step, doing: None,
) -> Iterator[dict]:
    """
    Bury every call on record that died, each told as it is done.

    Args:
        store: Where the calls are on record.
        settings: Which Prefect to tell.
        only: Just these calls.
        dry_run: Say which, and do nothing.
        api: Which Prefect to tell, where that is known already.
        arrival_s: How long to wait for what a process may have told Prefect that died just now.
        notify: Told what is waited for.

    Raises:
        UnavailableError: Prefect or the store did not answer; what is not told yet can be reaped again.
    """
    for call in list(lease.calls(store)) if only is None else only:
        if not dry_run:
            layout.check(store)
        life = lease.call_state(store, call) if dry_run else lease.claim_dead_call(store, call)
        if life is None or life.is_alive or not life.entries:
            continue
        body = life.body
        claims = lease.claims_of(store, body["id"], call) if "id" in body else []
        is_new = body.get("state") == "ended" or lease.is_gone(body.get("host"))
        cause = body.get("cause") or ("killed" if is_new else "gone")
        error = _error(life, claims, cause)
        row = {name: body.get(name) for name in ("call", "id", "flow", "request_id", "engine")}
        row |= {
            "steps": [claim["step"] for claim in claims],
            "cause": cause,
            "what": error.what,
            "hint": error.hint,
        }
        if dry_run:
            yield row | {"runs": None}
            continue
        try:
            runs = []
            if body.get("engine") == "prefect":
                api = api or environment.choose(settings, lambda text: notify("", text))
                runs = client.end(
                    api, body.get("outcome", "CRASHED"), error.lines, call=call,
                    flow_runs={each["flow_run_id"] for each in (body, *claims) if each.get("flow_run_id")},
                    finished=body.get("finished") or _saved(store, body),
                    tasks={claim["task_run_id"]: claim for claim in claims if claim.get("task_run_id")},
                    # Of one that expired, all that it sent has long arrived.
                    wait_s=arrival_s if is_new else 0,
                )  # fmt: skip
            for claim in claims:
                _remember(store, claim, cause, error)
                lease.free(store, claim)
        except BaseException:
            lease.release_dead_call(store, call, life)
            raise
        lease.forget_call(store, call)
        yield row | {"runs": runs}


def after_error(
    store: Store, settings: Settings, request_id: str, cause: str, why: str
) -> list[dict]:
    """
    Bury the call of a request that Lambda answered with a function error; what was buried.

    Args:
        store: Where the calls are on record.
        settings: Which Prefect to tell.
        request_id: Lambda's name of the request.
        cause: What it died of, of :data:`ADVICE`.
        why: Lambda's own words.

    Raises:
        UnavailableError: Prefect or the store did not answer.
    """
    dead = []
    for call in lease.calls(store):
        body = lease.call_state(store, call).body
        if body.get("request_id") == request_id and (
            lease.report(store, call, cause, why) or body.get("state") == "ended"
        ):
            # Where no Prefect is named, it is the function's, which is not ours to know: whoever knows it reaps.
            dead += (
                [call]
                if body.get("engine") != "prefect" or environment.configured(settings)
                else []
            )
    return list(reap(store, settings, only=dead))


def of_shutdown(reason: str, *, killed_for_memory: bool) -> tuple[str, str]:
    """
    The cause, of :data:`ADVICE`, and words, from the reason of an extension's SHUTDOWN.

    Source: AWS Lambda Developer Guide, "Lambda Extensions API"; the emulator says ``ReleaseFail`` for ``failure``.
    """
    known = {"timeout": "timeout", "failure": "failure", "releasefail": "failure"}
    cause = "memory" if killed_for_memory else known.get(reason.lower(), "gone")
    return cause, f"Lambda shut its sandbox down: {reason.lower()}"


def followed(invocation: Invocation, *, api: environment.Api | None) -> None:
    """
    Bury those whose claims this invocation took over, before it computes: a slot of theirs might be what it waits for.

    Without an *api*, those that Prefect knows are left to others.
    """
    while invocation.call.dead:
        call = invocation.call.dead.pop()
        if api is None and lease.call_state(invocation.store, call).body.get("engine") == "prefect":
            continue
        try:
            for row in reap(invocation.store, invocation.settings, only=[call], api=api):
                invocation.notify("", f"{row['what']}: its runs are marked as Crashed")
        except PflError as exc:
            invocation.finding.warnings.append(
                f"a dead call could not be buried ({exc}); pfl runs reap does it"
            )


def _error(life: lease.CallState, claims: list[dict], cause: str) -> PflError:
    happened, advice = ADVICE[cause]
    body = life.body
    doing = f" while it computed {', '.join(claim['step'] for claim in claims)}" if claims else ""
    last = records.now_iso(life.entries[-1].modified)[:19]
    why = f"last sign of life {last}Z, on record until {str(body.get('expires_at'))[:19]}Z, request {body.get('request_id') or '?'}"
    why = "; ".join(part for part in (body.get("why"), why) if part)
    return PflError(
        f"{lease.describe_holder(body | {'flow_run_id': None})} {happened}{doing}",
        why=why,
        hint=advice,
    )


def _saved(store: Store, body: dict) -> dict[str, dict]:
    """The task runs of a dead call whose results are saved: they are completed, though it may not have come to telling Prefect."""
    found = {}
    for step in store.folders(f"history/{keys.encode_id(body['id'])}") if "id" in body else ():
        computed = history.list_computed(
            store, keys.encode_id(body["id"]), step, lambda warning: None
        )
        record = next((told for _, told in computed), {})
        if record.get("task_run_id") and record.get("request_id") == body.get("request_id"):
            told = {
                "flow_run_id": record["flow_run_id"],
                "step": step,
                "id": body["id"],
                "type": "COMPLETED",
            }
            found[record["task_run_id"]] = told
    return found


def _remember(store: Store, claim: dict, cause: str, error: PflError) -> None:
    since = claim["since"]
    about = {
        name: value
        for name, value in claim.items()
        if name not in ("state", "number", "host", "noted_at", "expires_at", "ttl_s", "tags")
    }
    body = about | {
        "status": "crashed",
        "cause": cause,
        "started_at": since,
        "error": error.to_json(),
    }
    token = keys.digest(f"{claim['call']} {claim['step']}")[
        :8
    ]  # A reaper before us that died gave it the same name.
    name = history.new_name(
        keys.encode_id(claim["id"]),
        claim["step"],
        history.CRASHED,
        time_ns=history.parse_time_ns(since),
        token=token,
    )
    history.append(store, name, body)
