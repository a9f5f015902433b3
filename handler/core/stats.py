"""What the store holds: counts, bytes and age per flow and step, from listings alone."""

from __future__ import annotations

from collections.abc import Mapping

from handler.core import records
from handler.core.store import Entry as Listed
from handler.core.store import Store


def count(store: Store, flows: Mapping[str, str], *, folder: str | None = None) -> list[dict[str, object]]:
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
                row = rows.setdefault(step, {"results": 0, "plans": 0, "history": 0, "bytes": 0, "oldest": None, "newest": None})
                add(row, listed, kind)
    order = list(flows)
    named = sorted(rows, key=lambda step: (order.index(step) if step in order else len(order), step))
    return [{"flow": flows.get(step), "step": step, **rows[step]} for step in named]


def add(row: dict, listed: Listed, kind: str) -> None:
    """Count an object of this kind in a row; the age is that of results."""
    row[kind] += 1
    row["bytes"] += listed.size_bytes
    if kind == "results":
        moment = records.now_iso(listed.modified)
        row["oldest"], row["newest"] = min(row["oldest"] or moment, moment), max(row["newest"] or moment, moment)
