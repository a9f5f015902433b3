"""Looking at the store: what is there, and what one stored result rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pfl.handler.core import links
from pfl.handler.core.cache import accept, bust
from pfl.handler.core.cache.entry import entry_json, entry_of, plan_of, recorded
from pfl.handler.core.errors import CorruptRecordError
from pfl.handler.core.event import Request
from pfl.handler.core.store import records
from pfl.handler.core.store.keys import encode_id
from pfl.handler.core.store.objects import ObjectInfo, Store

Warn = Callable[[CorruptRecordError], None]


def entries(
    store: Store, *, id: str | None, flow: str | None, step: str | None, warn: Warn
) -> Iterator[dict]:
    """
    What the plans of the store lead to, one by one.

    Args:
        store: Where.
        id: Only this ID; then only its folder is listed, and they come in order of step.
        flow: Only this flow.
        step: Only this step.
        warn: Told of each damaged plan, which is passed over.
    """
    folder = (
        "plans"
        if id is None
        else f"plans/{encode_id(id)}" + (f"/{step}" if step and step.isidentifier() else "")
    )
    # One ID's plans are few enough to be put in order.
    for listed in store.list(folder) if id is None else sorted(store.list(folder)):
        if step is not None and listed.key.split("/")[-2] != step:
            continue
        if (data := store.get(listed.key)) is None:
            continue  # Removed since it was listed.
        try:
            body, found = plan_of(data, listed.key)
        except CorruptRecordError as exc:
            warn(exc)
            continue
        if (id is not None and body["id"] != id) or (flow is not None and body["flow"] != flow):
            continue
        about = {
            "id": body["id"],
            "flow": body["flow"],
            "step": body["step"],
            "plan_key": body["plan_key"],
        }
        yield about | entry_json(found[body["step"]], with_value=False)


def inspect(request: Request, store: Store, *, warn: Warn) -> Iterator[dict]:
    """
    What a call would be answered with for each asked step, else what was computed last: its place, inputs, value and run.

    ``current`` says whether it is the former: of today's code, these parameters and its inputs.
    """
    warnings: list[str] = []
    marks = bust.marks(store, encode_id(request.id))
    finding = accept.find(request, store, warnings)
    found = dict(finding.found)
    for name in finding.missing:  # Each after those it needs.
        if found.keys() >= set(request.flow.steps[name].upstream) and (
            stored := accept.find_by_inputs(request, name, finding, found, store, marks)
        ):
            entry, _, _, busted = stored
            found |= {} if busted else {name: entry}
    for step in request.flow.steps if request.step is None else [request.step]:
        key = found[step].key if step in found else ""
        told = (b for having in dict.fromkeys((key[:16], "")) for _, b in records.newest(store, request.id, step, warnings, having=having)
                if not having or b["sha256"] == found[step].sha256)  # fmt: skip
        if (body := next(told, None)) is None:
            continue
        entry = recorded(body, store, warnings)
        mark = marks.void(encode_id(request.id), entry_of(body))
        current = body["key"] == key
        url, task_run_url, artifact_url = links.of_record(body)
        yield {
            "id": request.id,
            "flow": body["flow"],
            "step": step,
            "current": current,
            "value": entry.value if entry is not None else None,
            "inputs": body.get("inputs", {}),
            "params": body.get("params", {}),
            "key": body["key"],
            "plan_key": body.get("plan_key"),
            "fingerprint": body["fingerprint"],
            "path": records.result_path(request.id, step, body["key"]),
            "size_bytes": body["size_bytes"],
            "sha256": body["sha256"],
            "computed_at": body["computed_at"],
            "expires_at": body["expires_at"],
            "busted_at": records.now_iso(mark.at) if mark else None,
            "ms": body.get("ms"),
            "why": body.get("why"),
            "engine": body["engine"],
            "flow_run_id": body["flow_run_id"],
            "task_run_id": body["task_run_id"],
            "url": url,
            "task_run_url": task_run_url,
            "artifact_url": artifact_url,
            "request_id": body.get("request_id"),
        }
    for warning in warnings:
        warn(CorruptRecordError(warning))


def count(
    store: Store, flows: Mapping[str, str], *, folder: str | None = None
) -> list[dict[str, object]]:
    """
    Count the objects of each step.

    Args:
        store: Where.
        flows: The flow of each step of today; others have none.
        folder: Only the ID of this folder.

    Returns:
        A row for each step: ``flow``, ``step``, the number of ``results``, ``plans`` and ``history`` records, ``bytes`` of all
        these, and when the ``oldest`` and the ``newest`` result was written.
    """
    rows: dict[str, dict] = {}
    for kind in ("results", "plans", "history"):
        for listed in store.list(kind if folder is None else f"{kind}/{folder}"):
            if listed.key.count("/") == 3:
                step = listed.key.split("/")[2]
                row = rows.setdefault(
                    step,
                    {
                        "results": 0,
                        "plans": 0,
                        "history": 0,
                        "bytes": 0,
                        "oldest": None,
                        "newest": None,
                    },
                )
                add(row, listed, kind)
    order = list(flows)
    named = sorted(
        rows, key=lambda step: (order.index(step) if step in order else len(order), step)
    )
    return [{"flow": flows.get(step), "step": step, **rows[step]} for step in named]


def add(row: dict, listed: ObjectInfo, kind: str) -> None:
    """Count an object of this kind in a row; the age is that of results."""
    row[kind] += 1
    row["bytes"] += listed.size_bytes
    if kind == "results":
        moment = records.now_iso(listed.modified)
        row["oldest"], row["newest"] = (
            min(row["oldest"] or moment, moment),
            max(row["newest"] or moment, moment),
        )
