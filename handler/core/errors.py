"""
The errors that a user can see, each with its exit code.

PflError                  exit 1   any error that pfl expects
├── InvalidRequestError   exit 2   the request is wrong: a flag, an event, a setting
│   └── DeclarationError           a step or flow is declared wrongly; names file and line
├── NotFoundError         exit 3   something does not exist, or a miss in a cached_only call
├── StepFailedError       exit 4   a step raised an exception
│   └── UnstorableValueError       a step returned a value that is not JSON
├── UnavailableError      exit 5   a service did not answer, or time ran out: try again
│   ├── BusyError                  another call computes the step, and no time is left to wait
│   └── OutOfTimeError             the Lambda deadline came first
├── CorruptRecordError    exit 6   stored bytes are not what was written
└── RunCancelledError     exit 130 someone cancelled the run in Prefect
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict


class ErrorBody(TypedDict):
    """The ``error`` object of a reply."""

    type: str
    what: str
    why: str
    hint: str


class PflError(Exception):
    """
    What happened, why, and what to do about it.

    Args:
        what: What happened, naming the thing.
        why: The cause, with both numbers where there are two.
        hint: Something to paste or to change.
    """

    exit_code = 1
    status = "failed"

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what

    @property
    def lines(self) -> str:
        """What, why and hint on a line each: the message of a Prefect state."""
        return "\n".join(part for part in (self.what, self.why, self.hint) if part)

    def to_json(self) -> ErrorBody:
        """The ``error`` object of a reply."""
        return {
            "type": type(self).__name__,
            "what": valid_unicode(self.what),
            "why": valid_unicode(self.why),
            "hint": valid_unicode(self.hint),
        }


class InvalidRequestError(PflError):
    """The request is wrong: a flag, an event, a setting."""

    exit_code = 2
    status = "invalid"


class DeclarationError(InvalidRequestError):
    """A step or flow is declared wrongly."""


class NotFoundError(PflError):
    """Something does not exist, or a miss in a ``cached_only`` call."""

    exit_code = 3
    status = "miss"


class StepFailedError(PflError):
    """A step raised an exception."""

    exit_code = 4


class UnstorableValueError(StepFailedError):
    """A step returned a value that is not JSON."""


class UnavailableError(PflError):
    """A service did not answer, or time ran out: trying again may help."""

    exit_code = 5


class BusyError(UnavailableError):
    """Another call computes the step, and no time is left to wait for it."""

    status = "busy"


class OutOfTimeError(UnavailableError):
    """The Lambda deadline came before the call was done."""


class CorruptRecordError(PflError):
    """Stored bytes are not what was written."""

    exit_code = 6


class RunCancelledError(PflError):
    """Someone cancelled the run in Prefect."""

    exit_code = 130
    status = "cancelled"


def valid_unicode(text: str) -> str:
    """*text* with half surrogate pairs as escapes: UTF-8, and so a reply, cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def unknown(
    kind: str, name: object, known: Collection[str], where: str = ""
) -> InvalidRequestError:
    """The error for a *name* that is not among the *known* ones."""
    hint = f"the {kind}s are {', '.join(known)}" if known else f"it has no {kind}s"
    return InvalidRequestError(f"unknown {kind} {name!r}{where}", hint=hint)


def exit_code(name: str) -> int:
    """The exit code of the error class *name*; 1 for a class that is not ours."""
    kind = globals().get(name)
    return kind.exit_code if isinstance(kind, type) and issubclass(kind, PflError) else 1
