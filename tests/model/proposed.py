"""
A protocol for the miss path that needs few requests, for one step of one ID. It is not built yet.

Creating the plan is what publishes a value: the store lets one writer create it, so a loser takes
the winner's value, and nothing has to be checked first. A lease only saves a second computation.

    call      get plan ─ take lease ─ get plan ─ compute ─ create plan ─ create record ─ free lease
    takeover  of dead A: create lease/A, which one caller can do
    bust      put mark ─ list leases ─┬─ none: delete the plan, if the mark made it void
                                      └─ some: replace it by a fence, which names the next plan

A fence is a plan that says "void, see plan~<bust>". It takes the name, so the create of a call that
was under way fails, however long that call pauses. A hit takes a second read only after a bust that
met a call under way. A call that was taken for dead may still wake, so its lease is kept as
``zombie/…`` for later busts. A value is never overwritten, and a record is created after its plan,
by the writer or by the caller that finds the writer dead.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from .explore import Actor, Request

FIRST = "lease/first"
Part = Generator[Request, Any, Any]


def _fence_of(plan: tuple[Any, ...] | None) -> str | None:
    """The bust that a plan was fenced by."""
    return plan[1] if plan is not None and plan[0] == "void" else None


def _find() -> Part:
    """The name and content of the plan, behind all fences."""
    name = "plan"
    while True:
        plan = yield "get", name
        bust = _fence_of(plan)
        if bust is None:
            return name, plan
        name = f"plan~{bust}"


def _claim(me: str) -> Part:
    """
    Take the lease.

    Returns:
        The dead holders that it was taken over from; or else None, and what to wait for.
    """
    dead: list[str] = []
    name = FIRST
    while True:
        if (yield "create", name, me):
            # A takeover of a lease that was given up meanwhile is none.
            if not dead or (yield "get", FIRST) == dead[0]:
                return dead, None
            yield "delete", name
            dead, name = [], FIRST
            continue
        holder = yield "get", name
        if holder is None:
            dead, name = [], FIRST
        elif (yield "is_alive", holder):
            return None, (name, holder)
        else:
            dead.append(holder)
            name = f"lease/{holder}"


def _release(dead: list[str]) -> Part:
    for holder in dead:
        yield "put", f"zombie/{holder}", ""
    yield "delete", FIRST
    for holder in dead:
        yield "delete", f"lease/{holder}"


def _compute(me: str) -> Part:
    """Compute until a value is published, ours or another's; returns it."""
    turn = 0
    while True:
        name, plan = yield from _find()
        if plan is not None:
            # Its writer may have died before it wrote the record.
            yield "create", f"history/{plan[0]}", plan[0]
            return plan[0]
        seen = yield "list", "bust/"
        turn += 1
        value = f"{me}{turn}"
        yield "note", "computes", value
        while not (yield "create", name, (value, seen)):
            plan = yield "get", name
            bust = _fence_of(plan)
            if plan is not None and bust is None:
                return plan[0]  # Another call was faster.
            if bust is None or f"bust/{bust}" not in seen:
                value = ""  # It was busted while it was computed.
                break
            name = f"plan~{bust}"
        if value:
            yield "create", f"history/{value}", value
            return value


def call(me: str) -> Actor:
    """Look up, claim, compute, publish, release."""
    yield "note", "begins"
    while True:
        _, plan = yield from _find()
        if plan is not None:
            yield "note", "replies", plan[0]
            return
        dead, held = yield from _claim(me)
        if held is None:
            break
        name, holder = held
        yield "wait", name, holder, holder
    value = yield from _compute(me)
    yield from _release(dead)
    yield "note", "replies", value


def bust(me: str) -> Actor:
    """Mark, then remove or fence what the mark makes void."""
    yield "note", "bust begins"
    mark = f"bust/{me}"
    yield "put", mark, ""
    leases = yield "list", "lease/"
    zombies = yield "list", "zombie/"
    is_under_way = bool(leases or zombies)
    name = "plan"
    while True:
        plan = yield "get", name
        earlier = _fence_of(plan)
        if earlier is not None:
            name = f"plan~{earlier}"
        elif plan is None:
            if not is_under_way or (yield "create", name, ("void", me)):
                break
        elif mark in plan[1]:
            break  # It was computed after the mark.
        else:
            yield "create", f"history/{plan[0]}", plan[0]
            if is_under_way:
                yield "put", name, ("void", me)
            else:
                yield "delete", name
            break
    yield "note", "bust ends"
