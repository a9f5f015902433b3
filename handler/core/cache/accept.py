"""
Edits that their author declared harmless: results of the old code stay valid for the new.

accepted/<step>/<new fingerprint>~<old>.json   who accepted what and when; names alone are listed, once, by what would be a miss

What is computed from an accepted result is stored by its inputs, never by a plan: undoing the acceptance undoes it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pfl.handler.core.cache import lookup
from pfl.handler.core.cache.entry import Entry, read_result
from pfl.handler.core.cache.lookup import Finding
from pfl.handler.core.errors import NotFoundError
from pfl.handler.core.event import Request
from pfl.handler.core.store import records
from pfl.handler.core.store.keys import encode_id
from pfl.handler.core.store.objects import Store

if TYPE_CHECKING:
    from pfl.handler.core.cache.bust import Mark, Marks


def find(request: Request, store: Store, warnings: list[str]) -> Finding:
    """What is stored for *request*, or for older code that its code stands for; see :func:`pfl.handler.core.cache.lookup.find`."""
    return include_accepted(request, lookup.find(request, store, warnings), store)


def include_accepted(request: Request, finding: Finding, store: Store) -> Finding:
    """*finding*, with what is stored for the older code that the present code stands for."""
    accepted = _accepted(store)
    older = {
        s: _stands_for(accepted, e.fingerprint)
        for s, e in request.flow.steps.items()
        if e.fingerprint in accepted
    }
    for depth in range(max((len(each) for each in older.values()), default=0)):
        as_before = {step: each[min(depth, len(each) - 1)] for step, each in older.items()}
        found = lookup.find(request.with_fingerprints(as_before), store, finding.warnings)
        if len(found.missing) < len(finding.missing):
            finding = finding._replace(
                found=found.found,
                known=found.known,
                missing=found.missing,
                accepted=frozenset(
                    step for step in found.found if request.flow.closure([step]) & older.keys()
                ),
            )
    return finding._replace(older={step: tuple(each) for step, each in older.items()})


def find_by_inputs(
    request: Request,
    name: str,
    finding: Finding,
    found: Mapping[str, Entry],
    store: Store,
    marks: Marks,
) -> tuple[Entry, Entry | None, str, Mark | None] | None:
    """A step's result by what it was *found* to be given: as it is stored, as history tells it, by which code, and what made it void."""
    for fingerprint in (request.flow.steps[name].fingerprint, *finding.older.get(name, ())):
        key = lookup.result_key(request, name, found, fingerprint)
        if (entry := read_result(request, name, key, store, finding.warnings)) is not None:
            told = lookup.with_history(request, entry, store, finding.warnings)
            return entry, told, fingerprint, marks.void(encode_id(request.id), told or entry)
    return None


def known_codes(store: Store, step: str) -> list[str]:
    """The fingerprints under which *step* was ever computed, the latest first."""
    listed = sorted(store.list(f"code/{step}"), key=lambda entry: entry.modified, reverse=True)
    return [entry.key.rsplit("/", 1)[1].removesuffix(".json") for entry in listed]


def accept(store: Store, step: str, new: str, old: str, *, by: str, changes: list[str]) -> dict:
    """
    Let the results of fingerprint *old* of *step* answer for *new*.

    Args:
        store: Where.
        step: The step's name.
        new: The fingerprint of the present code.
        old: That of the code whose results stay valid.
        by: Who says so.
        changes: What the edit was, in sentences.

    Returns:
        What was written.
    """
    accepted = _accepted(store) | {new: [old]}
    body = {
        "version": 1,
        "step": step,
        "fingerprint": new,
        "stands_for": _stands_for(accepted, new),
        "by": by,
    }
    body |= {"at": records.now_iso(), "changes": changes}
    store.put(f"accepted/{step}/{new}~{old}.json", records.seal(body))
    _tell(store, step, body, f"stands for {old[:12]}: " + "; ".join(changes))
    return body


def undo(store: Store, step: str, new: str, *, dry_run: bool = False) -> dict:
    """
    Take an acceptance back; in a dry run, only say which.

    Raises:
        NotFoundError: There is none for this code.
    """
    made = sorted(
        (e for e in store.list(f"accepted/{step}") if f"/{new}~" in e.key),
        key=lambda entry: entry.modified,
    )
    if not made or (data := store.get(made[-1].key)) is None:
        raise NotFoundError(
            f"no edit of step {step} is accepted for its present code",
            hint="pfl cache accept --step " + step,
        )
    if not dry_run:
        store.delete(entry.key for entry in made)
    body = records.unseal(data, made[-1].key)
    if not dry_run:
        _tell(store, step, body, "taken back")
    return body


def _tell(store: Store, step: str, body: dict, why: str) -> None:
    from pfl.handler.core.cache import (
        history,  # A hit that is told of an acceptance need not load it.
    )

    said = {name: value for name, value in body.items() if name not in ("version", "step")}
    history.note(store, history.ALL, step, history.ACCEPTED, {"id": None, **said, "why": why})


def _accepted(store: Store) -> dict[str, list[str]]:
    """The older fingerprints that were accepted for each newer one."""
    found: dict[str, list[str]] = {}
    for entry in store.list("accepted"):
        new, _, old = entry.key.rpartition("/")[2].removesuffix(".json").partition("~")
        found.setdefault(new, []).append(old)
    return found


def _stands_for(accepted: dict[str, list[str]], new: str) -> list[str]:
    """All that *new* stands for, through other acceptances too."""
    found = list(accepted.get(new, ()))
    for each in found:
        found += [old for old in accepted.get(each, ()) if old != new and old not in found]
    return found
