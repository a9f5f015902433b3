"""
A process that has imported everything and forks a child per order: a call that is killed.

An order is a connection to the Unix socket that is named on the command line, with a line of JSON:
``{"event": …, "kill_at": 7}``. With ``pause_at`` the child is stopped instead; with ``ahead_s`` the
leases of others look so much older to it; with ``outage`` its store fails during some requests.
The child answers with its process ID, and at its end with a line of JSON: the reply, and the points
it passed, or the traceback of what was raised. Before it kills itself it reports that, too. Then it
lives until the connection is closed. A point is before or after a write to the store, or a change
of a state in Prefect.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import traceback
import uuid
from typing import TextIO

import broken


def invocation(order: dict, lines: TextIO) -> dict:
    """What a child does."""
    from pfl.handler import entry
    from pfl.handler.core.settings import Settings
    from pfl.handler.core.store import objects

    passed: list[str] = []
    died: list[str] = []
    counting = threading.Lock()
    threading.excepthook = lambda args: died.append(f"{args.thread}: {args.exc_value!r}")

    if ahead_s := order.get("ahead_s"):
        from pfl.handler.core.cache import lease

        real_now = lease.store_now
        lease.store_now = lambda store, **more: real_now(store, **more) + ahead_s

    def point(name: str) -> None:
        with counting:  # Requests that are made at once come here in several threads.
            number = len(passed)
            passed.append(name)
        if number == order.get("kill_at"):
            print(json.dumps({"killed": name}), file=lines, flush=True)
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

        from pfl.handler.engine.prefect import client, limits

        # Creating the flow run, its states, and what is sent in bulk.
        around(client, "ask", lambda args: f"ask {args[1].split('/')[1]}")
        around(limits, "_take", lambda args: "take a slot")
        around(
            prefect.task_engine,
            "emit_task_run_state_change_event",
            lambda args: "emit task run state",
        )
    settings = Settings.from_env(os.environ)
    requests = broken.Requests()
    if outage := order.get("outage"):
        store = settings.store or str(settings.home / "store")
        requests.fail(broken.SWITCHES[outage["kind"]](store), outage["windows"])
        requests.watch(objects.Store, ("get", "put", "list", "info", "delete"))
    try:
        reply = entry.handle(order["event"], settings, request_id=str(uuid.uuid4()))
    finally:
        requests.mend()
    return {"reply": reply, "points": passed, "died": died, "requests": requests.count}


def main() -> None:

    import obstore.exceptions
    import obstore.store  # noqa: F401

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
        faulthandler.register(signal.SIGUSR1)
        with connection.makefile("rw") as lines:
            print(os.getpid(), file=lines, flush=True)
            try:
                answer = json.dumps(invocation(json.loads(lines.readline()), lines))
            except BaseException:
                answer = json.dumps({"raised": traceback.format_exc()})
            print(answer, file=lines, flush=True)
            lines.readline()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
