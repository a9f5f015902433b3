"""
Busts: a result computed before a bust is not served after it, and a bust can be undone.

A bust is an object, a *mark*, created before anything else is touched. It invalidates every result
in its scope whose computation had not seen it:

    busts/<id>/<step>/<name>~~~<result key>.json    for one ID
    busts/~/<step>/<name>~~<prefix>~.json           for all IDs with a prefix

The step ``~`` means all steps, an empty prefix all IDs; a result key limits the mark to one result.
Between the first two ``~``, older stores have a time, which is ignored. Results name the marks that
existed when their computation began (``after``). A hit reads only its plan, so a bust deletes
plans, and keeps calls under way from writing theirs:

    call    take leases ─ list marks ─ compute ─ create result(after) ─ create plan ─ delete leases
    bust    mark ─ list leases ─┬─ a call may write this plan: put a fence in its place
                                └─ else: delete the plan

A call that takes its lease later sees the mark. One that took it earlier is seen by the bust, which
leaves a fence: a plan without entries that names another plan in its place. So the create of that
call fails, however long it pauses, and it finds out that its value is void. A bust that meets no
call deletes fences, too. Results stay, so a bust is undone by removing its mark.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from ..errors import InvalidRequestError
from ..store import keys, records
from ..store.objects import AlreadyExistsError, ObjectInfo, Store
from . import history, lease, shared
from .entry import Entry, ignore, read_plan, seal_fence

ALL = history.ALL
# Plans that are deleted at once.
_BATCH = 1_000
_MARK = re.compile(
    r"busts/([^/]+)/([^/]+)/(x?[0-9a-f]{17})~\d{0,17}~([^/~]*)~((?:[0-9a-f]{64})?)\.json"
)


class Mark(NamedTuple):
    """
    One mark.

    Attributes:
        key: Its object.
        name: The name of the bust: its time and random digits; ``x`` comes first if a call busted
            its own result.
        folder: Folder name of an ID, or ``~``.
        step: A step, or ``~``.
        prefix: The encoded prefix of the IDs.
        result: The key of the only result it invalidates, or empty.
    """

    key: str
    name: str
    folder: str
    step: str
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
        return self.result in ("", entry.key)

    def is_later_than(self, written_at: float, folder: str, step: str) -> bool:
        """Whether it was made for all results of a step, and after *written_at*."""
        return written_at < self.at and not self.result and self.applies_to(folder, step)

    def follows(self, other: Mark) -> bool:
        """Whether it is about results in the scope of an *other* mark, and was made later."""
        return self.at >= other.at and other.applies_to(self.folder, self.step)

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

    def to_json(self) -> dict[str, str | None]:
        """The mark as JSON, stored or printed; ``id`` is the name of the ID's folder."""
        return {
            "bust": self.name,
            "id": None if self.folder == ALL else self.folder,
            "prefix": self.prefix or None,
            "step": None if self.step == ALL else self.step,
            "busted_at": records.now_iso(self.at),
        }


class Marks(tuple[Mark, ...]):
    """The marks that existed at some moment."""

    def seen(self, folder: str, step: str, result: str) -> tuple[str, ...]:
        """The marks that a result has to name if its computation begins now."""
        return tuple(
            sorted(
                mark.name
                for mark in self
                if mark.result in ("", result) and mark.applies_to(folder, step)
            )
        )

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
    """

    folder: str = ALL
    prefix: str = ""
    steps: tuple[str, ...] = (ALL,)

    @property
    def only(self) -> str | None:
        """The only folder that it is about; None: those of all IDs."""
        return None if self.folder == ALL else self.folder

    def list_objects(self, store: Store, kind: str) -> Iterator[ObjectInfo]:
        """The objects of a kind that belong to its IDs."""
        for listed in store.list(f"{kind}/{self.only}" if self.only else kind):
            if listed.key.count("/") == 3 and has_prefix(listed.key.split("/")[1], self.prefix):
                yield listed


def has_prefix(folder: str, prefix: str) -> bool:
    """Whether the ID of a folder has a prefix; of a very long ID, 40 characters are compared."""
    length = folder.find("~") if "~" in folder else len(prefix)
    return folder.startswith(prefix[:length])


def marker_path(folder: str) -> str:
    """The key of the object that shows that something is stored for the ID of a folder."""
    return f"ids/{folder}"


def list_marks(store: Store, folder: str | None = None) -> Marks:
    """All marks, or those that may apply to the ID of a folder; the latter are two listings."""
    folders = ["busts"] if folder is None else [f"busts/{folder}", f"busts/{ALL}"]
    return Marks(parse_marks(entry.key for each in folders for entry in store.list(each)))


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
        if match := _MARK.fullmatch(path):
            folder, step, name, prefix, result = match.groups()
            yield Mark(path, name, folder, step, prefix, result)


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
    Create a mark, and remove older ones that it makes obsolete.

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
    folder = f"busts/{scope.folder}/{step}"
    [made] = parse_marks([f"{folder}/{name}~~{scope.prefix}~{result}.json"])
    store.put(made.key, records.seal({"version": 1, **made.to_json()}))
    if scope.folder != ALL:
        with suppress(AlreadyExistsError):
            store.put(marker_path(scope.folder), b"", mode="create")
    older = parse_marks(entry.key for entry in store.list(folder))
    store.delete(
        old.key
        for old in older
        if old.name != name
        and (old.prefix, old.result) == (made.prefix, made.result)
        # A call's mark has to stay while the result that the call replaced is stored.
        and (old.name in seen if old.is_from_call else old.at + retention_s < made.at)
    )
    return made


def fence(
    store: Store,
    folder: str | None,
    name: str,
    is_reached: Callable[[str, str], bool],
    made: Marks,
    *,
    own_call: str = "",
) -> set[str]:
    """
    Keep calls under way, and dead ones that may wake, from writing plans that may be void.

    Args:
        store: The store to write.
        folder: Only calls for the ID of this folder.
        name: Names the bust, and the plans that take the place of fenced ones.
        is_reached: Whether the plans of an ID's folder and a step are concerned.
        made: The marks of the bust; none: the values of every plan count as void.
        own_call: The call that busts; it is not fenced.

    Returns:
        The keys of plans that a call may still write: neither they nor what took their place may
        be deleted; see :func:`_delete_plans`.
    """
    kept: set[str] = set()
    for held in lease.list_leases(store, folder):
        body = held.body
        plan_key = body.get("plan_key")
        if not plan_key or body["call"] == own_call:
            continue
        place = keys.encode_id(body["id"])
        step = body["step"]
        if not is_reached(place, step):
            continue
        # A dead call that cannot wake needs no fence, which would cost each hit a second read.
        if lease.cannot_wake(body) and not lease.is_alive(store, held):
            continue
        path = records.plan_path(body["id"], step, plan_key)
        kept.add(plan_key)
        plan = read_plan(store, path, ignore)
        if plan is not None and not records.is_past(plan[0]["expires_at"]):
            if made and not made.first_invalidating(place, *plan[1].values()):
                continue
        # Always at the first key, so that a hit never follows more than one fence. A plan behind
        # an older fence is cut off, which loses nothing: a plan only saves reads.
        store.put(path, seal_fence(body["id"], step, plan_key, f"{plan_key}~{name}"))
    return kept


def _delete_plans(store: Store, paths: Iterable[str], kept: set[str]) -> int:
    """Delete plans, except those with the keys in *kept* and those that took their place."""
    return store.delete(path for path in paths if path.rpartition("/")[2][:64] not in kept)


def list_results(store: Store, scope: Scope) -> Iterator[ObjectInfo]:
    """
    The stored results that a bust of *scope* would invalidate.

    Their keys and ages decide, no result is read. So results that calls have replaced are listed,
    too.
    """
    marks_of = by_folder(list_marks(store, scope.only))
    for listed in scope.list_objects(store, "results"):
        _, folder, step, _ = listed.key.split("/")
        if ALL not in scope.steps and step not in scope.steps:
            continue
        marks = marks_of(folder)
        if not any(mark.is_later_than(listed.modified, folder, step) for mark in marks):
            yield listed


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
    if scope.folder == ALL:
        shared.refresh(store)
    return _remove_plans(store, scope, name, made, dependents, known)


def bust_result(
    store: Store,
    id: str,
    step: str,
    result: str,
    *,
    plan_key: str,
    dependents: Collection[str],
    name: str,
    seen: Collection[str],
    own_call: str,
) -> None:
    """
    Invalidate the results with one key that a call has just replaced.

    The new result names this bust, so it is the only one that stays valid. It is created first:
    of two calls that replace the same result, the create decides, and both make the same mark.

    Args:
        store: The store to write.
        id: The ID.
        step: The step.
        result: The key of the result.
        plan_key: The key of the plan that the call is going to write.
        dependents: The steps that need the step, without itself.
        name: The name of the bust.
        seen: Marks that the call had seen before it computed.
        own_call: The token of the call.
    """
    folder = keys.encode_id(id)
    made = Marks((create_mark(store, name, step, Scope(folder), result=result, seen=seen),))
    # Plans for equal inputs come back by their inputs.
    stale = [records.plan_path(id, step, plan_key)]
    for other in dependents:
        stale += [entry.key for entry in store.list(f"plans/{folder}/{other}")]
    # Last before the deletion: another bust may put a fence for a call that it meets.
    kept = fence(
        store,
        folder,
        name,
        lambda _, other: other == step or other in dependents,
        made,
        own_call=own_call,
    )
    _delete_plans(store, stale, kept)


def restore(
    store: Store, undone: Collection[Mark], *, dependents: Collection[str], known: Collection[str]
) -> int:
    """
    Undo busts: what they invalidated is served again, even if it was computed again since.

    Later busts by calls of the same steps are undone, too. A newer value stays if the one before it
    has expired, or if another bust has invalidated that too.

    Args:
        store: The store to write.
        undone: The marks of the busts.
        dependents: The steps that need a step that was busted, those included.
        known: All steps of the current flows.

    Returns:
        The number of plans that were removed.
    """
    obsolete = {mark.key for mark in undone}
    for mark in list_marks(store):
        if mark.is_from_call and any(mark.follows(other) for other in undone):
            obsolete.add(mark.key)
    steps = tuple(mark.step for mark in undone)
    scopes = [Scope(*place, steps) for place in {(mark.folder, mark.prefix) for mark in undone}]
    name = new_name()
    count = 0
    # Before the marks go, so that no plan of a newer value is left, and again for plans that were
    # written meanwhile.
    for mark_keys in ((), obsolete):
        store.delete(mark_keys)
        for scope in scopes:
            count += _remove_plans(store, scope, name, Marks(), dependents, known)
    _record(store, history.RESTORED, undone)
    shared.refresh(store)
    return count


def _record(store: Store, status: str, marks: Iterable[Mark]) -> None:
    for mark in marks:
        head = {"id": keys.decode_id(mark.folder), "why": f"{status}: {mark.name}"}
        history.note(store, mark.folder, mark.step, status, {**mark.to_json(), **head})


def _remove_plans(
    store: Store,
    scope: Scope,
    name: str,
    made: Marks,
    dependents: Collection[str],
    known: Collection[str],
) -> int:
    """
    Remove the plans that depend on what is in *scope*; returns how many.

    Args:
        store: The store to write.
        scope: What was busted or restored.
        name: Names the bust or the restore.
        made: The marks of the bust; none for a restore: all plans that the steps reach are removed.
        dependents: The steps that need a step in *scope*, those included.
        known: All steps of the current flows.
    """

    def is_reached(folder: str, step: str) -> bool:
        is_dependent = ALL in scope.steps or step in dependents or step not in known
        return is_dependent and has_prefix(folder, scope.prefix)

    def is_removed(listed: ObjectInfo) -> bool:
        _, folder, step, _ = listed.key.split("/")
        if is_reached(folder, step):
            return True
        if scope.only is None:
            return False
        # A plan of older code may need a busted step.
        plan = read_plan(store, listed.key, ignore)
        return plan is not None and made.first_invalidating(folder, *plan[1].values()) is not None

    fence(store, scope.only, name, is_reached, made)
    count = 0
    plans = (listed.key for listed in scope.list_objects(store, "plans") if is_removed(listed))
    while batch := list(islice(plans, _BATCH)):
        # Last before each deletion: another bust may put a fence for a call that it meets.
        kept = fence(store, scope.only, name, is_reached, made)
        count += _delete_plans(store, batch, kept)
    return count
