"""
Checks the store: every object is read, and what cannot be used is reported or set
aside.

    damaged    its bytes are not what was written, or it is in the place of another object
    orphaned   nothing leads to it, or it leads to nothing
    expired    it has expired, or it was busted and cannot be restored any more
    stale      a plan that depends on a busted result: its writer died before taking it back

One object at a time is in memory, so the size of the store does not matter. Setting aside moves an
object below ``aside/``, so a check that was interrupted can start again. ``leases/`` and ``calls/``
are left to the calls in progress and to ``pfl runs reap``: a damaged lease counts as free, and a
dead call stays on record until then.

A value comes before the result and the record that name it. So a value is orphaned only if it is a
day old, nothing names it, and no call is under way for its ID; all of this is checked again once it
is aside. With ``repair``, times are those of the store's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import CorruptRecordError
from ..store import keys, records
from ..store.objects import AlreadyExistsError, ObjectInfo, Store
from . import accept, bust, history, lease
from .entry import NOT_LOADED, Entry, parse_plan, parse_result

KINDS = ("accepted", "busts", "code", "history", "plans", "results", "values")
# The writer of a younger object may still be at work.
_WRITING_S = 86_400


class Problem(NamedTuple):
    """One object that cannot be used, and why; *aside* is its new key, if it was moved."""

    key: str
    problem: str
    why: str
    aside: str | None = None


def walk(store: Store, *, repair: bool, retention_s: float) -> Iterator[Problem | None]:
    """
    Check the objects of the store one by one; for each, what is wrong with it, if anything.

    Args:
        store: The store to check.
        repair: Set aside what cannot be used.
        retention_s: How long a bust can be restored, in seconds.
    """
    now = lease.store_now(store) if repair else time.time()
    marks = bust.list_marks(store)
    over = [mark for mark in marks if mark.at + retention_s < now]
    check = _Check(store, now, bust.by_folder(marks), {mark.name for mark in over})
    for kind in KINDS:
        for listed in store.list(kind):
            problem = check(listed, store.get(listed.key))
            if repair and problem:
                problem = check.set_aside(listed, problem)
            yield problem
    if repair:
        # All that the others made invalid is set aside by now.
        store.delete(mark.key for mark in over if mark.name not in check.needed)


class _UnusableError(Exception):
    """A readable object cannot be used: the problem, and why."""


@dataclass
class _Check:
    """
    The checks, one for each kind of object; each raises what is wrong.

    Attributes:
        store: The store to check.
        now: The present time, in seconds since 1970.
        marks_of: Finds the marks that may apply to the ID of a folder.
        over: The names of busts that cannot be restored any more.
        needed: The names of busts of results that stay, because a later one is found through them.
    """

    store: Store
    now: float
    marks_of: Callable[[str], bust.Marks]
    over: set[str]
    needed: set[str] = field(default_factory=set)

    def __call__(self, listed: ObjectInfo, data: bytes | None) -> Problem | None:
        if data is None:
            return None
        kind, *place = listed.key.split("/")
        try:
            getattr(self, f"_{kind}")(listed, data, *place)
        except _UnusableError as exc:
            return Problem(listed.key, *exc.args)
        except CorruptRecordError as exc:
            return Problem(listed.key, "damaged", exc.why or str(exc))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            return Problem(listed.key, "damaged", f"its content does not match its name ({exc!r})")
        return None

    def set_aside(self, listed: ObjectInfo, problem: Problem) -> Problem:
        """Move an object aside, and back if it was rewritten meanwhile or a call needs it."""
        aside = f"aside/{listed.key}"
        self.store.move(listed.key, aside)
        moved = self.store.get(aside)
        if self(listed, moved):
            return problem._replace(aside=aside)
        if moved is not None:
            with suppress(AlreadyExistsError):
                self.store.put(listed.key, moved, mode="create")
            self.store.delete([aside])
        return problem._replace(why=f"{problem.why}; it has been rewritten since")

    def _accepted(self, listed: ObjectInfo, data: bytes, step: str, name: str) -> None:
        body = records.unseal(data, listed.key)
        own_name = f"{body['fingerprint']}~{body['stands_for'][0]}.json"
        if (body["step"], own_name) != (step, name):
            raise records.damaged(listed.key, "it belongs to other code")

    def _code(self, listed: ObjectInfo, data: bytes, step: str, name: str) -> None:
        body = records.unseal(data, listed.key)
        if body["step"] != step or not body["parts"]:
            raise records.damaged(listed.key, f"it holds the code of {body['step']}")

    def _busts(self, listed: ObjectInfo, data: bytes, *place: str) -> None:
        records.unseal(data, listed.key)
        if not list(bust.parse_marks([listed.key])):
            raise records.damaged(listed.key, "its name is not the name of a bust")

    def _history(self, listed: ObjectInfo, data: bytes, *place: str) -> None:
        name = history.Name(*place)
        record = records.unseal(data, listed.key)
        if record.get("version", 0) > history.VERSION:
            return  # Another pfl wrote it.
        if not history.check(name, record) or name.status != history.COMPUTED:
            return
        entry = history.entry_of(record)
        _check_value(entry)
        path = records.value_path(record["id"], entry.sha256)
        if entry.value is NOT_LOADED and self.store.get(path) is None:
            raise _UnusableError("orphaned", "its value is gone")

    def _plans(self, listed: ObjectInfo, data: bytes, folder: str, step: str, name: str) -> None:
        plan, entries = parse_plan(data, listed.key)
        if "next" in plan:
            return  # A fence; the next bust removes it.
        self._check_time(plan["expires_at"])
        for entry in entries.values():
            _check_value(entry)
        mark = self.marks_of(folder).first_invalidating(folder, *entries.values())
        if mark is not None:
            raise _UnusableError("stale", f"busted by {mark.name}")
        path = records.result_path(plan["id"], step, entries[step].file)
        if entries[step].value is NOT_LOADED and self.store.get(path) is None:
            raise _UnusableError("orphaned", "its result is gone")

    def _results(self, listed: ObjectInfo, data: bytes, folder: str, step: str, name: str) -> None:
        key = name.partition("~")[0]
        blamed: set[str] = set()
        try:
            entry = parse_result(data, listed.key)
            self._check_time(entry.expires_at)
            marks = self.marks_of(folder)
            blamed = {mark.name for mark in marks if mark.invalidates(folder, entry)}
            if blamed and self.over.issuperset(blamed):
                why = f"busted by {min(blamed)}, and cannot be restored"
                raise _UnusableError("expired", why)
        except (_UnusableError, CorruptRecordError):
            # A result that took its place is found through it.
            later = f"results/{folder}/{step}/{accept.next_name(key, data)}"
            if self.store.get(later) is None:
                raise
            self.needed |= blamed

    def _values(self, listed: ObjectInfo, data: bytes, folder: str, sha256: str) -> None:
        if keys.value_digest(records.loads(data, listed.key)) != sha256:
            raise records.damaged(listed.key, "its digest does not match its name")
        is_young = listed.modified + _WRITING_S > self.now
        if not (is_young or self._is_named(listed) or self._is_under_way(folder)):
            raise _UnusableError("orphaned", "no record and no result refers to it")

    def _is_named(self, value: ObjectInfo) -> bool:
        """Whether a record names a value, or a result is so large that it may hold it."""
        _, folder, sha256 = value.key.split("/")
        # The next call makes a record of a result that has none.
        if any(each.size_bytes > value.size_bytes for each in self.store.list(f"results/{folder}")):
            return True
        listed = self.store.list(f"history/{folder}")
        return any(sha256.encode() in (self.store.get(record.key) or b"") for record in listed)

    def _is_under_way(self, folder: str) -> bool:
        """Whether a call holds a lease for the ID of a folder."""
        leases = self.store.list("leases")
        return any(listed.key.startswith(f"leases/{folder}=") for listed in leases)

    def _check_time(self, expires_at: str | None) -> None:
        if records.is_past(expires_at, records.now_iso(self.now)):
            raise _UnusableError("expired", f"at {expires_at}")


def _check_value(entry: Entry) -> None:
    if entry.value is not NOT_LOADED and keys.value_digest(entry.value) != entry.sha256:
        raise _UnusableError("damaged", f"its value of {entry.step} differs from what was written")
