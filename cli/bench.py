"""``pfl bench``: measures what the cache saves on a flow of this project."""

import json
import time
from tempfile import TemporaryDirectory
from typing import Annotated

from typer import Option

from ..handler.core.event import Reply
from ..handler.core.settings import Settings
from . import output, settings
from .invoke import Event, FlowName, call_here, run_python, show_reply
from .options import Engine

_COLUMNS = (
    "process",
    "call",
    "computed>",
    "hits>",
    "store_requests>",
    "median_ms>",
    "saved_ms>",
    "ratio>",
)
_CALL = """
import json, sys
from pfl.handler.entry import lambda_handler
print(json.dumps(lambda_handler(json.loads(sys.argv[1]))))
"""


def bench(
    flow: FlowName = None,
    id: str = "bench",
    rounds: Annotated[int, Option(min=1, max=1000)] = 3,
    engine: Engine = None,
) -> None:
    """
    Measure what a hit saves: run a flow as misses and as hits in a temporary store.

    Args:
        id: ID to compute.
        rounds: Number of misses and hits to run.
    """
    from statistics import median

    chosen = settings.load(engine=engine or "direct")
    event: Event = {"id": id, "flow": flow}
    rows: list[dict[str, object]] = []
    for process, call in (("warm", call_here), ("cold", _call_in_new_process)):
        times_ms: dict[str, list[float]] = {"miss": [], "hit": []}
        last: dict[str, Reply] = {}
        for number in range(rounds):
            output.progress("", f"{process}, round {number + 1} of {rounds}")
            with TemporaryDirectory(prefix="pfl-bench-") as store:
                for case, times in times_ms.items():
                    started = time.perf_counter()
                    last[case] = call(event, chosen._replace(store=store))
                    times.append((time.perf_counter() - started) * 1e3)
                    if "error" in last[case]:
                        show_reply(last[case])
        miss_ms = median(times_ms["miss"])
        for case, reply in last.items():
            ms = median(times_ms[case])
            statuses = [row["status"] for row in reply["steps"]]
            rows.append(
                {
                    "process": process,
                    "call": case,
                    "computed": statuses.count("computed"),
                    "hits": statuses.count("hit"),
                    "store_requests": sum(reply["store"].values()),
                    "median_ms": round(ms, 3),
                    "saved_ms": round(miss_ms - ms, 3),
                    "ratio": round(ms / miss_ms, 4),
                }
            )
    head = {"version": 1, "id": id, "flow": reply["flow"], "engine": chosen.engine}
    output.emit({**head, "rounds": rounds, "calls": rows})
    output.table(_COLUMNS, rows)


def _call_in_new_process(event: Event, chosen: Settings) -> Reply:
    printed = run_python(
        chosen, "-c", _CALL, json.dumps(event), PFL_ENGINE=chosen.engine, PFL_STORE=chosen.store
    )
    reply: Reply = json.loads(printed.splitlines()[-1])
    return reply
