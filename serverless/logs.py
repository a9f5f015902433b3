"""The function's log in CloudWatch: one JSON line per call, and what the steps printed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress

from pfl.serverless import aws

_OURS = '{"pfl": 1'
_PLATFORM = ("START RequestId", "END RequestId", "INIT_START", "REPORT RequestId")
_REQUEST = re.compile(r"^START RequestId: (\S+)")
_PAUSE_S = 1.0
_sleep = time.sleep
_LATE_MS = (
    30_000  # How much later than another an event may arrive, and is still seen by who follows.
)


def read(client, group: str, *, id: str | None, since_s: float, follow: bool) -> Iterator[dict]:
    """
    The lines, oldest first, as ``{"at", "stream", "text", "call"}``; *call* is what the line says of a call, or None.

    Args:
        client: boto3's client of CloudWatch Logs.
        group: The log group.
        id: Only calls for this ID, with what was printed while they ran.
        since_s: How far back, in seconds.
        follow: Go on as more arrives.

    Raises:
        NotFoundError: There is no such group.
    """
    start = int((time.time() - since_s) * 1e3)
    seen: dict[str, int] = {}
    waiting: dict[
        str, list[dict]
    ] = {}  # By stream: what was printed in a call whose ID is not known yet.
    while True:
        for event in _events(client, group, start):
            if event["eventId"] not in seen:
                seen[event["eventId"]] = event["timestamp"]
                yield from _chosen(event, id, waiting)
        if not follow:
            return
        # Sandboxes send their logs by and by: the last seconds are asked for again, and known by their events' IDs.
        start = max([start, *(at - _LATE_MS for at in seen.values())])
        seen = {event: at for event, at in seen.items() if at >= start}
        _sleep(_PAUSE_S)


def _events(client, group: str, start: int) -> Iterator[dict]:
    with aws.told(f"log group {group}"):
        for page in client.get_paginator("filter_log_events").paginate(
            logGroupName=group, startTime=start
        ):
            yield from page["events"]


def _chosen(event: dict, id: str | None, waiting: dict[str, list[dict]]) -> Iterator[dict]:
    text = event["message"].rstrip("\n")
    at = (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(event["timestamp"] / 1e3))
        + f".{event['timestamp'] % 1000:03d}Z"
    )
    line = {"at": at, "stream": event["logStreamName"], "text": text, "call": None}
    if text.startswith(_OURS):
        with suppress(ValueError):  # Cut by CloudWatch, which takes 256 KiB a line: shown as it is.
            line["call"] = json.loads(text)
    if id is None:
        if not text.startswith(_PLATFORM):
            yield line
        return
    if _REQUEST.match(text):
        waiting[line["stream"]] = []
    elif line["call"] is not None:
        printed = waiting.pop(line["stream"], [])
        if line["call"]["id"] == id:
            yield from [*printed, line]
    elif not text.startswith(_PLATFORM):
        waiting.setdefault(line["stream"], []).append(line)
