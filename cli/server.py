"""``pfl server``: the embedded Prefect server of this project."""

from typer import Typer

from ..handler.core.errors import NotFoundError
from ..handler.engine.prefect import server
from . import output, settings, stored

app = Typer(help="Control the embedded Prefect server of this project.")


@app.command("start")
def start() -> None:
    """Start the server if it is not running; the first start creates its database."""
    chosen = settings.load()
    running = server.ensure(
        chosen.home, idle_s=chosen.server_idle_s, progress=lambda text: output.progress("", text)
    )
    _show(running)


@app.command("status")
def status() -> None:
    """Show the running server; exit code 3 if none is running."""
    running = server.find(settings.load().home)
    if running is None:
        raise NotFoundError("the embedded server is not running", hint="pfl server start")
    _show(running)


@app.command("stop")
def stop() -> None:
    """Stop the server; keep its database."""
    pid = server.stop(settings.load().home)
    if pid is None:
        output.say("the embedded server is not running")
        output.emit({"stopped": False})
    else:
        output.say(f"stopped the server (process {pid})")
        output.emit({"stopped": True, "pid": pid})


def _show(server: server.Server) -> None:
    stored.show({**server._asdict(), "log": str(server.log)})
