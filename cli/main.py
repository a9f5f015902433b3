"""The ``pfl`` command: its groups, and the one place where an exception becomes words and an exit code."""

from __future__ import annotations

import os
import sys
from itertools import takewhile
from typing import Annotated

import typer
from pfl.cli import (
    bench,
    cache,
    config,
    deploy,
    doctor,
    history,
    invoke,
    limits,
    output,
    runs,
    server,
    setup,
    worker,
)
from pfl.handler.core.errors import PflError, UnavailableError

app = typer.Typer(
    name="pfl",
    help="Run Prefect flows inside AWS Lambda, and answer most calls straight from a cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Plain help: rich would be loaded for it, and pipes would get boxes.
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("invoke")(invoke.invoke)
app.command("plan")(invoke.plan)
app.command("deploy")(deploy.deploy)
app.command("remove")(deploy.remove)
app.command("status")(deploy.status)
app.command("logs")(deploy.logs)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")
app.add_typer(config.app, name="config")
app.add_typer(history.app, name="history")
app.add_typer(limits.app, name="limits")
app.add_typer(runs.app, name="runs")
app.add_typer(server.app, name="server")
app.add_typer(setup.app, name="setup")
app.add_typer(worker.app, name="worker")


def _version(wanted: bool) -> None:
    if wanted:
        from pfl import __version__

        output.emit(f"pfl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """
    Run ``pfl`` and exit.

    Exit codes: 0 done, 1 unforeseen, 2 usage or invalid input, 3 not found, 4 a step failed, 5 a service is unavailable,
    6 stored data is damaged, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.stdout, sys.stderr = (
        sys.stdout or open(os.devnull, "w"),
        sys.stderr or open(os.devnull, "w"),
    )  # Closed by who started us.
    output.set_json("--json" in arguments)
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="pfl", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # Typer has made an exit code of Ctrl-C.
            raise KeyboardInterrupt
    except PflError as exc:
        output.fail(exc)
        code = exc.exit_code
    except (KeyboardInterrupt, typer.Abort):
        output.fail(PflError("interrupted"), kind="Interrupted", status="cancelled")
        code = 130
    except BrokenPipeError:
        # Whoever read us has seen enough; what Python would flush at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except OSError as exc:
        output.fail(UnavailableError("the system refused something", why=str(exc)))
        code = UnavailableError.exit_code
    except typer.TyperException as exc:
        code = _usage(exc, arguments)
    except Exception as exc:
        if os.environ.get("PFL_TRACEBACK"):
            raise
        what = f"{type(exc).__name__}: {exc}"
        output.fail(
            PflError("something unforeseen happened", why=what, hint="PFL_TRACEBACK=1 shows where")
        )
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _usage(exc: typer.TyperException, arguments: list[str]) -> int:
    context = getattr(exc, "ctx", None)
    message = exc.format_message()
    if message.startswith("Usage:"):  # A group called without a command: its help is the answer.
        output.say(message)
        return exc.exit_code
    # An option without its value is told without its command.
    path = (
        context.command_path
        if context
        else " ".join(["pfl", *takewhile(str.isidentifier, arguments)])
    )
    output.fail(
        PflError(message.rstrip("."), hint=f"{path} --help"),
        kind="InvalidRequestError",
        status="invalid",
    )
    return exc.exit_code


if __name__ == "__main__":
    main()
