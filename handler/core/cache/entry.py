"""One stored result: how plans, results and records of history hold it, and how it is read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pfl.handler.core.errors import CorruptRecordError
from pfl.handler.core.event import Request
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import Store

UNREAD = object()


_ROW = 12  # Fields of an entry that stand in a plan, its value being the last.


class Entry(NamedTuple):
    """
    One stored result, as a reply shows it and as later steps take it; its value is UNREAD where nobody asked for it.

    ``after`` names the busts that its computation had seen when it began, ``record`` the file of its record of history. A row
    of a plan is its fields from ``step`` to ``value`` in this order, the value left out where it is too large.
    """

    step: str
    key: str
    sha256: str
    size_bytes: int
    computed_at: str | None
    expires_at: str | None
    engine: str | None = None
    flow_run_id: str | None = None
    task_run_id: str | None = None
    url: str | None = None
    after: Sequence[str] = ()
    value: object = UNREAD
    record: str | None = None


def read_result(
    request: Request, step: str, key: str, store: Store, warnings: list[str]
) -> Entry | None:
    """The stored result under *key*; None if there is none, or a damaged (with a warning) or expired one."""
    path = records.result_path(request.id, step, key)
    if (data := store.get(path)) is None:
        return None
    try:
        value, size_bytes, expires_at, about = records.decode_result(data, path)
    except CorruptRecordError as exc:
        warnings.append(str(exc))
        return None
    if records.is_past(expires_at):
        return None
    after = tuple(about.get("after", ()))
    return Entry(
        step,
        key,
        keys.value_digest(value),
        size_bytes,
        None,
        expires_at,
        after=after,
        value=value,
        record=about.get("record"),
    )


def recorded(body: dict, store: Store, warnings: list[str]) -> Entry | None:
    """The result that a record of history is about; None where its value is gone."""
    entry, path = entry_of(body), records.value_path(body["id"], body["sha256"])
    try:
        if entry.value is UNREAD:
            if (data := store.get(path)) is None:
                return None
            entry = entry._replace(value=records.loads(data, path))
        if keys.value_digest(entry.value) == entry.sha256:
            return entry
        warnings.append(f"{path} is damaged: its digest is not its name")
    except CorruptRecordError as exc:
        warnings.append(str(exc))
    return None


def plan_body(request: Request, plan_key: str, entries: list[Entry], inline_bytes: int) -> dict:
    """
    The body of a plan.

    Args:
        request: What was asked.
        plan_key: The plan's key.
        entries: The results of all steps that the plan's step needs, its own last.
        inline_bytes: Values that together fit are kept inside, the step's own first.
    """
    room, rows = inline_bytes, []
    for entry in reversed(entries):
        inside = entry.value is not UNREAD and entry.size_bytes <= room
        room -= entry.size_bytes if inside else 0
        rows.append(entry[: _ROW if inside else _ROW - 1])
    return {
        "version": 2,
        "flow": request.flow.name,
        "id": request.id,
        "step": entries[-1].step,
        "plan_key": plan_key,
        "expires_at": records.earliest(*(entry.expires_at for entry in entries)),
        "entries": rows,
    }


def plan_of(data: bytes, path: str) -> tuple[dict, dict[str, Entry]]:
    """
    The body of the plan at *path*, and its entries by step.

    Raises:
        CorruptRecordError: The bytes are not what was written, or not there.
    """
    body = records.unseal(data, path)
    if body.get("version") != 2:
        raise CorruptRecordError(
            f"{path} is of another version", why=f"{body.get('version')!r}, where this one writes 2"
        )
    try:
        place, rows = records.plan_path(body["id"], body["step"], body["plan_key"]), body["entries"]
        entries = {row[0]: Entry(*row) for row in rows}
        is_whole = (
            "flow" in body
            and body["step"] in entries
            and all([_ROW - 1 <= len(row) <= _ROW and type(row[3]) is int for row in rows])
        )
        is_whole = is_whole and (
            body["expires_at"] is None or records.MOMENT.fullmatch(body["expires_at"])
        )
    except (LookupError, TypeError, AttributeError) as exc:
        raise CorruptRecordError(f"{path} is damaged", why=f"it is no plan ({exc!r})") from exc
    if place != path or not is_whole:
        raise CorruptRecordError(
            f"{path} is damaged",
            why=f"it is the plan of {body['step']} for {body['id']!r}"
            if is_whole
            else "it is no plan",
        )
    return body, entries


def entry_json(entry: Entry, *, with_value: bool) -> dict:
    """An entry as plans and history keep it."""
    said = entry._asdict()
    if not with_value:
        del said["value"]
    if not entry.after:
        del said["after"]
    return said


def entry_of(body: Mapping) -> Entry:
    """The entry in a record of history."""
    return Entry(
        **{name: body[name] for name in Entry._fields if name in body and name != "record"}
    )
