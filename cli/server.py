"""``pfl server``: the embedded Prefect server of this project."""

from __future__ import annotations

import typer

from cli import output, settings
from cli.invoke import Json
from handler.core.errors import NotFoundError

app = typer.Typer(help="The embedded Prefect server of this project.", no_args_is_help=True)


@app.command("start")
def start(json: Json = False) -> None:
    """Start the server, or find the one that runs; the first start makes its database."""
    from handler.engine import server

    chosen, progress = settings.load(), output.Progress()
    try:
        running = server.ensure(chosen.home, idle_s=chosen.server_idle_s, progress=lambda text: progress("", text))
    finally:
        progress.stop()
    _show(running, json)


@app.command("status")
def status(json: Json = False) -> None:
    """Show the server that runs; exit 3 if none does."""
    from handler.engine import server

    running = server.find(settings.load().home)
    if running is None:
        raise NotFoundError("no embedded server runs for this project", hint="pfl server start")
    _show(running, json)


@app.command("stop")
def stop(json: Json = False) -> None:
    """Stop the server; its database stays."""
    from handler.engine import server

    stopped = server.stop(settings.load().home)
    if stopped is None:
        output.say("no embedded server runs for this project")
        if json:
            output.emit({"stopped": False})
        return
    if json:
        output.emit({"stopped": True, "pid": stopped.pid})
    else:
        output.say(f"stopped the server at {stopped.url}")


def _show(running, json: bool) -> None:
    row = {
        "url": running.url, "ui_url": running.ui_url, "pid": running.pid, "started_at": str(running.started_at),
        "version": running.version, "idle_s": running.idle_s, "log": str(running.log),
    }  # fmt: skip
    if json:
        output.emit(row)
    else:
        output.pairs(row)
