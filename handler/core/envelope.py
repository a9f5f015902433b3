"""The shapes in which Lambda delivers an event, each with the answer that it expects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeGuard

from .errors import InvalidRequestError, exit_code
from .event import Reply, StepRow

# The limit of a whole response. Source: AWS Lambda Developer Guide, "Lambda quotas".
RESPONSE_BYTES = 6 * 1024 * 1024
# Room for the rest of the response; an HTTP answer holds the reply as text, with escapes.
_SPARE_BYTES = 64 * 1024
_HTTP = {"completed": 200, "invalid": 400, "miss": 404, "busy": 409, "cancelled": 409}
_SCHEDULES = ("aws.events", "aws.scheduler")


def unwrap(raw: object) -> object:
    """
    The plain event in *raw*; what has another shape is returned as it is.

    A request (function URL, or API Gateway payload 2.0) holds the event in its body and is answered
    with an HTTP status: 200, 400, 404, 409, 500, or 503 if a service did not answer. A schedule
    holds it in its ``detail``; without one, it asks for ``reap``.

    Raises:
        InvalidRequestError: A request has no valid body.
    """
    if _is_http(raw):
        return _body(raw)
    # EventBridge gives its events an ID, too.
    if isinstance(raw, dict) and raw.get("source") in _SCHEDULES:
        detail = raw.get("detail")
        return detail if isinstance(detail, Mapping) and detail else {"action": "reap"}
    return raw


def wrap(raw: object, reply: Reply) -> Mapping[str, object]:
    """*reply* as the caller that sent *raw* expects it; see :func:`unwrap`."""
    if not _is_http(raw):
        return reply
    status = _HTTP.get(reply["status"], 500)
    error = reply.get("error")
    if status == 500 and error and exit_code(error["type"]) == 5:
        status = 503
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json"},
        "body": json.dumps(reply),
    }


def drop_large_values(reply: Reply, limit_bytes: int = RESPONSE_BYTES - _SPARE_BYTES) -> Reply:
    """
    *reply* without its large values, if it is too large for Lambda.

    A value is large if it takes more than an equal share of the space. A dropped value is None, and
    ``value_bytes`` is its length as JSON; the caller fetches it from the store by the row's
    ``key``.
    """
    rows = reply["steps"]
    if not rows or _size_bytes(reply) <= limit_bytes:
        return reply
    kept: list[StepRow] = []
    for row in rows:
        size_bytes = _size_bytes(row["value"])
        is_large = size_bytes > limit_bytes // len(rows)
        kept.append({**row, "value": None, "value_bytes": size_bytes} if is_large else row)
    return {**reply, "steps": kept}


def _is_http(raw: object) -> TypeGuard[Mapping[str, object]]:
    """Whether *raw* is a request of a function URL, or of API Gateway with payload 2.0."""
    if not isinstance(raw, dict) or "id" in raw or "action" in raw:
        return False
    context = raw.get("requestContext")
    return isinstance(context, Mapping) and isinstance(context.get("http"), Mapping)


def _size_bytes(value: object) -> int:
    # json.dumps writes ASCII: at least as long as what Lambda's runtime writes.
    return len(json.dumps(value))


def _body(request: Mapping[str, object]) -> object:
    body = request.get("body")
    if not body:
        raise InvalidRequestError("the request has no body", hint='POST {"id": "abc"}')
    if request.get("isBase64Encoded"):
        from base64 import b64decode  # Imported late: a plain event does not need it.

        try:
            return b64decode(str(body), validate=True)
        except ValueError as exc:
            raise InvalidRequestError("the request's body is not base64", why=str(exc)) from exc
    return body
