"""
What every miss has to know of all IDs, in one small object, so that no miss has to list.

It is rewritten from listings after each change. It may be older than the listings, so it only ever
says what to look at: a bust that it lacks costs a second computation at most, and an acceptance
that it names is looked up before it is used.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypedDict, cast
from weakref import WeakKeyDictionary

from ..errors import CorruptRecordError
from ..store import records
from ..store.objects import Store

KEY = "shared.json"
_VERSION = 1


class Shared(TypedDict):
    """
    Attributes:
        busts: The keys of the marks that apply to many IDs.
        limits: The keys of the limits that were set by hand.
        accepted: The fingerprints for which older code is accepted.
    """

    version: int
    busts: list[str]
    limits: list[str]
    accepted: list[str]


NOTHING: Shared = {"version": _VERSION, "busts": [], "limits": [], "accepted": []}
_last_read: WeakKeyDictionary[Store, Shared] = WeakKeyDictionary()


def remembered(store: Store) -> Shared:
    """What this process read last, or else :func:`read`."""
    return _last_read.get(store) or read(store)


def read(store: Store) -> Shared:
    """What is shared, as it was written last; if that is not readable, as the listings say."""
    found = _last_read[store] = _read(store)
    return found


def _read(store: Store) -> Shared:
    data = store.get(KEY)
    if data is None:
        return _of([], [], [])
    with suppress(CorruptRecordError):
        body = records.unseal(data, KEY)
        records.check(body, KEY, Shared)
        if body["version"] == _VERSION:
            return cast(Shared, body)
    return _listed(store)


def refresh(store: Store) -> None:
    """Rewrite it after a change of what it lists."""
    written = None
    while (listed := _listed(store)) != written:
        store.put(KEY, records.seal(listed))
        written = listed


def _listed(store: Store) -> Shared:
    return _of(
        [entry.key for entry in store.list("busts/~")],
        [entry.key for entry in store.list("limits")],
        [entry.key.rpartition("/")[2].partition("~")[0] for entry in store.list("accepted")],
    )


def _of(busts: list[str], limits: list[str], accepted: list[str]) -> Shared:
    return {
        "version": _VERSION,
        "busts": sorted(busts),
        "limits": sorted(limits),
        "accepted": sorted(set(accepted)),
    }
