"""
The second section of a run: N callers at once, for one key and for N keys.

Plain Prefect has a tag limit of 1 for comparison.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence

from benchmarks.rig import ENGINES, Rig
from pfl.handler.core.errors import UnavailableError

PATIENCE_S = 120
FLOW = "held"
CALLERS = (1, 8, 64)


def plan(
    *, quick: bool, callers: Sequence[int], engines: Sequence[str] = ENGINES
) -> list[tuple[int, str, str]]:
    """The cells: the number of callers, ``one`` key or ``each`` its own, and the engine."""
    numbers = list(callers) or CALLERS[: 2 if quick else None]
    kinds = [
        (number, keys)
        for number in numbers
        for keys in ("one", "each")
        if (number, keys) != (1, "each")
    ]
    return [(*kind, engine) for kind in kinds for engine in engines if engine != "functions"]


def measure(
    rig: Rig,
    cells: Sequence[tuple[int, str, str]],
    tick: Callable[[str], None],
    left_out: list[dict],
) -> Iterator[dict]:
    """A row for each of *cells*; one that does not end in time goes to *left_out*."""
    rig.bake()
    for number, keys, engine in cells:
        callers = "1 caller" if number == 1 else f"{number} callers"
        what = f"{callers}, {'one key' if keys == 'one' else f'{number} keys'}, {engine}"
        try:
            yield _row(rig, number, keys, engine)
        except UnavailableError as exc:
            left_out.append(
                {"what": what, "why": f"{exc.what}; {exc.why}", "section": "concurrency"}
            )
        tick(what)


def _row(rig: Rig, number: int, keys: str, engine: str) -> dict:
    token = uuid.uuid4().hex[:8]
    ids = [f"{token}-{0 if keys == 'one' else each}" for each in range(number)]
    if engine == "prefect":
        rig.limit(ids)
    ran = rig.place / "ran"
    ran.write_text("")
    # Threads and connections do not survive a fork, so nothing is called before it.
    with rig.sandbox(engine, "directory", 0, {"flow": FLOW, "fork": []}, BENCH_WARM="1") as box:
        box.first()
        before = rig.requests("directory", 0)
        calls = box.call({"flow": FLOW, "fork": ids}, PATIENCE_S)["calls"]
    answered = [call for call in calls if call["status"] == "completed"]
    assert all(call["value"] in ids for call in answered)
    why = "they ended" if len(calls) < number else None
    for call in calls:
        if call not in answered:
            why = call["status"]
            break
    return {
        "callers": number,
        "keys": 1 if keys == "one" else number,
        "engine": engine,
        "computations": len(ran.read_text().splitlines()),
        "last_ms": round(max((call["ms"] for call in calls), default=0.0), 1),
        "unanswered": number - len(answered),
        "why": why,
        "api_requests": (rig.requests("directory", 0) - before)["api"],
        "store_requests": sum(sum(call["store"].values()) for call in calls),
    }
