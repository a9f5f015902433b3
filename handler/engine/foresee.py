"""What an invocation would do, and why, without doing it."""

from __future__ import annotations

from handler.core import bust, cache, records
from handler.core.cache import Finding
from handler.core.event import Request
from handler.core.keys import encode_id
from handler.core.store import Store
from handler.engine import why


def steps(request: Request, finding: Finding, store: Store) -> list[dict[str, str | None]]:
    """
    The steps that would be touched, in order, each with ``step``, ``status`` and ``why``.

    A status is ``hit``, ``skip``, ``compute``, or ``depends``: the step's own code and parameters are stored, and it is
    computed only if an upstream step's new value differs.
    """
    rows, found, marks = [], dict(finding.found), bust.Marks()
    if finding.missing:
        marks = bust.marks(store, encode_id(request.id))
    for name in request.flow.steps:
        upstream = request.flow.steps[name].upstream
        if name in request.skip and name in found:
            rows.append({"step": name, "status": "skip", "why": "its newest stored value is taken"})
        elif name in found and name not in finding.missing:
            if request.step is None or name == request.step:
                rows.append({"step": name, "status": "hit", "why": None})
        elif name in finding.missing:
            status, reason = "compute", None
            before = next((body for _, body in records.newest(store, request.id, name, finding.warnings)), None)
            if all(other in found for other in upstream):
                key = cache.result_key(request, name, found)
                entry = None if name in request.bust else cache.read_result(request, name, key, store, finding.warnings)
                told = entry and cache.told(request, entry, store, finding.warnings)
                busted = entry and marks.void(encode_id(request.id), told or entry)
                if entry is not None and busted is None:
                    status, found[name] = "hit", entry
                else:
                    reason = why.explain(request, name, found, before, busted)
            else:
                unsure = [other for other in upstream if other not in found]
                reason = why.explain(request, name, {k: v for k, v in found.items() if k in upstream}, before)
                if reason == why.GONE:
                    status, reason = "depends", f"on the new value of {', '.join(unsure)}"
            rows.append({"step": name, "status": status, "why": reason})
    return rows
