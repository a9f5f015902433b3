"""``pfl server``: the embedded Prefect server of this project."""

from __future__ import annotations

import typer
from pfl.cli import output, settings
from pfl.cli.options import Json
from pfl.handler.core.errors import NotFoundError

app = typer.Typer(help="The embedded Prefect server of this project.", no_args_is_help=True)


@app.command("start")
def start(json: Json = False) -> None:
    """Start the server, or find the one that runs; the first start makes its database."""
    from pfl.handler.engine.prefect import server

    chosen = settings.load()
    running = server.ensure(
        chosen.home,
        idle_s=chosen.server_idle_s,
        progress=lambda text: output.progress("", text),
    )
    _show(running, json)


@app.command("status")
def status(json: Json = False) -> None:
    """Show the server that runs; exit 3 if none does."""
    from pfl.handler.engine.prefect import server

    running = server.find(settings.load().home)
    if running is None:
        raise NotFoundError("no embedded server runs for this project", hint="pfl server start")
    _show(running, json)


@app.command("stop")
def stop(json: Json = False) -> None:
    """Stop the server; its database stays."""
    from pfl.handler.engine.prefect import server

    stopped = server.stop(settings.load().home)
    output.say(
        f"stopped the server at {stopped.url}"
        if stopped
        else "no embedded server runs for this project"
    )
    if json:
        output.emit({"stopped": True, "pid": stopped.pid} if stopped else {"stopped": False})


def _show(running, json: bool) -> None:
    from dataclasses import asdict

    (output.emit if json else output.pairs)(asdict(running) | {"log": str(running.log)})
