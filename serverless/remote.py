"""
Calling the deployed function: checked before it is sent, tried again when it is throttled, and its deaths told apart.

UnavailableError             exit 5
├── FunctionTimedOutError    Lambda's time was up
├── FunctionOutOfMemoryError Lambda's memory was used up, or something killed the process
├── FunctionExitedError      the process ended by itself
├── FunctionImportError      the image cannot be started
└── FunctionCrashedError     anything else that Lambda calls a function error
"""

from __future__ import annotations

import base64
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pfl.handler.core.errors import (
    CorruptRecordError,
    InvalidRequestError,
    PflError,
    UnavailableError,
)
from pfl.handler.core.settings import Settings
from pfl.serverless import aws

# Source: AWS Lambda Developer Guide, "Lambda quotas", invocation payload.
SYNC_BYTES, ASYNC_BYTES = 6 * 1024 * 1024, 1024 * 1024
_THROTTLED = (
    "TooManyRequestsException",
    "EC2ThrottledException",
    "ThrottlingException",
    "Throttling",
    "RequestLimitExceeded",
)
_TRIES, _PAUSE_S, _LONGEST_S = 6, 0.2, 10.0
_ANSWER_S = 920  # A function may take fifteen minutes.


class FunctionTimedOutError(UnavailableError):
    """Lambda's time was up."""


class FunctionOutOfMemoryError(UnavailableError):
    """Lambda's memory was used up, or something killed the process."""


class FunctionExitedError(UnavailableError):
    """The process ended by itself."""


class FunctionImportError(UnavailableError):
    """The image cannot be started."""


class FunctionCrashedError(UnavailableError):
    """Anything else that Lambda calls a function error."""


class Target(NamedTuple):
    """A deployed function: its name, region and stage, and the digest of the code that was deployed from here."""

    function: str
    region: str = ""
    stage: str = ""
    code: str = ""


class Sent(NamedTuple):
    """What came of a call: the reply, None where nobody waits for it."""

    reply: dict | None
    request_id: str


def target(settings: Settings) -> Target | None:
    """
    The function to call: the one that is set, else the one that was deployed from here; None where there is neither.

    Raises:
        CorruptRecordError: ``.pfl/deployed.json`` cannot be read.
    """
    path = deployed_path(settings)
    try:
        known = Target(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = None
    except (OSError, ValueError, TypeError) as exc:
        raise CorruptRecordError(
            f"{path} cannot be read", why=str(exc), hint="pfl deploy writes it anew"
        ) from exc
    if settings.function and (known is None or known.function != settings.function):
        return Target(settings.function)
    return known


def deployed_path(settings: Settings) -> Path:
    """Where ``pfl deploy`` keeps the name of what it deployed."""
    return settings.home / "deployed.json"


def call(
    at: Target,
    event: object,
    *,
    endpoint_url: str = "",
    asynchronous: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Sent:
    """
    Call the function.

    Args:
        at: Which.
        event: The event; text is sent as it is.
        endpoint_url: Where Lambda listens, if not where the environment says.
        asynchronous: Put the event into the function's queue, and do not wait.
        tell: Told of each time that Lambda throttled the call, and the log of a call that died.

    Raises:
        InvalidRequestError: The event is larger than Lambda takes.
        NotFoundError: There is no such function.
        UnavailableError: The function died (see the classes above), or Lambda did not take the call.
    """
    from botocore.exceptions import ClientError

    data = (event if isinstance(event, str) else json.dumps(event)).encode()
    most = ASYNC_BYTES if asynchronous else SYNC_BYTES
    if len(data) > most:
        raise InvalidRequestError(
            "the event is too large for Lambda", why=f"{len(data)} bytes, {most} at most{' with --async' if asynchronous else ''}",
            hint="put large input into the store and send its key",
        )  # fmt: skip
    client = aws.client(
        "lambda", endpoint_url=endpoint_url, region=at.region, read_timeout_s=_ANSWER_S, attempts=1
    )
    asking = {
        "FunctionName": at.function,
        "Payload": data,
        "InvocationType": "Event" if asynchronous else "RequestResponse",
    }
    if not asynchronous:
        asking["LogType"] = "Tail"
    for turn in range(1, _TRIES + 1):
        try:
            with aws.told(f"function {at.function}"):
                answer = client.invoke(**asking)
            break
        except PflError as exc:
            cause = exc.__cause__
            kind = aws.code(cause) if isinstance(cause, ClientError) else ""
            if kind in ("RequestTooLargeException", "413"):
                raise InvalidRequestError(
                    "Lambda did not take the event: it is too large", why=exc.why
                ) from cause
            if kind not in _THROTTLED:
                raise
            if turn == _TRIES:
                hint = "raise its reserved concurrency in serverless.yml, or call less at once"
                raise UnavailableError(
                    f"function {at.function} is throttled",
                    why=f"refused {turn} times: {exc.why}",
                    hint=hint,
                ) from cause
            pause = min(_LONGEST_S, _PAUSE_S * 2 ** (turn - 1)) * (0.5 + random.random() / 2)
            tell(f"throttled; trying again in {pause:.1f} s ({turn} of {_TRIES - 1})")
            time.sleep(pause)
    request_id = answer["ResponseMetadata"].get("RequestId", "")
    if asynchronous:
        return Sent(None, request_id)
    body = answer["Payload"].read()
    if "FunctionError" in answer:
        log = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
        if log.strip():
            tell(
                "the end of its log:\n"
                + "\n".join(f"  {line}" for line in log.strip().splitlines()[-25:])
            )
        died = _death(at, body, log)
        died.request_id = request_id
        raise died
    try:
        reply = json.loads(body)
        if not isinstance(reply, dict) or "status" not in reply:
            raise ValueError("it is no reply")
    except ValueError as exc:
        hint = "is it a function of pfl? PFL_FUNCTION names the one to call"
        raise UnavailableError(
            f"function {at.function} answered something else",
            why=body[:200].decode(errors="replace"),
            hint=hint,
        ) from exc
    return Sent(reply, request_id)


def fetch(reply: dict, settings: Settings) -> None:
    """
    Put back into *reply* what was too large to be sent, read from the store.

    Raises:
        NotFoundError, UnavailableError: The store does not have it, or cannot be read from here.
    """
    from pfl.handler.core.errors import NotFoundError
    from pfl.handler.core.store import objects, records

    opened = None
    for row in reply.get("steps", ()):
        if not row.pop("value_bytes", None):
            continue
        if not settings.store:
            raise UnavailableError(
                f"the value of {row['step']} is too large to be sent", why="it is in the function's store, which is not named here",
                hint="PFL_STORE=s3://bucket/prefix, as pfl deploy printed it",
            )  # fmt: skip
        opened = opened or objects.of(settings)
        path = records.result_path(reply["id"], row["step"], row["key"])
        if (data := opened.get(path)) is None:
            raise NotFoundError(
                f"{path} is not in {settings.store}", hint="is PFL_STORE the store of the function?"
            )
        row["value"] = records.decode_result(data, path)[0]


def _death(at: Target, body: bytes, log: str) -> UnavailableError:
    try:
        said = json.loads(body)
        kind, why = str(said.get("errorType", "")), str(said.get("errorMessage", ""))
    except (ValueError, AttributeError):
        kind, why = "", body[:500].decode(errors="replace")
    why = re.sub(r"^RequestId: [0-9a-f-]* (Error: )?", "", why) or kind
    again = "what was finished is saved: call again"
    memory = re.search(r"Memory Size: (\d+) MB\s+Max Memory Used: (\d+) MB", log)
    name = f"function {at.function}"
    if kind == "Sandbox.Timedout" or "Task timed out" in why:
        return FunctionTimedOutError(
            f"{name} ran out of time",
            why=why,
            hint=f"{again}, or give it more time (timeout in serverless.yml, 900 s at most)",
        )
    if kind == "Runtime.OutOfMemory" or "signal: killed" in why:
        used = f"{memory[2]} of {memory[1]} MB used; " if memory else ""
        sure = kind == "Runtime.OutOfMemory" or (
            memory is not None and int(memory[2]) >= 0.95 * int(memory[1])
        )
        what = (
            f"{name} ran out of memory"
            if sure
            else f"{name} was killed, most likely for want of memory"
        )
        return FunctionOutOfMemoryError(
            what,
            why=used + why,
            hint=f"{again}, or give it more memory (memorySize in serverless.yml)",
        )
    if kind == "Runtime.ExitError" or "exit status" in why:
        return FunctionExitedError(
            f"the process of {name} ended",
            why=why,
            hint="a step called exit(), or a library brought it down; see pfl logs",
        )
    if kind in (
        "Runtime.ImportModuleError",
        "Runtime.HandlerNotFound",
        "Runtime.UserCodeSyntaxError",
        "Runtime.MalformedHandlerName",
        "Runtime.InvalidEntrypoint",
    ):
        return FunctionImportError(
            f"{name} cannot be started",
            why=f"{kind}: {why}",
            hint="pfl deploy builds the image anew, and checks that it starts",
        )
    if kind == "Function.ResponseSizeTooLarge":
        return FunctionCrashedError(
            f"the answer of {name} is too large for Lambda",
            why=why,
            hint="ask for one step with --step",
        )
    return FunctionCrashedError(
        f"{name} failed", why=f"{kind}: {why}" if kind else why, hint="see pfl logs"
    )
