"""
Answers a call for an ID: parses the event, looks up results, has the engine compute a miss.

A hit needs only :mod:`pfl.handler.core.cache.lookup`: it takes one read of the store, and imports
neither Prefect nor the user's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from .core import event
from .core.cache import lookup
from .core.cache.entry import Entry
from .core.declare import catalog
from .core.errors import NotFoundError
from .core.event import Caller, Reply, Request, StepRow

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from .engine.invocation import Invocation
    from .engine.work import Outcome


# What a row has of the result of its step, if there is one.
_OF_ENTRY = (
    "value",
    "key",
    "computed_at",
    "expires_at",
    "flow_run_id",
    "task_run_id",
    "url",
)


def answer(raw: object, caller: Caller, flow_run: FlowRun | None = None) -> Reply:
    """
    The reply to the event *raw*, which is a call for an ID.

    Args:
        raw: The event.
        caller: Who sent it.
        flow_run: The flow run that made this call, if Prefect started it; a hit ends it, too.
    """
    settings = caller.settings
    reply = event.reply_to(raw, caller.request_id, is_cold=caller.is_cold)
    warnings: list[str] = []
    with event.answering(reply):
        flows = catalog.load(settings)
        reply["code"] = flows.digest
        request = event.parse(raw, flows, engine=settings.engine)
        reply["id"] = request.id
        reply["flow"] = request.flow.name
        results = caller.store
        before = results.counts.copy()
        finding = lookup.find(request, results, warnings, only_targets=True)
        if finding.missing:
            from .core.cache import accept

            finding = accept.include_accepted(request, finding, results)
        if not finding.missing and flow_run is None:
            reply["steps"] = _rows(request, finding.found, {})
            reply["url"] = None
        else:
            # This imports Prefect, and nothing before it does.
            from .engine import compute, process

            with process.left_unchanged():
                invocation = compute.missing(raw, request, finding, caller, flow_run)
            _report(reply, invocation)
        reply["store"] = dict(results.counts - before)
        reply["warnings"] = []
    if warnings or "warnings" in reply:
        reply["warnings"] = list(dict.fromkeys(warnings))
    return reply


def _report(reply: Reply, invocation: Invocation) -> None:
    """Put what the engine did into *reply*."""
    request = invocation.call.request
    outcomes = invocation.outcomes
    reply["steps"] = _rows(request, invocation.found, outcomes)
    reply["url"] = invocation.run.url
    if any(outcome.status in ("computed", "failed") for outcome in outcomes.values()):
        reply["engine"] = invocation.run.engine
    error = invocation.error_to_report()
    for step, outcome in outcomes.items():
        if outcome.status == "miss" and error is None:
            error = NotFoundError(
                f"step {step} is not in the cache for {request.id!r}",
                why=outcome.why or "",
                hint="call again without cached_only",
            )
    if error is not None:
        event.add_error(reply, error)


def _rows(
    request: Request, found: Mapping[str, Entry], outcomes: Mapping[str, Outcome]
) -> list[StepRow]:
    """A row for each step that the call asked for or computed, in the order of the flow."""
    rows: list[StepRow] = []
    for name in request.flow.steps:
        entry = found.get(name)
        if outcome := outcomes.get(name):
            ms = round(outcome.ms, 3)
            rows.append(_row(name, outcome.status, outcome.entry, outcome.why, ms))
        elif entry and name in request.skip:
            rows.append(_row(name, "skipped", entry))
        elif entry and request.step in (None, name):
            rows.append(_row(name, "hit", entry))
    return rows


def _row(
    step: str, status: str, entry: Entry | None, why: str | None = None, ms: float = 0.0
) -> StepRow:
    row: dict[str, Any] = {
        "step": step,
        "status": status,
        "value": None,
        "key": None,
        "why": why,
        "ms": ms,
    }
    row |= {name: getattr(entry, name, None) for name in _OF_ENTRY}
    if entry and entry.result:
        row["result"] = entry.result
    return cast(StepRow, row)
