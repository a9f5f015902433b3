"""
The terminal: data on stdout, messages on stderr.

A command prints its data in two forms: ``emit`` prints with ``--json`` only; ``show``, ``table``
or ``pairs`` without it only, for people. ``say`` prints messages in either case.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

from ..handler.core.errors import ErrorBody, InvalidRequestError, PflError, UnavailableError
from ..handler.engine.process import usable

T = TypeVar("T")
# The fields of a row, or its cells.
Row = Mapping[str, Any] | Sequence[object]

in_json = False  # Set by --json.
in_utc = False  # Set by --utc.
_is_unread = False  # Set when stdout cannot be written to any more.
_last_progress = ""
_is_changing = False  # Set while the line below the cursor is to be replaced.

# Columns that are cut to fit a terminal. Others are easier to read on two lines than cut.
_CUT_COLUMNS = ("value", "why", "key")
_NARROWEST = 5
# How the names of fields end that hold a moment.
_MOMENTS = ("_at", "oldest", "newest", "since")
_BATCH_ROWS = 100
_STATUS_COLOURS = {
    "hit": "32",
    "computed": "36",
    "compute": "36",
    "skipped": "33",
    "depends": "33",
    "miss": "35",
    "failed": "31",
}


def emit(data: object) -> None:
    """Print data as a line of JSON; what JSON does not have becomes text."""
    if in_json:
        is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        write(printable(json.dumps(data, ensure_ascii=not is_unicode, default=str)))


def show(text: str) -> None:
    """Print text for people."""
    if not in_json:
        write(_clean(text))


def write(text: str, end: str = "\n") -> None:
    """
    Print *text* on stdout as it is: colours stay, so stored text has to be escaped first.

    If the reader has closed stdout, as ``| head`` does, nothing is printed: a command that does or
    checks something continues, and its exit code stays. Long lists end; see :func:`while_read`.

    Raises:
        UnavailableError: The text cannot be written, because the disk is full for example.
    """
    global _is_unread
    clear_progress()
    encoding = sys.stdout.encoding or "utf-8"
    try:
        _print(text.encode(encoding, "backslashreplace").decode(encoding), sys.stdout, end)
    except OSError as exc:
        # What Python flushes at exit has to go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _is_unread = True
        if not isinstance(exc, BrokenPipeError):
            raise UnavailableError(
                "cannot write to stdout",
                why=exc.strerror or str(exc),
                hint="free some space, or write to another location",
            ) from exc


class Data:
    """A file for what writes its data itself, such as ``csv``: it goes through :func:`write`."""

    def write(self, text: str) -> None:
        """Print *text* on stdout."""
        write(text, end="")


def while_read(rows: Iterable[T]) -> Iterator[T]:
    """
    The rows, for as long as they can be printed.

    Raises:
        SystemExit: The reader has closed stdout: the command is done.
    """
    for row in rows:
        if _is_unread:
            sys.exit()
        yield row


def say(text: str) -> None:
    """Print a message for people on stderr."""
    _write_stderr(_clean(text))


def fail(error: PflError) -> None:
    """Print an error: as text on stderr, and with ``--json`` as an object on stdout too."""
    # The exit code is that of this error, whatever becomes of stdout.
    with suppress(UnavailableError):
        emit({"version": 1, "status": error.status, "error": error.to_json()})
    explain(error.to_json())


def explain(error: ErrorBody) -> None:
    """Print what happened, why, and what to do about it, on stderr."""
    for label, text, colour in (
        ("error:", error["what"], "1;31"),
        ("  why:", error["why"], "2"),
        ("  hint:", error["hint"], "36"),
    ):
        lines = [printable(line) for line in text.splitlines() if line.strip()]
        if lines:
            _write_stderr(f"{_paint(label, colour, _stderr())} " + "\n       ".join(lines))


def printable(text: str) -> str:
    """
    *text* with control characters and direction marks as escapes: it cannot steer a terminal.

    The escapes are those of JSON: JSON keeps its meaning.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


class Table:
    """
    A table for people that is printed as it grows: cut to fit a terminal, whole elsewhere.

    A terminal that is too narrow for it shows each row as lines of names and values.

    Args:
        columns: The headings; a column whose heading ends in ``>`` is aligned to the right.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._names = [column.rstrip(">") for column in columns]
        self._widths = list(map(len, self._names))
        self._pending: list[list[tuple[str, str]]] = []
        self._is_empty = True

    def add(self, row: Row) -> None:
        """Add a row: one with the fields of the headings, or its cells; a pair is text and link."""
        if in_json:
            return
        from rich.cells import cell_len

        cells = row
        if isinstance(row, Mapping):
            cells = [_field(row, name) for name in self._names]
        linked = [cell if isinstance(cell, tuple) else (cell, None) for cell in cells]
        shown = [(printable(str(text)), printable(link or "")) for text, link in linked]
        self._widths = list(map(max, self._widths, [cell_len(text) for text, _ in shown]))
        self._pending.append(shown)
        if len(self._pending) == _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Print the rows that were added."""
        widths = self._fit()
        for row in self._pending:
            if widths:
                if self._is_empty:
                    heading = self._line([(name, "") for name in self._names], widths)
                    write(_paint(heading, "1", sys.stdout))
                write(self._line(row, widths))
            else:
                if not self._is_empty:
                    write("")
                pairs({name: text for name, (text, _) in zip(self._names, row, strict=True)})
            self._is_empty = False
        self._pending = []

    def _fit(self) -> list[int]:
        """The width of each column; none if the terminal is too narrow for a table."""
        widths = self._widths.copy()
        if not sys.stdout.isatty():
            return widths
        if self._names[-1] not in _CUT_COLUMNS:  # It may continue on the next line.
            widths[-1] = len(self._names[-1])
        cut = [x for x, name in enumerate(self._names) if name in _CUT_COLUMNS]
        free = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
        while sum(widths) > free:
            widest = max(cut, key=widths.__getitem__, default=-1)
            if not cut or widths[widest] <= _NARROWEST:
                return []
            widths[widest] -= 1
        return widths

    def _line(self, row: Sequence[tuple[str, str]], widths: Sequence[int]) -> str:
        from rich.cells import cell_len, set_cell_size

        parts = []
        for (text, link), width, column in zip(row, widths, self._columns, strict=True):
            shown = text
            if cell_len(text) > width and column in _CUT_COLUMNS:
                shown = set_cell_size(text, width - 1) + "…"
            padding = " " * (width - cell_len(shown))
            shown = _paint(shown, _STATUS_COLOURS.get(text, ""), sys.stdout)
            if link and _is_terminal(sys.stdout):
                shown = f"\x1b]8;;{link}\x1b\\{shown}\x1b]8;;\x1b\\"
            parts.append(padding + shown if column.endswith(">") else shown + padding)
        return "  ".join(parts).rstrip()


def table(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Print a table for people; see :class:`Table`."""
    shown = Table(columns)
    for row in rows:
        shown.add(row)
    shown.flush()


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """Print rows as they come: as lines of JSON, or as a table; returns the number of rows."""
    count = 0
    shown = Table(columns)
    for row in rows:
        count += 1
        emit(row)
        shown.add(row)
    shown.flush()
    return count


def pairs(row: Mapping[str, Any]) -> None:
    """Print the fields of a row for people, a line each; None is left out."""
    width = max(map(len, row), default=0)
    for name, value in row.items():
        if value is not None:
            text = _field(row, name)
            show(f"{name:<{width}}  {printable(text if isinstance(text, str) else cut(text, 200))}")


def _field(row: Mapping[str, Any], name: str) -> object:
    """A field for people: moments in local time, durations rounded, and None empty."""
    value = row.get(name)
    if name.endswith(_MOMENTS):
        return local_time(value)
    if name.endswith("_ms") and value is not None:
        return f"{value:.1f} ms"
    return "" if value is None else value


def cut(value: object, width: int = 60) -> str:
    """A value on one line, as JSON, cut to *width* characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 1] + "…"


def counted(number: int, what: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def local_time(moment: str | None) -> str:
    """A stored moment in local time with its offset, or in UTC with ``--utc``; empty for None."""
    if not moment:
        return ""
    from datetime import UTC, datetime

    at = datetime.fromisoformat(moment).astimezone(UTC if in_utc else None)
    return at.isoformat(timespec="seconds")


def confirm(question: str, *, yes: bool) -> None:
    """
    Ask before something that cannot easily be undone.

    Raises:
        InvalidRequestError: This is not a terminal, and ``--yes`` was not given.
        Exit: The answer is no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidRequestError(
            "this needs your confirmation, but stdin is not a terminal",
            why=f"the question is: {question}",
            hint="to answer yes: --yes",
        )
    clear_progress()
    _print(f"{printable(question)} [y/N]: ", _stderr(), end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        from typer import Exit

        say("nothing was done")
        raise Exit(1)


def progress(step: str, doing: str) -> None:
    """
    Show on stderr what a long call is doing: in one changing line on a terminal, else line by line.

    The changing line disappears when this module prints anything else. What a step does has a line
    of its own, because what the step prints would cover only a part of a changing line.
    """
    global _is_changing, _last_progress
    text = printable(f"{step}: {doing}" if step else doing)
    if text == _last_progress:
        return
    if step or not _is_terminal(_stderr()):
        _write_stderr(_paint(text, "2", _stderr()))
    else:
        width = shutil.get_terminal_size().columns - 1
        _write_stderr(_paint(text[:width], "2", _stderr()), end="\r")
        _is_changing = True
    _last_progress = text


def clear_progress() -> None:
    """Remove the changing line of :func:`progress`."""
    global _is_changing
    if _is_changing:
        _is_changing = False
        with suppress(OSError):
            _print("\x1b[2K", _stderr(), end="")


@contextmanager
def stdout_kept_for_data() -> Iterator[None]:
    """
    Send what steps and their child processes print to stderr: stdout is for the reply.

    Whatever the steps do to the streams, both are as before in the end.
    """
    sys.stdout.flush()
    stdout, stderr = sys.stdout, sys.stderr
    kept = os.dup(1), os.dup(2)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        for descriptor, copy in enumerate(kept, start=1):
            os.dup2(copy, descriptor)
            os.close(copy)
        sys.stdout = usable(stdout, 1)
        sys.stderr = usable(stderr, 2)


def _is_terminal(stream: TextIO) -> bool:
    """Whether *stream* is a terminal that understands escape sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _paint(text: str, colour: str, stream: TextIO) -> str:
    if not colour or os.environ.get("NO_COLOR"):
        return text
    has_colour = os.environ.get("FORCE_COLOR") or _is_terminal(stream)
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colour else text


def _clean(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _write_stderr(text: str, end: str = "\n") -> None:
    clear_progress()
    # A message that cannot be printed does not change the exit code.
    with suppress(OSError):
        _print(text, _stderr(), end)


def _stderr() -> TextIO:
    """stderr, even while a step has closed it."""
    return usable(sys.stderr, 2)


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    stream.write(text + end)
    stream.flush()
