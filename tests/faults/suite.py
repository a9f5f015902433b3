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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from pfl.handler import entry
from pfl.handler.core.cache import history
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import objects
from pfl.handler.core.tags import limit_tag
from pfl.handler.engine.prefect import client, environment, limits

from . import broken

# A call that takes longer hangs; on a busy machine one with Prefect takes up to ten seconds.
HANG_S = 120
# All that has to be 0 after a load.
COUNTS = (
    "hung calls",
    "calls that did not end with a reply",
    "reaped by a second reap afterwards",
    "computed beyond 1 + kills of the holder",
    "wrong values",
    "lost replied results",
    "history with two",
    "history without a reply",
    "live or finished runs wrongly marked",
    "runs left Running",
    "slots left",
    "leases left",
)
# How long Prefect may take to handle what it has accepted.
_PREFECT_S = 20
NO_REPLY = {"status": "none", "steps": []}
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


class Child:
    """
    A call in a process of its own, which lives until the end of the ``with`` statement.

    Attributes:
        pid: Its process ID.
    """

    def __init__(self, path: str, order: dict) -> None:
        self._rest = b""
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        self._connection.sendall(json.dumps(order).encode() + b"\n")
        self.pid = int(self._line(None))

    def answer(self, kill_after_s: float | None = None) -> dict:
        """
        What came of the call.

        Returns:
            Its ``reply``, or what was ``raised``; or else what it was ``killed`` by, or that it
            ``hung`` and was killed. None of them if it ended in another way.
        """
        found = {"pid": self.pid}
        try:
            line = self._line(HANG_S if kill_after_s is None else kill_after_s)
        except TimeoutError:
            found["hung" if kill_after_s is None else "killed"] = "by the clock"
            if kill_after_s is None:
                self.signal(signal.SIGUSR1)  # It prints where its threads are.
            self.signal(signal.SIGKILL)
            line = self._line(None)  # It may have been faster.
        while line:
            found |= json.loads(line)
            line = b"" if found.keys() & {"reply", "raised"} else self._line(None)
        return found

    def _line(self, timeout_s: float | None) -> bytes:
        """The next line; empty at the end."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            self._connection.settimeout(
                None if until is None else max(0.001, until - time.monotonic())
            )
            try:
                more = self._connection.recv(65536)
            except ConnectionResetError:  # It was killed before it had read its order.
                more = b""
            if not more:
                return b""
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def signal(self, number: int) -> None:
        """Send a signal, if it is there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()
        with suppress(ProcessLookupError):
            # What a process has open is closed a moment before it is gone.
            process = os.pidfd_open(self.pid)
            select.select([process], [], [])
            os.close(process)


class Nursery:
    """A process that forks an invocation per order; any number of threads may order."""

    def __init__(self, root: Path) -> None:
        env = {**os.environ, "PFL_PROJECT": str(root)}
        self._folder = tempfile.mkdtemp()  # The name of a Unix socket has to be short.
        self._path = f"{self._folder}/orders"
        command = [sys.executable, str(Path(__file__).with_name("nursery.py")), self._path]
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=broken.obey_permissions,
        )
        assert self._process.stdout.readline() == "ready\n"

    def start(self, event: dict, **order: object) -> Child:
        """A call; see :mod:`faults.nursery` for what else an order holds."""
        return Child(self._path, {"event": event, **order})

    def order(
        self,
        event: dict,
        kill_at: int | None = None,
        kill_after_s: float | None = None,
        **order: object,
    ) -> dict:
        """The answer of a call that may be killed, at a point or by the clock."""
        with self.start(event, kill_at=kill_at, **order) as call:
            return call.answer(kill_after_s)

    def call(self, event: dict, **order: object) -> dict:
        """The answer of a call that has to reply."""
        answer = self.order(event, **order)
        assert "reply" in answer and not answer["died"], answer
        return answer

    def paused(self, event: dict, pause_at: int, meanwhile: Callable[[], None]) -> dict:
        """The answer of a child that is stopped at a point, and woken after *meanwhile*."""
        with self.start(event, pause_at=pause_at) as call:
            while (state := _state(call.pid)) not in "TZ":
                os.sched_yield()
            assert state == "T", f"it ended before point {pause_at}"
            meanwhile()
            call.signal(signal.SIGCONT)
            return call.answer()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._folder)


def _state(pid: int) -> str:
    """The state of a process, as ``T`` if it is stopped; ``Z`` if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def project(root: Path, text: str = FLOW) -> Settings:
    """A project with the flow of the faults, or another one."""
    (root / "flows").mkdir(parents=True)
    (root / "flows" / "__init__.py").touch()
    (root / "flows" / "pipeline.py").write_text(text)
    return settings_of(root)


def settings_of(root: Path) -> Settings:
    """The settings of a project with the flow of the faults."""
    os.environ["PFL_PROJECT"] = str(root)
    return Settings.from_env(os.environ)


def right(id: str) -> list[int]:
    return [len(id) * 7, len(id) * 42]


def values(reply: dict) -> list[int]:
    return [row["value"] for row in reply["steps"]]


def computed(results: objects.Store, id: str, step: str) -> list[dict]:
    """The records of the computations of a step."""
    return [record for _, record in history.list_computed(results, id, step, lambda warning: None)]


def computed_too_often(root: Path, id: str, killed: set[int]) -> int:
    """How often a step was computed beyond once, and beyond once per kill of its process."""
    try:
        lines = [line.split() for line in (root / f"ran-{id}").read_text().splitlines()]
    except FileNotFoundError:  # No call got so far.
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
    """
    The runs of these IDs that look alive in Prefect, and their slots that are taken.

    Prefect accepts the states of task runs at once, and handles them later.
    """
    until = time.monotonic() + _PREFECT_S
    while (found := _open_now(settings, ids)) and time.monotonic() < until:
        threading.Event().wait(0.2)
    return found


def _open_now(settings: Settings, ids: list[str]) -> list[str]:
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
        # A call that computes has a run.
        return any(row["status"] == "computed" for row in reply["steps"])
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


def choose(
    points: list[str], *, only: str = "", once: bool = False, stride: int = 1
) -> list[tuple[int, str]]:
    """The points to try, with their numbers; see :func:`every_point`."""
    chosen = [
        (number, point)
        for number, point in enumerate(points)
        if any(word in point for word in only.split("|"))
        and not (once and point in points[:number])
    ]
    assert chosen, f"no point is called {only}: {points}"
    return chosen[::stride]


def every_point(
    root: Path,
    settings: Settings,
    engine: str,
    *,
    only: str = "",
    once: bool = False,
    stride: int = 1,
) -> tuple[int, dict[str, str]]:
    """
    Kill an invocation at each of its points, reap, call again.

    Args:
        root: The project.
        settings: Its settings.
        engine: Which computes.
        only: Just the points that have one of these words in their names, as ``flow run|slot``.
        once: Just the first point of each name.
        stride: Only one point in this many.

    Returns:
        How many points there were, and what was wrong, by point; empty where all is right.
    """
    results, wrong, name = objects.of(settings), {}, uuid.uuid4().hex[:6]
    with Nursery(root) as nursery:
        # What is written to a store once: its format, and the parts of the code.
        nursery.call({"id": f"{name}-first", "engine": engine})
        points = nursery.call({"id": f"{name}-all", "engine": engine})["points"]
        if engine == "prefect":
            runs = runs_of(environment.configured(settings), f"{name}-all")
            assert all(runs), "the runs of an ID are not found, so none would be found open"
        chosen = choose(points, only=only, once=once, stride=stride)
        for number, point in chosen:
            id, told = f"{name}-{number}", []
            event = {"id": id, "engine": engine}
            killed = nursery.order(event, number)
            if "killed" not in killed:
                told.append(f"it was not killed: {killed}")
            reaped = entry.handle({"action": "reap"}, settings, results=results)
            if reaped["status"] != "completed" or taken(results):
                told.append(f"after a reap: {taken(results)} {reaped.get('error')}")
            if engine == "prefect" and (left := left_open(settings, [id])):
                told.append(f"after a reap: {left}")
            reply = nursery.call(event)["reply"]
            if reply["status"] != "completed" or values(reply) != right(id):
                told.append(f"the next call: {reply.get('error', reply['steps'])}")
            if computed_too_often(root, id, {killed["pid"]}):
                told.append("computed too often")
            # The call may have been a hit on what the dead one had not recorded.
            recorded = [step for step in "ab" for _ in computed(results, id, step)]
            if recorded != ["a", "b"]:
                told.append(f"history has {recorded}")
            if told:
                wrong[f"{number} {point}"] = "; ".join(told)
    return len(chosen), wrong


def every_pause(
    root: Path, settings: Settings, engine: str, *, once: bool = False, stride: int = 1
) -> tuple[int, dict[str, str]]:
    """
    Stop an invocation at each of its points, let another one take it for dead, and wake it.

    Both must reply with one value, history must have it once, and no lease may stay.

    Args:
        root: The project.
        settings: Its settings.
        engine: Which computes.
        once: Just the first point of each name.
        stride: Only one point in this many.

    Returns:
        How many points there were, and what was wrong, by point; empty where all is right.
    """
    results, wrong, name = objects.of(settings), {}, uuid.uuid4().hex[:6]
    with Nursery(root) as nursery:
        nursery.call({"id": f"{name}-first", "engine": engine})
        points = nursery.call({"id": f"{name}-all", "engine": engine})["points"]
        chosen = choose(points, once=once, stride=stride)
        for number, point in chosen:
            id, others = f"{name}-{number}", []
            event = {"id": id, "engine": engine}

            def call_meanwhile(event: dict = event, others: list = others) -> None:
                others.append(nursery.call(event, ahead_s=3_600)["reply"])

            woken = nursery.paused(event, number, call_meanwhile)
            replies = [values(reply) for reply in (woken.get("reply", NO_REPLY), *others)]
            found = [step for step in "ab" for _ in computed(results, id, step)]
            if replies != [right(id)] * 2 or found != ["a", "b"]:
                wrong[f"{number} {point}"] = f"replied {replies}, history has {found}, {woken}"
    entry.handle({"action": "reap"}, settings, results=results)
    if left := taken(results):
        wrong["leases left"] = str(left)
    return len(chosen), wrong


def until_over(
    works: Sequence[Callable[[], None]],
    besides: Sequence[Callable[[], None]],
    over: threading.Event,
) -> None:
    """
    Run *works* in a thread each, and *besides* next to them, which end once *over* is set.

    It is set when all works have ended. What one of them raises ends all, and is raised.
    """

    def guarded(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException:
            over.set()
            raise

    with ThreadPoolExecutor(len(works) + len(besides)) as pool:
        working = [pool.submit(guarded, work) for work in works]
        beside = [pool.submit(guarded, each) for each in besides]
        wait(working)
        over.set()
    for future in (*working, *beside):
        future.result()


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
                if count["killed"] >= kills or over.is_set():
                    return
                id, by_clock = chance.choice(now), chance.random() < 0.5
                at = chance.uniform(0, typical_s) if by_clock else chance.randrange(points * 3 // 2)
            answer = nursery.order(
                {"id": id, "engine": engine}, *((None, at) if by_clock else (at, None))
            )
            with lock:
                count["invocations"] += 1
                count["hung"] += "hung" in answer
                if "reply" not in answer and "killed" in answer:
                    count["killed"] += 1
                    killed.add(answer["pid"])
                    continue
                if "reply" not in answer or answer["died"]:
                    count["died"] += 1
                    print(f"{id}: {answer}", file=sys.stderr, flush=True)
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
        points = len(nursery.call({"id": f"{name}-first", "engine": engine})["points"])
        typical_s = 4 * (time.monotonic() - began)  # Side by side they take longer than alone.
        until_over([work] * processes, [reap, reap], over)
    reaped, reaped_again = (
        entry.handle({"action": "reap"}, settings, results=results)["reaped"] for _ in range(2)
    )
    lost = [
        id
        for id in replies
        if values(entry.handle({"id": id, "cached_only": True}, settings, results=results))
        != right(id)
    ]
    assert all((root / f"ran-{id}").exists() for id in replies), "nobody counts computations"
    recorded = [len(computed(results, id, step)) for id in replies for step in "ab"]
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
            "hung calls": count["hung"],
            "calls that did not end with a reply": count["died"],
            "reaped while it ran": count["reaped"],
            "reaped by one reap afterwards": len(reaped),
            "reaped by a second reap afterwards": len(reaped_again),
            "computed beyond 1 + kills of the holder": sum(
                computed_too_often(root, id, killed) for id in every
            ),
            "wrong values": sum(
                values(reply) != right(id) for id in replies for reply in replies[id]
            ),
            "lost replied results": len(lost),
            "history with two": sum(number > 1 for number in recorded),
            "history without a reply": recorded.count(0),
            "live or finished runs wrongly marked": sum(wrong),
            "runs left Running": sum("slot " not in each for each in opened),
            "slots left": sum("slot " in each for each in opened),
            "leases left": len(taken(results)),
        }
    )
