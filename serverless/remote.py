"""
Calls to a deployed function, checked before they are sent.

Each way in which the function can die has its own error:

UnavailableError                 exit 5
└── FunctionCrashedError         the function ended without a reply
    ├── FunctionTimedOutError    it ran into its time limit
    ├── FunctionOutOfMemoryError it ran out of memory, or something killed its process
    ├── FunctionExitedError      its process ended by itself
    └── FunctionImportError      its image cannot be started
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

from ..handler.core.errors import (
    CorruptRecordError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from ..handler.core.event import Reply
from ..handler.core.settings import Settings
from . import aws

# Source: AWS Lambda Developer Guide, "Lambda quotas", invocation payload.
SYNC_BYTES = 6 * 1024 * 1024
ASYNC_BYTES = 1024 * 1024
_TRIES = 6
# A function may take fifteen minutes.
_ANSWER_S = 920
_LOG_LINES = 25


class FunctionCrashedError(UnavailableError):
    """The function ended without a reply."""

    request_id = ""
    # A cause of handler/engine/causes.py; empty if it is none of them.
    cause = ""
    happened = "{name} failed"
    advice = "see pfl logs"


class FunctionTimedOutError(FunctionCrashedError):
    """It ran into its time limit."""

    cause = "timeout"
    happened = "{name} ran out of time"
    advice = (
        "finished steps are saved: call again, or give it more time "
        "(timeout in serverless.yml, 900 s at most)"
    )


class FunctionOutOfMemoryError(FunctionCrashedError):
    """It ran out of memory, or something killed its process."""

    cause = "memory"
    happened = "{name} was killed, probably because it ran out of memory"
    advice = (
        "finished steps are saved: call again, or give it more memory "
        "(memorySize in serverless.yml)"
    )


class FunctionExitedError(FunctionCrashedError):
    """Its process ended by itself."""

    cause = "exit"
    happened = "the process of {name} ended"
    advice = "see pfl logs: a step called exit(), or a library ended the process"


class FunctionImportError(FunctionCrashedError):
    """Its image cannot be started."""

    happened = "{name} cannot be started"
    advice = "to rebuild the image and check that it starts: pfl deploy"


# What Lambda says about each; the first that matches is right.
_DEATHS = {
    r"Sandbox\.Timedout|Task timed out": FunctionTimedOutError,
    r"Runtime\.OutOfMemory|signal: killed": FunctionOutOfMemoryError,
    r"Runtime\.ExitError|exit status": FunctionExitedError,
    r"Runtime\.(Handler|ImportModule|InvalidEntrypoint|Malformed|UserCode)": FunctionImportError,
}


class Target(NamedTuple):
    """
    A deployed function: its name, region and stage, and the digest of the code that was deployed
    from here.
    """

    function: str
    region: str = ""
    stage: str = ""
    code: str = ""


def target(settings: Settings) -> Target | None:
    """
    Return the function to call: that of the settings, or else the one that was deployed from here;
    None for neither.

    Raises:
        CorruptRecordError: ``.pfl/deployed.json`` cannot be read.
    """
    path = deployed_path(settings)
    deployed = None
    try:
        deployed = Target(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as exc:
        raise CorruptRecordError(
            f"{path} cannot be read", why=str(exc), hint="to write it again: pfl deploy"
        ) from exc
    if settings.function and (deployed is None or deployed.function != settings.function):
        return Target(settings.function)
    return deployed


def deployed_path(settings: Settings) -> Path:
    """The file in which ``pfl deploy`` keeps what it deployed."""
    return settings.home / "deployed.json"


def call(
    at: Target,
    event: object,
    *,
    endpoint_url: str = "",
    asynchronous: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Reply:
    """
    Call a function, and return its reply; if it is only queued, status and request ID.

    Args:
        at: The function.
        event: The event; text is sent as it is.
        endpoint_url: Lambda's address, if not that of the environment.
        asynchronous: Put the event into the function's queue, and do not wait.
        report: Called with the log of a call that died.

    Raises:
        InvalidRequestError: The event is larger than Lambda accepts.
        NotFoundError: The function does not exist.
        FunctionCrashedError: The function died.
        UnavailableError: Lambda did not accept the call.
    """
    data = (event if isinstance(event, str) else json.dumps(event)).encode()
    limit = ASYNC_BYTES if asynchronous else SYNC_BYTES
    if len(data) > limit:
        raise InvalidRequestError(
            "the event is too large for Lambda",
            why=f"{len(data)} bytes, {limit} at most",
            hint="put large input into the store and send its key",
        )
    # A call that arrives twice is computed once.
    client = aws.client(
        "lambda",
        endpoint_url=endpoint_url,
        region=at.region,
        read_timeout_s=_ANSWER_S,
        attempts=_TRIES,
    )
    name = f"function {at.function}"
    request = {"FunctionName": at.function, "Payload": data}
    request |= {"InvocationType": "Event"} if asynchronous else {"LogType": "Tail"}
    with aws.converted_errors(name):
        answer = client.invoke(**request)
    request_id = answer["ResponseMetadata"].get("RequestId", "")
    if asynchronous:
        return cast(Reply, {"status": "queued", "request_id": request_id})
    body = answer["Payload"].read()
    if "FunctionError" in answer:
        log = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
        if lines := log.strip().splitlines():
            report("\n  ".join(["the end of its log:", *lines[-_LOG_LINES:]]))
        error = _death(name, body, log)
        error.request_id = request_id
        raise error
    try:
        reply = json.loads(body)
        if not isinstance(reply, dict) or "status" not in reply:
            raise ValueError("not a reply")
    except ValueError as exc:
        raise UnavailableError(
            f"{name} did not return a reply",
            why=body[:200].decode(errors="replace"),
            hint="set PFL_FUNCTION to a function that pfl deployed",
        ) from exc
    return cast(Reply, reply)


def fetch(reply: Reply, settings: Settings) -> None:
    """
    Fill in the values of *reply* that were too large to send, from the store.

    Raises:
        NotFoundError, UnavailableError: The store does not have a value, or cannot be read from
            here.
    """
    from ..handler.core.store import objects, records

    for row in reply["steps"]:
        if not row.pop("value_bytes", None):
            continue
        if not settings.store:
            raise UnavailableError(
                f"the value of {row['step']} is too large to be sent",
                why="it is in the function's store, and no store is configured here",
                hint="PFL_STORE=s3://bucket/prefix, as pfl deploy printed it",
            )
        path = records.result_path(
            str(reply["id"]), row["step"], row.get("result") or str(row["key"])
        )
        data = objects.shared(settings).get(path)
        if data is None:
            raise NotFoundError(
                f"{path} does not exist in {settings.store}",
                hint="set PFL_STORE to the store of the function",
            )
        row["value"] = records.decode_result(data, path)[0]


def _death(name: str, body: bytes, log: str) -> FunctionCrashedError:
    """
    Return the error for a function that died.

    Args:
        name: The function, for messages.
        body: Lambda's own description.
        log: The end of the function's log.
    """
    answer = json.loads(body)
    message = re.sub(r"^RequestId: [0-9a-f-]* (Error: )?", "", answer.get("errorMessage", ""))
    why = ": ".join(filter(None, (answer.get("errorType"), message)))
    matches = (death for sign, death in _DEATHS.items() if re.search(sign, why))
    death = next(matches, FunctionCrashedError)
    used = re.search(r"Memory Size: (\d+) MB\s+Max Memory Used: (\d+) MB", log)
    if used is not None and death is FunctionOutOfMemoryError:
        why = f"{used[2]} of {used[1]} MB used; {why}"
    return death(death.happened.format(name=name), why=why, hint=death.advice)
