"""The third section of a run: hits per second and the cost of commands as a directory grows."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

from benchmarks.rig import Rig
from pfl.handler.core import event
from pfl.handler.core.cache import history
from pfl.handler.core.declare import catalog
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import keys, records

FLOW, STEP, TEMPLATE = "chain-1", "s1_0", "template"
SIZES = (10, 10_000, 1_000_000)
SANDBOXES = 8
_TURNS = 3
# The newest records are written whole. Older ones are only names in the index: nothing reads them.
_WHOLE = 1_000
_SPREAD_NS = 30 * 86_400 * 10**9


def plan(*, quick: bool, sizes: Sequence[int]) -> list[int]:
    """The sizes of the stores, in IDs."""
    return sorted(set(sizes)) or list(SIZES[: 2 if quick else None])


def measure(
    rig: Rig, sizes: Sequence[int], calls: int, tick: Callable[[str], None]
) -> Iterator[dict]:
    """
    A row for each size.

    Args:
        rig: The surroundings of the run.
        sizes: The number of IDs of each store.
        calls: Hits of each process.
        tick: Called when a size is done.
    """
    rig.bake()
    found = {size: [] for size in sizes}
    with ExitStack() as stack:
        places = {}
        for size in sizes:
            rig.report(f"writing a store of {size:,} IDs")
            places[size] = stack.enter_context(_store(rig, size))
        for _ in range(_TURNS):  # Stores take turns, because the load of the machine changes.
            for size, place in places.items():
                found[size].append(_operations(rig, place, size))
        for size, place in places.items():
            disk = "memory" if place.parts[1] == "dev" else "disk"
            yield {
                "ids": size,
                "disk": disk,
                **_hits(rig, place, size, calls),
                "operations": _medians(found[size]),
            }
            tick(f"a store of {size:,} IDs")


def _hits(rig: Rig, place: Path, size: int, calls: int) -> dict[str, float]:
    """Hits per second over IDs at random, of one process and of several at once."""
    chance = random.Random(size)
    found = {}
    for boxes in (1, SANDBOXES):
        orders = [
            {"flow": FLOW, "loop": [f"id{chance.randrange(size)}" for _ in range(calls)]}
            for _ in range(boxes)
        ]
        with ExitStack() as stack:
            first = {"flow": FLOW, "loop": ["id0"]}
            running = [
                stack.enter_context(
                    rig.sandbox("pfl-direct", "directory", 0, first, PFL_STORE=str(place))
                )
                for _ in orders
            ]
            for box in running:
                box.first()
            for box, order in zip(running, orders, strict=True):
                box.send(order)
            told = [box.answer() for box in running]
        took_s = max(each["ended"] for each in told) - min(each["began"] for each in told)
        found["hits_per_s" if boxes == 1 else f"hits_per_s_{boxes}"] = round(boxes * calls / took_s)
    return found


def _operations(rig: Rig, place: Path, size: int) -> dict[str, list]:
    """Milliseconds and requests of a user's commands, by name, measured in their own process."""
    environ = rig.environ("pfl-direct", "directory", 0) | {"PFL_STORE": str(place)}
    code = "from benchmarks.sandbox import operate; operate()"
    command = [sys.executable, "-c", code, f"id{size // 2}", "5"]
    done = subprocess.run(
        command,
        env=environ,
        cwd=rig.project,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return json.loads(done.stdout)


def _medians(turns: list[dict[str, list]]) -> dict[str, dict[str, float]]:
    found = {}
    for name in turns[0]:
        ms, requests, _ = zip(*(each for turn in turns for each in turn[name]), strict=True)
        found[name] = {
            "median_ms": round(statistics.median(ms), 3),
            "requests": statistics.median(requests),
        }
    return found


@contextmanager
def _store(rig: Rig, size: int) -> Iterator[Path]:
    """A directory with the plan and history index of each ID, as after a month of calls."""
    place = Path(tempfile.mkdtemp(prefix="pfl-bench-", dir=_roomy(size) or rig.place))
    settings = Settings(
        project=str(rig.project),
        manifest=str(rig.project / "baked.json"),
        store=str(place),
        engine="direct",
    )
    try:
        with rig.sandbox(
            "pfl-direct", "directory", 0, {"flow": FLOW, "id": TEMPLATE}, PFL_STORE=str(place)
        ) as box:
            assert box.first()["computed"] == 1
        now_ns, share = time.time_ns(), max(1, -(-size // (os.cpu_count() or 1)))
        if size <= 10_000:
            _fill(settings, place, range(size), size, now_ns)
        else:
            # A fresh interpreter each: this one has threads.
            with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
                parts = [range(start, min(start + share, size)) for start in range(0, size, share)]
                list(
                    pool.map(
                        _fill,
                        *zip(
                            *((settings, place, part, size, now_ns) for part in parts), strict=True
                        ),
                    )
                )
        yield place
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=False)


def _roomy(size: int) -> str | None:
    """A file system in memory with room for such a store, so that the disk is not measured."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return None
    fits = room.f_favail > 2.2 * size + 10_000 and room.f_bavail * room.f_frsize > 8_192 * size
    return "/dev/shm" if fits and os.access("/dev/shm", os.W_OK) else None


def _fill(settings: Settings, place: Path, numbers: range, size: int, now_ns: int) -> None:
    """
    Write the objects of some IDs: those of the template, under another name.

    Making and removing a folder for each of a million IDs would take longer than the rest of a
    run. So a thousand IDs share one by a symbolic link each, and empty files are hard links.
    """
    bases = event.parse({"flow": FLOW, "id": TEMPLATE}, catalog.load(settings)).bases
    body = _only(place / "plans" / TEMPLATE / STEP)
    assert body["plan_key"] == keys.plan_key(bases[STEP], TEMPLATE)
    record = _only(place / "history" / TEMPLATE / STEP)
    last = ""
    for number in numbers:
        id = f"id{number}"
        body["id"], body["plan_key"] = id, keys.plan_key(bases[STEP], id)
        os.makedirs(f"{place}/plans/{id}/{STEP}")
        _write(f"{place}/{records.plan_path(id, STEP, body['plan_key'])}", records.seal(body))
        name = history.new_name(
            id, STEP, record["key"][:16], time_ns=now_ns - (number + 1) * _SPREAD_NS // size
        )
        key, pointer = history.pointer([name])
        folder = os.path.dirname(f"{place}/{key}")
        if folder != last:
            last = folder
            os.makedirs(folder, exist_ok=True)
        _write(f"{place}/{key}", pointer)
        if number < _WHOLE or number == size // 2:
            os.makedirs(f"{place}/history/{id}/{STEP}")
            _write(f"{place}/{name.path}", records.seal(record | {"id": id}))


def _only(folder: Path) -> dict:
    (path,) = folder.iterdir()
    return records.unseal(path.read_bytes(), str(path))


def _write(path: str, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(file, data)
    os.close(file)
