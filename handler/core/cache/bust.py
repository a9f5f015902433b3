"""
Busts: a result computed before a bust is not served after it, and a bust can be undone.

A bust is an object, a *mark*, created before anything else is touched. It invalidates every result
in its scope whose computation had not seen it:

    busts/<id>/<step>/<name>~<before>~~<result key>.json    for one ID
    busts/~/<step>/<name>~<before>~<prefix>~.json           for all IDs with a prefix

The step ``~`` means all steps, an empty prefix all IDs. *before*, in microseconds, spares what was
computed later; a result key limits the mark to one result. Results name the marks that existed when
their computation began (``after``). Only plans are deleted, since a hit reads nothing else:

    computation   list marks ─ compute ─ result(after) ─ announce ─ list again ─ plan ─ retract
    bust          mark ─ wait for announced plans ─ remove plans ─ done

Either order works: a plan that was announced before the bust looks is written before plans are
removed, and is removed with them. A plan that is announced later finds the mark when it lists
again, and is not written. A publisher that takes longer than a bust waits, because it was frozen,
lists once more after its plan and takes it back. The result itself stays, so a bust is undone by
removing its mark.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple, TypedDict

from ..errors import CorruptRecordError, InvalidRequestError, UnavailableError
from ..store import keys, records
from ..store.objects import ObjectInfo, Store
from ..store.records import ResultMetadata
from ..store.values import encode
from . import history
from .entry import Entry, ignore, read_plan

ALL = history.ALL
_DAY_S = 86_400
# A plan is announced, written and retracted in three requests; a publisher that takes longer has
# died.
_PATIENCE_S = 10.0
_ANNOUNCEMENT_LIFETIME_S = 60


class MarkBody(TypedDict):
    """A mark as JSON, stored or printed; ``id`` is the name of the ID's folder."""

    bust: str
    id: str | None
    prefix: str | None
    step: str | None
    before: str | None
    busted_at: str


class Mark(NamedTuple):
    """
    One mark.

    Attributes:
        key: Its object.
        name: The name of the bust: its time and random digits; ``x`` comes first if a call busted
            its own result.
        folder: Folder name of an ID, or ``~``.
        step: A step, or ``~``.
        before: ISO 8601; the bust covers only what was computed before this time. None: everything.
        prefix: The encoded prefix of the IDs.
        result: The key of the only result it invalidates, or empty.
    """

    key: str
    name: str
    folder: str
    step: str
    before: str | None
    prefix: str
    result: str

    def applies_to(self, folder: str, step: str) -> bool:
        """Whether results of *step* in an ID's folder are in its scope."""
        if self.step not in (ALL, step):
            return False
        return folder == self.folder if self.folder != ALL else has_prefix(folder, self.prefix)

    def invalidates(self, folder: str, entry: Entry) -> bool:
        """Whether *entry* may not be served any more."""
        if self.name in entry.after or not self.applies_to(folder, entry.step):
            return False
        if self.result not in ("", entry.key):
            return False
        # The age of a result is unknown if its writer died before it wrote the record.
        return self.before is None or entry.computed_at is None or entry.computed_at < self.before

    @property
    def is_from_call(self) -> bool:
        """Whether a call made it for a result that it computed itself."""
        return self.name.startswith("x")

    @property
    def at(self) -> float:
        """When the bust was made, in seconds since 1970."""
        return int(self.name.removeprefix("x")[:11], 16) / 1e3

    @property
    def id_pattern(self) -> str:
        """The folder name of the ID; ``ab*`` for IDs with a prefix."""
        return self.folder if self.folder != ALL else f"{self.prefix}*"

    def to_json(self) -> MarkBody:
        """The mark as JSON for people."""
        return {
            "bust": self.name,
            "id": None if self.folder == ALL else self.folder,
            "prefix": self.prefix or None,
            "step": None if self.step == ALL else self.step,
            "before": self.before,
            "busted_at": records.now_iso(self.at),
        }


class Marks(tuple[Mark, ...]):
    """The marks that existed at some moment."""

    def seen(self, folder: str, step: str, result: str) -> tuple[str, ...]:
        """The marks that a result has to name if its computation begins now."""
        names = [
            mark.name
            for mark in self
            if mark.before is None and mark.result in ("", result) and mark.applies_to(folder, step)
        ]
        return tuple(sorted(names))

    def first_invalidating(self, folder: str, *entries: Entry) -> Mark | None:
        """A mark that invalidates one of the entries, if one does."""
        for mark in self:
            if any(mark.invalidates(folder, entry) for entry in entries):
                return mark
        return None


class Scope(NamedTuple):
    """
    What to bust.

    Attributes:
        folder: Folder name of an ID, or ``~``.
        prefix: With ``~``: the encoded prefix of the IDs.
        steps: Steps, or ``~``.
        before: Only what was computed before this time, in seconds since 1970. None: everything.
    """

    folder: str = ALL
    prefix: str = ""
    steps: tuple[str, ...] = (ALL,)
    before: float | None = None


class Restored(TypedDict):
    """Results that are ``back``, those that ``replaced`` a newer value, and removed ``plans``."""

    back: int
    replaced: int
    plans: int


def has_prefix(folder: str, prefix: str) -> bool:
    """Whether the ID of a folder has a prefix; of a very long ID, 40 characters are compared."""
    length = folder.find("~") if "~" in folder else len(prefix)
    return folder.startswith(prefix[:length])


def list_marks(store: Store, folder: str | None = None) -> Marks:
    """All marks, or those that may apply to the ID of a folder; the latter are two listings."""
    folders = ["busts"] if folder is None else [f"busts/{folder}", f"busts/{ALL}"]
    return Marks(parse_marks(entry.key for each in folders for entry in store.list(each)))


def _marks_of(store: Store, scope: Scope) -> Callable[[str], Marks]:
    """A function that returns the marks that may apply to the ID of a folder in *scope*."""
    return by_folder(list_marks(store, None if scope.folder == ALL else scope.folder))


def by_folder(marks: Iterable[Mark]) -> Callable[[str], Marks]:
    """A function that returns those of *marks* that may apply to the ID of a folder."""
    by_name: dict[str, list[Mark]] = {}
    for mark in marks:
        by_name.setdefault(mark.folder, []).append(mark)
    common = by_name.pop(ALL, [])
    return lambda folder: Marks((*by_name.get(folder, ()), *common))


def parse_marks(paths: Iterable[str]) -> Iterator[Mark]:
    """The marks with these keys; other keys are skipped, and ``verify`` reports them."""
    for path in paths:
        try:
            _, folder, step, rest = path.split("/")
            name, before, prefix, result = rest.removesuffix(".json").split("~")
            moment = records.now_iso(int(before) / 1e6) if before else None
            mark = Mark(path, name, folder, step, moment, prefix, result)
            mark.at  # noqa: B018 — it raises for a name without a time
        except ValueError:
            continue
        yield mark


def new_name(*, from_call: bool = False) -> str:
    """A name for a bust: sorted by time, and unique."""
    return f"{'x' if from_call else ''}{int(time.time() * 1e3):011x}{secrets.token_hex(3)}"


def create_mark(
    store: Store,
    name: str,
    step: str,
    scope: Scope,
    *,
    result: str = "",
    retention_s: float = 0,
    seen: Collection[str] = (),
) -> Mark:
    """
    Create a mark, remove older ones that it makes obsolete, and wait for announced plans.

    Args:
        store: The store to write.
        name: The name of the bust; see :func:`new_name`.
        step: The step, or ``~``; the steps of *scope* are ignored.
        scope: What else to bust.
        result: The key of the only result to invalidate; empty: all.
        retention_s: How long a bust can be restored, in seconds.
        seen: Marks that the caller had seen before it computed what it is about to write.
    """
    if len(scope.prefix) > keys.LONGEST:
        raise InvalidRequestError(
            "the prefix is too long", why=f"{len(scope.prefix)} characters, {keys.LONGEST} at most"
        )
    before = "" if scope.before is None else str(int(scope.before * 1e6))
    folder = f"busts/{scope.folder}/{step}"
    [made] = parse_marks([f"{folder}/{name}~{before}~{scope.prefix}~{result}.json"])
    store.put(made.key, records.seal({"version": 1, **made.to_json()}))
    older = parse_marks(entry.key for entry in store.list(folder))
    store.delete(mark.key for mark in older if _is_obsolete(mark, made, retention_s, seen))
    _wait_for_publishers(store, scope)
    return made


def _is_obsolete(old: Mark, new: Mark, retention_s: float, seen: Collection[str]) -> bool:
    if old.name == new.name:
        return False
    if old.is_from_call and old.at + _DAY_S < new.at:
        return True
    is_covered = new.before is None or (old.before is not None and old.before <= new.before)
    if not is_covered or (old.prefix, old.result) != (new.prefix, new.result):
        return False
    # A call's mark only concerns other calls that computed the same result meanwhile.
    return old.name in seen if old.is_from_call else old.at + retention_s < new.at


def _wait_for_publishers(store: Store, scope: Scope) -> None:
    """Wait until the plans that are announced now have been written and retracted."""
    until = time.monotonic() + _PATIENCE_S
    waiting_for = _announced(store, scope)
    while waiting_for and time.monotonic() < until:
        time.sleep(0.02)
        waiting_for &= _announced(store, scope)


def _announced(store: Store, scope: Scope) -> set[str]:
    prefix = "publishing/" if scope.folder == ALL else f"publishing/{scope.folder}~"
    # Clocks differ by less than a minute, so the publisher of an older one has died.
    oldest = time.time() - _ANNOUNCEMENT_LIFETIME_S
    return {
        entry.key
        for entry in store.list("publishing")
        if entry.modified > oldest and entry.key.startswith(prefix)
    }


def write_plan(
    store: Store, folder: str, entries: Collection[Entry], write: Callable[[], str]
) -> Marks:
    """
    Write a plan unless one of its entries is invalid; see the timeline above.

    Args:
        store: The store to write.
        folder: The folder of the ID.
        entries: The entries of the plan.
        write: Writes the plan, and returns its key.

    Returns:
        The marks that exist now.
    """
    started = time.monotonic()
    announcement = f"publishing/{folder}~{new_name()}"
    store.put(announcement, b"{}")
    try:
        marks = list_marks(store, folder)
        if marks.first_invalidating(folder, *entries):
            return marks
        path = write()
        if time.monotonic() - started >= _PATIENCE_S / 2:
            marks = list_marks(store, folder)
            if marks.first_invalidating(folder, *entries):
                store.delete([path])
    finally:
        try:
            store.delete([announcement])
        except UnavailableError:
            pass  # If it stays, the next bust of this ID has to wait.
    return marks


def list_results(store: Store, scope: Scope) -> Iterator[ObjectInfo]:
    """
    The stored results that a bust of *scope* would invalidate.

    For one ID, its results are read to decide; for all IDs, their age and their keys decide.
    """
    marks_of = _marks_of(store, scope)
    for listed in _list_objects(store, "results", scope):
        _, folder, step, _ = listed.key.split("/")
        if ALL not in scope.steps and step not in scope.steps:
            continue
        if scope.before is not None and listed.modified >= scope.before:
            continue
        marks = marks_of(folder)
        if scope.folder == ALL:
            is_invalid = any(_looks_invalidated(listed, mark, folder, step) for mark in marks)
        else:
            entry = _stored_entry(listed, _read_metadata(store, listed.key))
            is_invalid = marks.first_invalidating(folder, entry) is not None
        if not is_invalid:
            yield listed


def _looks_invalidated(listed: ObjectInfo, mark: Mark, folder: str, step: str) -> bool:
    until = mark.before or records.now_iso(mark.at)
    is_older = records.now_iso(listed.modified) < until
    return is_older and not mark.result and mark.applies_to(folder, step)


def bust(
    store: Store,
    scope: Scope,
    name: str,
    *,
    dependents: Collection[str],
    known: Collection[str],
    retention_s: float,
) -> int:
    """
    Invalidate what is in *scope*; returns the number of plans that were removed.

    Args:
        store: The store to write.
        scope: What to bust.
        name: The name of the bust.
        dependents: The steps that need a busted one, those included.
        known: All steps of the current flows; plans of other steps are removed.
        retention_s: How long the bust can be restored, in seconds.
    """
    made = Marks(
        create_mark(store, name, step, scope, retention_s=retention_s) for step in scope.steps
    )
    _record(store, history.BUSTED, made)
    return _remove_plans(store, scope, made, dependents, known)


def restore(
    store: Store, undone: Collection[Mark], *, dependents: Collection[str], known: Collection[str]
) -> Restored:
    """
    Undo busts: what they invalidated is served again, even if it was computed again since.

    A newer value stays if the one before it has expired, or if another bust has invalidated that
    too.

    Args:
        store: The store to write.
        undone: The marks of the busts.
        dependents: The steps that need a step that was busted, those included.
        known: All steps of the current flows.
    """
    counts: Restored = {"back": 0, "replaced": 0, "plans": 0}
    obsolete = {mark.key for mark in undone}
    steps: dict[tuple[str, str], tuple[str, ...]] = {}
    for mark in undone:
        place = (mark.folder, mark.prefix)
        steps[place] = (*steps.get(place, ()), mark.step)
    scopes = [Scope(*place, each) for place, each in steps.items()]
    for scope in scopes:
        for path, older, superseded in _list_restorable(store, scope, Marks(undone)):
            if older is not None:
                store.put(path, older)
                counts["replaced"] += 1
            counts["back"] += 1
            obsolete |= superseded
    # Before the marks go, so that no plan of a newer value is left, and again for plans that were
    # written meanwhile.
    for mark_keys in ((), obsolete):
        store.delete(mark_keys)
        for scope in scopes:
            counts["plans"] += _remove_plans(store, scope, Marks(), dependents, known)
    _record(store, history.RESTORED, undone)
    return counts


def _list_restorable(
    store: Store, scope: Scope, undone: Marks
) -> Iterator[tuple[str, bytes | None, set[str]]]:
    """
    The results that come back when the busts in *undone* are undone.

    Each has its path, the record that replaces it if it was computed again since, and the keys of
    marks that calls have made since for their own, newer results.
    """
    names = {mark.name for mark in undone}
    undone_keys = {mark.key for mark in undone}
    since = min((mark.at for mark in undone), default=0.0)
    undone_of = by_folder(undone)
    marks_of = _marks_of(store, scope)
    for listed in _list_objects(store, "results", scope):
        _, folder, step, key = listed.key.split("/")
        near = undone_of(folder)
        if not any(mark.applies_to(folder, step) and mark.result in ("", key) for mark in near):
            continue
        superseded = set()
        lasting = []
        for mark in marks_of(folder):
            if mark.is_from_call and mark.at >= since and (mark.step, mark.result) == (step, key):
                superseded.add(mark.key)
            elif mark.key not in undone_keys:
                lasting.append(mark)
        metadata = _read_metadata(store, listed.key)
        result = _stored_entry(listed, metadata)
        was_computed_before = near.first_invalidating(folder, result) is not None
        if was_computed_before and names.isdisjoint(result.after):
            yield listed.key, None, superseded
        elif older := _older_result(store, metadata, listed.key, near, Marks(lasting)):
            yield listed.key, older, superseded


def _older_result(
    store: Store, metadata: ResultMetadata, path: str, undone: Marks, lasting: Marks
) -> bytes | None:
    """The valid result record that *path* held before *undone*, made from history."""
    if not metadata:
        return None
    _, folder, step, key = path.split("/")
    names = {mark.name for mark in undone}
    for name, record in history.list_computed(store, folder, step, ignore, containing=key[:16]):
        entry = history.entry_of(record)
        if entry.key != key or not names.isdisjoint(entry.after):
            continue
        if records.is_past(entry.expires_at) or not undone.first_invalidating(folder, entry):
            continue
        if lasting.first_invalidating(folder, entry):
            continue
        loaded = history.load_entry(store, record, ignore)
        if loaded is not None:
            id, fingerprint = metadata["id"], metadata["fingerprint"]
            return history.encode_result(name, id, fingerprint, loaded, encode(loaded.value))
    return None


def _record(store: Store, status: str, marks: Iterable[Mark]) -> None:
    for mark in marks:
        id = None if mark.folder == ALL else keys.decode_id(mark.folder)
        fields = {**mark.to_json(), "id": id, "why": f"{status}: {mark.name}"}
        history.note(store, mark.folder, mark.step, status, fields)


def _remove_plans(
    store: Store,
    scope: Scope,
    marks: Marks,
    dependents: Collection[str],
    known: Collection[str],
) -> int:
    """Remove the plans that depend on what is in *scope*; returns how many."""

    def to_remove() -> Iterator[str]:
        for listed in _list_objects(store, "plans", scope):
            _, folder, step, _ = listed.key.split("/")
            is_dependent = ALL in scope.steps or step in dependents or step not in known
            is_old = scope.before is None or listed.modified < scope.before
            if is_dependent and is_old:
                yield listed.key
            elif is_dependent or scope.folder != ALL:
                # A young plan may hold an old result; one of older code may need a busted step.
                plan = read_plan(store, listed.key, ignore)
                if plan is not None and marks.first_invalidating(folder, *plan[1].values()):
                    yield listed.key

    return store.delete(to_remove())


def _list_objects(store: Store, kind: str, scope: Scope) -> Iterator[ObjectInfo]:
    for listed in store.list(kind if scope.folder == ALL else f"{kind}/{scope.folder}"):
        if listed.key.count("/") == 3 and has_prefix(listed.key.split("/")[1], scope.prefix):
            yield listed


def _read_metadata(store: Store, path: str) -> ResultMetadata:
    """The metadata in a result record; empty if the record is gone or damaged."""
    try:
        return records.decode_result(store.get(path) or b"", path)[3]
    except (CorruptRecordError, InvalidRequestError):
        return {}


def _stored_entry(listed: ObjectInfo, metadata: ResultMetadata) -> Entry:
    """A result, made from its key and the metadata in its record."""
    _, folder, step, key = listed.key.split("/")
    if "record" in metadata:
        at = history.Name(folder, step, metadata["record"]).written_at
    else:
        at = records.now_iso(listed.modified)
    after = metadata.get("after", ())
    return Entry(step, key, "", listed.size_bytes, at, None, after=after)
