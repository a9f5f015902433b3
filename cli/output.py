"""Both streams of the terminal: data goes to stdout through ``emit``, everything a person reads besides to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pfl.handler.core.errors import InvalidRequestError, PflError

if TYPE_CHECKING:
    from rich.status import Status

_as_json = False


def set_json(wanted: bool) -> None:
    """Remember whether ``--json`` was given, so that an error too comes as JSON."""
    global _as_json
    _as_json = wanted


def emit(data: object) -> None:
    """Print data: text as it is, anything else as one line of JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # A lone surrogate, or a terminal that knows ASCII alone.
        text = (
            text.encode("ascii", "backslashreplace").decode()
            if isinstance(data, str)
            else json.dumps(data)
        )
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever read us has seen enough: that is no error, which Typer would make of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)


def say(text: str) -> None:
    """Tell a person something, on stderr."""
    print(
        text.encode(sys.stderr.encoding or "utf-8", "backslashreplace").decode(
            sys.stderr.encoding or "utf-8"
        ),
        file=sys.stderr,
        flush=True,
    )


def fail(error: PflError, *, kind: str = "", status: str = "") -> None:
    """Tell of an error: in words on stderr, and with ``--json`` as an object on stdout too."""
    if _as_json:
        told = error.to_json() | ({"type": kind} if kind else {})
        emit({"version": 1, "status": status or error.status, "error": told})
    explain(error.to_json())


def explain(error: Mapping[str, str]) -> None:
    """The words for an ``error`` object: what, why and hint."""
    for name, colour in (("what", "1;31"), ("why", "2"), ("hint", "36")):
        if error.get(name):
            label = _paint("error:" if name == "what" else f"{name}:", colour)
            lines = [printable(line) for line in error[name].splitlines() if line.strip()]
            say(f"{'' if name == 'what' else '  '}{label} " + "\n       ".join(lines))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """
    Print rows under their columns on stdout, cut to fit a terminal and whole elsewhere.

    Args:
        columns: The headings; one ending in ``>`` is aligned to the right.
        rows: The cells; a pair is a text and where it leads when it is clicked.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if on_terminal else 100_000)
    grid = Table(
        box=None, pad_edge=False, show_edge=False, header_style="bold" if on_terminal else ""
    )
    shown = []
    for row in rows:
        shown.append([])
        for cell in row:
            said, link = cell if isinstance(cell, tuple) else (cell, None)
            shown[-1].append(text := Text(printable(str(said)), no_wrap=True, overflow="ellipsis"))
            if on_terminal:
                text.stylize(_STYLES.get(str(said), ""))
                text.stylize(f"link {link}" if link else "")
    least = 2 * (len(columns) - 1)
    for x, column in enumerate(columns):
        name = column.rstrip(">")
        # Only what is long by nature is cut; a column that cannot be read is worse than a long line.
        is_long = name in ("value", "why")
        width = max(cell_len(name), *(row[x].cell_len for row in shown if not is_long), 0)
        grid.add_column(
            name,
            justify="right" if column.endswith(">") else "left",
            no_wrap=not is_long,
            min_width=width,
        )
        least += width
    console.size = (max(console.width, least), console.height)
    for row in shown:
        grid.add_row(*row)
    with console.capture() as captured:
        console.print(grid, crop=False)
    emit("\n".join(line.rstrip() for line in captured.get().splitlines()))


def pairs(row: Mapping[str, object]) -> None:
    """Print names and values on stdout, a line each; what is None is left out."""
    shown = {
        name: value if isinstance(value, str) else cut(value, 200)
        for name, value in row.items()
        if value is not None
    }
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        emit(f"{name:<{width}}  {printable(value)}")


_STYLES = {
    "hit": "green", "computed": "cyan", "skipped": "yellow", "miss": "magenta", "failed": "red", "compute": "cyan",
    "depends": "yellow",
}  # fmt: skip


def cut(value: object, width: int = 60) -> str:
    """A value on one line, as JSON, cut to *width* characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 1] + "…"


def counted(number: int, what: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """*text* without what would steer a terminal: control characters and marks that turn the writing direction."""
    return "".join(c if c.isprintable() or c == " " else f"\\u{ord(c):04x}" for c in text)


def confirm(question: str, *, yes: bool) -> None:
    """
    Ask before something that is hard to take back.

    Raises:
        InvalidRequestError: There is no terminal to ask at, and ``--yes`` was not given.
        Exit: The answer is no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidRequestError(
            question, why="there is no terminal to ask at", hint="--yes, if that is what you want"
        )
    import typer

    if not typer.confirm(question, err=True):
        say("nothing was done")
        raise typer.Exit(1)


def optional(module: str, extra: str):
    """
    A library that comes with an extra of pfl.

    Raises:
        InvalidRequestError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise InvalidRequestError(
            f"{module} is not installed",
            why=f"it comes with the extra {extra}",
            hint=f"pip install 'prefect-lambda[{extra}]'",
        ) from exc


class Progress:
    """What a long call is doing, on stderr: one moving line on a terminal, a line each elsewhere."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._last = ""

    def __call__(self, step: str, doing: str) -> None:
        text = f"{step}: {doing}" if step else doing
        if text == self._last:
            return
        self._last = text
        if not sys.stderr.isatty():
            say(text)
            return
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status(text)
            self._status.start()
        self._status.update(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Clear the moving line."""
        if self._status is not None:
            self._status.stop()
            self._status = None


@contextmanager
def stdout_kept_for_data() -> Iterator[None]:
    """Send what steps print, and what their child processes print, to stderr; stdout is for the reply."""
    sys.stdout.flush()
    data, stream = os.dup(1), sys.stdout
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout = stream
        os.dup2(data, 1)
        os.close(data)


def _paint(text: str, code: str) -> str:
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        return f"\x1b[{code}m{text}\x1b[0m"
    return text
