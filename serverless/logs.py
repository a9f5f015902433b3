"""The function's log in CloudWatch: one JSON line per call, and what the steps printed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..handler.core.store.values import JsonObject
from . import aws

if TYPE_CHECKING:
    from botocore.client import BaseClient

_CALL = '{"pfl": 1'
_START = "START RequestId"
_PLATFORM = (_START, "END RequestId", "INIT_START", "REPORT RequestId")
_PAUSE_S = 1.0
_sleep = time.sleep
# An event that arrives this late is still shown while following.
_LATE_MS = 60_000


def read(
    client: BaseClient, group: str, *, id: str | None, since_ms: int, follow: bool
) -> Iterator[JsonObject]:
    """
    Yield the lines, oldest first.

    For each: when, from which sandbox (``stream``), its ``text``, and for the line of a call its
    fields (``call``).

    Args:
        client: boto3's client of CloudWatch Logs.
        group: The log group.
        id: Only calls for this ID, with what was printed while they ran.
        since_ms: The time of the oldest line, in milliseconds since 1970.
        follow: Continue as more arrives.

    Raises:
        NotFoundError: The log group does not exist.
    """
    seen = set()
    # By stream: what was printed in a call whose ID is not known yet.
    pending: dict[str, list[JsonObject]] = {}
    while True:
        for event in _events(client, group, since_ms):
            if event["eventId"] not in seen:
                seen.add(event["eventId"])
                yield from _chosen(event, id, pending)
        if not follow:
            return
        # Sandboxes send their logs with a delay: the last minute is read again.
        since_ms = max(since_ms, int(time.time() * 1e3) - _LATE_MS)
        _sleep(_PAUSE_S)


def _events(client: BaseClient, group: str, start: int) -> Iterator[JsonObject]:
    with aws.converted_errors(f"log group {group}"):
        pages = client.get_paginator("filter_log_events")
        for page in pages.paginate(logGroupName=group, startTime=start):
            yield from page["events"]


def _chosen(
    event: JsonObject, id: str | None, pending: dict[str, list[JsonObject]]
) -> Iterator[JsonObject]:
    text = event["message"].rstrip("\n")
    stream = event["logStreamName"]
    at = datetime.fromtimestamp(event["timestamp"] / 1e3, UTC).isoformat()
    line: JsonObject = {"at": at, "stream": stream, "text": text, "call": None}
    if text.startswith(_CALL):
        # CloudWatch cuts a line at 256 KiB; a line that was cut is shown as it is.
        with suppress(ValueError):
            line["call"] = json.loads(text)
    if id is None:
        if not text.startswith(_PLATFORM):
            yield line
    elif text.startswith(_START):
        pending[stream] = []
    elif line["call"] is not None:
        printed = pending.pop(stream, [])
        if line["call"]["id"] == id:
            yield from printed
            yield line
    elif not text.startswith(_PLATFORM):
        pending.setdefault(stream, []).append(line)
