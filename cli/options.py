"""Options that several commands have, and how their values are read."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from typer import Option

from ..handler.core import durations, event
from ..handler.core.errors import InvalidRequestError

DryRun = Annotated[bool, Option("--dry-run", help="Only show what would be done.")]
Yes = Annotated[bool, Option("--yes", "-y", help="Do not ask for confirmation.")]
Since = Annotated[
    str | None,
    Option(
        metavar="WHEN",
        help="Only newer ones: an age (7d, 12h, 30m) or a time (2026-11-30T09:00), "
        "which is local if it has no offset.",
    ),
]
Engine = Annotated[Literal["prefect", "direct"] | None, Option(help="Engine that computes a miss.")]
Pool = Annotated[str | None, Option(help="Work pool (default: PFL_WORK_POOL).")]


def checked(id: str | None) -> str | None:
    """*id*, if it is a valid ID."""
    return id if id is None else event.check_id(id)


# What to show.
TheId = Annotated[str, Option(callback=checked, help="The ID.")]
OnlyId = Annotated[str | None, Option(callback=checked, help="Only this ID.")]
OnlyFlow = Annotated[str | None, Option(help="Only this flow.")]
OnlyStep = Annotated[str | None, Option(help="Only this step.")]


def age_s(text: str, flag: str) -> int:
    """
    An age such as ``7d`` in seconds, at most the seconds since 1970: nothing stored is older.

    Raises:
        InvalidRequestError: *text*, the value of *flag*, is not an age.
    """
    seconds = _age_s(text)
    if seconds is None:
        raise InvalidRequestError(
            f"invalid {flag} {text!r}",
            why="an age is a number followed by s, m, h, d or w",
            hint=f"{flag} 7d",
        )
    return seconds


def moment_ns(text: str, flag: str) -> int:
    """
    The time that an age such as ``7d`` or ISO 8601 means, in nanoseconds since 1970.

    A time without an offset is local.

    Raises:
        InvalidRequestError: *text*, the value of *flag*, is neither.
    """
    seconds = _age_s(text)
    if seconds is not None:
        return time.time_ns() - seconds * 10**9
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e6) * 1_000
    except (ValueError, OverflowError) as exc:
        raise InvalidRequestError(
            f"invalid {flag} {text!r}",
            why="it must be a number followed by s, m, h, d or w, or a time in ISO 8601",
            hint=f"{flag} 7d or {flag} 2026-11-30T09:00",
        ) from exc


def _age_s(text: str) -> int | None:
    seconds = durations.parse_s(text)
    return None if seconds is None else min(seconds, int(time.time()))


def refuse_together(options: Mapping[str, object]) -> None:
    """
    Check that at most one of the options was given.

    Raises:
        InvalidRequestError: Two of them were.
    """
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise InvalidRequestError(
            f"{given[0]} and {given[1]} cannot be used together", hint=f"leave {given[1]} out"
        )
