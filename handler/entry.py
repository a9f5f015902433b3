"""The Lambda handler: answer a hit from core, hand a miss to the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from pfl.handler.core import envelope, event
from pfl.handler.core.cache import lookup
from pfl.handler.core.declare import manifest
from pfl.handler.core.errors import NotFoundError, PflError
from pfl.handler.core.settings import Settings, of_process
from pfl.handler.core.store import objects

_cold = True
_to_json = json.JSONEncoder(
    check_circular=False
).encode  # A reply never holds itself, and looking for that takes its time.


class Context(Protocol):
    """Lambda's context object, as far as it is read here."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int: ...


def lambda_handler(raw: object, context: Context | None = None) -> dict[str, object]:
    """
    Answer one event.

    Args:
        raw: The event, plain or in one of the shapes of :mod:`pfl.handler.core.envelope`; see ``docs/event.md``.
        context: Lambda's context object.

    Returns:
        A reply, in the shape that the caller knows; what went wrong is in it, and nothing is raised that we foresaw.
    """
    request_id = getattr(context, "aws_request_id", "")
    deadline = (
        None if context is None else time.monotonic() + context.get_remaining_time_in_millis() / 1e3
    )
    finish = None
    try:
        raw, finish = envelope.unwrap(raw)
        settings = of_process()
    except PflError as exc:
        asked = raw if isinstance(raw, Mapping) else {}
        finish = finish or (envelope.over_http if envelope.is_http(raw) else dict)
        more = {"cold_start": _cold, "request_id": request_id, "code": "", "ms": 0.0}
        reply = event.reply(
            id=asked.get("id"), flow=asked.get("flow"), status=exc.status, error=exc, **more
        )
    else:
        reply = handle(raw, settings, request_id=request_id, deadline=deadline)
    if context is not None:
        print(_log_line(reply), flush=True)
        reply = envelope.fit(reply)
    return finish(reply)


def handle(
    raw: object,
    settings: Settings,
    *,
    request_id: str = "",
    deadline: float | None = None,
    results: objects.Store | None = None,
    notify: Callable[[str, str], None] = lambda step, doing: None,
    flow_run: object = None,
) -> dict[str, object]:
    """
    Answer one event with these settings; see :func:`lambda_handler`.

    Args:
        raw: The event.
        settings: The settings.
        request_id: The caller's name for this call.
        deadline: When the process will be killed, as a ``time.monotonic()`` reading; None if nobody does that.
        results: The store, where the caller has opened it already.
        notify: Told ``(step, what it does)`` while a miss is computed.
        flow_run: The flow run in Prefect that this call is, where Prefect has started it; then a hit is told to Prefect too.
    """
    global _cold
    cold, _cold = _cold, False
    started = time.perf_counter()
    asked = event.peek(raw)
    if "action" in asked or "flow_run_id" in asked:
        return _act(asked, settings, results, request_id, cold, deadline, notify)
    said = {
        "id": asked.get("id"),
        "flow": asked.get("flow"),
        "cold_start": cold,
        "request_id": request_id,
        "code": "",
    }
    reply, warnings, error = event.reply(status="completed", **said), [], None
    try:
        flows = manifest.load(settings)
        reply["code"] = flows.digest
        request = event.parse(
            asked or raw, flows, engine=settings.engine, allow_pickle=settings.allow_pickle
        )
        reply["id"], reply["flow"] = request.id, request.flow.name
        results = _open(settings) if results is None else results
        before = dict(results.counts)
        finding = lookup.find(request, results, warnings)
        outcomes, engine, url = {}, None, None
        if finding.missing:
            from pfl.handler.core.cache import accept

            finding = accept.widen(request, finding, results)
        if finding.missing or flow_run is not None:
            from pfl.handler.engine import (  # Prefect loads behind this, on a miss, and nowhere else.
                compute,
                steps,
            )

            invocation = compute.once(
                request,
                finding,
                results,
                settings,
                request_id=request_id,
                notify=notify,
                kill_at=deadline,
                is_cold=cold,
                flow_run=flow_run,
            )
            finding, outcomes, url = invocation.finding, invocation.outcomes, invocation.url
            engine = (
                invocation.request.engine
                if any(o.status in ("computed", "failed") for o in outcomes.values())
                else None
            )
            if invocation.error is not None:
                failed = next(
                    name for name, outcome in outcomes.items() if outcome.error is invocation.error
                )
                error = steps.as_error(failed, invocation.error, invocation.flow)
        if (
            error is None
            and outcomes
            and any(outcome.status == "miss" for outcome in outcomes.values())
        ):
            error = _missing(request, outcomes)
        used = {
            verb: count - before.get(verb, 0)
            for verb, count in results.counts.items()
            if count != before.get(verb, 0)
        }
        reply["steps"], reply["engine"], reply["url"] = (
            _rows(request, finding, outcomes),
            engine,
            url,
        )
        reply["warnings"], reply["store"] = list(dict.fromkeys(warnings)), used
    except PflError as exc:
        error = exc
        if warnings:
            reply["warnings"] = warnings
    if error is not None:
        reply["status"], reply["error"] = error.status, error.to_json()
    reply["ms"] = round((time.perf_counter() - started) * 1e3, 3)
    return reply


def _act(
    asked: Mapping,
    settings: Settings,
    results: objects.Store | None,
    request_id: str,
    cold: bool,
    deadline: float | None,
    notify: Callable[[str, str], None],
) -> dict[str, object]:
    """What is no call for an ID: ``{"action": …}``, sent by a schedule, and ``{"flow_run_id": …}``, by a worker."""
    started = time.perf_counter()
    more: dict[str, object] = {
        "action": asked.get("action"),
        "cold_start": cold,
        "request_id": request_id,
    }
    error = None
    try:
        action = event.check_action(asked)
        if action == "check":
            from pfl.handler.engine import check

            more |= check.code(settings)  # Told also where the store or Prefect does not answer.
        results = _open(settings) if results is None else results
        if action == "check":
            check.reach(settings, results)
        elif action == "reap":
            from pfl.handler.engine import reap

            more["reaped"] = reaped = []
            for row in reap.reap(results, settings, dry_run=asked.get("dry_run", False)):
                reaped.append(
                    row
                )  # One by one: what was buried is told, also where the rest could not be.
        else:
            from pfl.handler.engine.prefect import scheduled_runs

            given = {
                "request_id": request_id,
                "deadline": deadline,
                "notify": notify,
                "results": results,
            }
            if action == "run":
                return (
                    more | {"ms": 0.0} | scheduled_runs.run(asked["flow_run_id"], settings, **given)
                )
            more["runs"] = scheduled_runs.poll(
                asked.get("pool", settings.work_pool), settings, **given
            )
    except PflError as exc:
        error = exc
    more["ms"] = round((time.perf_counter() - started) * 1e3, 3)
    return event.reply(
        id=None, flow=None, status=error.status if error else "completed", error=error, **more
    )


def _log_line(reply: Mapping) -> str:
    """One line of JSON for the log: who asked for what, what became of it, and how long it took."""
    get = reply.get
    said = {
        "pfl": 1, "request_id": get("request_id"), "id": get("id"), "flow": get("flow"), "action": get("action"), "status": get("status"),
        "engine": get("engine"), "ms": get("ms"), "cold_start": get("cold_start"),
        "steps": {row["step"]: row["status"] for row in get("steps", ())},
    }  # fmt: skip
    for name in ("url", "error", "warnings"):
        if get(name):
            said[name] = reply[name]
    return _to_json(said)


_opened: dict[Settings, objects.Store] = {}


def _open(settings: Settings) -> objects.Store:
    # One client per process: a warm call pays for no new connection.
    if settings not in _opened:
        _opened[settings] = objects.of(settings)
    return _opened[settings]


_NOTHING = lookup.Entry(*[None] * len(lookup.Entry._fields))


def _rows(
    request: event.Request, finding: lookup.Finding, outcomes: Mapping[str, object]
) -> list[dict[str, object]]:
    rows = []
    for name in request.flow.steps:
        outcome, entry = outcomes.get(name), finding.found.get(name)
        if outcome is None and (
            entry is None
            or (request.step is not None and name != request.step and name not in request.skip)
        ):
            continue
        status, why, ms = "skipped" if name in request.skip else "hit", None, 0.0
        if outcome is not None:
            status, why, ms, entry = (
                outcome.status,
                outcome.why,
                round(outcome.ms, 3),
                outcome.entry,
            )
        of = entry or _NOTHING
        rows.append({
            "step": name, "status": status, "value": of.value, "key": of.key, "why": why, "ms": ms, "computed_at": of.computed_at,
            "expires_at": of.expires_at, "flow_run_id": of.flow_run_id, "task_run_id": of.task_run_id, "url": of.url,
        })  # fmt: skip
    return rows


def _missing(request: event.Request, outcomes: Mapping[str, object]) -> NotFoundError:
    step, outcome = next((name, o) for name, o in outcomes.items() if o.status == "miss")
    return NotFoundError(
        f"step {step} is not in the cache for {request.id!r}",
        why=outcome.why or "",
        hint="ask again without cached_only",
    )


def _preload() -> None:
    """Import in the init phase what a miss needs, for functions that mostly miss; what fails here, the first call tells."""
    try:
        settings = of_process()
        if settings.preload:
            from pfl.handler.core.declare import project
            from pfl.handler.engine import compute
            from pfl.handler.engine.prefect import environment

            environment.prepare(settings)
            if settings.engine == "prefect":
                from pfl.handler.engine.prefect import session

                environment.load()
            project.load(settings)
            _open(settings)
    except PflError:
        pass


_preload()
