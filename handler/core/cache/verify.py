"""
Walking the store: every object is read and checked, and what nobody can use is told of, or set aside.

    damaged    its bytes are not what was written, or it stands where another belongs
    orphaned   nothing leads to it, or it leads to nothing
    expired    its time is over, or it was busted and cannot be restored any more
    stale      a plan that rests on what was busted: whoever wrote it died before taking it back

One object at a time is in memory, so the size of the store does not matter. Setting aside moves an object below ``aside/``; a
walk that was interrupted goes on behind the last key it told. ``leases/`` and ``calls/`` are left to the calls under way and to
``pfl runs reap``: a damaged one counts as free there, and who is dead has to stay on record until it is buried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from pfl.handler.core.cache import bust, history
from pfl.handler.core.cache.entry import UNREAD, Entry, entry_of, plan_of
from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import ObjectInfo, Store

KINDS = ("accepted", "busts", "code", "history", "plans", "publishing", "results", "values")
_WRITING_S = 3_600  # Whoever wrote what is younger may still be at it.


class Problem(NamedTuple):
    """One object that nobody can use: ``damaged``, ``orphaned``, ``expired`` or ``stale``; *aside* is where it is now."""

    key: str
    problem: str
    why: str
    aside: str | None = None


class Checked(NamedTuple):
    """One object that was looked at; None where nothing is wrong with it."""

    key: str
    problem: Problem | None


def walk(store: Store, *, repair: bool, retention_s: float, after: str = "") -> Iterator[Checked]:
    """
    Check the objects of the store one by one.

    Args:
        store: Where.
        repair: Set aside what nobody can use.
        retention_s: How long a bust can be restored, in seconds.
        after: Go on behind this key.
    """
    started, marks = time.time(), bust.marks(store)
    over = {m.key for m in marks if m.at + retention_s < started}
    check = _Check(store, marks, {m.name for m in marks if m.key in over})
    for kind in KINDS:
        if kind < after.split("/")[0]:
            continue
        for listed in _from(store, kind, after if after.startswith(f"{kind}/") else ""):
            problem = None
            if (data := store.get(listed.key)) is not None:
                problem = check(listed, data)
            if problem is not None and repair:
                problem = _set_aside(store, problem, data)
            yield Checked(listed.key, problem)
    if repair and not after:
        store.delete(over)  # All that they made void is set aside by now.


class _Check:
    def __init__(self, store: Store, marks: bust.Marks, over: set[str]) -> None:
        self.store, self.marks_of, self.over = store, bust.by_folder(marks), over
        self.busts = {m.key for m in marks}

    def __call__(self, listed: ObjectInfo, data: bytes) -> Problem | None:
        kind, *place = listed.key.split("/")
        try:
            found = getattr(self, f"_{kind}")(listed, data, *place)
        except CorruptRecordError as exc:
            found = ("damaged", exc.why or str(exc))
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            found = ("damaged", f"it is not what its name says ({exc!r})")
        return Problem(listed.key, *found) if found else None

    def _accepted(self, listed: ObjectInfo, data: bytes, *place: str) -> tuple[str, str] | None:
        body = records.unseal(data, listed.key)
        is_ours = place == (body["step"], f"{body['fingerprint']}~{body['stands_for'][0]}.json")
        return None if is_ours else ("damaged", "it is that of other code")

    def _code(
        self, listed: ObjectInfo, data: bytes, step: str, name: str
    ) -> tuple[str, str] | None:
        body = records.unseal(data, listed.key)
        return (
            None
            if body["step"] == step and body["parts"]
            else ("damaged", f"it is the code of {body['step']}")
        )

    def _busts(self, listed: ObjectInfo, data: bytes, *place: str) -> tuple[str, str] | None:
        records.unseal(data, listed.key)
        # A younger one may not have been there yet when the marks were listed.
        if listed.key not in self.busts and not list(bust.parsed([listed.key])):
            return "damaged", "its name is not that of a bust"
        return None

    def _publishing(self, listed: ObjectInfo, data: bytes, *place: str) -> tuple[str, str] | None:
        is_over = listed.modified + _WRITING_S < time.time()
        return ("orphaned", "whoever announced a plan here has died") if is_over else None

    def _history(
        self, listed: ObjectInfo, data: bytes, folder: str, step: str, name: str
    ) -> tuple[str, str] | None:
        body = records.unseal(data, listed.key)
        if body["id"] is not None:
            self._in_place(body, folder, step)
        elif (
            body["step"] or history.ALL
        ) != step:  # Of all IDs, or of one that is kept by its digest.
            raise CorruptRecordError("", why=f"it is about {body['step']}")
        if body.get("status", "computed") != "computed":
            return None
        entry = entry_of(body)
        if entry.value is UNREAD:
            if self.store.get(records.value_path(body["id"], entry.sha256)) is None:
                return "orphaned", "its value is gone"
        elif keys.value_digest(entry.value) != entry.sha256:
            return "damaged", "its value is not the one that was written"
        return None

    def _plans(
        self, listed: ObjectInfo, data: bytes, folder: str, step: str, name: str
    ) -> tuple[str, str] | None:
        body, entries = plan_of(data, listed.key)
        if records.is_past(body["expires_at"]):
            return "expired", f"at {body['expires_at']}"
        for entry in entries.values():
            if entry.value is not UNREAD and keys.value_digest(entry.value) != entry.sha256:
                return "damaged", f"its value of {entry.step} is not the one that was written"
        if voided := self.marks_of(folder).void(folder, *entries.values()):
            return "stale", f"busted by {voided.name}"
        if (
            entries[step].value is UNREAD
            and self.store.get(records.result_path(body["id"], step, entries[step].key)) is None
        ):
            return "orphaned", "its result is gone"
        return None

    def _results(
        self, listed: ObjectInfo, data: bytes, folder: str, step: str, name: str
    ) -> tuple[str, str] | None:
        try:
            _, _, expires_at, about = records.decode_result(data, listed.key)
        except InvalidRequestError:  # Pickled, and not to be opened for a look.
            expires_at, about = None, {}
        if about:
            self._in_place(about, folder, step)
        if records.is_past(expires_at):
            return "expired", f"at {expires_at}"
        # Its age is that of its object: this is about one that cannot be restored in any case.
        entry = Entry(
            step,
            name,
            "",
            len(data),
            records.now_iso(listed.modified),
            None,
            after=about.get("after", ()),
        )
        voiding = [m.name for m in self.marks_of(folder) if m.voids(folder, entry)]
        if voiding and self.over.issuperset(voiding):
            return "expired", f"busted by {voiding[0]}, and its retention is over"
        return None

    def _values(
        self, listed: ObjectInfo, data: bytes, folder: str, sha256: str
    ) -> tuple[str, str] | None:
        if keys.value_digest(records.loads(data, listed.key)) != sha256:
            return "damaged", "its digest is not its name"
        if listed.modified + _WRITING_S > time.time():
            return None
        for record in self.store.list(f"history/{folder}"):
            text = self.store.get(record.key) or b""
            try:
                if (
                    sha256.encode() in text
                    and records.unseal(text, record.key).get("sha256") == sha256
                ):
                    return None
            except CorruptRecordError:
                return None  # It is told of by itself; it may be what leads here.
        return "orphaned", "no record of history leads to it"

    @staticmethod
    def _in_place(body: dict, folder: str, step: str) -> None:
        if (keys.encode_id(body["id"]), body["step"] or history.ALL) != (folder, step):
            raise CorruptRecordError("", why=f"it is about {body['step']} of {body['id']!r}")


def _from(store: Store, kind: str, after: str) -> Iterator[ObjectInfo]:
    """The objects of a kind, behind *after* where it is given; a directory tells them in any order, but always in the same."""
    if not after or store.is_ordered:
        yield from store.list(kind, after=after)
        return
    listing, is_behind = store.list(kind), False
    for listed in listing:
        if is_behind:
            yield listed
        is_behind = is_behind or listed.key == after
    if not is_behind:  # It was set aside; all of this kind is looked at again.
        yield from store.list(kind)


def _set_aside(store: Store, problem: Problem, data: bytes) -> Problem:
    if store.get(problem.key) != data:
        return problem._replace(why=f"{problem.why}; it was written anew meanwhile")
    aside = f"aside/{problem.key}"
    store.put(aside, data)
    store.delete([problem.key])
    return problem._replace(aside=aside)
