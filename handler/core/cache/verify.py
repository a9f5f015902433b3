"""
Checks the store: every object is read, and what cannot be used is reported or set
aside.

    damaged    its bytes are not what was written, or it is in the place of another object
    orphaned   nothing leads to it, or it leads to nothing
    expired    it has expired, or it was busted and cannot be restored any more
    stale      a plan that depends on a busted result: its writer died before taking it back

One object at a time is in memory, so the size of the store does not matter. Setting aside moves an
object below ``aside/``; an interrupted check continues after the last key it reported. ``leases/``
and ``calls/`` are left to the calls in progress and to ``pfl runs reap``: a damaged lease counts as
free, and a dead call stays on record until then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import NamedTuple

from ..errors import CorruptRecordError, InvalidRequestError
from ..store import keys, records
from ..store.objects import ObjectInfo, Store
from . import bust, history
from .entry import NOT_LOADED, Entry, parse_plan

KINDS = ("accepted", "busts", "code", "history", "plans", "publishing", "results", "values")
# The writer of a younger object may still be at work.
_WRITING_S = 3_600


class Problem(NamedTuple):
    """One object that cannot be used, and why; *aside* is its new key, if it was moved."""

    key: str
    problem: str
    why: str
    aside: str | None = None


class CheckedObject(NamedTuple):
    """One object that was checked, and what is wrong with it, if anything."""

    key: str
    problem: Problem | None


def walk(
    store: Store, *, repair: bool, retention_s: float, after: str = ""
) -> Iterator[CheckedObject]:
    """
    Check the objects of the store one by one.

    Args:
        store: The store to check.
        repair: Set aside what cannot be used.
        retention_s: How long a bust can be restored, in seconds.
        after: Continue after this key.
    """
    marks = bust.list_marks(store)
    over = [mark for mark in marks if mark.at + retention_s < time.time()]
    mark_keys = {mark.key for mark in marks}
    check = _Check(store, bust.by_folder(marks), {mark.name for mark in over}, mark_keys)
    for kind in KINDS:
        if kind < after.split("/")[0]:
            continue
        for listed in _list_after(store, kind, after if after.startswith(f"{kind}/") else ""):
            data = store.get(listed.key)
            problem = None if data is None else check(listed, data)
            if repair and problem and data is not None:
                problem = _set_aside(store, problem, data)
            yield CheckedObject(listed.key, problem)
    if repair and not after:
        # All that they made invalid is set aside by now.
        store.delete(mark.key for mark in over)


class _UnusableError(Exception):
    """A readable object cannot be used: the problem, and why."""


@dataclass
class _Check:
    """
    The checks, one for each kind of object; each raises what is wrong.

    Attributes:
        store: The store to check.
        marks_of: Finds the marks that may apply to the ID of a folder.
        over: The names of busts that cannot be restored any more.
        mark_keys: The keys of all marks.
    """

    store: Store
    marks_of: Callable[[str], bust.Marks]
    over: set[str]
    mark_keys: set[str]

    def __call__(self, listed: ObjectInfo, data: bytes) -> Problem | None:
        kind, *place = listed.key.split("/")
        try:
            getattr(self, f"_{kind}")(listed, data, *place)
        except _UnusableError as exc:
            return Problem(listed.key, *exc.args)
        except CorruptRecordError as exc:
            return Problem(listed.key, "damaged", exc.why or str(exc))
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            return Problem(listed.key, "damaged", f"its content does not match its name ({exc!r})")
        return None

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
        # A newer one may not have existed yet when the marks were listed.
        if listed.key not in self.mark_keys and not list(bust.parse_marks([listed.key])):
            raise records.damaged(listed.key, "its name is not the name of a bust")

    def _publishing(self, listed: ObjectInfo, data: bytes, *place: str) -> None:
        if listed.modified + _WRITING_S < time.time():
            raise _UnusableError("orphaned", "the call that announced a plan here has died")

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
        _check_time(plan["expires_at"])
        for entry in entries.values():
            _check_value(entry)
        mark = self.marks_of(folder).first_invalidating(folder, *entries.values())
        if mark is not None:
            raise _UnusableError("stale", f"busted by {mark.name}")
        path = records.result_path(plan["id"], step, entries[step].key)
        if entries[step].value is NOT_LOADED and self.store.get(path) is None:
            raise _UnusableError("orphaned", "its result is gone")

    def _results(self, listed: ObjectInfo, data: bytes, folder: str, step: str, key: str) -> None:
        try:
            _, _, expires_at, metadata = records.decode_result(data, listed.key)
        except InvalidRequestError:  # It is pickled: opening it would run code.
            expires_at, metadata = None, {}
        if metadata and (keys.encode_id(metadata["id"]), metadata["step"]) != (folder, step):
            raise records.damaged(
                listed.key, f"it belongs to {metadata['step']} of {metadata['id']!r}"
            )
        _check_time(expires_at)
        # The age of the object is that of the result, or younger: enough to find those that are
        # lost for good.
        written_at = records.now_iso(listed.modified)
        entry = Entry(step, key, "", len(data), written_at, None, after=metadata.get("after", ()))
        busts = [mark.name for mark in self.marks_of(folder) if mark.invalidates(folder, entry)]
        if busts and self.over.issuperset(busts):
            raise _UnusableError("expired", f"busted by {busts[0]}, and cannot be restored")

    def _values(self, listed: ObjectInfo, data: bytes, folder: str, sha256: str) -> None:
        if keys.value_digest(records.loads(data, listed.key)) != sha256:
            raise records.damaged(listed.key, "its digest does not match its name")
        if listed.modified + _WRITING_S > time.time():
            return
        for record in self.store.list(f"history/{folder}"):
            text = self.store.get(record.key) or b""
            try:
                if sha256.encode() in text:
                    if records.unseal(text, record.key).get("sha256") == sha256:
                        return
            except CorruptRecordError:
                return  # It is reported itself, and may be the record of this value.
        raise _UnusableError("orphaned", "no record refers to it")


def _check_value(entry: Entry) -> None:
    if entry.value is not NOT_LOADED and keys.value_digest(entry.value) != entry.sha256:
        raise _UnusableError("damaged", f"its value of {entry.step} differs from what was written")


def _check_time(expires_at: str | None) -> None:
    if records.is_past(expires_at):
        raise _UnusableError("expired", f"at {expires_at}")


def _list_after(store: Store, kind: str, after: str) -> Iterator[ObjectInfo]:
    """The objects of a kind that follow *after*, if given, in the same order at each walk."""
    if not after or store.is_ordered:
        yield from store.list(kind, after=after)
        return
    rest = dropwhile(lambda listed: listed.key != after, store.list(kind))
    # If it was set aside, all objects of this kind are checked again.
    yield from rest if next(rest, None) else store.list(kind)


def _set_aside(store: Store, problem: Problem, data: bytes) -> Problem:
    if store.get(problem.key) != data:
        return problem._replace(why=f"{problem.why}; it has been rewritten since")
    aside = f"aside/{problem.key}"
    store.put(aside, data)
    store.delete([problem.key])
    return problem._replace(aside=aside)
