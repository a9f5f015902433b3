"""Rows about what is stored: one shape and one date format in JSON, and where an ID has results."""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from ..handler.core.cache import history
from ..handler.core.cache.entry import ignore
from ..handler.core.cache.forecast import ForecastRow
from ..handler.core.cache.reasons import NEVER
from ..handler.core.event import Request
from ..handler.core.store import keys
from ..handler.core.store.objects import Store
from . import output

Row = dict[str, Any]

# Fields of what is stored whose names mean something else in a reply or a difference.
_RENAMED = {"ms": "compute_ms", "path": "object", "changes": "code_changes"}


def folder_of(id: str | None) -> str | None:
    """The folder of an ID; None for all of them."""
    return None if id is None else keys.encode_id(id)


def as_json(row: Mapping[str, Any]) -> Row:
    """A row about a stored object as ``--json`` prints it."""
    renamed = {_RENAMED.get(name, name): value for name, value in row.items()}
    moments = {name: utc(renamed[name]) for name in renamed if name.endswith("_at")}
    return {**renamed, **moments}


def for_people(row: Mapping[str, Any]) -> Row:
    """The same row for people: only the values of the inputs, and a value on one line."""
    shown = dict(row)
    if shown.get("inputs"):
        shown["inputs"] = {
            # A value that was too large for the record is only known by its digest.
            name: given.get("value", f"sha256 {given['sha256'][:12]}")
            for name, given in shown["inputs"].items()
        }
    if shown.get("value") is not None:
        # As JSON, where "1" is not 1, and cut to a short line, even if it is a text.
        shown["value"] = output.cut(shown["value"], 200)
    return shown


def show(row: Row, **shown: object) -> None:
    """Print one row: as JSON, or for people a line for each field, *shown* in place of its own."""
    output.emit(row)
    output.pairs(for_people(row) | shown)


def utc(moment: str | None) -> str | None:
    """A moment in the format of all JSON output."""
    try:
        at = datetime.fromisoformat(moment or "")
    except ValueError:
        return moment  # None, or such as month 13, in a store that others write to.
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def elsewhere(store: Store, id: str, flow: str | None = None, command: str = "") -> str:
    """
    A sentence about where an ID has results.

    Args:
        store: The store to read.
        id: The ID.
        flow: The flow that was searched.
        command: The command to try with another flow.
    """
    flows = _steps_by_flow(store, id)
    if not flows:
        return f"nothing was computed for {id!r}"
    found = "; ".join(f"{', '.join(steps)} of flow {name}" for name, steps in flows.items())
    others = [name for name in flows if name != flow]
    hint = ""
    if command and others:
        hint = f"; try {command} --id {shlex.quote(id)} --flow {shlex.quote(others[0])}"
    return f"computed for {id!r}: {found}{hint}"


def _steps_by_flow(store: Store, id: str) -> dict[str, list[str]]:
    folder = keys.encode_id(id)
    flows: dict[str, list[str]] = {}
    for step in history.steps(store, folder):
        for _, body in islice(history.list_computed(store, folder, step, ignore), 1):
            flows.setdefault(body["flow"], []).append(step)
    return flows


def explain_misses(store: Store, request: Request, rows: list[ForecastRow]) -> None:
    """Print under which other flow an ID has results, if it has none under this one."""
    if all(row["reasons"] == [NEVER] for row in rows) and _steps_by_flow(store, request.id):
        output.say(elsewhere(store, request.id, request.flow.name, "pfl cache why"))
