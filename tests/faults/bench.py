"""
Leases and Prefect's tag limit of 1, on one machine: how soon a waiter goes on, and at what cost.

Both hold a step for a while and let a second process wait for it: once until there is a result,
once until the first is killed.
Prefect's holders hold longer, since its waiters ask about once in ten seconds.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from faults import gate, suite

FLOW = """
import os, time
from pathlib import Path
from pfl import flow, step

@step(depends_on=())
def held(id: str) -> int:
    with open(f"begun-{id}", "a") as file:
        file.write(f"{os.getpid()} {time.time()}\\n")
    time.sleep(float(Path("hold").read_text()))
    with open(f"ended-{id}", "a") as file:
        file.write(f"{time.time()}\\n")
    return 1

FLOWS = [flow("bench", held)]
"""
PLAIN = """
import os, sys, time
from pathlib import Path
from prefect import flow, task

@task(tags=[sys.argv[1]])
def held():
    with open(f"begun-{sys.argv[1]}", "a") as file:
        file.write(f"{os.getpid()} {time.time()}\\n")
    time.sleep(float(sys.argv[2]))
    with open(f"ended-{sys.argv[1]}", "a") as file:
        file.write(f"{time.time()}\\n")

@flow
def plain():
    held()

print("ready", flush=True)
sys.stdin.readline()
plain()
print(time.time(), flush=True)
"""


def lines(path: Path, count: int) -> list[str]:
    """The lines of a file, once it has so many."""
    while not path.exists() or len(path.read_text().splitlines()) < count:
        threading.Event().wait(0.01)
    return path.read_text().splitlines()


class Ours:
    """A nursery, asked for invocations in a thread each."""

    def __init__(self, root: Path) -> None:
        self._nursery, self._root = suite.Nursery(root), root

    def start(self, id: str) -> threading.Thread:
        def call() -> None:
            reply = self._nursery.call({"id": id, "engine": "prefect"})
            (self._root / f"replied-{id}-{id_of(self)}").write_text(
                f"{time.time()} {reply.get('reply', {}).get('status')}"
            )

        thread = threading.Thread(target=call)
        thread.start()
        return thread


def id_of(one: object) -> str:
    return f"{id(one):x}"


def ours(root: Path, *, hold_s: float, kill: bool) -> float:
    """Seconds from the result to the waiter's reply, or from a kill to the waiter's beginning."""
    (root / "hold").write_text(str(hold_s))
    first, second, name = Ours(root), Ours(root), uuid.uuid4().hex[:8]
    threads = [first.start(name)]
    pid = int(lines(root / f"begun-{name}", 1)[0].split()[0])
    threads.append(second.start(name))
    if kill:
        time.sleep(hold_s / 2)
        os.kill(pid, signal.SIGKILL)
        killed = time.time()
        (root / "hold").write_text("0")
        took = float(lines(root / f"begun-{name}", 2)[1].split()[1]) - killed
    for thread in threads:
        thread.join()
    if not kill:
        took = float((root / f"replied-{name}-{id_of(second)}").read_text().split()[0]) - float(
            lines(root / f"ended-{name}", 1)[0]
        )
    for one in (first, second):
        one._nursery.__exit__()
    return took


def plain(root: Path, *, hold_s: float, kill: bool) -> float:
    """The same of a Prefect flow whose task has a tag with a limit of 1."""
    from pfl.handler.core.settings import Settings
    from pfl.handler.engine.prefect import environment, limits

    tag = f"bench-{uuid.uuid4().hex[:8]}"
    limits._post_limit(environment.configured(Settings.from_env(os.environ)), tag, 1)
    (root / "plain.py").write_text(PLAIN)
    command = [sys.executable, "plain.py", tag]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": root}
    both = [subprocess.Popen([*command, str(hold)], **pipes) for hold in (hold_s, 0)]
    for one in both:
        assert one.stdout.readline() == "ready\n"
    for number, one in enumerate(both):
        one.stdin.write("go\n")
        one.stdin.flush()
        if number == 0:
            pid = int(lines(root / f"begun-{tag}", 1)[0].split()[0])
    if kill:
        time.sleep(hold_s / 2)
        os.kill(pid, signal.SIGKILL)
        killed = time.time()
    replied = float(both[1].communicate()[0].split()[-1])
    both[0].communicate()
    if kill:
        return float(lines(root / f"begun-{tag}", 2)[1].split()[1]) - killed
    return replied - float(lines(root / f"ended-{tag}", 1)[0])


def main(root: Path, url: str, times: int = 5) -> None:
    """Print the table."""
    where = root / "bench"
    suite.project(where)
    (where / "flows" / "pipeline.py").write_text(FLOW)

    def report(name: str, found: list[float]) -> None:
        print(
            f"{name:<44}{statistics.median(found):8.2f} s  "
            f"(of {len(found)}: {min(found):.2f} to {max(found):.2f})",
            flush=True,
        )

    with gate.Gate(int(url.split(":")[2].split("/")[0])) as between:
        os.environ["PREFECT_API_URL"] = between.url
        report(
            "result to waiter's reply, lease",
            [ours(where, hold_s=6, kill=False) for _ in range(times)],
        )
        report(
            "result to waiter's reply, tag limit",
            [plain(where, hold_s=15, kill=False) for _ in range(times)],
        )
        report(
            "kill to free slot, lease and tag limit",
            [ours(where, hold_s=12, kill=True) for _ in range(times)],
        )
        report(
            "kill to free slot, tag limit",
            [plain(where, hold_s=12, kill=True) for _ in range(max(1, times // 2))],
        )
        for name, tag_limits in (("lease", ""), ("lease and tag limit", "per-id")):
            os.environ["PFL_TAG_LIMITS"] = tag_limits
            (where / "hold").write_text("0")
            with suite.Nursery(where) as nursery:
                id = uuid.uuid4().hex
                for what in ("computed", "hit"):
                    before = between.asked.total()
                    nursery.call({"id": id, "engine": "prefect"})
                    print(
                        f"API requests of an invocation, {name}, {what}: "
                        f"{between.asked.total() - before}",
                        flush=True,
                    )
        before = between.asked.total()
        plain(where, hold_s=0, kill=False)
        print(
            "API requests of an invocation, tag limit: "
            f"{(between.asked.total() - before - 1) / 2:g}",
            flush=True,
        )
