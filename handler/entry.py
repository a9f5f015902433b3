"""
Lambda's entry point: unwrap the event, answer it as a call or an action, log it, wrap the reply.

A call for an ID goes to :mod:`pfl.handler.answer`. An action (``{"action": "reap"}``,
``{"flow_run_id": …}``) is carried out here, by the module of the engine that it belongs to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from . import answer
from .core import envelope, event
from .core.declare import catalog
from .core.errors import PflError
from .core.event import Caller, Reply
from .core.settings import Settings, of_process
from .core.store import objects

_is_cold = True
# A reply never contains itself, and checking that takes time.
_to_json = json.JSONEncoder(check_circular=False).encode
_LOGGED = ("request_id", "id", "flow", "action", "status", "engine", "ms", "cold_start")
_LOGGED_IF_ANY = ("url", "error", "warnings")


class Context(Protocol):
    """The part of Lambda's context object that pfl reads."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int: ...


def lambda_handler(raw: object, context: Context | None = None) -> Mapping[str, object]:
    """
    Answer one event.

    Args:
        raw: The event, plain or in a shape of :mod:`pfl.handler.core.envelope`; see
            ``docs/event.md``.
        context: Lambda's context object.

    Returns:
        The reply, in the shape that the caller expects. It contains any error that pfl expects.
    """
    request_id = getattr(context, "aws_request_id", "")
    deadline = None
    if context is not None:
        deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1e3
    reply = event.reply_to(raw, request_id, is_cold=_is_cold)
    with event.answering(reply):
        plain = envelope.unwrap(raw)
        reply = handle(plain, of_process(), request_id=request_id, deadline=deadline)
    if context is not None:
        _log(reply)
        reply = envelope.drop_large_values(reply)
    return envelope.wrap(raw, reply)


def handle(raw: object, settings: Settings, **options: Any) -> Reply:
    """
    Answer one plain event with these settings; see :func:`lambda_handler`.

    Args:
        raw: The event.
        settings: The settings.
        options: Other fields of :class:`pfl.handler.core.event.Caller`.
    """
    global _is_cold
    caller = Caller(settings, is_cold=_is_cold, **options)
    _is_cold = False
    fields = event.fields_or_empty(raw)
    if "action" not in fields and "flow_run_id" not in fields:
        return answer.answer(fields or raw, caller)
    reply = event.reply_to(fields, caller.request_id, is_cold=caller.is_cold)
    reply["action"] = event.text_or_none(fields.get("action"))
    with event.answering(reply):
        # Each result goes into the reply at once, so that no error loses it.
        action = event.check_action(fields)
        if action == "check":
            from .engine import check

            flows = catalog.load(settings)
            reply["code"] = flows.digest
            reply["fingerprints"] = flows.fingerprints()
            check.reach(settings, caller.store)
        elif action == "reap":
            from .engine import reap

            reaped = reply["reaped"] = []
            is_dry = bool(fields.get("dry_run"))
            reaped.extend(reap.reap(caller.store, settings, dry_run=is_dry))
        else:
            from .engine.prefect import scheduled_runs

            if action == "run":
                run = scheduled_runs.run(fields["flow_run_id"], caller, answer.answer)
                reply.update(run)
            else:
                pool = str(fields.get("pool") or settings.work_pool)
                reply["runs"] = scheduled_runs.poll(pool, caller, answer.answer)
    return reply


def _log(reply: Reply) -> None:
    """Write a line of JSON to stdout, which Lambda logs: the call, its outcome, its duration."""
    line = {
        "pfl": 1,
        **{name: reply.get(name) for name in _LOGGED},
        "steps": {row["step"]: row["status"] for row in reply["steps"]},
        **{name: value for name in _LOGGED_IF_ANY if (value := reply.get(name))},
    }
    # Not through sys.stdout: a step may have closed or replaced it.
    with suppress(OSError), open(1, "wb", closefd=False) as stdout:
        stdout.write(f"{_to_json(line)}\n".encode())


def _preload() -> None:
    """
    Import what a miss needs when Lambda starts, for functions that mostly miss.

    Errors are ignored here: the first call runs into them again, and reports them.
    """
    try:
        settings = of_process()
        if settings.preload:
            from .core.declare import project
            from .engine import compute as compute
            from .engine.prefect import environment

            environment.prepare(settings)
            if settings.engine == "prefect":
                from .engine.prefect import session as session

                environment.load()
            project.load(settings)
            objects.shared(settings)
    except PflError:
        pass


_preload()
