"""The ``pfl`` command: its groups, and the one place where an exception becomes an exit code."""

import os
import sys
from contextlib import suppress
from itertools import takewhile
from typing import Annotated, NoReturn

import typer

from ..handler.core.errors import InvalidRequestError, PflError, UnavailableError
from . import (
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
from .command import Command

app = typer.Typer(
    name="pfl",
    help="Run Prefect flows in AWS Lambda, and answer most calls from a cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich takes time to import, and draws boxes into pipes.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Interrupted(PflError):  # noqa: N818  Its name is the type that --json reports.
    """Ctrl-C was pressed."""

    exit_code = 130
    status = "cancelled"


for function in (
    invoke.invoke,
    invoke.plan,
    deploy.deploy,
    deploy.remove,
    deploy.status,
    deploy.logs,
    bench.bench,
    doctor.doctor,
):
    app.command()(function)
commands = app.registered_commands.copy()
for module in (cache, config, history, limits, runs, server, setup, worker):
    group = module.app
    group.info.no_args_is_help = True
    # The name of a group is that of its module.
    app.add_typer(group, name=module.__name__.rpartition(".")[2], short_help=group.info.help)
    commands += group.registered_commands
for command in commands:
    command.cls = Command
    # In a list, Typer cuts the help to one line, but wraps a short help.
    sentence, _, _ = " ".join((command.callback.__doc__ or "").split()).partition(". ")
    command.short_help = f"{sentence.rstrip('.')}."


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from .. import __version__

        output.write(f"pfl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> NoReturn:
    """
    Run ``pfl`` and exit.

    Exit codes: 0 done, 1 unexpected error, 2 usage or invalid input, 3 not found, 4 a step failed,
    5 a service is unavailable, 6 stored data is damaged, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # The parent process has closed it.
            setattr(sys, name, open(os.devnull, "r+"))
    # For errors in the arguments; correct options set it again.
    output.in_json = "--json" in arguments
    try:
        code = app(arguments, prog_name="pfl", standalone_mode=False)
        output.write("", end="")
        if code == 130:  # Typer has turned Ctrl-C into an exit code.
            raise KeyboardInterrupt
    except (KeyboardInterrupt, Exception) as exc:
        code = _report(exc, arguments)
    # What cannot be written now would fail again when Python exits.
    with suppress(UnavailableError):
        output.write("", end="")
    sys.exit(code if isinstance(code, int) else 0)


def _report(exc: BaseException, arguments: list[str]) -> int:
    """Print an exception; returns the exit code."""
    error: PflError
    if isinstance(exc, PflError):
        error = exc
    elif isinstance(exc, typer.TyperException):
        message = exc.format_message()
        if message.startswith("Usage:"):  # A group without a command: the message is its help.
            output.say(message)
            return exc.exit_code
        # A group and a command, or a command.
        words = list(takewhile(str.isidentifier, arguments))[:2]
        error = InvalidRequestError(message.rstrip("."), hint=" ".join(["pfl", *words, "--help"]))
    elif isinstance(exc, KeyboardInterrupt | typer.Abort):
        error = Interrupted("interrupted")
    elif isinstance(exc, OSError):
        error = UnavailableError("the operating system reported an error", why=str(exc))
    elif os.environ.get("PFL_TRACEBACK"):
        raise exc
    else:
        why = f"{type(exc).__name__}: {exc}"
        error = PflError("unexpected error", why=why, hint="for the traceback: PFL_TRACEBACK=1")
    output.fail(error)
    return error.exit_code


if __name__ == "__main__":
    main()
