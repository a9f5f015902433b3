"""
The same for two steps of one ID, ``a`` and then ``b``, which needs it; nobody dies.

A call claims both steps at once, and gives ``b`` back if another call holds ``a``. A plan holds the
values of its step and of those before it, so a bust of ``a`` concerns the plan of ``b``, too. A
result of ``b`` has the value of ``a`` in its name.

    plan/<step>…            ("plan", the value of a, the marks it has seen), ("fence", next)
    result/a…               (value, marks seen)
    result/b-<value of a>   there or not: no bust of b is made here
    lease/<step>            the call
    mark/<bust>             a bust of a
"""

from __future__ import annotations

from typing import Any

from .explore import Actor, Store, World
from .invariants import find_fault_of
from .protocol import Part

VOID_INPUTS = "a plan may hold an input that was void before the call had a lease on its step"
FAULTS = frozenset({VOID_INPUTS})
# See FAULTS.
faults: frozenset[str] = frozenset()


def call(me: str) -> Actor:
    """Answer a request for ``b``."""
    plan = yield from _find("b")
    yield "note", "begins"
    if plan is not None:
        yield "note", "replies", plan[1]
        return
    claimed = []
    for step in "ab":
        if (yield "create", f"lease/{step}", me):
            claimed.append(step)
    marks = yield "list", "mark/"
    plan = yield from _find("b")
    if plan is not None:
        yield from _release(claimed)
        yield "note", "replies", plan[1]
        return
    a = yield from _find("a")
    if a is None and "a" not in claimed and "b" in claimed:
        yield from _release(["b"])
        claimed = []
    elif a is not None and "a" in claimed:
        yield from _release(["a"])
        claimed.remove("a")
    yield "become", _settle_a, me, tuple(claimed), marks, a


def _settle_a(me: str, claimed: tuple[str, ...], marks: tuple[str, ...], a: Any) -> Actor:
    while a is None and "a" not in claimed:
        holder = yield "get", "lease/a"
        if holder is not None:
            yield "wait", "lease/a", holder, holder
        a = yield from _find("a")
        if a is None and (yield "create", "lease/a", me):
            claimed = (*claimed, "a")
            marks = yield "list", "mark/"
            a = yield from _find("a")
    if a is not None:
        yield "become", _settle_b, me, claimed, marks, a
    name = "result/a"
    while (result := (yield "get", name)) is not None and not set(marks) <= set(result[1]):
        name = f"result/a~{result[0]}"
    if result is None:
        result = (f"{me}a", marks)
        yield "note", "computes", result[0]
        if (yield "choose", False, True):
            # The next step has begun, and its result is created first.
            yield "create", f"result/b-{result[0]}", ""
        while not (yield "create", name, result):
            marks = yield "list", "mark/"
            name = "result/a"
            while (found := (yield "get", name)) is not None:
                if set(marks) <= set(found[1]):
                    result = found
                    break
                name = f"result/a~{found[0]}"
            if found is not None:
                break
    a = ("plan", *result)
    yield from _write_plan(me, "a", a)
    yield "become", _settle_b, me, claimed, marks, a


def _settle_b(me: str, claimed: tuple[str, ...], marks: tuple[str, ...], a: Any) -> Actor:
    result = f"result/b-{a[1]}"
    found = yield "get", result
    while "b" not in claimed:
        if found is not None:
            # Without a lease, it may be used, but its plan is not written.
            yield "become", _end, me, claimed, a[1]
        if (yield "create", "lease/b", me):
            claimed = (*claimed, "b")
            marks = yield "list", "mark/"
            plan = yield from _find("b")
            if plan is not None:
                yield "become", _end, me, claimed, plan[1]
        else:
            holder = yield "get", "lease/b"
            if holder is not None:
                yield "wait", "lease/b", holder, holder
            plan = yield from _find("b")
            if plan is not None:
                yield "become", _end, me, claimed, plan[1]
        found = yield "get", result
    yield "create", result, ""
    if VOID_INPUTS in faults or set(marks) <= set(a[2]):
        yield from _write_plan(me, "b", a)
    yield "become", _end, me, claimed, a[1]


def _end(me: str, claimed: tuple[str, ...], value: str) -> Actor:
    yield from _release(claimed)
    yield "note", "replies", value


def _release(claimed: Any) -> Part:
    for step in claimed:
        yield "delete", f"lease/{step}"


def _find(step: str) -> Part:
    name = f"plan/{step}"
    while True:
        plan = yield "get", name
        if plan is None or plan[0] == "plan":
            return plan
        name = plan[1]


def _write_plan(me: str, step: str, a: tuple[Any, ...]) -> Part:
    name = f"plan/{step}"
    number = 0
    while not (yield "create", name, a):
        there = yield "get", name
        if there is not None and there[0] == "fence":
            name = there[1]
        elif there is not None:
            marks = yield "list", "mark/"
            if set(marks) <= set(there[2]):
                return
            number += 1
            name = f"plan/{step}~{me}{number}"
            yield "put", f"plan/{step}", ("fence", name)
        if not set((yield "list", "mark/")) <= set(a[2]):
            return


def bust(me: str) -> Actor:
    """Bust ``a``."""
    mark = f"mark/{me}"
    yield "put", mark, ""
    yield "note", "bust begins", mark
    leases = yield "list", "lease/"
    kept = []
    for lease in leases:
        step = lease[-1]
        kept.append(step)
        name = f"plan/{step}"
        while True:
            fence = ("fence", f"plan/{step}~{me}")
            if (yield "create", name, fence):
                break
            plan = yield "get", name
            if plan is not None and plan[0] == "plan":
                if mark not in plan[2]:
                    yield "put", name, fence
                break
            name = plan[1] if plan is not None else name
    for name in (yield "list", "plan/"):
        if name[5] not in kept:
            yield "delete", name
    yield "note", "bust ends", mark


def find_fault(world: World) -> str | None:
    """What is wrong with a state."""
    store = dict(world.store)
    for step in "ab":
        plan = _behind_fences(store, step)
        fault = find_fault_of(
            world.notes, None if plan is None else plan[1], frozenset(), len(world.dead)
        )
        if fault is not None:
            return f"{fault} (the plan of {step})"
    return None


def _behind_fences(store: Store, step: str) -> Any:
    name = f"plan/{step}"
    while (plan := store.get(name)) is not None and plan[0] == "fence":
        name = plan[1]
    return plan
