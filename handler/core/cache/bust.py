"""
Busts: what was computed before one is not served after it, and a bust can be undone.

A bust is an object, a *mark*, created before anything is touched. Whatever a mark covers and had not seen it is void:

    busts/<id>/<step>/<name>~<before>~~<result key>.json    of one ID
    busts/~/<step>/<name>~<before>~<prefix>~.json           of all IDs that begin so, by default all

A step ``~`` is all steps; *before*, in microseconds, spares what was computed later; a result key spares all but one result.
Results name the marks that their computation had seen when it began (``after``). Nothing is deleted but plans, since a hit
reads a plan and nothing else:

    computation   look at marks ── compute ── result(after) ── announce ── look again ── plan, if none is void ── retract
    bust          mark ── wait for who has announced a plan ── remove plans ── done

However the two lie in time: announced before the bust looks, the plan is there before plans are removed, and goes with them;
announced later, the second look comes after the mark, and there is no plan. A publisher that takes longer than a bust waits for
it, because it was frozen or has died, looks once more behind its plan and takes it back. The result stays, void; so restoring is
removing the mark.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from pfl.handler.core.cache import history
from pfl.handler.core.cache.entry import UNREAD, Entry, entry_of, plan_of
from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError, UnavailableError
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import ObjectInfo, Store
from pfl.handler.core.store.values import encode

ALL = "~"  # No ID's folder and no step is called so.
_DAY_S = 86_400
_PATIENCE_S = 10.0  # Between announcing a plan and retracting lie three requests.


class Mark(NamedTuple):
    """
    One mark.

    Attributes:
        key: Its object.
        name: What the bust is called: its time and some random digits; one that a call made for itself starts with ``x``.
        folder: Folder name of an ID, or ``~``.
        step: A step, or ``~``.
        before: ISO 8601; only what was computed before. None: everything.
        prefix: How the IDs begin, coded.
        result: The one result it is about, or empty.
    """

    key: str
    name: str
    folder: str
    step: str
    before: str | None
    prefix: str
    result: str

    def covers(self, folder: str, step: str) -> bool:
        """Whether results of *step* in an ID's folder are touched."""
        return (
            folder == self.folder if self.folder != ALL else begins(folder, self.prefix)
        ) and self.step in (ALL, step)

    def voids(self, folder: str, entry: Entry) -> bool:
        """Whether *entry* may not be served any more."""
        return (
            self.name not in entry.after
            and self.covers(folder, entry.step)
            and self.result in ("", entry.key)
            # Nobody knows the age of a result whose writer died before telling.
            and (
                self.before is None or entry.computed_at is None or entry.computed_at < self.before
            )
        )

    @property
    def by_call(self) -> bool:
        """Whether a call made it, for a result that it computed itself."""
        return self.name.startswith("x")

    @property
    def at(self) -> float:
        """When the bust was made, in seconds since 1970."""
        return int(self.name.removeprefix("x")[:11], 16) / 1e3

    @property
    def shown_id(self) -> str:
        """The ID, as its folder is called; ``ab*`` for those that begin so."""
        return self.folder if self.folder != ALL else f"{self.prefix}*"

    def to_json(self) -> dict[str, object]:
        """A mark as a person sees it; an ID as its folder is called."""
        return {
            "bust": self.name,
            "id": None if self.folder == ALL else self.folder,
            "prefix": self.prefix or None,
            "step": None if self.step == ALL else self.step,
            "before": self.before,
            "busted_at": records.now_iso(self.at),
        }


class Marks(tuple[Mark, ...]):
    """The marks that were there at some moment."""

    def seen(self, folder: str, step: str, result: str) -> tuple[str, ...]:
        """The names a result has to carry whose computation begins now; one that looks at age spares it anyway."""
        return tuple(
            sorted(
                m.name
                for m in self
                if m.before is None and m.result in ("", result) and m.covers(folder, step)
            )
        )

    def void(self, folder: str, *entries: Entry) -> Mark | None:
        """A mark that makes one of the entries void, if there is one."""
        return next((m for m in self for entry in entries if m.voids(folder, entry)), None)


class Scope(NamedTuple):
    """What to bust: one ID's folder or all that begin so; some steps or all; whatever its age, or what is older than a moment."""

    folder: str = ALL
    prefix: str = ""
    steps: tuple[str, ...] = (ALL,)
    before: float | None = None


def begins(folder: str, prefix: str) -> bool:
    """Whether the ID of a folder begins so; of a very long one its first 40 characters decide."""
    length = folder.find("~") if "~" in folder else len(prefix)
    return folder.startswith(prefix[:length])


def marks(store: Store, folder: str | None = None) -> Marks:
    """The marks about the ID of a folder, or all there are: two listings, one of them of that ID alone."""
    places = (
        ["busts"] if folder is None else list(dict.fromkeys((f"busts/{folder}", f"busts/{ALL}")))
    )
    return Marks(
        mark for place in places for mark in parsed(entry.key for entry in store.list(place))
    )


def by_folder(there: Iterable[Mark]) -> Callable[[str], Marks]:
    """Finds the marks about the ID of a folder among many, without a look at those of other IDs."""
    places: dict[str, list[Mark]] = {}
    for m in there:
        places.setdefault(m.folder, []).append(m)
    everywhere = places.pop(ALL, [])
    return lambda folder: Marks((*places.get(folder, ()), *everywhere))


def new_name(*, by_call: bool = False) -> str:
    """A name for a bust: in order of time, never twice the same."""
    return f"{'x' if by_call else ''}{int(time.time() * 1e3):011x}{secrets.token_hex(3)}"


def mark(
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
    Make a mark, and wait for plans that were about to be written; older marks go that are of no more use.

    Args:
        store: Where.
        name: The bust's; see :func:`new_name`.
        step: Of this step; ``~``: of all.
        scope: What else it is about; its steps are not looked at.
        result: The key of the one result it is about; empty: all.
        retention_s: How long a bust can be restored, in seconds.
        seen: Marks that whoever calls had seen before it computed what it will write.
    """
    if len(scope.prefix) > keys.LONGEST:
        raise InvalidRequestError(
            "the prefix is too long", why=f"{len(scope.prefix)} characters, {keys.LONGEST} at most"
        )
    before = "" if scope.before is None else str(int(scope.before * 1e6))
    place = f"busts/{scope.folder}/{step}"
    [made] = parsed([f"{place}/{name}~{before}~{scope.prefix}~{result}.json"])
    store.put(made.key, records.seal({"version": 1, **made.to_json()}))
    needless = []
    for old in parsed(entry.key for entry in store.list(place)):
        is_within = (old.prefix, old.result) == (made.prefix, result) and (
            made.before is None or (old.before is not None and old.before <= made.before)
        )
        # Behind a mark that a call made for itself stands its own value: the mark only warns those who computed meanwhile.
        is_done = old.name in seen if old.by_call else old.at + retention_s < made.at
        if old.name != name and (
            (is_within and is_done) or (old.by_call and old.at + _DAY_S < made.at)
        ):
            needless.append(old.key)
    store.delete(needless)
    _wait(store, scope)
    return made


def publish(store: Store, folder: str, entries: Iterable[Entry], write: Callable[[], str]) -> Marks:
    """
    Write a plan, unless something in it is void; see the time line above.

    Args:
        store: Where.
        folder: The ID's.
        entries: What the plan rests on.
        write: Writes it, and says where.

    Returns:
        The marks that are there.
    """
    started, key = time.monotonic(), f"publishing/{folder}~{new_name()}"
    store.put(key, b"{}")
    try:
        there = marks(store, folder)
        if not there.void(folder, *entries):
            path = write()
            if time.monotonic() - started >= _PATIENCE_S / 2:
                there = marks(store, folder)
                if there.void(folder, *entries):
                    store.delete([path])
    finally:
        try:
            store.delete([key])
        except UnavailableError:
            pass  # The plan is there or is not; what stays behind costs the next bust of this ID a wait.
    return there


def _wait(store: Store, scope: Scope) -> None:
    until = time.monotonic() + _PATIENCE_S
    announced: set[str] | None = None
    while True:
        # Ages differ by what two clocks do; what is a minute old is of one that died.
        young = (
            entry.key for entry in store.list("publishing") if entry.modified + 60 > time.time()
        )
        there = {
            key
            for key in young
            if scope.folder in (ALL, key.removeprefix("publishing/").rpartition("~")[0])
        }
        announced = there if announced is None else announced & there
        if not announced or time.monotonic() >= until:
            return
        time.sleep(0.02)


def results(store: Store, scope: Scope) -> Iterator[ObjectInfo]:
    """The stored results that a bust of *scope* makes void; only those of a single ID are read, of others age and place decide."""
    about = by_folder(marks(store, None if scope.folder == ALL else scope.folder))
    for listed in _listed(store, "results", scope):
        _, folder, step, _ = listed.key.split("/")
        if (ALL not in scope.steps and step not in scope.steps) or (
            scope.before is not None and listed.modified >= scope.before
        ):
            continue
        there = about(folder)
        if scope.folder == ALL:
            written_at = records.now_iso(listed.modified)
            is_void = any(
                m.covers(folder, step)
                and not m.result
                and written_at < (m.before or m.to_json()["busted_at"])
                for m in there
            )
        else:
            is_void = there.void(folder, _stored(listed, _noted(store, listed.key))) is not None
        if not is_void:
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
    Make what *scope* says void, and say how many plans that took away.

    Args:
        store: Where.
        scope: What.
        name: What the bust is called.
        dependents: The steps that need a busted one, those included.
        known: All steps of today's flows; a plan of any other is not kept.
        retention_s: How long the bust can be restored, in seconds.
    """
    made = [mark(store, name, step, scope, retention_s=retention_s) for step in scope.steps]
    _tell(store, history.BUSTED, made)
    return _forget(store, scope, made, dependents, known)


def restore(
    store: Store, undone: Collection[Mark], *, dependents: Collection[str], known: Collection[str]
) -> dict[str, int]:
    """
    Undo busts: what they made void is served again, also where it was computed again since.

    A value stays that was computed since where the one before has expired, or another bust has made it void as well.

    Args:
        store: Where.
        undone: Their marks.
        dependents: The steps that need a step that was busted, those included.
        known: All steps of today's flows.

    Returns:
        How many results are ``back``; of those ``replaced``, newer values that gave way; and ``plans`` removed.
    """
    names, counts = {m.name for m in undone}, {"back": 0, "replaced": 0, "plans": 0}
    over, since, undone_of = (
        {m.key for m in undone},
        min((m.at for m in undone), default=0.0),
        by_folder(undone),
    )
    gone: set[str] = set()
    places: dict[tuple[str, str], list[str]] = {}
    for m in undone:
        places.setdefault((m.folder, m.prefix), []).append(m.step)
    scopes = [Scope(*place, tuple(steps)) for place, steps in places.items()]
    for scope in scopes:
        about = by_folder(marks(store, None if scope.folder == ALL else scope.folder))
        for listed in _listed(store, "results", scope):
            _, folder, step, key = listed.key.split("/")
            near = undone_of(folder)
            if not any(m.covers(folder, step) and m.result in ("", key) for m in near):
                continue
            # What calls busted since for themselves gave the value that gives way.
            by_calls = {
                m.key
                for m in about(folder)
                if m.by_call and m.at >= since and m.step == step and m.result == key
            }
            noted = _noted(store, listed.key)
            if (
                names & set(noted.get("after", ()))
                or near.void(folder, _stored(listed, noted)) is None
            ):
                lasting = Marks(
                    m for m in about(folder) if m.key not in over and m.key not in by_calls
                )
                if not noted or (older := _older(store, noted, listed.key, near, lasting)) is None:
                    continue
                store.put(listed.key, older)
                counts["replaced"] += 1
            gone |= by_calls
            counts["back"] += 1
    # Plans go before, so that none is left of a newer value, and after, for those that were planned meanwhile.
    for keys_to_go in ((), over | gone):
        store.delete(keys_to_go)
        counts["plans"] += sum(_forget(store, scope, (), dependents, known) for scope in scopes)
    _tell(store, history.RESTORED, undone)
    return counts


def _tell(store: Store, status: str, told: Iterable[Mark]) -> None:
    for m in told:
        about = m.to_json() | {
            "id": None if m.folder == ALL else keys.decode_id(m.folder),
            "why": f"{status}: {m.name}",
        }
        history.note(
            store,
            m.folder,
            m.step,
            status,
            {name: said for name, said in about.items() if name != "step"},
        )


def _forget(
    store: Store,
    scope: Scope,
    made: Collection[Mark],
    dependents: Collection[str],
    known: Collection[str],
) -> int:
    """Remove the plans that rest on what the marks are about; their results stay, so that equal inputs still hit."""
    count = 0

    def doomed() -> Iterator[str]:
        nonlocal count
        for listed in _listed(store, "plans", scope):
            _, folder, step, _ = listed.key.split("/")
            is_dependent = ALL in scope.steps or step in dependents or step not in known
            is_doomed = is_dependent and (scope.before is None or listed.modified < scope.before)
            if not is_doomed and (is_dependent or scope.folder != ALL):
                # A young plan may rest on an old result, and one of an older version of the code on a busted step.
                is_doomed = any(
                    m.voids(folder, entry) for entry in _entries(store, listed.key) for m in made
                )
            if is_doomed:
                count += 1
                yield listed.key

    store.delete(doomed())
    return count


def _listed(store: Store, kind: str, scope: Scope) -> Iterator[ObjectInfo]:
    for listed in store.list(kind if scope.folder == ALL else f"{kind}/{scope.folder}"):
        if listed.key.count("/") == 3 and begins(listed.key.split("/")[1], scope.prefix):
            yield listed


def parsed(found: Iterable[str]) -> Iterator[Mark]:
    for key in found:
        try:
            _, folder, step, rest = key.split("/")
            name, before, prefix, result = rest.removesuffix(".json").split("~")
            made = Mark(
                key,
                name,
                folder,
                step,
                records.now_iso(int(before) / 1e6) if before else None,
                prefix,
                result,
            )
            made.at  # noqa: B018
        except ValueError:
            continue  # Not ours; verify tells of it.
        yield made


def _noted(store: Store, path: str) -> dict:
    """What pfl noted beside a result; nothing where it is gone or damaged."""
    try:
        return records.decode_result(store.get(path) or b"", path)[3]
    except (CorruptRecordError, InvalidRequestError):
        return {}


def _entries(store: Store, path: str) -> Collection[Entry]:
    try:
        return plan_of(store.get(path) or b"", path)[1].values()
    except CorruptRecordError:
        return ()


def _stored(listed: ObjectInfo, noted: dict) -> Entry:
    """A result as its place and what pfl noted beside it tell of it."""
    _, folder, step, key = listed.key.split("/")
    at = (
        history.Name(folder, step, noted["record"]).written_at
        if "record" in noted
        else records.now_iso(listed.modified)
    )
    return Entry(step, key, "", listed.size_bytes, at, None, after=noted.get("after", ()))


def _older(store: Store, noted: dict, path: str, undone: Marks, lasting: Marks) -> bytes | None:
    """The record that the result at *path* had before it was busted by *undone*, made anew from history."""
    _, folder, step, key = path.split("/")
    names = {m.name for m in undone}
    for record, body in records.newest(store, noted["id"], step, [], having=key[:16]):
        entry = entry_of(body)
        if entry.key != key or names & set(entry.after) or records.is_past(entry.expires_at):
            continue
        if undone.void(folder, entry) is None or lasting.void(folder, entry) is not None:
            continue
        if entry.value is not UNREAD:
            text = encode(entry.value)
        elif (data := store.get(records.value_path(noted["id"], entry.sha256))) is not None:
            text = data.decode()
        else:
            continue
        about = (
            {name: noted[name] for name in ("id", "step", "fingerprint")}
            | {"record": record.rpartition("/")[2]}
            | ({"after": list(entry.after)} if entry.after else {})
        )
        return records.encode_result(path, text, about, entry.expires_at)
    return None
