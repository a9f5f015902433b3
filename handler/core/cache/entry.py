"""One stored result: how a result record and a plan hold it, and how it is read from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

from ..errors import CorruptRecordError
from ..event import Request
from ..store import keys, records
from ..store.objects import Store

Warn = Callable[[str], None]  # Called with a warning about each object that cannot be read.
NOT_LOADED = object()
_PLAN_VERSION = 3
# A row of a plan holds this many fields of an entry, the value being the last.
_ROW_LENGTH = 13
# The file name of a result that takes the place of another.
_LATER_RESULT = re.compile("[0-9a-f]{64}~[0-9a-f]{8}")
# A longer chain of fences is not followed: it is a miss.
_MAX_FENCES = 100


class Entry(NamedTuple):
    """
    One stored result, as a reply shows it and as later steps take it.

    A row of a plan holds the fields from ``step`` to ``value`` in this order, without the value if
    it is too large.

    Attributes:
        after: The names of the busts that existed when the computation began.
        result: The file name of its result, if an earlier result has its key as a name.
        value: The value; NOT_LOADED until it is read.
        record: The file name of its record of history.
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
    result: str = ""
    value: object = NOT_LOADED
    record: str | None = None

    @property
    def file(self) -> str:
        """The file name of its result."""
        return self.result or self.key


class Plan(TypedDict):
    """
    The body of a plan: the result of its step, and those of all steps that it needs, a row each.

    A fence is a plan without entries, see :mod:`pfl.handler.core.cache.bust`: ``next`` is the key
    of the plan that takes its place.
    """

    version: int
    flow: str
    id: str
    step: str
    plan_key: str
    expires_at: str | None
    entries: list[Sequence[Any]]
    next: NotRequired[str]


def ignore(warning: str) -> None:
    """Ignore a warning, because it is reported elsewhere."""


def parse_result(data: bytes, path: str) -> Entry:
    """
    The stored result at *path*, whether or not it may still be served.

    Raises:
        CorruptRecordError: The bytes are not what was written.
    """
    value, size_bytes, expires_at, metadata = records.decode_result(data, path)
    _, _, step, name = path.split("/")
    key, _, later = name.partition("~")
    return Entry(
        step,
        key,
        keys.value_digest(value),
        size_bytes,
        None,
        expires_at,
        after=tuple(metadata.get("after", ())),
        result=name if later else "",
        value=value,
        record=metadata.get("record"),
    )


def read_value(request: Request, entry: Entry, store: Store, warn: Warn) -> Entry | None:
    """
    *entry* with its value and the name of its record, read from its result.

    None if that is gone, damaged or differs.
    """
    path = records.result_path(request.id, entry.step, entry.file)
    data = store.get(path)
    if data is None:
        return None
    try:
        stored = parse_result(data, path)
    except CorruptRecordError as exc:
        warn(str(exc))
        return None
    if stored.sha256 != entry.sha256:
        return None
    return entry._replace(value=stored.value, record=stored.record)


def plan_body(request: Request, plan_key: str, entries: list[Entry], inline_bytes: int) -> Plan:
    """
    The body of a plan.

    Args:
        request: The request.
        plan_key: The plan's key.
        entries: The results of all steps that the plan's step needs, its own last.
        inline_bytes: The plan holds values up to this total size, the step's own first.
    """
    rows: list[Sequence[Any]] = []
    remaining_bytes = inline_bytes
    for entry in reversed(entries):
        if entry.value is not NOT_LOADED and entry.size_bytes <= remaining_bytes:
            remaining_bytes -= entry.size_bytes
            rows.append(entry[:_ROW_LENGTH])
        else:
            rows.append(entry[: _ROW_LENGTH - 1])
    return {
        "version": _PLAN_VERSION,
        "flow": request.flow.name,
        "id": request.id,
        "step": entries[-1].step,
        "plan_key": plan_key,
        "expires_at": min((e.expires_at for e in entries if e.expires_at), default=None),
        "entries": rows,
    }


def seal_fence(id: str, step: str, plan_key: str, next_key: str) -> bytes:
    """A fence in place of the plan with the key *plan_key*."""
    body: Plan = {
        "version": _PLAN_VERSION,
        "flow": "",
        "id": id,
        "step": step,
        "plan_key": plan_key,
        "expires_at": None,
        "entries": [],
        "next": next_key,
    }
    return records.seal(body)


def parse_plan(data: bytes, path: str) -> tuple[Plan, dict[str, Entry]]:
    """
    The body of the plan at *path*, and its entries by step.

    Raises:
        CorruptRecordError: The bytes are missing, or are not what was written.
    """
    plan = cast(Plan, records.unseal(data, path))
    try:
        entries = {row[0]: Entry(*row) for row in plan["entries"]}
        expires_at = plan["expires_at"]
        is_whole = (
            plan["version"] == _PLAN_VERSION
            and "flow" in plan
            and ("next" in plan or plan["step"] in entries)
            and (expires_at is None or records.MOMENT.fullmatch(expires_at) is not None)
            and records.plan_path(plan["id"], plan["step"], plan["plan_key"]) == path
            and all(map(_is_row, plan["entries"]))
        )
    except (LookupError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise records.damaged(path, "it is not the plan of this name")
    return plan, entries


def _is_row(row: Sequence[Any]) -> bool:
    """Whether a row of a plan can be used: what keys are made of it leaves no folder."""
    return (
        len(row) in (_ROW_LENGTH - 1, _ROW_LENGTH)
        and records.DIGEST.fullmatch(row[1]) is not None
        and records.DIGEST.fullmatch(row[2]) is not None
        and type(row[3]) is int
        and type(row[10]) is list
        and (row[11] == "" or _LATER_RESULT.fullmatch(row[11]) is not None)
    )


def read_plan(store: Store, path: str, warn: Warn) -> tuple[Plan, dict[str, Entry]] | None:
    """
    The plan at *path* and its entries by step; None if it does not exist or is damaged.

    A second read is needed only where a bust met a call under way: it left a fence there.
    """
    for _ in range(_MAX_FENCES):
        data = store.get(path)
        if data is None:
            break
        try:
            plan, entries = parse_plan(data, path)
        except CorruptRecordError as exc:
            warn(str(exc))
            break
        if "next" not in plan:
            return plan, entries
        path = records.plan_path(plan["id"], plan["step"], plan["next"])
    return None


def entry_json(entry: Entry, *, with_value: bool) -> dict[str, object]:
    """An entry as a record of history keeps it."""
    fields = entry._asdict()
    if not with_value:
        del fields["value"]
    for name in ("after", "result"):
        if not fields[name]:
            del fields[name]
    return fields
