"""
The few calls that the image makes to AWS, other than those of its store.

Prefect's key is read from Secrets Manager or the Parameter Store on a miss, once per process, and
is kept in memory only. The requests are signed here: botocore is not in the image, and importing
it would take a quarter of a second of each cold start.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping
from http.client import HTTPException

from ..core.errors import InvalidRequestError, UnavailableError
from ..core.settings import Settings
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
    signed = sign(
        url, body, headers, service=service, region=region, environ=_credentials(), path=path
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


def _credentials() -> Mapping[str, str]:
    """Credentials by variable name: of the environment, as in Lambda, or of a profile or role."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return os.environ
    from ..core.store import objects

    found = objects.find_credentials()()
    return {
        "AWS_ACCESS_KEY_ID": found["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": found["secret_access_key"],
        "AWS_SESSION_TOKEN": found["token"] or "",
    }


def sign(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    service: str,
    region: str,
    environ: Mapping[str, str],
    path: str = "/",
    now: str = "",
) -> dict[str, str]:
    """
    The headers that sign a POST of *body* to *path* of *url*.

    Source: AWS Identity and Access Management User Guide, "Create a signed AWS API request"
    (Signature Version 4).

    Args:
        url: Scheme and host, without a path.
        body: The body to send.
        headers: The headers to send, names in lower case.
        service: The service's name, as in an ARN.
        region: Its region.
        environ: The credentials, by the name of their variable.
        path: The path; letters, digits, slashes, dashes and dots only.
        now: The time as ``20260102T030405Z``; empty: the current time.
    """
    now = now or datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "host": url.split("://")[1], "x-amz-date": now}
    if token := environ.get("AWS_SESSION_TOKEN"):
        signed["x-amz-security-token"] = token
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    canonical = f"POST\n{path}\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{now[:8]}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{environ.get('AWS_SECRET_ACCESS_KEY', '')}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    credential = f"{environ.get('AWS_ACCESS_KEY_ID', '')}/{scope}"
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={key.hex()}"
    )
    return signed


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
