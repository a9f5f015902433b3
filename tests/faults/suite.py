"""Orders for the nursery, and what is counted afterwards."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from handler import entry
from handler.core import lease, records, store
from handler.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FLOW = """
from handler import flow, step

def ran(id, name):
    with open(f"ran-{id}", "a") as log:
        log.write(name + "\\n")

@step
def a(id: str) -> int:
    ran(id, "a")
    return len(id) * 7

@step
def b(id: str, a: int) -> int:
    ran(id, "b")
    return a * 6

FLOWS = [flow("faults", a, b)]
"""


class Nursery:
    """A process that forks an invocation per order."""

    def __init__(self, root: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PFL_PROJECT": str(root)}
        command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
        self._process = subprocess.Popen(command, cwd=root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def order(self, event: dict, kill_at: int | None = None) -> dict | None:
        """The answer of a child; None if it was killed."""
        self._process.stdin.write(json.dumps({"event": event, "kill_at": kill_at}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def project(root: Path) -> Settings:
    """A project with the flow of the faults."""
    (root / "flows").mkdir(parents=True)
    (root / "flows" / "__init__.py").touch()
    (root / "flows" / "pipeline.py").write_text(FLOW)
    os.environ["PFL_PROJECT"] = str(root)
    return Settings.from_env(os.environ)


def right(id: str) -> list[int]:
    return [len(id) * 7, len(id) * 42]


def counted(root: Path, id: str) -> Counter:
    try:
        return Counter((root / f"ran-{id}").read_text().split())
    except FileNotFoundError:
        return Counter()


def open_runs(settings: Settings, ids: list[str]) -> list[str]:
    """Flow runs and task runs of these IDs that look alive in Prefect."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    found = []
    with SyncPrefectClient(settings.prefect_api_url) as client:
        for id in ids:
            chosen = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"id={id}"]))
            for run in (*client.read_flow_runs(flow_run_filter=chosen), *client.read_task_runs(flow_run_filter=chosen)):
                if run.state is None or not run.state.is_final():
                    found.append(f"{id}: {run.name} {run.state and run.state.name}")
    return found


def taken(results: store.Store) -> list[str]:
    """Leases and calls that are left."""
    newest: dict[str, str] = {}
    for item in results.list("leases"):
        folder = item.key.rsplit("/", 1)[0]
        newest[folder] = max(newest.get(folder, ""), item.key)
    held = [key for key in newest.values() if records.unseal(results.get(key), key)["state"] != "free"]
    return held + list(lease.calls(results))


def every_point(root: Path, settings: Settings, engine: str, *, only: str = "", name: str = "p") -> dict[str, str]:
    """
    Kill an invocation at each of its points, reap, call again.

    Returns:
        What was wrong, by point; empty where all is right.
    """
    results, wrong = store.of(settings), {}
    with Nursery(root) as nursery:
        nursery.order({"id": f"{name}-first", "engine": engine})  # What a store is told once: its format, what the code is.
        points = nursery.order({"id": f"{name}-all", "engine": engine})["points"]
        for number, point in enumerate(points):
            if only not in point:
                continue
            id, told = f"{name}-{number}", []
            event = {"id": id, "engine": engine}
            if nursery.order(event, number) is not None:
                told.append("it was not killed")
            reaped = entry.handle({"action": "reap"}, settings, results=results)
            if reaped["status"] != "completed" or taken(results):
                told.append(f"after a reap: {taken(results)} {reaped.get('error')}")
            if engine == "prefect" and (left := open_runs(settings, [id])):
                told.append(f"after a reap: {left}")
            answer = nursery.order(event)
            reply = answer["reply"] if answer else {"status": "killed", "steps": []}
            if reply["status"] != "completed" or [row["value"] for row in reply["steps"]] != right(id):
                told.append(f"the next call: {reply.get('error', reply['steps'])}")
            if max(counted(root, id).values()) > 2 or sum(counted(root, id).values()) > 3:
                told.append(f"computed {dict(counted(root, id))}")
            if told:
                wrong[f"{number} {point}"] = "; ".join(told)
    return wrong


def under_load(root: Path, settings: Settings, engine: str, *, kills: int, processes: int = 8, ids: int = 20, seed: int = 1) -> dict:
    """Kill at random under load, reap once, and count."""
    results, lock = store.of(settings), threading.Lock()
    count, lost, killed_of, replied = Counter(), [], Counter(), {}
    chance, names = random.Random(seed), [f"load-{number}" for number in range(ids)]

    def work() -> None:
        with Nursery(root) as nursery:
            while True:
                with lock:
                    if count["killed"] >= kills:
                        return
                    id, at, bust = chance.choice(names), chance.randrange(80), chance.random() < 0.7
                event = {"id": id, "engine": engine, "bust": "all"} if bust else {"id": id, "engine": engine}
                answer = nursery.order(event, at)
                with lock:
                    count["invocations"] += 1
                    if answer is None:
                        count["killed"] += 1
                        killed_of[id] += 1
                        continue
                    reply = answer["reply"]
                    count[reply["status"]] += 1
                    if reply["status"] == "completed":
                        replied[id] = True
                        count["wrong values"] += [row["value"] for row in reply["steps"]] != right(id)
                        count["computed"] += sum(row["status"] == "computed" for row in reply["steps"])

    workers = [threading.Thread(target=work) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    reaped = entry.handle({"action": "reap"}, settings, results=results)
    for id in replied:
        reply = entry.handle({"id": id, "cached_only": True}, settings, results=results)
        if reply["status"] != "completed" or [row["value"] for row in reply["steps"]] != right(id):
            lost.append(id)
    return {
        "invocations": count["invocations"],
        "killed": count["killed"],
        "completed": count["completed"],
        "failed or busy": count["failed"] + count["busy"],
        "computations begun": sum(sum(counted(root, id).values()) for id in names),
        "computations that ended in a reply": count["computed"],
        "wrong values": count["wrong values"],
        "lost replied results": len(lost),
        "reaped by one reap": len(reaped["reaped"]),
        "runs left Running": len(open_runs(settings, names)) if engine == "prefect" else 0,
        "leases left": len(taken(results)),
    }
