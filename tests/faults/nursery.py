"""
A process that has imported everything and forks one child per order: an invocation that is killed where the order says.

Orders are lines of JSON on stdin: ``{"event": …, "kill_at": 7}``; answers are lines on stdout: ``pid``, the reply, and the points
it passed; of a child that was killed, ``pid`` alone. A point is before or after a write to the store, or a change of a state in
Prefect.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import uuid


def invocation(order: dict, out: int) -> None:
    """What a child does."""
    from handler import entry
    from handler.core import store
    from handler.core.settings import Settings

    passed: list[str] = []

    def point(name: str) -> None:
        if len(passed) == order.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        passed.append(name)

    def around(owner: object, attribute: str, name) -> None:
        real = getattr(owner, attribute)

        def wrapped(*args, **more):
            point(f"before {name(args)}")
            result = real(*args, **more)
            point(f"after {name(args)}")
            return result

        setattr(owner, attribute, wrapped)

    around(store.Store, "put", lambda args: f"put {args[1].split('/')[0]}")
    around(store.Store, "delete", lambda args: "delete")
    if order["event"].get("engine") == "prefect":
        import prefect.concurrency._sync
        import prefect.task_engine
        from prefect.client.orchestration import SyncPrefectClient

        around(SyncPrefectClient, "create_flow_run", lambda args: "create flow run")
        around(SyncPrefectClient, "set_flow_run_state", lambda args: "set flow run state")
        around(prefect.concurrency._sync, "acquire_concurrency_slots_with_lease", lambda args: "take a slot")
        around(prefect.task_engine, "emit_task_run_state_change_event", lambda args: "emit task run state")
    reply = entry.handle(order["event"], Settings.from_env(os.environ), request_id=str(uuid.uuid4()))
    os.write(out, json.dumps({"pid": os.getpid(), "reply": reply, "points": passed}).encode())


def main() -> None:
    import handler.engine.run  # noqa: F401

    if os.environ.get("PREFECT_API_URL"):
        from handler.core.settings import Settings
        from handler.engine import prefect_env

        prefect_env.prepare(Settings.from_env(os.environ))
        import handler.engine.prefect_flow  # noqa: F401
    print("ready", flush=True)
    for line in sys.stdin:
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.dup2(2, 1)
            try:
                invocation(json.loads(line), write)
            finally:
                os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        print(data.decode() or json.dumps({"pid": pid}), flush=True)


if __name__ == "__main__":
    main()
