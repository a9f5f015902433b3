"""``pfl bench``: what the cache saves on a flow of this project."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..handler.core.errors import UnavailableError
from . import output, settings
from .invoke import show_reply
from .options import Engine, Json, checked

if TYPE_CHECKING:
    from ..handler.core.event import Reply
    from ..handler.core.settings import Settings

_CALL = """
import json, sys
from pfl.handler.entry import lambda_handler
print(json.dumps(lambda_handler(json.loads(sys.argv[1]))))
"""


def bench(
    flow: Annotated[
        str | None,
        typer.Option("--flow", help="Flow name; the first of flows/pipeline.py if not given."),
    ] = None,
    id: Annotated[str, typer.Option("--id", callback=checked, help="ID to compute.")] = "bench",
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1_000, help="Number of misses and of hits.")
    ] = 3,
    engine: Engine = None,
    json: Json = False,
) -> None:
    """Run a flow as misses and as hits in a temporary store, and report what a hit saves."""
    import time
    from statistics import median
    from tempfile import TemporaryDirectory

    chosen = settings.load(engine=engine or "direct")
    event = {"id": id, "flow": flow} if flow else {"id": id}
    rows: list[dict[str, object]] = []
    for process, call in (("warm", _call_here), ("cold", _call_in_new_process)):
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
                        show_reply(last[case], json)
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
    if json:
        head = {"version": 1, "id": id, "flow": reply["flow"], "engine": chosen.engine}
        output.emit({**head, "rounds": rounds, "calls": rows})
    else:
        columns = ["process", "call", "computed>", "hits>", "store requests>"]
        columns += ["median, ms>", "saved, ms>", "ratio>"]
        output.table(columns, [list(row.values()) for row in rows])


def _call_here(event: dict[str, str], chosen: Settings) -> Reply:
    from ..handler import entry
    from ..handler.core.store import objects

    with output.stdout_kept_for_data():
        return entry.handle(event, chosen, results=objects.of(chosen))


def _call_in_new_process(event: dict[str, str], chosen: Settings) -> Reply:
    import json
    import os
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", _CALL, json.dumps(event)],
        env={
            **os.environ,
            "PFL_PROJECT": str(chosen.root),
            "PFL_ENGINE": chosen.engine,
            "PFL_STORE": chosen.store,
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise UnavailableError("a call in a new process failed", why=f"exit code {done.returncode}")
    reply: Reply = json.loads(done.stdout.splitlines()[-1])
    return reply
