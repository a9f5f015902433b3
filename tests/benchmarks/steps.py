"""
The first section of a run: the same steps as plain functions, with both engines, and in Prefect.

The last is the plain Prefect flow that a user would write.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks import workloads
from benchmarks.rig import ENGINES, Rig
from benchmarks.workloads import Workload
from pfl.handler.core.errors import UnavailableError

CASES = {
    "miss": "miss",
    "hit": "hit",
    "cosmetic": "hit, after a comment",
    "helper": "call, after a helper changed",
}
# The defaults.
FLOWS = ("meaning", "audit", "chain-1", "chain-10", "chain-50")
STORES = ("directory", "s3")
LATENCIES = (0, 80)


class Cell(NamedTuple):
    """
    What is measured together: one flow, one kind of store, one latency to Prefect.

    Attributes:
        rounds: Number of fresh processes.
        calls: Number of warm calls of each.
    """

    workload: str
    store: str
    latency_ms: int
    rounds: int
    calls: int


def plan(
    *,
    quick: bool,
    names: Sequence[str],
    stores: Sequence[str],
    latencies: Sequence[int],
    rounds: int,
    calls: int,
    every: bool,
) -> list[Cell]:
    """
    The cells of a run: each differs from the first one in one thing, unless *every* is given.

    Args:
        quick: Fewer cells, with fewer calls.
        names: Flows; empty: the defaults.
        stores: Kinds of store; empty: the defaults.
        latencies: Round trips to Prefect in milliseconds; empty: the defaults.
        rounds: Fresh processes of each; 0: the default.
        calls: Warm calls of each process; 0: the default.
        every: Each flow on each store at each latency.
    """
    all_names = list(names) or FLOWS[: 1 if quick else None]
    all_stores = list(stores) or STORES
    all_latencies = list(latencies) or LATENCIES[: 1 if quick else None]
    cells = []
    for number, (name, kind, latency_ms) in enumerate(
        itertools.product(all_names, all_stores, all_latencies)
    ):
        is_first_name = name == all_names[0]
        is_first_place = (kind, latency_ms) == (all_stores[0], all_latencies[0])
        if not (every or is_first_name or is_first_place):
            continue
        usual_rounds, usual_calls = 1, 3
        if quick:
            usual_calls = 2
        elif workloads.ALL[name].steps > 10:
            usual_calls = 1
        elif number == 0:
            usual_rounds = 3
        cells.append(Cell(name, kind, latency_ms, rounds or usual_rounds, calls or usual_calls))
    return cells


def measure(
    rig: Rig,
    cells: Sequence[Cell],
    tick: Callable[[str], None],
    left_out: list[dict],
    *,
    engines: Sequence[str] = ENGINES,
    cases: Iterable[str] = CASES,
) -> Iterator[dict]:
    """
    The rows of all *cells*, cell by cell.

    Args:
        rig: The surroundings of the run.
        cells: What to measure.
        tick: Called each time a case of a cell has been measured once.
        left_out: Receives the cells that failed.
        engines: Engines to measure.
        cases: Keys of :data:`CASES`.
    """
    # The values of plain functions are the right ones, so they always run.
    engines = ("functions", *(each for each in engines if each != "functions"))
    for cell in cells:
        try:
            yield from _cell(rig, cell, tick, engines, cases)
        except UnavailableError as exc:  # The other cells are kept: a run takes long.
            left_out.append(
                {
                    "what": f"{cell.workload}, {cell.store}, {cell.latency_ms} ms to Prefect",
                    "why": f"{exc.what}; {exc.why}",
                    "section": "steps",
                }
            )
            workloads.write(rig.project)


def _cell(
    rig: Rig, cell: Cell, tick: Callable[[str], None], engines: Sequence[str], cases: Iterable[str]
) -> list[dict]:
    workload = workloads.ALL[cell.workload]
    ids = workload.ids(cell.calls + 1)
    if "prefect" in engines:
        rig.limit(ids)
    found: dict[tuple[str, str, str], list[dict]] = {}
    for number in range(cell.rounds):
        rig.wipe(cell.store)
        for case in cases:
            workloads.edit(rig.project, workload, case)
            rig.bake()
            order = engines if number % 2 == 0 else (engines[0], *reversed(engines[1:]))
            _case(rig, cell, case, order, ids, found)
            tick(f"{cell.workload}, {cell.store}, {cell.latency_ms} ms: {CASES[case]}")
    workloads.write(rig.project)
    return [_row(cell, workload, *key, calls) for key, calls in sorted(found.items(), key=_order)]


def _case(
    rig: Rig, cell: Cell, case: str, order: Sequence[str], ids: Sequence[str], found: dict
) -> None:
    """One fresh process of each engine, and warm calls of each, taking turns."""
    with ExitStack() as stack:
        boxes = {}
        truth = {}
        for number, id in enumerate(ids):
            for engine in order:
                order_of_call = {"flow": cell.workload, "id": id}
                before = rig.requests(cell.store, cell.latency_ms)
                if number == 0:
                    boxes[engine] = stack.enter_context(
                        rig.sandbox(engine, cell.store, cell.latency_ms, order_of_call)
                    )
                    call = boxes[engine].first()
                else:
                    call = boxes[engine].call(order_of_call)
                if call.get("status"):
                    raise UnavailableError(f"{engine} failed", why=call["status"])
                asked = rig.requests(cell.store, cell.latency_ms) - before
                value = workloads.essence(cell.workload, call.pop("value"))
                truth.setdefault(id, value)  # Plain functions run first and store nothing.
                counts = call["store"]
                if cell.store == "s3" and engine != "functions":
                    if rig.s3() is not None:
                        counts = asked
                    elif engine == "prefect":
                        counts = None  # Nothing counts its requests to the user's own S3.
                call |= {
                    "is_right": value == truth[id],
                    "api_requests": asked["api"],
                    "api_refused": asked["refused"],
                    **_io(counts),
                }
                if engine != "functions" or case == "miss":
                    found.setdefault((engine, case, "warm" if number else "cold"), []).append(call)


def _io(counts: dict | None) -> dict[str, int | None]:
    """Reads and writes among requests by verb; None where they were not counted."""
    if counts is None:
        return {"reads": None, "writes": None}
    return {
        "reads": counts.get("get", 0) + counts.get("list", 0),
        "writes": counts.get("put", 0) + counts.get("delete", 0),
    }


def _row(
    cell: Cell, workload: Workload, engine: str, case: str, start: str, calls: list[dict]
) -> dict:
    def middle(name: str) -> float | None:
        if calls[0][name] is None:
            return None
        return round(statistics.median(call[name] for call in calls), 6)

    ms = sorted(call["ms"] for call in calls)
    if engine == "functions":
        answer = "computed"
    elif not all(call["is_right"] for call in calls):
        answer = "stale"
    elif not any(call["computed"] for call in calls):
        answer = "hit"
    else:  # If a single call computed, the row is not a hit.
        answer = "computed" if case == "miss" else "computed again"
    return {
        "workload": cell.workload,
        "steps": workload.steps,
        "store": cell.store,
        "latency_ms": cell.latency_ms,
        "engine": engine,
        "case": case,
        "start": start,
        "answer": answer,
        "calls": len(calls),
        "computed_steps": middle("computed"),
        "median_ms": middle("ms"),
        "p95_ms": round(ms[math.ceil(0.95 * len(ms)) - 1], 6),
        "per_step_ms": round(statistics.median(ms) / workload.steps, 6),
        "cpu_ms": middle("cpu_ms"),
        "reads": middle("reads"),
        "writes": middle("writes"),
        "api_requests": middle("api_requests"),
        "api_refused": sum(call["api_refused"] for call in calls),
        "modules": middle("modules"),
    }


def _order(item: tuple) -> tuple:
    (engine, case, start), _ = item
    return list(CASES).index(case), start, ENGINES.index(engine)
