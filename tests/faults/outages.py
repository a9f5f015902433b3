"""
A store that fails at each request of a call, at two, and from one on; and at random under load.

Two of the steps run side by side. Each computation has a value of its own, so a value that was
replied and computed again is noticed. Some values are too long for a record.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import servers

from pfl.handler import entry
from pfl.handler.core.errors import UnavailableError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import objects

from . import broken, suite
from .broken import Proxied, Window

FLOW = """
import os, threading
from contextlib import suppress
from pfl import flow, step

both = threading.Barrier(2)

def token(name):
    return f"{name}-{os.urandom(8).hex()}"

def meet():
    with suppress(threading.BrokenBarrierError):  # The other step may be stored.
        both.wait(0.05)

@step
def a(id: str) -> str:
    meet()
    return token("a")

@step
def b(id: str) -> str:
    meet()
    return token("b") + "b" * 300

@step
def c(id: str, a: str, b: str) -> list:
    return [a, b, token("c")]

FLOWS = [flow("side_by_side", a, b, c)]
"""
STEPS = "abc"
INLINE_BYTES = 200
# What a proxy before S3 answers, and how often the client sends a request that fails so.
ANSWERS: dict[str, tuple[object, int]] = {
    "403": (servers.s3_error(403, "AccessDenied"), 1),
    "500": (servers.s3_error(500, "InternalError"), 6),
    "reset": ("reset", 4),
}
# All that has to be 0.
COUNTS = (
    "hung calls",
    "calls or threads that died",
    "replies lost",
    "values lost",
    "wrong values",
    "history with two",
    "history without a reply",
    "later calls that failed",
    "errors that blame something else",
    "leases left",
    "runs left Running",
)
_SHOWN = 3_000


class Place(NamedTuple):
    """
    A project with a store that can fail.

    Attributes:
        root: The project.
        settings: Its settings.
        kind: The fault, of ``broken.SWITCHES`` or ``ANSWERS``.
        engine: Which computes.
        results: The store, where it does not fail.
        proxied: The proxy before it, for S3.
    """

    root: Path
    settings: Settings
    kind: str
    engine: str
    results: objects.Store
    proxied: Proxied | None


@contextmanager
def place(root: Path, kind: str, engine: str) -> Iterator[Place]:
    """
    A project with a store of its own for this kind of fault; for S3 ``AWS_ENDPOINT_URL`` is set.

    Raises:
        PermissionError: A disk cannot be mounted here.
    """
    before = dict(os.environ)
    with ExitStack() as stack:
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ["PFL_INLINE_BYTES"] = str(INLINE_BYTES)
        os.environ["PFL_STORE"] = ""
        proxied = None
        if kind in ANSWERS:
            import boto3

            bucket = f"outage-{uuid.uuid4().hex[:12]}"
            boto3.client("s3").create_bucket(Bucket=bucket)
            os.environ["PFL_STORE"] = f"s3://{bucket}/pfl"
        elif kind == "disk full":
            disk = stack.enter_context(broken.disk(root / "disk"))
            (disk / "store").mkdir()
            os.environ["PFL_STORE"] = str(disk / "store")
        settings = suite.project(root, FLOW)
        results = objects.of(settings)
        if kind in ANSWERS:
            proxied = Proxied(*ANSWERS[kind])
            behind = os.environ["AWS_ENDPOINT_URL"]
            proxy = stack.enter_context(servers.Loopback(proxied.answer, behind))
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
        yield Place(root, settings, kind, engine, results, proxied)


def every_request(at: Place, *, stride: int = 1, first: int = 0, busts: bool = False) -> Counter:
    """
    Let the store fail at each request, at each two of them, and from each on until the reply.

    The process of every second call lives on while the next one is made, and counts as dead.

    Args:
        at: The project.
        stride: Only one case in this many.
        first: The first case to take.
        busts: Make calls that bust what is stored, instead of calls for a new ID.
    """
    count = Counter(dict.fromkeys(("calls", "completed", "failed", *COUNTS), 0))
    name = uuid.uuid4().hex[:6]
    with suite.Nursery(at.root) as nursery:
        nursery.call({"id": f"{name}-first", "engine": at.engine})
        requests = _requests(at, nursery, f"{name}-all", busts)
        numbers = range(requests)
        cases: list[list[Window]] = [[(number, number)] for number in numbers]
        cases += [[(number, None)] for number in numbers]
        cases += [[(one, one), (other, other)] for one, other in combinations(numbers, 2)]
        for number in range(first, len(cases), stride):
            case = cases[number]
            id = f"{name}-{number}"
            stays = number // stride % 2 == 1
            problems = list(_survive(at, nursery, id, case, count, stays=stays, busts=busts))
            count.update(what for what, _ in problems)
            for what, detail in problems:
                print(
                    f"{at.kind}, {at.engine}, {id} {case}: {what}: {str(detail)[-_SHOWN:]}",
                    file=sys.stderr,
                )
    assert count["failed"], "no request failed"
    return count


def _requests(at: Place, nursery: suite.Nursery, id: str, busts: bool) -> int:
    """How many requests a call makes that nothing happens to."""
    event = {"id": id, "engine": at.engine}
    if busts:
        nursery.call(event)
    if at.proxied is not None:
        at.proxied.fail([])
    answer = nursery.call(
        event | ({"bust": "all"} if busts else {}),
        outage=None if at.proxied else {"kind": at.kind, "windows": []},
    )
    return answer["requests"] if at.proxied is None else at.proxied.count


def _survive(
    at: Place,
    nursery: suite.Nursery,
    id: str,
    case: Sequence[Window],
    count: Counter,
    *,
    stays: bool,
    busts: bool,
) -> Iterator[tuple[str, object]]:
    """One call that meets a failing store, and those after it; yields what is wrong."""
    event = {"id": id, "engine": at.engine}
    old = suite.values(nursery.call(event)["reply"]) if busts else []
    outage = None
    if at.proxied is not None:
        at.proxied.fail(case)
    else:
        outage = {"kind": at.kind, "windows": case}
    asked = event | ({"bust": "all"} if busts else {})
    with nursery.start(asked, outage=outage) as call:
        answer = call.answer()
        if at.proxied is not None:
            at.proxied.fail([])
        if not stays:
            call.__exit__()
        reply = answer.get("reply", suite.NO_REPLY)
        count["calls"] += 1
        count["completed"] += reply["status"] == "completed"
        count["failed"] += reply["status"] != "completed"
        if "hung" in answer:
            yield "hung calls", answer
        elif "reply" not in answer or answer["died"]:
            yield "calls or threads that died", answer
        # The next call takes the one that lives on for dead, as one that has stopped to report.
        after = nursery.order(event, ahead_s=3_600)
    later = after.get("reply", suite.NO_REPLY)
    if "hung" in after:
        yield "hung calls", after
    if later["status"] != "completed" or after["died"]:
        yield "later calls that failed", after
        return
    values = suite.values(later)
    if not is_consistent(values):
        yield "wrong values", values
    given = given_by(reply)
    now = dict(zip(STEPS, values, strict=True))
    lost = {step: value for step, value in given.items() if now[step] != value}
    if lost:
        yield "replies lost" if reply["status"] == "completed" else "values lost", (given, now)
    if reply["status"] == "completed" and any(value in old for value in given.values()):
        yield "wrong values", (given, old)
    if reply["status"] == "failed" and reply["error"]["type"] != UnavailableError.__name__:
        yield "errors that blame something else", reply["error"]
    yield from _left_by(at, [id], {id: [values]}, once=not busts)


def given_by(reply: dict) -> dict[str, object]:
    """The values of a reply, by step; one that failed may have some."""
    return {row["step"]: row["value"] for row in reply["steps"] if row["value"] is not None}


def is_consistent(values: Sequence[object]) -> bool:
    """Whether the values of a reply are those of one computation of each step."""
    a, b, c = values
    return isinstance(c, list) and c[:2] == [a, b]


def _left_by(
    at: Place, ids: list[str], replied: dict[str, list[list]], *, once: bool
) -> Iterator[tuple[str, object]]:
    """What one reap leaves of calls for these IDs, and what history lacks."""
    reaped = entry.handle({"action": "reap"}, at.settings, results=at.results)
    if reaped["status"] != "completed" or (left := suite.taken(at.results)):
        yield "leases left", (reaped, left)
    for id, step in ((id, step) for id in ids for step in STEPS):
        records = suite.computed(at.results, id, step)
        keys = [(record["key"], record.get("result")) for record in records]
        shown = [record["sha256"] for record in records]
        if len(keys) != len(set(keys)) or (once and len(keys) > 1):
            yield "history with two", records
        values = (row[STEPS.index(step)] for row in replied.get(id, ()))
        if {_digest(value) for value in values} - set(shown):
            yield "history without a reply", (replied[id], records)
    if at.engine == "prefect" and (opened := suite.left_open(at.settings, ids)):
        yield "runs left Running", opened


def _digest(value: object) -> str:
    from pfl.handler.core.store import keys

    return keys.value_digest(value)


def at_random(
    at: Place,
    *,
    outages: int,
    processes: int = 6,
    ids: int = 10,
    kills: float = 0.2,
    seed: int = 1,
) -> Counter:
    """
    Let the store fail at random while calls for a few IDs run, and two reapers; then reap, count.

    Args:
        at: The project; its fault is one that is switched from outside.
        outages: How often the store fails, for up to a tenth of a second.
        processes: How many calls run at once.
        ids: How many IDs are computed at a time.
        kills: The share of the calls that are killed.
        seed: Chooses the times.
    """
    count = Counter(dict.fromkeys(("calls", "killed", "completed", "failed", *COUNTS), 0))
    lock, over = threading.Lock(), threading.Event()
    chance, times = random.Random(seed), random.Random(seed)
    name = f"random-{uuid.uuid4().hex[:6]}"
    now = [f"{name}-{number}" for number in range(ids)]
    every = list(now)
    replied: dict[str, list[list]] = {}
    partly: list[tuple[str, dict[str, object]]] = []
    switch = _switch_of(at)

    def note(what: str, detail: object) -> None:
        count[what] += 1
        print(f"{at.kind}, {at.engine}: {what}: {detail}", file=sys.stderr, flush=True)

    def work() -> None:
        while not over.is_set():
            with lock:
                id = chance.choice(now)
                after_s = chance.uniform(0, 0.5) if chance.random() < kills else None
            answer = nursery.order({"id": id, "engine": at.engine}, None, after_s)
            reply = answer.get("reply", suite.NO_REPLY)
            with lock:
                count["calls"] += 1
                if "hung" in answer:
                    note("hung calls", answer)
                elif "reply" not in answer and "killed" in answer:
                    count["killed"] += 1
                elif "reply" not in answer or answer["died"]:
                    note("calls or threads that died", answer)
                elif reply["status"] == "completed":
                    count["completed"] += 1
                    replied.setdefault(id, []).append(suite.values(reply))
                    if id in now:
                        now[now.index(id)] = f"{name}-{len(every)}"
                        every.append(f"{name}-{len(every)}")
                else:
                    count["failed"] += 1
                    partly.append((id, given_by(reply)))
                    if reply["error"]["type"] not in (UnavailableError.__name__, "BusyError"):
                        note("errors that blame something else", reply["error"])

    def reap() -> None:
        while not over.wait(0.5):
            entry.handle({"action": "reap"}, at.settings, results=at.results)

    def fail() -> None:
        for _ in range(outages):
            over.wait(times.uniform(0.02, 0.4))
            switch(True)
            over.wait(times.uniform(0, 0.1))
            switch(False)

    with suite.Nursery(at.root) as nursery:
        nursery.call({"id": f"{name}-first", "engine": at.engine})
        suite.until_over([fail], [*[work] * processes, reap, reap], over)
        for id in every:
            after = nursery.order({"id": id, "engine": at.engine})
            later = after.get("reply", suite.NO_REPLY)
            if later["status"] != "completed":
                note("later calls that failed", after)
                continue
            values = suite.values(later)
            if not is_consistent(values):
                note("wrong values", values)
            for row in replied.setdefault(id, []):
                if row != values:
                    note("replies lost", (row, values))
            replied[id].append(values)
    for id, given in partly:
        now_stored = dict(zip(STEPS, replied[id][-1], strict=True)) if replied.get(id) else {}
        if any(now_stored.get(step) != value for step, value in given.items()):
            note("values lost", (given, now_stored))
    for what, detail in _left_by(at, every, replied, once=True):
        note(what, detail)
    assert count["failed"] and count["completed"], "no call met an outage, or all did"
    return count


def _switch_of(at: Place) -> broken.Switch:
    """Switches the fault of a store on for all processes."""
    if (proxied := at.proxied) is not None:
        return lambda is_on: proxied.fail([(0, None)] if is_on else [])
    store = at.settings.store or str(at.settings.home / "store")
    return {"disk full": broken.full, "permissions": broken.forbidden}[at.kind](store)
