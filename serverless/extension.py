"""
The small extension of Lambda that sees a sandbox die, and buries the call that died in it.

    register ─ next: INVOKE ─ next ............................... next: SHUTDOWN ─ mark_dead_call ─ end
    runtime:     call on record, its name in /tmp ─ killed at its time limit, out of memory, or by itself

It is started beside the runtime, has two seconds once the runtime is dead, and asks for nothing but the standard library until
then. What it cannot do in time is left on record, with the cause: the next call for the ID, or the next reap, does it.

The file ``/opt/extensions/pfl`` of the image starts it with ``python -m pfl.serverless.extension`` from the task's folder; its name
has to be the one that is registered.

Source: AWS Lambda Developer Guide, "Lambda Extensions API".
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time

NAME = "pfl"
_RESERVE_S = (
    0.8  # Of the two seconds, for all but waiting for what the dead process had told Prefect.
)


def main() -> None:
    """Wait for the end of the sandbox, and say what it was."""
    host = os.environ["AWS_LAMBDA_RUNTIME_API"]
    body = json.dumps({"events": ["INVOKE", "SHUTDOWN"]})
    connection = http.client.HTTPConnection(host)
    connection.request(
        "POST", "/2020-01-01/extension/register", body, {"Lambda-Extension-Name": NAME}
    )
    answer = connection.getresponse()
    told, own_id = answer.read(), answer.getheader("Lambda-Extension-Identifier")
    if own_id is None:
        sys.exit(f"pfl: the extension was not registered: {told.decode(errors='replace')}")
    kills = _kills()
    while True:
        # A connection of its own each time: hours may lie between, and a freeze.
        connection = http.client.HTTPConnection(host)
        connection.request(
            "GET",
            "/2020-01-01/extension/event/next",
            headers={"Lambda-Extension-Identifier": own_id},
        )
        event = json.loads(connection.getresponse().read())
        connection.close()
        if event.get("eventType") == "SHUTDOWN":
            until = event["deadlineMs"] / 1e3 if "deadlineMs" in event else time.time() + 2
            mark_dead_call(
                event.get("shutdownReason", ""), killed_for_memory=_kills() > kills, until=until
            )
            return
        kills = _kills()


def mark_dead_call(reason: str, *, killed_for_memory: bool, until: float) -> None:
    """
    Put on record that the call under way died, of what, and do what a reaper does.

    Args:
        reason: Why Lambda shuts the sandbox down.
        killed_for_memory: Whether the kernel killed a process since the last invocation, for want of memory.
        until: When this process will be killed, in seconds since 1970.
    """
    from pfl.handler.core.cache import lease

    try:
        with open(lease.SANDBOX_NOTE) as file:
            call = file.read()
    except FileNotFoundError:
        return  # No call was under way.
    from pfl.handler.core.errors import PflError
    from pfl.handler.core.settings import Settings
    from pfl.handler.core.store import objects
    from pfl.handler.engine import causes, reap

    try:
        settings = Settings.from_env(os.environ)
        results = objects.of(settings)
        lease.report(results, call, *causes.from_shutdown(reason, killed_for_memory=killed_for_memory))
        os.unlink(lease.SANDBOX_NOTE)
        for row in reap.reap(
            results, settings, only=[call], arrival_s=max(0.0, until - time.time() - _RESERVE_S)
        ):
            print(_log_line(row), file=sys.stderr, flush=True)
    except PflError as exc:
        print(f"pfl: {exc}; pfl runs reap does it", file=sys.stderr)


def _log_line(row: dict) -> str:
    """The line of the log that the dead call could not write itself; see handler/entry.py."""
    said = {name: row.get(name) for name in ("request_id", "id", "flow")} | {
        "action": None,
        "status": "crashed",
        "engine": row.get("engine"),
        "ms": None,
    }
    error = {"type": row["cause"], "what": row["what"], "hint": row["hint"]}
    return json.dumps(
        {"pfl": 1}
        | said
        | {"cold_start": None, "steps": dict.fromkeys(row["steps"], "crashed"), "error": error}
    )


def _kills() -> int:
    """How many processes the kernel of this sandbox has killed for want of memory."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    main()
