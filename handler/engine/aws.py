"""
The few calls that the image makes to AWS, other than those of its store.

Prefect's key is read from Secrets Manager or the Parameter Store on a miss, once per process, and
is kept in memory only. The requests are signed here: botocore is not in the image, and importing
it would take a quarter of a second of each cold start.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from http.client import HTTPException

from ..core import signature
from ..core.errors import InvalidRequestError, UnavailableError
from ..core.settings import Settings
from ..core.store import objects
from ..core.store.values import JsonObject
from .prefect import connections


def post(
    service: str, region: str, body: bytes, headers: Mapping[str, str], *, path: str = "/"
) -> bytes:
    """
    The answer of an AWS service to a POST.

    Args:
        service: The service's name, as in an ARN.
        region: Its region.
        body: The body to send.
        headers: The headers to send, names in lower case.
        path: The path; letters, digits, slashes, dashes and dots only.

    Raises:
        UnavailableError: The service refused, or did not answer.
    """
    url = os.environ.get("AWS_ENDPOINT_URL") or f"https://{service}.{region}.amazonaws.com"
    signed = signature.sign(
        "POST",
        url,
        body,
        headers,
        service=service,
        region=region,
        environ=objects.credentials(),
        path=path,
    )
    try:
        status, answer = connections.exchange("POST", url + path, body, signed)
    except (OSError, HTTPException) as exc:
        why = f"{type(exc).__name__}: {exc}"
        raise UnavailableError(f"{service} did not answer", why=why) from exc
    if status >= 300:
        why = f"HTTP {status}: {answer[:300].decode(errors='replace')}"
        raise UnavailableError(f"{service} refused", why=why)
    return answer


def with_secret(settings: Settings) -> Settings:
    """
    *settings* with Prefect's API key, read from the secret that they name.

    Raises:
        InvalidRequestError: The name is not the ARN of a secret or a parameter.
        UnavailableError: The service refused, or did not answer.
    """
    if settings.prefect_api_key or not settings.prefect_secret:
        return settings
    return settings._replace(prefect_api_key=_read_secret(settings.prefect_secret))


@functools.cache
def _read_secret(arn: str) -> str:
    parts = re.fullmatch("arn:[^:]*:(secretsmanager|ssm):([^:]*):[^:]*:(.*)", arn)
    if parts is None:
        raise InvalidRequestError(
            "PFL_PREFECT_SECRET is not the ARN of a secret or a parameter",
            why=f"it is {arn!r}",
            hint="arn:aws:secretsmanager:… or arn:aws:ssm:…",
        )
    service, region, name = parts.groups()
    target = "secretsmanager.GetSecretValue"
    query: JsonObject = {"SecretId": arn}
    if service == "ssm":
        target = "AmazonSSM.GetParameter"
        name = "/" + name.removeprefix("parameter").lstrip("/")
        query = {"Name": name, "WithDecryption": True}
    headers = {"content-type": "application/x-amz-json-1.1", "x-amz-target": target}
    try:
        answer = json.loads(post(service, region, json.dumps(query).encode(), headers))
        return str(answer["Parameter"]["Value"] if service == "ssm" else answer["SecretString"])
    except (ValueError, KeyError, UnavailableError) as exc:
        raise UnavailableError(
            f"Prefect's key could not be read from {arn}",
            why=f"{type(exc).__name__}: {exc}",
            hint="check that the function's role allows it, and that the secret is a string",
        ) from exc
