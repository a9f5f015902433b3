"""
What must hold in every state, whichever protocol led to it.

The notes are these:

    ("begins", call, busts that have ended)
    ("computes", value, busts that have begun)
    ("replies", call, value)
    ("bust begins", bust), ("bust ends", bust)
    ("never ends", call)
"""

from __future__ import annotations

from functools import lru_cache

from . import protocol
from .explore import World, behind_fences, run_alone

Notes = frozenset[tuple[object, ...]]


def find_fault(world: World) -> str | None:
    """What is wrong with a state."""
    store = dict(world.store)
    for at in world.at:
        # A bust has to see who may still write a plan.
        if at is not None and (held := protocol.held_by(at)) is not None:
            name, call = held
            lease = store.get(name)
            if lease is None or lease[1] != call:
                return f"{call} holds {name}, where {lease} is"
    plan = behind_fences(store)
    hit = plan[1] if plan is not None and not plan[3] else None
    records = frozenset(name for name in store if name.startswith("history/"))
    return find_fault_of(world.notes, hit, records, len(world.dead))


@lru_cache(maxsize=1 << 16)
def find_fault_of(notes: Notes, hit: str | None, records: frozenset[str], dead: int) -> str | None:
    begun = {note[1] for note in notes if note[0] == "bust begins"}
    ended = {note[1] for note in notes if note[0] == "bust ends"} & begun
    begun_before = {note[1]: note[2] for note in notes if note[0] == "computes"}
    called_after = {note[1]: note[2] for note in notes if note[0] == "begins"}
    replies = {note[1]: note[2] for note in notes if note[0] == "replies"}
    for note in notes:
        if note[0] == "never ends":
            return f"{note[1]} does not end"
    for actor, value in replies.items():
        # A computation that had seen the bust began after it.
        if old := (called_after.get(actor, frozenset()) & ended) - begun_before[value]:
            return f"{actor} was answered with {value}, which was busted by {sorted(old)}"
    if hit is not None and (old := ended - begun_before[hit]):
        return f"a hit would be answered with {hit}, which was busted by {sorted(old)}"
    if begun:
        return None
    if len(set(replies.values())) > 1:
        return f"two values were replied: {replies}"
    computed = begun_before.keys() - {"old"}
    if len(computed) > 1 + dead:
        return f"computed {len(computed)} times, with {dead} calls taken for dead"
    new = records - {"history/old"}
    if len(new) > 1:
        return f"history has two values: {sorted(new)}"
    if hit is not None and replies and hit not in replies.values():
        return f"{replies} was replied, and a hit would be answered with {hit}"
    return None


def find_fault_at_end(world: World) -> str | None:
    """What is wrong once all have ended, a reaper has run, and one more call has come."""
    before = {note[2] for note in world.notes if note[0] == "replies"}
    is_busted = any(note[0] == "bust begins" for note in world.notes)
    reaped = run_alone(world, "R", protocol.reaper, "R")
    if reaped is None:
        return "a reaper does not end"
    store = dict(reaped.store)
    plan = behind_fences(store)
    if plan is not None and f"history/{plan[1]}" not in store:
        return f"{plan[1]} has a plan and no record, after the reaper"
    for name, lease in store.items():
        if name.startswith("lease/"):
            if lease[1] not in world.crashed:
                return f"{name} of {lease[1]}, which ended, is left"
            if not lease[3] and f"reaped/{lease[1]}" not in store:
                return f"{name} of {lease[1]}, which crashed, is never reaped"
    last = run_alone(reaped, "Z", protocol.call, "Z")
    if last is None:
        return "a later call does not end"
    if (fault := find_fault(last)) is not None:
        return f"a later call: {fault}"
    [value] = (note[2] for note in last.notes if note[:2] == ("replies", "Z"))
    if not is_busted and before and value not in before:
        return f"{sorted(before)} was replied, and a later call is answered with {value}"
    again = run_alone(last, "Y", protocol.call, "Y")
    if again is None:
        return "a call after that does not end"
    values = {note[2] for note in again.notes if note[:2] == ("replies", "Y")}
    return None if values == {value} else f"{value} was replied, and then {sorted(values)}"
