"""Options that several commands have, and how their values are read."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from typer import Option

from ..handler.core import durations
from ..handler.core.errors import InvalidRequestError

Yes = Annotated[bool, Option("--yes", "-y", help="Do not ask for confirmation.")]
Since = Annotated[
    int | None,
    Option(
        metavar="WHEN",
        parser=lambda text: moment_ns(text, "--since"),
        help="Only newer ones: an age (7d, 12h, 30m) or a time (2026-11-30T09:00), "
        "which is local if it has no offset.",
    ),
]
Engine = Annotated[Literal["prefect", "direct"] | None, Option(help="Engine that computes a miss.")]


# What to show.
TheId = Annotated[str, Option(help="The ID.")]
OnlyId = Annotated[str | None, Option(help="Only this ID.")]
OnlyFlow = Annotated[str | None, Option(help="Only this flow.")]
OnlyStep = Annotated[str | None, Option(help="Only this step.")]


def moment_ns(text: str, flag: str) -> int:
    """
    The time that an age such as ``7d`` or ISO 8601 means, in nanoseconds since 1970.

    A time without an offset is local. Nothing stored is older than 1970.

    Raises:
        InvalidRequestError: *text* is neither.
    """
    age_s = durations.parse_s(text)
    if age_s is not None:
        return max(0, time.time_ns() - age_s * 10**9)
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e6) * 1_000
    except (ValueError, OverflowError) as exc:
        raise InvalidRequestError(
            f"invalid {flag} {text!r}",
            why="it must be a number followed by s, m, h, d or w, or a time in ISO 8601",
            hint=f"{flag} 7d or {flag} 2026-11-30T09:00",
        ) from exc


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
