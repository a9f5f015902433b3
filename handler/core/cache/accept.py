"""
Accepted edits: results of older code stay valid because the author declared the edit harmless.

accepted/<step>/<new fingerprint>~<old>.json    who accepted what and when; a miss lists the names

A result computed from an accepted result is found by its inputs, never by a plan: undoing the
acceptance also invalidates such results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from ..errors import CorruptRecordError, NotFoundError
from ..event import Request
from ..store import records
from ..store.keys import digest, encode_id
from ..store.objects import Store
from . import lookup, shared
from .entry import Entry, parse_result
from .lookup import Finding

if TYPE_CHECKING:  # Not at run time: a hit on an accepted result does not need it.
    from .bust import Mark, Marks


class Acceptance(TypedDict):
    """
    One accepted edit: results of the fingerprints in ``stands_for`` are valid for ``fingerprint``.
    """

    version: int
    step: str
    fingerprint: str
    stands_for: list[str]
    by: str
    at: records.Moment
    changes: list[str]


class Stored(NamedTuple):
    """
    A result that was found by its inputs.

    Attributes:
        entry: The result, as its object holds it.
        recorded: The result with the time and run of its computation; None if it has no record of
            history.
        fingerprint: The code that computed it.
    """

    entry: Entry
    recorded: Entry | None
    fingerprint: str


class NotStored(NamedTuple):
    """
    No result may be served for some inputs.

    Attributes:
        free: The file name for the next result.
        mark: The bust that made the newest stored result invalid, if one did.
    """

    free: str
    mark: Mark | None


def find(request: Request, store: Store, warnings: list[str]) -> Finding:
    """What is stored for *request*, accepted results included."""
    return include_accepted(request, lookup.find(request, store, warnings), store)


def include_accepted(request: Request, finding: Finding, store: Store) -> Finding:
    """*finding* plus what is stored for older code whose results are accepted."""
    hint = shared.remembered(store)["accepted"]
    if not any(step.fingerprint in hint for step in request.flow.steps.values()):
        return finding
    accepted = _list_accepted(store)
    older = {
        name: tuple(_all_older(accepted, step.fingerprint))
        for name, step in request.flow.steps.items()
        if step.fingerprint in accepted
    }
    for depth in range(max(map(len, older.values()), default=0)):
        as_before = {name: each[min(depth, len(each) - 1)] for name, each in older.items()}
        found = lookup.find(request.with_fingerprints(as_before), store, finding.warnings)
        if len(found.missing) < len(finding.missing):
            rest_on_older = (
                name for name in found.found if request.flow.closure([name]) & older.keys()
            )
            finding = found._replace(accepted=frozenset(rest_on_older))
    return finding._replace(older=older)


def find_by_inputs(
    request: Request,
    name: str,
    finding: Finding,
    found: Mapping[str, Entry],
    store: Store,
    marks: Marks,
) -> Stored | NotStored:
    """The stored result of a step for the inputs in *found*, by current or accepted code."""
    current = request.flow.steps[name].fingerprint
    missing: list[NotStored] = []
    for fingerprint in (current, *finding.older.get(name, ())):
        key = lookup.result_key(request, name, found, fingerprint)
        stored = find_result(request.id, name, key, store, marks, finding.warnings)
        if not isinstance(stored, NotStored):
            return Stored(*stored, fingerprint)
        missing.append(stored)
    mark = next((each.mark for each in missing if each.mark is not None), None)
    return missing[0]._replace(mark=mark)


def find_result(
    id: str, step: str, key: str, store: Store, marks: Marks, warnings: list[str]
) -> tuple[Entry, Entry | None] | NotStored:
    """
    The oldest result with this key that may be served, and the same with its run if it has a
    record.

    A result is never overwritten. One that takes the place of another is named after the bytes of
    that one, so the results of a key form a chain:

        <key> ─ busted, expired or damaged ─ <key>~<its digest> ─ …
    """
    from . import history  # A hit does not need it.

    folder = encode_id(id)
    name = key
    mark = None
    while True:
        path = records.result_path(id, step, name)
        data = store.get(path)
        if data is None:
            return NotStored(name, mark)
        try:
            entry = parse_result(data, path)
        except CorruptRecordError as exc:
            warnings.append(str(exc))
        else:
            recorded = history.add_run(store, id, entry, warnings.append)
            mark = marks.first_invalidating(folder, recorded or entry)
            if mark is None and not records.is_past(entry.expires_at):
                return entry, recorded
        name = next_name(key, data)


def find_free(store: Store, id: str, step: str, key: str, start: str) -> str:
    """The first free name in the chain of results of a key, from the result *start* on."""
    name = start
    while (data := store.get(records.result_path(id, step, name))) is not None:
        name = next_name(key, data)
    return name


def next_name(key: str, data: bytes) -> str:
    """The file name of the result that takes the place of one that has these bytes."""
    return f"{key}~{digest(data)[:8]}"


def find_missing(
    request: Request, finding: Finding, store: Store, marks: Marks
) -> tuple[dict[str, Entry], dict[str, Mark]]:
    """All results that a call would use, by plan or by inputs, and the busts of others."""
    found = dict(finding.found)
    busted: dict[str, Mark] = {}
    for name in finding.missing:
        upstream = request.flow.steps[name].upstream
        if name in request.bust or not found.keys() >= set(upstream):
            continue
        stored = find_by_inputs(request, name, finding, found, store, marks)
        if isinstance(stored, Stored):
            found[name] = stored.recorded or stored.entry
        elif stored.mark is not None:
            busted[name] = stored.mark
    return found, busted


def known_codes(store: Store, step: str) -> list[str]:
    """The fingerprints under which *step* was ever computed, newest first."""
    listed = sorted(store.list(f"code/{step}"), key=lambda entry: entry.modified, reverse=True)
    return [entry.key.rsplit("/", 1)[1].removesuffix(".json") for entry in listed]


def accept(
    store: Store, step: str, new: str, old: str, *, by: str, changes: list[str]
) -> Acceptance:
    """
    Accept the results of fingerprint *old* of *step* for fingerprint *new*.

    Args:
        store: The store to write.
        step: The step's name.
        new: The fingerprint of the current code.
        old: The fingerprint whose results stay valid.
        by: Who accepts the edit.
        changes: Sentences that describe the edit.

    Returns:
        The acceptance as it was written.
    """
    body: Acceptance = {
        "version": 1,
        "step": step,
        "fingerprint": new,
        "stands_for": _all_older(_list_accepted(store) | {new: [old]}, new),
        "by": by,
        "at": records.now_iso(),
        "changes": changes,
    }
    store.put(f"accepted/{step}/{new}~{old}.json", records.seal(body))
    shared.refresh(store)
    _record(store, body, f"stands for {old[:12]}: " + "; ".join(changes))
    return body


def undo(store: Store, step: str, new: str, *, dry_run: bool = False) -> Acceptance:
    """
    Undo the acceptance for fingerprint *new* of a step; returns what was accepted.

    Raises:
        NotFoundError: Nothing is accepted for this code.
    """
    listed = (entry for entry in store.list(f"accepted/{step}") if f"/{new}~" in entry.key)
    made = [entry.key for entry in sorted(listed, key=lambda entry: entry.modified)]
    if not made:
        raise NotFoundError(
            f"step {step} has no accepted edit for its current code",
            hint=f"pfl cache accept --step {step}",
        )
    body = records.unseal(store.get(made[-1]) or b"", made[-1])
    records.check(body, made[-1], Acceptance)
    if not dry_run:
        store.delete(made)
        shared.refresh(store)
        _record(store, body, "undone")
    return cast(Acceptance, body)


def _record(store: Store, acceptance: Acceptance, why: str) -> None:
    from . import history  # A hit does not need it.

    fields = {"id": None, **acceptance, "why": why}
    del fields["version"], fields["step"]
    history.note(store, history.ALL, acceptance["step"], history.ACCEPTED, fields)


def _list_accepted(store: Store) -> dict[str, list[str]]:
    """The older fingerprints that were accepted for each newer one."""
    found: dict[str, list[str]] = {}
    for entry in store.list("accepted"):
        name = entry.key.rpartition("/")[2].removesuffix(".json")
        new, _, old = name.partition("~")
        found.setdefault(new, []).append(old)
    return found


def _all_older(accepted: Mapping[str, list[str]], new: str) -> list[str]:
    """All fingerprints accepted for *new*, through other acceptances too."""
    found = list(accepted.get(new, ()))
    for each in found:
        found += [old for old in accepted.get(each, ()) if old != new and old not in found]
    return found
