"""What is stored for an ID, under which flow, and how rows about it are shown."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from pfl.cli import output
from pfl.handler.core.cache import history
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import Store

Row = dict[str, Any]


def elsewhere(store: Store, id: str, flow: str | None = None) -> tuple[str, str]:
    """
    Where an ID has results.

    Args:
        store: The store to read.
        id: The ID.
        flow: The flow that was searched.

    Returns:
        A sentence, and the options that select another flow; empty if there is no other.
    """
    folder = keys.encode_id(id)
    steps: dict[str, list[str]] = {}
    for step in store.folders(f"history/{folder}"):
        for _, body in islice(history.computed(store, folder, step), 1):
            steps.setdefault(body["flow"], []).append(step)
    if not steps:
        return f"nothing is stored for {id!r}", ""
    found = "; ".join(f"{', '.join(names)} of flow {name}" for name, names in steps.items())
    others = [name for name in steps if name != flow]
    options = f"--id {shlex.quote(id)} --flow {shlex.quote(others[0])}" if others else ""
    return f"stored for {id!r}: {found}", options


def note_elsewhere(store: Store, id: str | None, flow: str | None, command: str) -> None:
    """Print where an ID has results, if a command found none."""
    if id is not None:
        found, options = elsewhere(store, id, flow)
        output.say(found + (f": {command} {options}" if options else ""))


def last_failure(store: Store, id: str, step: str) -> str | None:
    """When and with what a step failed or crashed last; None if it has a newer result."""
    for name in history.names(store, folder=keys.encode_id(id), step=step):
        if name.status == history.COMPUTED:
            return None
        if name.status in (history.FAILED, records.CRASHED):
            body = history.read(store, name, lambda exc: None) or {}
            error = body.get("error") or {}
            cause = ": ".join(filter(None, (error.get("type"), error.get("what"))))
            return f"{name.status} at {name.written_at}" + (f" with {cause}" if cause else "")
    return None


def utc(moment: str) -> str:
    """A moment in the one format that JSON has; it is in UTC if it has no offset."""
    at = datetime.fromisoformat(moment)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def with_moments(row: Mapping[str, Any], shown: Callable[[str], str] = utc) -> Row:
    """A row whose moments, the fields that end in ``_at``, are shown in one way."""
    return {
        name: shown(value) if name.endswith("_at") and value else value
        for name, value in row.items()
    }
