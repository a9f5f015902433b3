"""``pfl runs``: what runs or ran, and burying what died."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import DryRun, Json, OnlyId

app = typer.Typer(help="What runs or ran, and burying what died.", no_args_is_help=True)


@app.command("ls")
def ls(
    id: OnlyId = None,
    status: Annotated[
        str | None,
        typer.Option("--status", help="Only these: running, crashed, completed, failed, …"),
    ] = None,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Only those that look alive, and whose process is dead.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
    json: Json = False,
) -> None:
    """List runs, newest first."""
    from pfl.handler.core.store import objects
    from pfl.handler.engine.prefect import runs

    chosen = settings.load()
    if (api := runs.known(chosen)) is None:
        output.say(
            "the embedded Prefect server does not run: these are the calls on record; pfl server start brings the rest"
        )
    found = list(runs.ls(objects.of(chosen), api, id=id, status=status, stuck=stuck, limit=limit))
    if json:
        for row in found:
            output.emit(row)
    elif found:
        shown = [
            (
                row["id"], row["flow"] or "", row["step"] or "all",
                row["status"] + (" (stuck)" if row["stuck"] else ""), (row["started_at"] or "")[:19], (row["flow_run_id"] or row["holder"], row["url"]),
            )
            for row in found
        ]  # fmt: skip
        output.table(["id", "flow", "step", "status", "started", "run"], shown)
    dead = sum(row["stuck"] for row in found)
    output.say(
        output.counted(len(found), "run") + (f", {dead} stuck: pfl runs reap" if dead else "")
    )


@app.command("reap")
def reap(dry_run: DryRun = False, json: Json = False) -> None:
    """Mark runs whose process died as Crashed, and free their leases and slots."""
    from pfl.handler.core.store import objects
    from pfl.handler.engine import reap as reaper

    chosen, count = settings.load(), 0
    for row in reaper.reap(objects.of(chosen), chosen, dry_run=dry_run, notify=output.progress):
        count += 1
        steps = ",".join(row["steps"]) or "-"
        if json:
            output.emit(row | {"dry_run": dry_run})
        else:
            output.emit(f"{row['flow']}/{row['id']}/{steps}: {row['what']}")
    output.say(
        output.counted(count, "dead run")
        + " "
        + ("would be marked as Crashed" if dry_run else "marked as Crashed")
    )


@app.command("open")
def open_run(
    run: Annotated[str, typer.Argument(help="The ID of a flow run or a task run.")],
    json: Json = False,
) -> None:
    """Print the page of a run in Prefect's UI; at a terminal, open it."""
    from pfl.handler.engine.prefect import runs

    url = runs.link(settings.load(), run, output.progress)
    output.emit({"url": url} if json else url)
    if sys.stdout.isatty() and not json:
        import webbrowser

        webbrowser.open(url)
