"""What the store holds, and what one stored result was computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import links
from ..event import Request
from ..store import records
from ..store.keys import encode_id
from ..store.objects import ObjectInfo, Store
from . import accept, bust, history
from .entry import Warn, entry_json, read_plan, read_value

# What a row of :func:`inspect` has of a record.
_OF_RECORD = (
    "id",
    "flow",
    "step",
    "current",
    "value",
    "inputs",
    "params",
    "key",
    "plan_key",
    "fingerprint",
    "path",
    "size_bytes",
    "sha256",
    "computed_at",
    "expires_at",
    "ms",
    "why",
    "engine",
    "flow_run_id",
    "task_run_id",
    "request_id",
)


# What is stored for a step; ``oldest`` and ``newest`` are when its results were written.
Totals = dict[str, Any]


def entries(
    store: Store, *, id: str | None, flow: str | None, step: str | None, warn: Warn
) -> Iterator[dict[str, object]]:
    """
    The results that the plans of the store lead to, one by one.

    Args:
        store: The store to read.
        id: Only this ID; then only its folder is listed.
        flow: Only this flow.
        step: Only this step.
        warn: Called with a warning about each damaged plan, which is ignored.
    """
    folder = "plans" if id is None else f"plans/{encode_id(id)}"
    for listed in store.list(folder):
        if step is not None and listed.key.split("/")[-2] != step:
            continue
        stored = read_plan(store, listed.key, warn)
        if stored is None:
            continue  # Damaged, or removed since it was listed.
        plan, found = stored
        if not listed.key.endswith(f"/{plan['plan_key']}.json"):
            continue  # A fence; the plan that it leads to is listed, too.
        if id in (None, plan["id"]) and flow in (None, plan["flow"]):
            head = {name: plan[name] for name in ("id", "flow", "step", "plan_key")}
            yield head | entry_json(found[plan["step"]], with_value=False)


def inspect(request: Request, store: Store, *, warn: Warn) -> Iterator[dict[str, object]]:
    """
    For each requested step, what a call would return, else what was computed last.

    ``current`` is true if a call would return it.
    """
    warnings: list[str] = []
    folder = encode_id(request.id)
    marks = bust.list_marks(store, folder)
    finding = accept.find(request, store, warnings)
    found, _ = accept.find_missing(request, finding, store, marks)
    for step in request.flow.steps if request.step is None else [request.step]:
        current = found.get(step)
        record = None
        if current and (stored := read_value(request, current, store, warnings.append)):
            record = history.record_of(store, request.id, stored, warnings.append)
        record = record or history.newest(store, folder, step, warnings.append)
        if record is None:
            continue
        entry = history.load_entry(store, record, warnings.append)
        mark = marks.first_invalidating(folder, history.entry_of(record))
        url, task_run_url, artifact_url = links.of_record(record)
        yield {
            **{name: record.get(name) for name in _OF_RECORD},
            "current": current is not None and record["key"] == current.key,
            "value": None if entry is None else entry.value,
            "path": records.result_path(request.id, step, history.entry_of(record).file),
            "busted_at": None if mark is None else records.now_iso(mark.at),
            "url": url,
            "task_run_url": task_run_url,
            "artifact_url": artifact_url,
        }
    for warning in dict.fromkeys(warnings):
        warn(warning)


def count(store: Store, flows: Mapping[str, str], *, folder: str | None = None) -> list[Totals]:
    """
    Count the objects of each step.

    Args:
        store: The store to list.
        flows: The current flow of each step; other steps have none.
        folder: Only the ID with this folder.

    Returns:
        A row for each step: its ``flow``, and its totals.
    """
    scope = bust.Scope(folder or bust.ALL)
    totals: dict[str, Totals] = {}
    for kind in ("results", "plans", "history"):
        for listed in scope.list_objects(store, kind):
            add(totals, listed)
    known = [step for step in flows if step in totals]
    others = sorted(totals.keys() - flows.keys())
    nothing = {"plans": 0, "history": 0}
    return [{"flow": flows.get(step), **nothing, **totals[step]} for step in known + others]


def no_totals(step: str) -> Totals:
    """The totals of a step without stored objects."""
    return {"step": step, "results": 0, "bytes": 0, "oldest": None, "newest": None}


def add(totals: dict[str, Totals], listed: ObjectInfo) -> None:
    """Add an object to the totals of its step; only results count for the age."""
    kind, _, step, _ = listed.key.split("/")
    row = totals.setdefault(step, no_totals(step))
    row[kind] = row.get(kind, 0) + 1
    row["bytes"] += listed.size_bytes
    if kind == "results":
        written_at = records.now_iso(listed.modified)
        row["oldest"] = min(row["oldest"] or written_at, written_at)
        row["newest"] = max(row["newest"] or written_at, written_at)
