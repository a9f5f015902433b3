"""
Saves a computed result, in an order that survives a crash between any two writes.

    (a call that busts: mark → plans of the old value →) value, if large → result → history → plan

A hit reads the plan, so whatever a hit returns has a result and a record of history. After a
crash before the plan, the next call is a miss that finds the result. A call that finds one without
a record writes the record. The result holds the record's name, so that all of them write the same
one.
"""

from __future__ import annotations

import sys

from ..event import Request
from ..fingerprint import Fingerprint
from ..store import keys, records
from ..store.objects import Store
from . import history
from .entry import NOT_LOADED, Entry, entry_json, plan_body


def save_result(
    request: Request,
    store: Store,
    entry: Entry,
    text: str,
    fields: history.Fields,
    *,
    inline_bytes: int,
) -> Entry:
    """
    Save a computed value and its record of history; returns the entry with the name of its record.

    Args:
        request: The request.
        store: The store to write.
        entry: The result.
        text: Its value as JSON.
        fields: What else the record holds: parameters, inputs, timings, why it was computed, the
            ``previous`` record.
        inline_bytes: A longer text is stored next to the record, not in it.

    Raises:
        UnavailableError: The store did not accept it; no call will be answered with it.
    """
    folder = keys.encode_id(request.id)
    name = history.new_name(folder, entry.step, entry.key[:16], after=fields.get("previous"))
    entry = entry._replace(record=name.file)
    if entry.size_bytes > inline_bytes:
        store.put(records.value_path(request.id, entry.sha256), text.encode())
    fingerprint = request.flow.steps[entry.step].fingerprint
    result = history.encode_result(name, request.id, fingerprint, entry, text)
    store.put(records.result_path(request.id, entry.step, entry.key), result)
    append_record(request, store, entry, fields, inline_bytes=inline_bytes)
    return entry


def append_record(
    request: Request, store: Store, entry: Entry, fields: history.Fields, *, inline_bytes: int
) -> None:
    """Append the record of a result to the history of its step."""
    has_value = entry.value is not NOT_LOADED and entry.size_bytes <= inline_bytes
    name = history.new_name(keys.encode_id(request.id), entry.step, entry.key[:16])
    if entry.record:
        name = name._replace(file=entry.record)
    head = {
        "flow": request.flow.name,
        "id": request.id,
        "fingerprint": request.flow.steps[entry.step].fingerprint,
    }
    history.append(store, name, {**head, **entry_json(entry, with_value=has_value), **fields})


def save_code(store: Store, step: str, print: Fingerprint) -> None:
    """Keep the parts of a fingerprint, so that a later miss can report what changed."""
    body = {"version": 1, "step": step, "parts": [part.to_json() for part in print.parts]}
    store.put(records.code_path(step, print.digest), records.seal(body))


def save_plan(
    request: Request, store: Store, plan_key: str, entries: list[Entry], *, inline_bytes: int
) -> str:
    """Write the plan in which later calls find all *entries* with one read; returns its key."""
    path = records.plan_path(request.id, entries[-1].step, plan_key)
    store.put(path, records.seal(plan_body(request, plan_key, entries, inline_bytes)))
    return path


def remove_plans(request: Request, store: Store, step: str, plan_key: str) -> None:
    """Remove the plans of a value that is about to be replaced; equal inputs still hit."""
    stale = [records.plan_path(request.id, step, plan_key)]
    for other in request.flow.dependents([step]) - {step}:
        stale += [entry.key for entry in store.list(f"plans/{keys.encode_id(request.id)}/{other}")]
    store.delete(stale)


def memory_peak_bytes() -> int | None:
    """The most memory that this process has used."""
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kibibytes on Linux, in bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1_024
