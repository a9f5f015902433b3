"""
Edits that their author declared harmless: results of the old code stay valid for the new.

accepted/<step>/<new fingerprint>.json   who accepted what and when
accepted/index.json                      all of it in one object, which is the one extra read of what would be a miss

What is computed from an accepted result is stored by its inputs, never by a plan: undoing the acceptance undoes it all.
"""

from __future__ import annotations

from collections.abc import Iterator

from handler.core import cache, records
from handler.core.cache import Finding
from handler.core.errors import CorruptRecordError, NotFoundError
from handler.core.event import Request
from handler.core.store import Store

_INDEX = "accepted/index.json"
Aliases = dict[str, list[str]]


def widen(request: Request, finding: Finding, store: Store) -> Finding:
    """*finding*, with what is stored for the older code that the present code stands for."""
    index = _index(store, finding.warnings)
    older = {s: index[e.fingerprint] for s, e in request.flow.steps.items() if e.fingerprint in index}
    for depth in range(max((len(each) for each in older.values()), default=0)):
        as_before = {step: each[min(depth, len(each) - 1)] for step, each in older.items()}
        found = cache.find(request.with_fingerprints(as_before), store, finding.warnings)
        if len(found.missing) < len(finding.missing):
            finding = finding._replace(
                found=found.found,
                known=found.known,
                missing=found.missing,
                accepted=frozenset(step for step in found.found if request.flow.closure([step]) & older.keys()),
            )
    return finding._replace(older={step: tuple(each) for step, each in older.items()})


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
    standing = _index(store, []).get(old, [])
    body = {"version": 1, "step": step, "fingerprint": new, "stands_for": [old, *standing], "by": by}
    body |= {"at": records.now_iso(), "changes": changes}
    store.put(f"accepted/{step}/{new}.json", records.seal(body))
    _reindex(store)
    _tell(store, step, body | {"why": f"stands for {old[:12]}: " + "; ".join(changes)})
    return body


def undo(store: Store, step: str, new: str) -> dict:
    """
    Take an acceptance back.

    Raises:
        NotFoundError: There is none for this code.
    """
    path = f"accepted/{step}/{new}.json"
    if (data := store.get(path)) is None:
        raise NotFoundError(f"no edit of step {step} is accepted for its present code", hint="pfl cache accept --step " + step)
    store.delete([path])
    _reindex(store)
    body = records.unseal(data, path)
    _tell(store, step, body | {"why": "taken back"})
    return body


def _tell(store: Store, step: str, body: dict) -> None:
    from handler.core import history  # A hit that is told of an acceptance need not load it.

    history.note(store, history.ALL, step, history.ACCEPTED, {"id": None, **{k: v for k, v in body.items() if k not in ("version", "step")}})


def _reindex(store: Store) -> None:
    # From what is listed after the write, so of two who write at once the later knows of both.
    index = {body["fingerprint"]: body["stands_for"] for body in _all(store)}
    store.put(_INDEX, records.seal({"version": 1, "stands_for": index}))


def _all(store: Store) -> Iterator[dict]:
    for entry in store.list("accepted"):
        if entry.key != _INDEX and (data := store.get(entry.key)) is not None:
            yield records.unseal(data, entry.key)


def _index(store: Store, warnings: list[str]) -> Aliases:
    if (data := store.get(_INDEX)) is None:
        return {}
    try:
        return records.unseal(data, _INDEX)["stands_for"]
    except CorruptRecordError as exc:
        warnings.append(str(exc))
        return {}
