"""The shapes in which Lambda hands over an event, each made into the plain one, and the reply put into the shape asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pfl.handler.core.errors import InvalidRequestError, exit_code
from pfl.handler.core.event import Reply

RESPONSE_BYTES = (
    6 * 1024 * 1024
)  # Of a whole response. Source: AWS Lambda Developer Guide, "Lambda quotas".
_SPARE_BYTES = (
    64 * 1024
)  # For what stands around the reply; an HTTP answer holds it once more, as text.
_HTTP = {"completed": 200, "invalid": 400, "miss": 404, "busy": 409, "cancelled": 409}
_SCHEDULES = ("aws.events", "aws.scheduler")
_FOREIGN = (
    "Records",
    "requestContext",
    "httpMethod",
    "detail-type",
    "Sns",
    "awslogs",
    "RequestType",
    "tasks",
)
_SHAPES = (
    "send the plain event, a function URL or API Gateway v2 request, or an EventBridge schedule"
)
_SHORT = (int, float, bool, type(None))

Seal = Callable[[Reply], Mapping[str, object]]  # What makes the caller's answer of a reply.


def unwrap(raw: object) -> tuple[object, Seal]:
    """
    The plain event in *raw*, and what makes the caller's answer of a reply.

    A request (function URL, API Gateway payload 2.0) holds the event as its body and is answered with an HTTP status; a
    schedule holds it as its ``detail``, and without one asks for what a schedule is for: reaping.

    Raises:
        InvalidRequestError: *raw* is of another shape; one that asks over HTTP is answered so, see :func:`is_http`.
    """
    if not isinstance(raw, dict) or "id" in raw or "action" in raw:
        return raw, _as_it_is
    if is_http(raw):
        return _body(raw), over_http
    if raw.get("source") in _SCHEDULES and "detail-type" in raw:
        detail = raw.get("detail")
        return detail if isinstance(detail, Mapping) and detail else {"action": "reap"}, _as_it_is
    for name in _FOREIGN:
        if name in raw:
            raise InvalidRequestError(
                "the event is of a shape that is not known here",
                why=f"it has {name!r}",
                hint=_SHAPES,
            )
    return raw, _as_it_is


def is_http(raw: object) -> bool:
    """Whether *raw* is a request of a function URL or of API Gateway with payload format 2.0."""
    context = raw.get("requestContext") if isinstance(raw, dict) else None
    return isinstance(context, Mapping) and isinstance(context.get("http"), Mapping)


def seal_for(raw: object) -> Seal:
    """What makes the answer to *raw*, where it could not be unwrapped."""
    return over_http if is_http(raw) else _as_it_is


def _as_it_is(reply: Reply) -> Mapping[str, object]:
    return reply


def over_http(reply: Reply) -> Mapping[str, object]:
    """*reply* as an HTTP answer; its status follows the reply's: 200, 400, 404, 409, 500, or 503 where a service is away."""
    status = _HTTP.get(str(reply["status"]), 500)
    error = reply.get("error")
    if status == 500 and isinstance(error, Mapping) and exit_code(str(error.get("type"))) == 5:
        status = 503
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json"},
        "body": json.dumps(reply),
    }


def fit(reply: Reply, most_bytes: int = RESPONSE_BYTES - _SPARE_BYTES) -> Reply:
    """
    *reply*, with its largest values taken out until it is small enough for Lambda.

    A value taken out is None, and ``value_bytes`` says how long it was as JSON; the caller fetches it from the store by the
    row's ``key``.
    """
    rows = list(reply["steps"])  # type: ignore[call-overload]
    if (
        len(rows) < 1_000
        and not reply.get("warnings")
        and all([_is_short(row["value"]) for row in rows])
    ):
        return reply  # What most calls ask for is not written twice to learn its size.
    if (left := _size(reply)) <= most_bytes:
        return reply
    sizes = {i: _size(row["value"]) for i, row in enumerate(rows) if row.get("key")}
    for i in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if left <= most_bytes:
            break
        rows[i] = {**rows[i], "value": None, "value_bytes": sizes[i]}
        left -= sizes[i]
    return {**reply, "steps": rows}


def _is_short(value: object) -> bool:
    return type(value) in _SHORT or (type(value) is str and len(value) < 400)


def _size(value: object) -> int:
    return len(json.dumps(value))  # ASCII: at least as long as what Lambda's runtime makes of it.


def _body(request: Mapping) -> object:
    body = request.get("body")
    if not body:
        raise InvalidRequestError("the request has no body", hint='POST {"id": "abc"}')
    if request.get("isBase64Encoded"):
        from base64 import b64decode  # A plain event pays for no import.

        try:
            return b64decode(body, validate=True)
        except (ValueError, TypeError) as exc:
            raise InvalidRequestError("the request's body is not base64", why=str(exc)) from exc
    return body
