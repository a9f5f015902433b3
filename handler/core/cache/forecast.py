"""What a call would do, and why, without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from ..event import Request
from ..fingerprint import Fingerprint
from ..store.keys import encode_id
from ..store.objects import Store
from . import accept, bust, history, reasons
from .entry import ignore
from .lookup import Finding


class ForecastRow(TypedDict):
    """
    What a call would do with one step.

    The status is ``hit``, ``skip``, ``compute``, or ``depends``: code and parameters of the step
    are as stored, and it computes only if the new value of an earlier step differs. ``why`` has the
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
    found, busted = accept.find_missing(request, finding, store, marks)
    rows: list[ForecastRow] = []
    for name in request.flow.steps:
        is_missing = name in finding.missing
        why: list[str] = []
        if is_missing and name not in found:
            status = "compute"
            upstream = request.flow.steps[name].upstream
            inputs = {other: found[other] for other in upstream if other in found}
            before = history.newest(store, folder, name, finding.warnings.append)
            print = prints.get(name)
            why = reasons.explain(
                request, name, inputs, before, store, print, busted=busted.get(name), diff=diff
            )
            unknown = [other for other in upstream if other not in found]
            if unknown and why == [reasons.GONE]:
                status = "depends"
                why = [f"on the new value of {', '.join(unknown)}"]
            elif failure := _last_failure(store, request.id, name):
                why = [f"never completed: {failure}"] if why == [reasons.NEVER] else [*why, failure]
        elif name not in found:
            continue
        elif name in request.skip:
            status = "skip"
            why = ["its newest stored value is used"]
        elif is_missing or request.step in (None, name):
            status = "hit"
        else:
            continue
        rows.append({"step": name, "status": status, "why": "; ".join(why) or None, "reasons": why})
    return rows


def _last_failure(store: Store, id: str, step: str) -> str:
    """When a step failed or crashed, and why; empty if it did not, or has a newer result."""
    for name, record in history.list_records(store, id=id, step=step, warn=ignore):
        if name.status == history.COMPUTED:
            break
        if name.status in (history.FAILED, history.CRASHED):
            error = record.get("error")
            cause = f" with {error['type']}: {error['what']}" if error else ""
            return f"{name.status} at {name.written_at}{cause}"
    return ""
