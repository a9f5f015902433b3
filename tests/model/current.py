"""
The protocol before results decided, for one step of one ID: numbered leases, a plan that is put.

The model finds two faults in it: a holder that pauses between its check and its writes publishes
although it has lost its lease, and a bust does not stop a publisher that pauses before it writes
the plan.
"""

from __future__ import annotations

from collections.abc import Iterable

from .explore import Actor


def _newest(names: Iterable[str]) -> int:
    return max((int(name.removeprefix("lease/")) for name in names), default=0)


def call(me: str) -> Actor:
    """Look up, claim, compute, check, publish."""
    plan = yield "get", "plan"
    yield "note", "begins"
    if plan is not None:
        yield "note", "replies", plan[1]
        return
    while True:
        marks = yield "list", "bust/"
        result = yield "get", "result"
        if result is not None and set(marks) <= set(result[1]):
            yield "note", "replies", result[0]
            return
        number = _newest((yield "list", "lease/"))
        if number:
            lease = yield "get", f"lease/{number}"
            if lease is None:
                continue
            if lease[0] == "held" and (yield "is_alive", lease[1]):
                yield "wait", f"lease/{number + 1}", None, lease[1]
                continue
        mine = number + 1
        if not (yield "create", f"lease/{mine}", ("held", me)):
            continue
        if _newest((yield "list", "lease/")) != mine:
            yield "delete", f"lease/{mine}"
            continue
        result = yield "get", "result"
        if result is not None and set(marks) <= set(result[1]):
            yield "create", f"lease/{mine + 1}", ("free", "")
            yield "note", "replies", result[0]
            return
        break
    seen = yield "list", "bust/"
    yield "note", "computes", me
    if _newest((yield "list", "lease/")) != mine:
        return  # The lease was lost: nothing is published.
    yield "put", "result", (me, seen)
    yield "create", f"history/{me}", me
    yield "put", f"publishing/{me}", ""
    marks = yield "list", "bust/"
    if set(marks) <= set(seen):
        yield "put", "plan", ("plan", me, seen, False)
    yield "delete", f"publishing/{me}"
    yield "create", f"lease/{mine + 1}", ("free", "")
    yield "note", "replies", me


def bust(me: str) -> Actor:
    """Mark, wait for calls that have announced a plan, remove the plan."""
    yield "put", f"bust/{me}", ""
    yield "note", "bust begins"
    for name in (yield "list", "publishing/"):
        yield "wait", name, "", name.removeprefix("publishing/")
    yield "delete", "plan"
    yield "note", "bust ends"
