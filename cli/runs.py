"""``pfl runs``: list runs, and mark dead ones as crashed."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Argument, Option, Typer

from ..handler.core.store import objects
from ..handler.engine import reap
from ..handler.engine.prefect import runs
from . import output, settings
from .command import DatedCommand
from .options import DryRun, OnlyId

app = Typer(help="List runs, and mark dead ones as crashed.")


@app.command("ls", cls=DatedCommand)
def list_runs(
    id: OnlyId = None,
    status: Annotated[
        str | None,
        Option(help="Only runs with this status: running, crashed, completed, failed, …"),
    ] = None,
    stuck: Annotated[
        bool, Option("--stuck", help="Only runs that look alive but whose process is dead.")
    ] = False,
    limit: Annotated[int, Option(min=1, help="Maximum number of runs.")] = 50,
) -> None:
    """List runs, newest first."""
    chosen = settings.load()
    api = runs.find_api(chosen)
    if api is None:
        output.say(
            "the embedded Prefect server is not running: these are only the recorded calls;"
            " to see all runs: pfl server start"
        )
    results = objects.of(chosen)
    found = list(runs.list_runs(results, api, id=id, status=status, stuck=stuck, limit=limit))
    columns = ["id", "flow", "step", "status", "started", "run"]
    output.print_rows(found, columns, _cells)
    dead = sum(row["stuck"] for row in found)
    note = f", {dead} stuck: pfl runs reap" if dead else ""
    output.say(f"{output.counted(len(found), 'run')}{note}")


def _cells(row: runs.RunRow) -> tuple[object, ...]:
    return (
        row["id"],
        row["flow"] or "",
        row["step"] or "all",
        f"{row['status']}{' (stuck)' if row['stuck'] else ''}",
        output.local_time(row["started_at"]),
        (row["flow_run_id"] or row["holder"], row["url"]),
    )


@app.command("reap")
def reap_runs(dry_run: DryRun = False) -> None:
    """Mark runs whose process died as Crashed, and free their leases and slots."""
    count = 0
    chosen = settings.load()
    results = objects.of(chosen)
    for row in reap.reap(results, chosen, dry_run=dry_run, notify=output.progress):
        count += 1
        output.emit({**row, "dry_run": dry_run})
        steps = ",".join(row["steps"]) or "-"
        output.show(f"{row['flow']}/{row['id']}/{steps}: {row['what']}")
    done = "would be marked" if dry_run else "marked"
    output.say(f"{output.counted(count, 'dead run')} {done} as Crashed")


@app.command("open")
def open_run(run: Annotated[str, Argument(help="ID of a flow run or task run.")]) -> None:
    """Print the page of a run in Prefect's UI; on a terminal, open it."""
    url = runs.run_url(settings.load(), run, output.progress)
    output.emit({"url": url})
    output.show(url)
    if sys.stdout.isatty() and not output.in_json:
        import webbrowser

        webbrowser.open(url)
