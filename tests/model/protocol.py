"""
The miss path of ``core/cache`` and ``engine``, for one step of one ID.

    call      get plan ─ create lease ─ create marker ─┬─ created: compute
                                                       └─ list marks ─ find result ─ or compute
              Over a network, lease and marker are created in any order. Until both are, the marker
              names the call, and nobody else computes.
              create result ─ create record, create plan ─ delete lease
    takeover  of dead A: create lease/after-A ─ is A's lease still there?
    bust      put mark ─ list leases ─ fence the plans of calls under way ─ delete the other plans
    reaper    create lease/after-A ─ write the record of a plan ─ put reaped/A ─ delete both leases

The objects:

    plan, plan~…            ("plan", value, marks seen, whether it is expired), ("fence", next)
    result, result~<value>  (value, marks seen, whether it is expired)
    history/<value>         a record
    lease/first, lease/after-<call>
                            ("lease", call, whether it is going to write the plan, whether reaped)
    reaped/<call>           this call was cleaned up
    marker                  ("claiming", call) or anything else
    mark/<bust>, hint

The functions are named after those that they stand for. Each of ``FAULTS`` is a way to do one thing
in fewer requests that the model finds to be wrong; :func:`tests.model.scenarios.faulty` puts it in.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import Any, NamedTuple

from .explore import Actor, Request

Part = Generator[Request, Any, Any]
# See FAULTS.
faults: frozenset[str] = frozenset()
FIRST = "lease/first"
_MOST_FENCES = 12
# What a call does about results that are there.
ONCE = ""
# It replaces what is stored: ``--bust this``.
BUSTS = "busts"
# It has gone on with a value which came second, and is made again.
AGAIN = "again"
# A call that tries to write its plan more often than this never ends.
_MOST_TRIES = 12


UNVERIFIED = "a takeover looks only at whether there is an older lease, not whose it is"
FROM_FIRST = "a reaper comes to a lease only by way of the first one"
IN_LEASE = "that a call is reaped is written over its lease"
MAKES_ROOM = "a call deletes a plan that it cannot use"
OWN_FENCE = "a call that busts deletes its own plan, and any fence there"
LATE_DELETE = "a bust deletes plans long after it has looked for calls under way"
LATE_MARKS = "a result names the marks that exist when it is saved, if another step listed them"
REAPED_ONCE = "a call that was reaped, woke and then died is not looked at again"
UNSETTLED = "a call that found the ID new may create its lease when another one is done"
FAULTS = frozenset(
    {
        UNSETTLED,
        UNVERIFIED,
        FROM_FIRST,
        IN_LEASE,
        MAKES_ROOM,
        OWN_FENCE,
        LATE_DELETE,
        LATE_MARKS,
        REAPED_ONCE,
    }
)


class Claim(NamedTuple):
    """A lease that a call holds, and those of dead calls before it: name and content."""

    name: str
    dead: tuple[tuple[str, tuple[Any, ...]], ...]
    gone: tuple[bool, ...] = ()
    reaped: frozenset[str] = frozenset()


class Held(NamedTuple):
    """A lease that another call holds."""

    name: str
    lease: tuple[Any, ...]


class Value(NamedTuple):
    """A result, whether its record may be missing, and whether it may have a plan."""

    name: str
    seen: tuple[str, ...]
    needs_record: bool
    is_valid: bool = True


def call(me: str, kind: str = ONCE) -> Actor:
    """One call; *kind*: what it does about results that are there."""
    first = yield "get", "plan"
    yield "note", "begins"
    plan = yield from _behind(first)
    if plan is not None and kind != BUSTS:
        yield "note", "replies", plan[1]
        return
    hint = (yield "get", "hint") or ()
    if (yield "choose", "lease first", "marker first") == "lease first":
        claim = yield from _claim(me, True)
        is_new = yield "create", "marker", me
    else:
        marker = me if UNSETTLED in faults else ("claiming", me)
        is_new = yield "create", "marker", marker
        claim = yield from _claim(me, True)
        if is_new:
            yield "put", "marker", me
    if isinstance(claim, Held):
        yield "become", _wait, me, kind, claim
    elif is_new:
        yield "become", _compute, me, kind, claim, hint, "result"
    else:
        yield "become", _read, me, kind, claim


def _call_again(me: str) -> Actor:
    """The same call, once it has noticed that its value came second: ``compute.missing``."""
    plan = yield from _find()
    if plan is not None:
        yield "note", "replies", plan[1]
        return
    claim = yield from _claim(me, True)
    if isinstance(claim, Held):
        yield "become", _wait, me, AGAIN, claim
    else:
        yield "become", _read, me, AGAIN, claim


def _find() -> Part:
    """The plan behind all fences, unless it is expired."""
    plan = yield "get", "plan"
    return (yield from _behind(plan))


def _behind(plan: tuple[Any, ...] | None) -> Part:
    for _ in range(_MOST_FENCES):
        if plan is None:
            return None
        if plan[0] == "plan":
            return None if plan[3] else plan
        plan = yield "get", plan[1]
    return None


def _claim(me: str, is_planned: bool, after: tuple[str, Any] | None = None) -> Part:
    """Take the lease, or only that of one dead call: ``LeaseHolder._claim``."""
    dead: list[tuple[str, Any]] = []
    name = FIRST
    if after is not None:
        dead, name = [after], f"lease/after-{after[1][1]}"
    while True:
        if (yield "create", name, ("lease", me, is_planned, False)):
            # A takeover of a lease that has been deleted meanwhile is none.
            if UNVERIFIED in faults:
                if not dead or (yield "get", dead[-1][0]) is not None:
                    return Claim(name, tuple(dead))
            else:
                gone = []
                for _, lease in dead:
                    gone.append((yield "is_gone", lease[1]))
                for each, lease in dead:
                    now = yield "get", each
                    if now is None or now[1] != lease[1]:
                        break
                else:
                    return Claim(name, tuple(dead), tuple(gone))
            yield "delete", name
            if after is not None:
                return None
            name, dead = FIRST, []
            continue
        found = yield "get", name
        if found is None:
            if after is not None:
                return None
            name, dead = FIRST, []
        elif not found[3] and (yield "is_alive", found[1]):
            return Held(name, found)
        else:
            if IN_LEASE not in faults and (yield "get", f"reaped/{found[1]}") is not None:
                found = (*found[:3], True)
            dead.append((name, found))
            name = f"lease/after-{found[1]}"


def _wait(me: str, kind: str, held: Held) -> Actor:
    """Poll the plan and the lease in turn, then claim: ``Claims.try_again``."""
    yield "wait" if kind == BUSTS else "wait_for_plan", *held, held.lease[1]
    if (yield "choose", "plan", "lease") == "plan":
        plan = yield from _find()
        if plan is not None and kind != BUSTS:
            yield "note", "replies", plan[1]
            return
    claim = yield from _claim(me, True)
    if isinstance(claim, Held):
        yield "become", _wait, me, kind, claim
    else:
        yield "become", _read, me, kind, claim


def _read(me: str, kind: str, claim: Claim) -> Actor:
    """Read what is stored: ``Claims.read``, ``Worker.find``."""
    marks = yield "list", "mark/"
    if kind == BUSTS:
        name = "result"
        while (result := (yield "get", name)) is not None:
            name = f"result~{result[0]}"
        yield from _wait_for_marker()
        yield "become", _compute, me, kind, claim, marks, name
    plan = yield from _find()
    if plan is not None:
        yield "become", _release, me, claim, plan[1]
    found = yield from _find_result(marks)
    yield from _wait_for_marker()
    if isinstance(found, str):
        yield "become", _compute, me, kind, claim, marks, found
    value, seen, _ = found
    is_recorded = (yield "get", f"history/{value}") is not None
    yield "become", _publish, me, claim, Value(value, seen, not is_recorded)


def _wait_for_marker() -> Part:
    """Wait for the call that found the ID new: ``Claims._wait_for_marker``."""
    while (marker := (yield "get", "marker")) and marker[0] == "claiming":
        if (yield "is_alive", marker[1]):
            yield "wait", "marker", marker, marker[1]
        else:
            yield "put", "marker", "settled"


def _find_result(marks: Collection[str]) -> Part:
    """The oldest result that may be served, or a free name: ``accept.find_result``."""
    name = "result"
    while True:
        result = yield "get", name
        if result is None:
            return name
        value, seen, is_expired = result
        if set(marks) <= set(seen) and not is_expired:
            return result
        name = f"result~{value}"


def _compute(me: str, kind: str, claim: Claim, seen: tuple[str, ...], free: str) -> Actor:
    """Clean up who was dead, compute, create the result: ``reap_predecessors``, ``commit``."""
    for index, (_, (_, holder, _, is_reaped)) in enumerate(claim.dead):
        # If it may have woken since it was reaped, it may have written a plan.
        is_gone = REAPED_ONCE not in faults and claim.gone[index : index + 1] == (True,)
        if (not is_reaped or is_gone) and holder not in claim.reaped:
            leases = yield from _open_leases(holder, is_gone)
            if leases:
                yield from _reap(leases)
            claim = claim._replace(reaped=claim.reaped | {holder})
    value = f"{me}{2 if kind == AGAIN else 1}"
    own = f"mark/x{me}"
    yield "note", "computes", value, *([{own}] if kind == BUSTS else [])
    if LATE_MARKS in faults and (yield "choose", False, True):
        # Another step of the same call, which was held, has been claimed meanwhile.
        seen = yield "list", "mark/"
    if kind == BUSTS:
        seen = (*seen, own)
    yield "become", _commit, me, kind, claim, value, seen, free


def _commit(
    me: str, kind: str, claim: Claim, value: str, seen: tuple[str, ...], free: str
) -> Actor:
    while not (yield "create", free, (value, seen, False)):
        if kind == BUSTS:
            # The name decides which call has replaced what was there.
            value, seen, _ = yield "get", free
            break
        if kind == ONCE and (yield "choose", False, True):
            # Its next step has begun: ``SupersededError``.
            yield from _delete_leases(me, claim)
            yield "become", _call_again, me
        marks = yield "list", "mark/"
        found = yield from _find_result(marks)
        if not isinstance(found, str):
            value, seen, _ = found
            break
        free = found
    known: Collection[str] = ()
    own = [mark for mark in seen if mark.startswith("mark/x")]
    if kind == BUSTS and own:
        yield from _bust_result(me, own[-1], seen, claim)
        if OWN_FENCE not in faults:
            known = yield "list", "mark/"
        if own[-1] != f"mark/x{me}":
            yield "note", "bust ends", own[-1]
    yield "become", _publish, me, claim, Value(value, seen, True, set(known) <= set(seen))


def _publish(me: str, claim: Claim, result: Value) -> Actor:
    """Write record and plan, in any order: ``Publisher.finish``."""
    is_plan_first = result.needs_record and (yield "choose", False, True)
    if result.needs_record and not is_plan_first:
        yield "create", f"history/{result.name}", ""
        result = result._replace(needs_record=False)
    yield "become", _write_plan, me, claim, result, "plan", 0


def _write_plan(me: str, claim: Claim, result: Value, name: str, tries: int) -> Actor:
    """``Publisher.write_plan`` and ``_make_way``, then the record if it is not there yet."""
    if result.is_valid and not (yield "create", name, ("plan", result.name, result.seen, False)):
        if tries == _MOST_TRIES:
            yield "note", "never ends"
        name = yield from _make_way(me, name, tries)
        marks = yield "list", "mark/"
        if name and set(marks) <= set(result.seen):
            yield "become", _write_plan, me, claim, result, name, tries + 1
    if result.needs_record:
        yield "create", f"history/{result.name}", ""
    yield "become", _release, me, claim, result.name


def _make_way(me: str, name: str, tries: int) -> Part:
    plan = yield "get", name
    if plan is None:
        return name
    if plan[0] == "fence":
        return plan[1]
    marks = yield "list", "mark/"
    if set(marks) <= set(plan[2]) and not plan[3]:
        return ""
    free = f"plan~{me}{tries}"
    if MAKES_ROOM not in faults:
        yield "put", "plan", ("fence", free)
        return free
    for _, (_, holder, is_planned, _) in (yield from _list_leases()):
        if holder != me and is_planned:
            yield "put", name, ("fence", free)
            return free
    yield "delete", name
    return name


def _list_leases() -> Part:
    found = []
    for name in (yield "list", "lease/"):
        lease = yield "get", name
        if lease is not None:
            found.append((name, lease))
    return found


def _release(me: str, claim: Claim, value: str) -> Actor:
    """Delete the leases, and reply: ``LeaseHolder.release``."""
    yield from _delete_leases(me, claim)
    yield "note", "replies", value
    yield "note", "bust ends", f"mark/x{me}"


def _delete_leases(me: str, claim: Claim) -> Part:
    gone = []
    for index, (name, (_, holder, _, is_reaped)) in enumerate(claim.dead):
        if holder not in claim.reaped and not (is_reaped and REAPED_ONCE in faults):
            continue
        if UNVERIFIED in faults:
            may_delete = yield "is_gone", holder
        else:
            # One that may wake deletes those before it.
            may_delete = all(claim.gone[index:])
        if may_delete:
            gone.append(name)
    for name in gone:
        yield "delete", name
    yield "delete", claim.name, f"reaped/{me}"


def _bust_result(me: str, mark: str, seen: tuple[str, ...], claim: Claim) -> Part:
    """``bust.bust_result``."""
    yield "put", mark, ""
    yield "note", "bust begins", mark
    yield "create", "marker", ""
    for older in (yield "list", "mark/x"):
        if older in seen and older != mark:
            yield "delete", older
    kept = yield from _fence(f"x{me}", mark, me)
    if not kept:
        while not (yield "delete_unless", "plan", "lease/", (claim.name,)):
            if (yield from _fence(f"x{me}", mark, me)):
                break


def _fence(bust: str, mark: str | None, own_call: str = "") -> Part:
    """The names of the plans that must not be deleted: ``bust.fence``."""
    kept: set[str] = set()
    for _, (_, holder, is_planned, _) in (yield from _list_leases()):
        if is_planned and holder != own_call:
            kept |= yield from _put_fence(bust, mark)
    return kept


def _put_fence(bust: str, mark: str | None) -> Part:
    name = "plan"
    for _ in range(_MOST_FENCES):
        plan = yield "get", name
        if plan is None or plan[0] == "plan":
            break
        name = plan[1]
    is_valid = plan is not None and plan[0] == "plan" and not plan[3]
    if mark is None or not is_valid or mark not in plan[2]:
        # What is behind an older fence is cut off.
        yield "put", "plan", ("fence", f"plan~{bust}")
    return {"plan"}


def held_by(at: tuple[Any, ...]) -> tuple[str, str] | None:
    """The lease of a call that has not begun to release it, and the call."""
    function, words, _ = at
    for word in words:
        if isinstance(word, Claim) and function is not _release:
            return word.name, words[0]
    return None


def bust(me: str, covers_all: bool = False) -> Actor:
    """``bust.bust``, of one ID or of all."""
    mark = f"mark/{me}"
    yield "put", mark, ""
    yield "note", "bust begins", mark
    if covers_all:
        yield from _refresh_hint()
    else:
        yield "create", "marker", ""
    yield from _remove_plans(me, mark)
    yield "note", "bust ends", mark


def _refresh_hint() -> Part:
    written = None
    while (marks := (yield "list", "mark/")) != written:
        yield "put", "hint", marks
        written = marks


def _remove_plans(bust: str, mark: str | None) -> Part:
    kept = yield from _fence(bust, mark)
    for name in (yield "list", "plan"):
        if LATE_DELETE in faults:
            if name not in kept:
                yield "delete", name
        elif not kept:
            while not (yield "delete_unless", name, "lease/", ()):
                if kept := (yield from _fence(bust, mark)):
                    break


def restore(me: str, undone: str) -> Actor:
    """``bust.restore`` of a bust that has ended."""
    mark = f"mark/{undone}"
    yield "note", "bust begins", me  # From here on, two values are no fault.
    yield from _remove_plans(me, None)
    yield "delete", mark
    yield from _remove_plans(me, None)


def reaper(me: str) -> Actor:
    """``reap.reap``, once over all open calls."""
    calls: dict[str, list[tuple[str, Any]]] = {}
    for name, lease in (yield from _list_leases()):
        if not (yield from _is_reaped(lease)) or (
            REAPED_ONCE not in faults and (yield "is_gone", lease[1])
        ):
            calls.setdefault(lease[1], []).append((name, lease))
    for holder, leases in calls.items():
        if (yield "is_alive", holder):
            continue
        after = None if FROM_FIRST in faults else leases[0]
        claim = yield from _claim(me, False, after)
        if claim is None or isinstance(claim, Held):
            continue
        if any(lease[1] == holder for _, lease in claim.dead):
            yield from _reap(leases)
            claim = claim._replace(reaped=frozenset({holder}))
        yield from _delete_leases(me, claim)


def _is_reaped(lease: tuple[Any, ...]) -> Part:
    if IN_LEASE in faults:
        return lease[3]
    return (yield "get", f"reaped/{lease[1]}") is not None


def _open_leases(holder: str, is_gone: bool) -> Part:
    found = []
    for name, lease in (yield from _list_leases()):
        if lease[1] == holder and (is_gone or not (yield from _is_reaped(lease))):
            found.append((name, lease))
    return found


def _reap(leases: list[tuple[str, Any]]) -> Part:
    """``reap._reap``: write a missing record, then ``lease.mark_reaped``."""
    for _, (_, _, is_planned, _) in leases:
        if is_planned and (plan := (yield from _find())) is not None:
            yield "create", f"history/{plan[1]}", ""
    for name, (kind, holder, is_planned, _) in leases:
        if IN_LEASE in faults:
            yield "put", name, (kind, holder, is_planned, True)
        else:
            yield "put", f"reaped/{holder}", ""
