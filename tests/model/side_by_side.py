"""
What one call writes about ``a`` and about ``b``, which needs it, side by side; and a reaper.

Both results are decided. The store may refuse each record and each plan, and the call may die.

    lease           the call
    record/<step>   there or not
    plan/<step>     the steps whose values it holds
"""

from __future__ import annotations

from .explore import Actor, Store, World

RELEASES = "a call whose record was refused releases its lease"
OWN_PLAN = "a reaper takes the result of a step from the plan of that step alone"
FAULTS = frozenset({RELEASES, OWN_PLAN})
# See FAULTS.
faults: frozenset[str] = frozenset()
LEASED: Store = {"lease": "A"}


def call(me: str) -> Actor:
    """Write all that is left about both steps: ``Publisher.publish``, ``finish``."""
    # In any order; some stores get the plan of a step only after its record.
    left = {"record/a", "plan/a", "record/b", "plan/b"}
    planned = ""
    unrecorded = set[str]()
    while left:
        name = yield "choose", *sorted(left)
        left.remove(name)
        kind, step = name.split("/")
        if kind == "plan":
            planned += "ab" if step == "b" else "a"
        if (yield "choose", "accepted", "refused") == "accepted":
            yield "create", name, "ab" if name == "plan/b" else step
        elif kind == "record":
            unrecorded.add(step)
    if RELEASES in faults or unrecorded.isdisjoint(planned):
        yield "delete", "lease"


def reaper(me: str, holder: str) -> Actor:
    """Clean up the call once it is dead: ``reap._complete``."""
    yield "wait", "lease", holder, holder
    if (yield "get", "lease") is None:
        return
    plans = {}
    for step in "ab":
        plans[step] = (yield "get", f"plan/{step}") or ""
    for step in "ab":
        if step in (plans[step] if OWN_PLAN in faults else plans["a"] + plans["b"]):
            yield "create", f"record/{step}", step
    yield "delete", "lease"


def find_fault_at_end(world: World) -> str | None:
    """What is wrong once the call has ended or died, and the reaper is done."""
    store = dict(world.store)
    if "lease" in store:
        return "the lease is left"
    for step in store.get("plan/a", "") + store.get("plan/b", ""):
        if f"record/{step}" not in store:
            return f"a hit is answered with {step}, which has no record"
    return None
