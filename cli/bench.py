"""``pfl bench``: what the cache saves on a flow of this project."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import Engine, Json, checked
from pfl.handler.core import errors
from pfl.handler.core.errors import UnavailableError

if TYPE_CHECKING:
    from pfl.handler.core.event import Reply
    from pfl.handler.core.settings import Settings

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
    table: list[list[object]] = []
    with output.Progress() as progress:
        for process, call in (("warm", _call_here), ("cold", _call_in_new_process)):
            calls: dict[str, list[Reply]] = {"miss": [], "hit": []}
            times: dict[str, list[float]] = {"miss": [], "hit": []}
            for number in range(rounds):
                progress("", f"{process}, round {number + 1} of {rounds}")
                with TemporaryDirectory(prefix="pfl-bench-") as store:
                    for case in calls:
                        started = time.perf_counter()
                        reply = call(event, chosen._replace(store=store))
                        times[case].append((time.perf_counter() - started) * 1e3)
                        calls[case].append(reply)
                        if "error" in reply:
                            _fail(reply, json)
            miss_ms = median(times["miss"])
            for case, replies in calls.items():
                statuses = [row["status"] for row in replies[-1]["steps"]]
                ms = median(times[case])
                counts = {
                    "process": process,
                    "call": case,
                    "computed": statuses.count("computed"),
                    "hits": statuses.count("hit"),
                    "store_requests": median(sum(each["store"].values()) for each in replies),
                }
                rows.append(counts | {"median_ms": ms, "saved_ms": miss_ms - ms})
                saved = [f"{ms:,.2f}", f"{miss_ms - ms:,.2f}", f"{ms / miss_ms:.2%}"]
                table.append([*counts.values(), *saved])
    if json:
        report = {"id": id, "flow": reply["flow"], "engine": chosen.engine, "rounds": rounds}
        output.emit({"version": 1, **report, "calls": rows})
        return
    columns = ["process", "call", "computed>", "hits>", "store requests>"]
    output.table([*columns, "median, ms>", "saved, ms>", "of a miss>"], table)


def _call_here(event: dict[str, str], chosen: Settings) -> Reply:
    from pfl.handler import entry
    from pfl.handler.core.store import objects

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


def _fail(reply: Reply, json: bool) -> None:
    """End with the error of a call, as ``pfl invoke`` does."""
    if json:
        output.emit(reply)
    output.explain(reply["error"])
    raise typer.Exit(errors.exit_code(reply["error"]["type"]))
