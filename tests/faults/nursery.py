"""
A process that has imported everything and forks a child per order: a call that is killed.

An order is a connection to the Unix socket that is named on the command line, with a line of JSON:
``{"event": …, "kill_at": 7}``. With ``pause_at`` the child is stopped instead; with ``ahead_s`` the
leases of others look so much older to it.
The child answers with its process ID, and at its end with a line of JSON: the reply, and the points
it passed. A point is before or after a write to the store, or a change of a state in Prefect.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import uuid


def invocation(order: dict) -> dict:
    """What a child does."""
    from pfl.handler import entry
    from pfl.handler.core.settings import Settings
    from pfl.handler.core.store import objects

    passed: list[str] = []
    counting = threading.Lock()

    if ahead_s := order.get("ahead_s"):
        from pfl.handler.core.cache import lease

        real_now = lease.store_now
        lease.store_now = lambda store, **more: real_now(store, **more) + ahead_s

    def point(name: str) -> None:
        with counting:  # Requests that are made at once come here in several threads.
            number = len(passed)
            passed.append(name)
        if number == order.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == order.get("pause_at"):
            os.kill(os.getpid(), signal.SIGSTOP)

    def around(owner: object, attribute: str, name) -> None:
        real = getattr(owner, attribute)

        def wrapped(*args, **more):
            point(f"before {name(args)}")
            result = real(*args, **more)
            point(f"after {name(args)}")
            return result

        setattr(owner, attribute, wrapped)

    around(objects.Store, "put", lambda args: f"put {args[1].split('/')[0]}")
    around(objects.Store, "delete", lambda args: "delete")
    if order["event"].get("engine") == "prefect":
        import prefect.task_engine
        from prefect.client.orchestration import SyncPrefectClient

        from pfl.handler.engine.prefect import client, limits

        # Creating the flow run, its states, and what is sent in bulk.
        around(client, "ask", lambda args: f"ask {args[1].split('/')[1]}")
        around(SyncPrefectClient, "create_flow_run", lambda args: "create flow run")
        around(SyncPrefectClient, "set_flow_run_state", lambda args: "set flow run state")
        around(limits, "_take", lambda args: "take a slot")
        around(
            prefect.task_engine,
            "emit_task_run_state_change_event",
            lambda args: "emit task run state",
        )
    reply = entry.handle(
        order["event"], Settings.from_env(os.environ), request_id=str(uuid.uuid4())
    )
    return {"reply": reply, "points": passed}


def main() -> None:
    import pfl.handler.engine.compute  # noqa: F401

    if os.environ.get("PREFECT_API_URL"):
        from pfl.handler.core.settings import Settings
        from pfl.handler.engine.prefect import environment

        environment.prepare(Settings.from_env(os.environ))
        from prefect import flow_engine  # noqa: F401

        from pfl.handler.engine.prefect import builder, session  # noqa: F401
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for the children.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                break
            connection.close()
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(2, 1)
        with connection.makefile("rw") as lines:
            print(os.getpid(), file=lines, flush=True)
            print(json.dumps(invocation(json.loads(lines.readline()))), file=lines, flush=True)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
