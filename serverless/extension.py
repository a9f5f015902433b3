"""
A small Lambda extension that notices when a sandbox dies, and ends the call that died in it.

    register ─ next: INVOKE ─ next ........................ next: SHUTDOWN ─ end_dead_call ─ end
    runtime:    call on record, its token in /tmp ─ killed: time limit, out of memory, or exit

It is started with the runtime, and has two seconds once the runtime is dead; until then it imports
only the standard library. What it cannot do in time stays on record, with the cause: the next call
for the ID does it, or the next reap.

The file ``/opt/extensions/pfl`` of the image starts it with ``python -m pfl.serverless.extension``
in the task's folder. The file's name has to be the registered name.

Source: AWS Lambda Developer Guide, "Lambda Extensions API".
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

NAME = "pfl"
_IDENTIFIER = "Lambda-Extension-Identifier"
# This much of the two seconds is not spent waiting for events that the dead process sent.
_RESERVE_S = 0.8


def main() -> None:
    """Wait for the end of the sandbox, and end the call that died in it."""
    events = json.dumps({"events": ["INVOKE", "SHUTDOWN"]})
    headers, answer = _request("POST", "register", {"Lambda-Extension-Name": NAME}, events)
    if _IDENTIFIER not in headers:
        sys.exit(f"pfl: the extension was not registered: {answer.decode(errors='replace')}")
    identity = {_IDENTIFIER: headers[_IDENTIFIER]}
    kills = _memory_kills()
    while True:
        _, answer = _request("GET", "event/next", identity)
        event = json.loads(answer)
        if event.get("eventType") == "SHUTDOWN":
            end_dead_call(
                event["shutdownReason"],
                killed_for_memory=_memory_kills() > kills,
                until=event["deadlineMs"] / 1e3,
            )
            return
        kills = _memory_kills()


def _request(
    method: str, path: str, headers: Mapping[str, str], body: str | None = None
) -> tuple[http.client.HTTPMessage, bytes]:
    # A new connection each time: the sandbox may be frozen for hours between two requests.
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request(method, f"/2020-01-01/extension/{path}", body, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.headers, answer


def end_dead_call(reason: str, *, killed_for_memory: bool, until: float) -> None:
    """
    Record that the call in this sandbox died, and why, and reap it.

    Args:
        reason: Why Lambda shuts the sandbox down.
        killed_for_memory: Whether the kernel ran out of memory and killed a process since the last
            invocation.
        until: When this process will be killed, in seconds since 1970.
    """
    from ..handler.core.cache import lease

    try:
        with open(lease.SANDBOX_NOTE) as file:
            note = json.load(file)
    except (FileNotFoundError, ValueError):
        # No call was being computed.
        return
    from ..handler.core.errors import PflError
    from ..handler.core.settings import Settings
    from ..handler.core.store import keys, objects
    from ..handler.engine import causes, reap

    try:
        settings = Settings.from_env(os.environ)
        results = objects.of(settings)
        cause, why = causes.from_shutdown(reason, killed_for_memory=killed_for_memory)
        call = note["call"]
        lease.write_end(results, call, {"cause": cause, "why": why})
        os.unlink(lease.SANDBOX_NOTE)
        arrival_s = max(0.0, until - time.time() - _RESERVE_S)
        folder = keys.encode_id(note["id"])
        for row in reap.reap(results, settings, only=[call], folder=folder, arrival_s=arrival_s):
            sys.stderr.write(_log_line(row) + "\n")
    except PflError as exc:
        sys.stderr.write(f"pfl: {exc}; pfl runs reap will clean up the call\n")


def _log_line(row: Mapping[str, Any]) -> str:
    """The log line that the dead call could not write itself; see handler/entry.py."""
    line = {
        "pfl": 1,
        "request_id": row["request_id"],
        "id": row["id"],
        "flow": row["flow"],
        "action": None,
        "status": "crashed",
        "engine": row["engine"],
        "ms": None,
        "cold_start": None,
        "steps": dict.fromkeys(row["steps"], "crashed"),
        "error": {"type": row["cause"], "what": row["what"], "hint": row["hint"]},
    }
    return json.dumps(line)


def _memory_kills() -> int:
    """How many processes the kernel of this sandbox has killed because it ran out of memory."""
    with suppress(OSError), open("/proc/vmstat") as file:
        counts = dict(line.split() for line in file)
        return int(counts.get("oom_kill", 0))
    return 0


if __name__ == "__main__":
    main()
