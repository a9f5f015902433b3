"""
Saving a computed result, in an order that survives a death between any two writes.

    value (if large) → result → history → plan        and before these, where a call busts: mark → plans of the old value

A hit reads the plan, so what a hit may answer has a result and a record of history behind it. A death before the plan is
a miss that finds the result; a death before the record of history is repaired by whoever finds the result without one. The
result says what its record is called, so that of all who tell of it one does.
"""

from __future__ import annotations

import sys

from pfl.handler.core.cache import history
from pfl.handler.core.cache.entry import UNREAD, Entry, entry_json, plan_body
from pfl.handler.core.event import Request
from pfl.handler.core.fingerprint import Fingerprint
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import Store


def result(
    request: Request, store: Store, entry: Entry, text: str, about: dict, *, inline_bytes: int
) -> Entry:
    """
    Save a computed value, and that it was computed; the entry, with the name of its record.

    Args:
        request: What was asked.
        store: Where.
        entry: The result.
        text: Its value as JSON.
        about: What history keeps beside the entry: parameters, inputs, timings, why it was computed.
        inline_bytes: A longer text is kept beside the record of history, not in it.

    Raises:
        UnavailableError: The store did not take it; nothing will be served from it.
    """
    path = records.result_path(request.id, entry.step, entry.key)
    key_parts = {
        "id": request.id,
        "step": entry.step,
        "fingerprint": request.flow.steps[entry.step].fingerprint,
    }
    if entry.after:
        key_parts["after"] = list(entry.after)
    name = history.new_name(
        keys.encode_id(request.id), entry.step, entry.key[:16], after=about.get("previous")
    )
    entry = entry._replace(record=name.file)
    key_parts["record"] = name.file
    if entry.size_bytes > inline_bytes:
        store.put(records.value_path(request.id, entry.sha256), text.encode())
    store.put(path, records.encode_result(path, text, key_parts, entry.expires_at))
    record(request, store, entry, about, inline_bytes=inline_bytes)
    return entry


def record(request: Request, store: Store, entry: Entry, about: dict, *, inline_bytes: int) -> None:
    """Append one record to the history of a step."""
    inside = entry.value is not UNREAD and entry.size_bytes <= inline_bytes
    body = {
        "flow": request.flow.name,
        "id": request.id,
        "fingerprint": request.flow.steps[entry.step].fingerprint,
        **entry_json(entry, with_value=inside),
        **about,
    }
    folder = keys.encode_id(request.id)
    name = (
        history.Name(folder, entry.step, entry.record)
        if entry.record
        else history.new_name(folder, entry.step, entry.key[:16])
    )
    history.append(store, name, body)


def code(store: Store, step: str, print: Fingerprint) -> None:
    """Keep what a fingerprint is made of, once, so that a later miss can say what changed when the old code is gone."""
    body = {"version": 1, "step": step, "parts": [part.to_json() for part in print.parts]}
    store.put(records.code_path(step, print.digest), records.seal(body))


def plan(
    request: Request, store: Store, plan_key: str, entries: list[Entry], *, inline_bytes: int
) -> str:
    """Let later calls find the last of *entries*, and those before it, in one read; where the plan is."""
    path = records.plan_path(request.id, entries[-1].step, plan_key)
    store.put(path, records.seal(plan_body(request, plan_key, entries, inline_bytes)))
    return path


def forget(request: Request, store: Store, step: str, plan_key: str) -> None:
    """Remove the plans that rest on a value that is about to be replaced; results stay, so equal inputs still hit."""
    stale = [records.plan_path(request.id, step, plan_key)]
    for other in request.flow.dependents([step]) - {step}:
        stale += [entry.key for entry in store.list(f"plans/{keys.encode_id(request.id)}/{other}")]
    store.delete(stale)


def memory_peak_bytes() -> int | None:
    """The most memory that this process had so far."""
    try:
        import resource
    except ImportError:  # There is none on Windows.
        return None
    # Kibibytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1_024
    )
