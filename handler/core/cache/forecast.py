"""What an invocation would do, and why, without doing it."""

from __future__ import annotations

from collections.abc import Mapping

from pfl.handler.core.cache import accept, bust
from pfl.handler.core.cache import reasons as why
from pfl.handler.core.cache.lookup import Finding
from pfl.handler.core.event import Request
from pfl.handler.core.fingerprint import Fingerprint
from pfl.handler.core.store import records
from pfl.handler.core.store.keys import encode_id
from pfl.handler.core.store.objects import Store


def steps(
    request: Request,
    finding: Finding,
    store: Store,
    prints: Mapping[str, Fingerprint],
    *,
    diff: bool = False,
) -> list[dict[str, object]]:
    """
    The steps that would be touched, in order, each with ``step``, ``status``, ``why`` and ``reasons``, a sentence each.

    A status is ``hit``, ``skip``, ``compute``, or ``depends``: the step's own code and parameters are stored, and it is
    computed only if an upstream step's new value differs.
    """
    rows, found, marks = [], dict(finding.found), bust.Marks()
    if finding.missing:
        marks = bust.marks(store, encode_id(request.id))
    for name in request.flow.steps:
        upstream = request.flow.steps[name].upstream
        status, reasons = "hit", []
        if name in request.skip and name in found:
            status, reasons = "skip", ["its newest stored value is taken"]
        elif name in finding.missing:
            status, busted = "compute", None
            before = next(
                (body for _, body in records.newest(store, request.id, name, finding.warnings)),
                None,
            )
            unsure = [other for other in upstream if other not in found]
            if (
                not unsure
                and name not in request.bust
                and (stored := accept.find_by_inputs(request, name, finding, found, store, marks))
            ):
                entry, told, _, busted = stored
                if busted is None:
                    status, found[name] = "hit", told or entry
            if status == "compute":
                inputs = {other: found[other] for other in upstream if other in found}
                reasons = why.explain(
                    request, name, inputs, before, store, prints.get(name), busted=busted, diff=diff
                )
                if unsure and reasons == [why.GONE]:
                    status, reasons = "depends", [f"on the new value of {', '.join(unsure)}"]
        elif name not in found or (request.step is not None and name != request.step):
            continue
        rows.append(
            {"step": name, "status": status, "why": "; ".join(reasons) or None, "reasons": reasons}
        )
    return rows
