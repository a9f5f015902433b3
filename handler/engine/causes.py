"""
How a call can die or be stopped, and the messages about it.

A cause is a word in the store and in replies; :data:`CAUSES` has the sentences. This module
imports nothing of Prefect: the extension of a dying sandbox has two seconds for everything.
"""

from __future__ import annotations

from typing import NamedTuple

from ..core.errors import OutOfTimeError, PflError

# Prefect's API did not answer when a run ended; the results are saved.
END_NOT_RECORDED = "Prefect did not record the end of the run"


class Cause(NamedTuple):
    """What happened to a process, as the end of a sentence, and what to do about it."""

    what: str
    hint: str


CAUSES = {
    "timeout": Cause(
        "reached the function's time limit",
        "raise its timeout, or split the step",
    ),
    "memory": Cause(
        "ran out of memory",
        "raise the function's memory, or keep less in memory at once",
    ),
    "exit": Cause(
        "exited by itself: os._exit, or a crash in native code",
        "look at the last lines of its log",
    ),
    "killed": Cause(
        "was killed",
        "give it more memory, unless somebody killed it by hand",
    ),
    "failure": Cause(
        "died: it exited by itself, or was killed",
        "look at the last lines of its log; if they contain signal: killed, give it more memory",
    ),
    "gone": Cause(
        "ended without a message: timed out, out of memory, killed, or shut down",
        "look at the last lines of its log; raise timeout or memory",
    ),
    "left": Cause(
        "ended, but Prefect or the store did not record all of it",
        "check that its results are stored: pfl cache ls",
    ),
}

TERMINATED = PflError(
    "the process was terminated",
    why="it received SIGTERM from a supervisor, a stopping container, or a timeout",
    hint="call again: finished steps are saved",
)


def out_of_time(
    what: str,
    margin_s: float,
    hint: str = "call again: what was finished is saved; if it happens again, "
    "give the function more time",
) -> OutOfTimeError:
    """
    The error of what was stopped or not started because the Lambda deadline was near.

    Args:
        what: What happened, such as ``step b was not started``.
        margin_s: The time that is kept for saving, in seconds.
        hint: What to do.
    """
    return OutOfTimeError(
        what,
        why=f"the Lambda deadline was {margin_s} s away (PFL_MARGIN_S)",
        hint=hint,
    )


def from_shutdown(reason: str, *, killed_for_memory: bool) -> tuple[str, str]:
    """
    The cause of a death, and why, from the SHUTDOWN event of a Lambda extension.

    Args:
        reason: The reason in the event.
        killed_for_memory: Whether the kernel killed a process because memory ran out.

    Source: AWS Lambda Developer Guide, "Lambda Extensions API"; the emulator sends ``ReleaseFail``
    for ``failure``.
    """
    reason = reason.lower()
    why = f"Lambda shut its sandbox down: {reason}"
    if killed_for_memory:
        return "memory", why
    known = {"timeout": "timeout", "failure": "failure", "releasefail": "failure"}
    return known.get(reason, "gone"), why
