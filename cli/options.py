"""Options that several commands have."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer
from pfl.handler.core import durations
from pfl.handler.core.errors import InvalidRequestError

Json = Annotated[bool, typer.Option("--json", help="Print the data as JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Engine = Annotated[
    StrEnum("Engine", ["prefect", "direct"]) | None,
    typer.Option("--engine", help="What computes a miss."),
]
Pool = Annotated[
    str | None, typer.Option("--pool", help="The work pool; PFL_WORK_POOL if not given.")
]


def checked(id: str | None) -> str | None:
    """*id*, if it can be one."""
    from pfl.handler.core import event

    return id if id is None else event.check_id(id)


# What to look at.
TheId = Annotated[str, typer.Option("--id", callback=checked, help="The ID.")]
OnlyId = Annotated[str | None, typer.Option("--id", callback=checked, help="Only this ID.")]
OnlyFlow = Annotated[str | None, typer.Option("--flow", help="Only this flow.")]
OnlyStep = Annotated[str | None, typer.Option("--step", help="Only this step.")]


def age_s(text: str, flag: str) -> int:
    """
    Seconds of an age such as ``7d``; at most those since 1970, before which nothing was stored.

    Raises:
        InvalidRequestError: It is none; *flag* says where it stood.
    """
    seconds = durations.parse_s(text)
    if seconds is None:
        raise InvalidRequestError(
            f"{flag} is {text!r}",
            why="it has to be a number with s, m, h, d or w",
            hint=f"{flag} 7d",
        )
    return min(seconds, int(time.time()))
