"""Orders for the nursery, and what is counted afterwards."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pfl.handler import entry
from pfl.handler.core.cache import history
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import objects
from pfl.handler.core.tags import limit_tag
from pfl.handler.engine.prefect import client, environment, limits

ROOT = Path(__file__).resolve().parents[2]
FLOW = """
import os
from pfl import flow, step

def ran(id, name):
    with open(f"ran-{id}", "a") as log:
        log.write(f"{name} {os.getpid()}\\n")

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
    """A process that forks an invocation per order; any number of threads may order."""

    def __init__(self, root: Path) -> None:
        env = {**os.environ, "PFL_PROJECT": str(root)}
        self._folder = tempfile.mkdtemp()  # The name of a Unix socket has to be short.
        self._path = f"{self._folder}/orders"
        command = [sys.executable, str(Path(__file__).with_name("nursery.py")), self._path]
        self._process = subprocess.Popen(
            command, cwd=root, env=env, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout.readline() == "ready\n"

    def order(
        self,
        event: dict,
        kill_at: int | None = None,
        kill_after_s: float | None = None,
        *,
        ahead_s: float = 0,
    ) -> dict:
        """The answer of a child; its ``pid`` alone if it was killed, at a point or by the clock."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._path)
            connection.sendall(
                json.dumps({"event": event, "kill_at": kill_at, "ahead_s": ahead_s}).encode()
                + b"\n"
            )
            told = b""
            while told.count(b"\n") < 1:
                told += connection.recv(65536)
            pid, _, told = told.partition(b"\n")
            connection.settimeout(kill_after_s)
            while True:
                try:
                    if not (more := connection.recv(65536)):
                        break
                    told += more
                except TimeoutError:
                    os.kill(int(pid), signal.SIGKILL)
                    connection.settimeout(None)
                except ConnectionResetError:  # It was killed before it had read its order.
                    break
        with suppress(
            ProcessLookupError
        ):  # What a process has open is closed a moment before it is gone.
            process = os.pidfd_open(int(pid))
            select.select([process], [], [])
            os.close(process)
        return {"pid": int(pid)} | (json.loads(told) if told.endswith(b"\n") else {})

    def paused(self, event: dict, pause_at: int, meanwhile: Callable[[], None]) -> dict:
        """The answer of a child that is stopped at a point, and woken after *meanwhile*."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._path)
            order = {"event": event, "pause_at": pause_at}
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile("r") as lines:
                pid = int(lines.readline())
                while not _is_stopped(pid):
                    os.sched_yield()
                meanwhile()
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                return json.loads(lines.readline())

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._folder)


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, or has ended without that."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "TZ"
    except FileNotFoundError:
        return True


def project(root: Path) -> Settings:
    """A project with the flow of the faults."""
    (root / "flows").mkdir(parents=True)
    (root / "flows" / "__init__.py").touch()
    (root / "flows" / "pipeline.py").write_text(FLOW)
    return settings_of(root)


def settings_of(root: Path) -> Settings:
    """The settings of a project with the flow of the faults."""
    os.environ["PFL_PROJECT"] = str(root)
    return Settings.from_env(os.environ)


def right(id: str) -> list[int]:
    return [len(id) * 7, len(id) * 42]


def values(reply: dict) -> list[int]:
    return [row["value"] for row in reply["steps"]]


def computed_too_often(root: Path, id: str, killed: set[int]) -> int:
    """How often a step was computed beyond once, and beyond once per kill of its process."""
    try:
        lines = [line.split() for line in (root / f"ran-{id}").read_text().splitlines()]
    except FileNotFoundError:
        return 0
    survived = Counter(name for name, pid in lines if int(pid) not in killed)
    return sum(count - 1 for count in survived.values())


def runs_of(api: environment.Api, id: str) -> tuple[list[dict], list[dict]]:
    """Flow runs and task runs of an ID in Prefect."""
    chosen = {"flow_runs": {"tags": {"all_": [f"id={id}"]}}}
    return tuple(
        list(client.pages(api, f"/{kind}/filter", chosen)) for kind in ("flow_runs", "task_runs")
    )


def left_open(settings: Settings, ids: list[str]) -> list[str]:
    """The runs of these IDs that look alive in Prefect, and their slots that are taken."""
    api = environment.configured(settings)
    runs = [(id, run) for id in ids for kind in runs_of(api, id) for run in kind]
    found = [
        f"{id}: {run['name']} {run['state_type']}"
        for id, run in runs
        if run["state_type"] not in client.FINAL
    ]
    tags = {limit_tag(id, step) for id in ids for step in "ab"}
    return found + [
        f"slot {row['tag']}"
        for row in limits.list_limits(api, objects.of(settings))
        if row["tag"] in tags and row["taken"]
    ]


def marked_wrongly(settings: Settings, reply: dict) -> bool:
    """Whether a run that replied, or one of its task runs, is not Completed in Prefect."""
    api = environment.configured(settings)
    if not reply["url"]:
        return False
    run = client.ask(api, f"/flow_runs/{reply['url'].rsplit('/', 1)[1]}")
    tasks = [
        client.ask(api, f"/task_runs/{row['task_run_id']}")
        for row in reply["steps"]
        if row["status"] == "computed"
    ]
    return {each and each["state_type"] for each in (run, *tasks)} != {"COMPLETED"}


def taken(results: objects.Store) -> list[str]:
    """
    What calls have left behind, besides what goes later.

    A note that a dead call was cleaned up stays for a day, and for a minute the object by which a
    killed process measured the store's clock.
    """
    listed = [item.key for kind in ("leases", "calls") for item in results.list(kind)]
    return [key for key in listed if not key.endswith("-reaped.json") and "/clock-" not in key]


def every_point(
    root: Path, settings: Settings, engine: str, *, only: str = "", once: bool = False
) -> dict[str, str]:
    """
    Kill an invocation at each of its points, reap, call again.

    Args:
        root: The project.
        settings: Its settings.
        engine: Which computes.
        only: Just the points that have one of these words in their names, as ``flow run|slot``.
        once: Just the first point of each name.

    Returns:
        What was wrong, by point; empty where all is right.
    """
    results, wrong, name = objects.of(settings), {}, uuid.uuid4().hex[:6]
    with Nursery(root) as nursery:
        nursery.order(
            {"id": f"{name}-first", "engine": engine}
        )  # What is written to a store once: its format, and the parts of the code.
        points = nursery.order({"id": f"{name}-all", "engine": engine})["points"]
        for number, point in enumerate(points):
            if (only and not any(word in point for word in only.split("|"))) or (
                once and point in points[:number]
            ):
                continue
            id, told = f"{name}-{number}", []
            event = {"id": id, "engine": engine}
            killed = nursery.order(event, number)
            if "reply" in killed:
                told.append("it was not killed")
            reaped = entry.handle({"action": "reap"}, settings, results=results)
            if reaped["status"] != "completed" or taken(results):
                told.append(f"after a reap: {taken(results)} {reaped.get('error')}")
            if engine == "prefect" and (left := left_open(settings, [id])):
                told.append(f"after a reap: {left}")
            reply = nursery.order(event)["reply"]
            if reply["status"] != "completed" or values(reply) != right(id):
                told.append(f"the next call: {reply.get('error', reply['steps'])}")
            if computed_too_often(root, id, {killed["pid"]}):
                told.append("computed too often")
            if told:
                wrong[f"{number} {point}"] = "; ".join(told)
    return wrong


def every_pause(
    root: Path, settings: Settings, engine: str, *, once: bool = False
) -> dict[str, str]:
    """
    Stop an invocation at each of its points, let another one take it for dead, and wake it.

    Both must reply with one value, history must have it once, and no lease may stay.

    Args:
        root: The project.
        settings: Its settings.
        engine: Which computes.
        once: Just the first point of each name.

    Returns:
        What was wrong, by point; empty where all is right.
    """
    results, wrong, name = objects.of(settings), {}, uuid.uuid4().hex[:6]
    with Nursery(root) as nursery:
        nursery.order({"id": f"{name}-first", "engine": engine})
        points = nursery.order({"id": f"{name}-all", "engine": engine})["points"]
        for number, point in enumerate(points):
            if once and point in points[:number]:
                continue
            id, others = f"{name}-{number}", []
            event = {"id": id, "engine": engine}

            def call_meanwhile(event: dict = event, others: list = others) -> None:
                others.append(nursery.order(event, ahead_s=3_600)["reply"])

            woken = nursery.paused(event, number, call_meanwhile)["reply"]
            replies = [values(reply) for reply in (woken, *others)]
            found = [
                step
                for step in "ab"
                for _ in history.list_computed(results, id, step, lambda warning: None)
            ]
            if replies != [right(id)] * 2 or found != ["a", "b"]:
                wrong[f"{number} {point}"] = f"replied {replies}, history has {found}"
    entry.handle({"action": "reap"}, settings, results=results)
    if left := taken(results):
        wrong["leases left"] = str(left)
    return wrong


def under_load(
    root: Path,
    settings: Settings,
    engine: str,
    *,
    kills: int,
    processes: int = 8,
    ids: int = 20,
    seed: int = 1,
) -> Counter[str]:
    """
    Kill at random under load, with two reapers that never stop; then reap once, and count.

    Half are killed at a point, half by the clock. An ID whose steps are all stored gives
    way to a new one, so that there are always *ids* to compute. A killed process is noticed at once
    here, as by any other on its machine.
    """
    results, lock, over = objects.of(settings), threading.Lock(), threading.Event()
    count, killed, replies, chance = Counter(), set(), {}, random.Random(seed)
    name = f"load-{uuid.uuid4().hex[:6]}"
    now = [f"{name}-{number}" for number in range(ids)]
    every = list(now)

    def work() -> None:
        while True:
            with lock:
                if count["killed"] >= kills:
                    return
                id, by_clock = chance.choice(now), chance.random() < 0.5
                at = chance.uniform(0, typical_s) if by_clock else chance.randrange(points * 3 // 2)
            answer = nursery.order(
                {"id": id, "engine": engine}, *((None, at) if by_clock else (at, None))
            )
            with lock:
                count["invocations"] += 1
                if "reply" not in answer:
                    count["killed"] += 1
                    killed.add(answer["pid"])
                    continue
                reply = answer["reply"]
                count[reply["status"]] += 1
                if "error" in reply:
                    print(f"{id}: {reply['error']}", file=sys.stderr, flush=True)
                if reply["status"] == "completed":
                    replies.setdefault(id, []).append(reply)
                    if id in now:
                        now[now.index(id)] = f"{name}-{len(every)}"
                        every.append(f"{name}-{len(every)}")

    def reap() -> None:
        while not over.wait(0.5):
            reply = entry.handle({"action": "reap"}, settings, results=results)
            with lock:
                count["reaped"] += len(reply["reaped"])

    with Nursery(root) as nursery:
        began = time.monotonic()
        points = len(nursery.order({"id": f"{name}-first", "engine": engine})["points"])
        typical_s = 4 * (time.monotonic() - began)  # Side by side they take longer than alone.
        workers = [threading.Thread(target=work) for _ in range(processes)]
        reapers = [threading.Thread(target=reap) for _ in range(2)]
        for thread in (*workers, *reapers):
            thread.start()
        for thread in workers:
            thread.join()
        over.set()
        for thread in reapers:
            thread.join()
    reaped = entry.handle({"action": "reap"}, settings, results=results)
    lost = [
        id
        for id in replies
        if values(entry.handle({"id": id, "cached_only": True}, settings, results=results))
        != right(id)
    ]
    in_prefect = engine == "prefect"
    opened = left_open(settings, every) if in_prefect else []
    all_replies = [reply for each in replies.values() for reply in each]
    wrong = [marked_wrongly(settings, reply) for reply in all_replies] if in_prefect else []
    return Counter(
        {
            "invocations": count["invocations"],
            "killed": count["killed"],
            "completed": count["completed"],
            "failed or busy": count["failed"] + count["busy"],
            "reaped while it ran": count["reaped"],
            "reaped by one reap afterwards": len(reaped["reaped"]),
            "computed beyond 1 + kills of the holder": sum(
                computed_too_often(root, id, killed) for id in every
            ),
            "wrong values": sum(
                values(reply) != right(id) for id in replies for reply in replies[id]
            ),
            "lost replied results": len(lost),
            "live or finished runs wrongly marked": sum(wrong),
            "runs left Running": sum("slot " not in each for each in opened),
            "slots left": sum("slot " in each for each in opened),
            "leases left": len(taken(results)),
        }
    )
