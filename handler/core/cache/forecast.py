"""What a call would do, and why, without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from pfl.handler.core.cache import accept, bust, history, reasons
from pfl.handler.core.cache.lookup import Finding
from pfl.handler.core.event import Request
from pfl.handler.core.fingerprint import Fingerprint
from pfl.handler.core.store.keys import encode_id
from pfl.handler.core.store.objects import Store


class ForecastRow(TypedDict):
    """
    What a call would do with one step.

    The status is ``hit``, ``skip``, ``compute``, or ``depends``: code and parameters of the step
    are as stored, and it computes only if the new value of an earlier step differs. ``why`` is the
    reasons in one line. ``opaque`` is the code that its fingerprint cannot follow, if the caller
    adds it.
    """

    step: str
    status: str
    why: str | None
    reasons: list[str]
    opaque: NotRequired[list[str]]


def steps(
    request: Request,
    finding: Finding,
    store: Store,
    prints: Mapping[str, Fingerprint],
    *,
    diff: bool = False,
) -> list[ForecastRow]:
    """The steps that a call would touch, in the order of the flow."""
    folder = encode_id(request.id)
    marks = bust.list_marks(store, folder) if finding.missing else bust.Marks()
    found = dict(finding.found)

    def explain(name: str) -> tuple[str, list[str]]:
        """Status and reasons of a step without a plan; a result for its inputs goes to *found*."""
        upstream = request.flow.steps[name].upstream
        inputs = {other: found[other] for other in upstream if other in found}
        unknown = [other for other in upstream if other not in found]
        stored = None
        if not unknown and name not in request.bust:
            stored = accept.find_by_inputs(request, name, finding, found, store, marks)
        if stored is not None and stored.mark is None:
            found[name] = stored.recorded or stored.entry
            return "hit", []
        computed = history.list_computed(store, folder, name, finding.warnings.append)
        why = reasons.explain(
            request,
            name,
            inputs,
            next((record for _, record in computed), None),
            store,
            prints.get(name),
            busted=None if stored is None else stored.mark,
            diff=diff,
        )
        if unknown and why == [reasons.GONE]:
            return "depends", [f"on the new value of {', '.join(unknown)}"]
        return "compute", why

    rows: list[ForecastRow] = []
    for name in request.flow.steps:
        if name in request.skip and name in found:
            status, why = "skip", ["its newest stored value is used"]
        elif name in finding.missing:
            status, why = explain(name)
        elif name in found and request.step in (None, name):
            status, why = "hit", []
        else:
            continue
        rows.append({"step": name, "status": status, "why": "; ".join(why) or None, "reasons": why})
    return rows
