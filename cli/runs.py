"""``pfl runs``: list runs, and mark dead ones as crashed."""

import sys
from typing import Annotated

from typer import Option, Typer

from ..handler.core.settings import Settings
from ..handler.core.store import objects
from ..handler.engine import reap
from ..handler.engine.prefect import environment, runs
from . import output, settings
from .options import OnlyId

app = Typer(help="List runs, and mark dead ones as crashed.")


@app.command("ls")
def list_runs(
    id: OnlyId = None,
    status: str | None = None,
    stuck: bool = False,
    limit: Annotated[int, Option(min=1)] = 50,
) -> None:
    """
    List runs, newest first.

    Args:
        status: Only runs with this status: running, crashed, completed, failed, …
        stuck: Only runs that look alive but whose process is dead.
        limit: Maximum number of runs.
    """
    chosen = settings.load()
    api = running_api(chosen, "the recorded calls")
    results = objects.of(chosen)
    found = list(runs.list_runs(results, api, id=id, status=status, stuck=stuck, limit=limit))
    table = output.Table(("id", "flow", "step", "status", "started_at", "run"))
    for row in found:
        output.emit(row)
        status = f"{row['status']}{' (stuck)' if row['stuck'] else ''}"
        run = (row["flow_run_id"] or row["holder"], row["url"])
        shown = {**row, "step": row["step"] or "all", "status": status, "run": run}
        table.add(shown)
    table.flush()
    dead = sum(row["stuck"] for row in found)
    note = f", {dead} stuck: pfl runs reap" if dead else ""
    output.say(f"{output.counted(len(found), 'run')}{note}")


def running_api(chosen: Settings, instead: str) -> environment.Api | None:
    """Prefect's API; None, with a message, if it is the embedded server and that does not run."""
    api = runs.find_api(chosen)
    if api is None:
        output.say(
            f"the embedded Prefect server is not running: these are only {instead};"
            " to see all of them: pfl server start"
        )
    return api


@app.command("reap")
def reap_runs(dry_run: bool = False) -> None:
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
def open_run(run: str) -> None:
    """
    Print the page of a run in Prefect's UI; on a terminal, open it.

    Args:
        run: ID of a flow run or task run.
    """
    url = runs.run_url(settings.load(), run, output.progress)
    output.emit({"url": url})
    output.show(url)
    if sys.stdout.isatty() and not output.in_json:
        import webbrowser

        webbrowser.open(url)
