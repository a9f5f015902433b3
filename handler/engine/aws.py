"""
The few calls that the image makes to AWS besides those of its store.

Prefect's key is read from Secrets Manager or the Parameter Store on a miss, once per process, and kept in memory alone. They are
signed here: botocore is not in the image, and would take a quarter of a second of each cold start to import.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping

from pfl.handler.core.errors import InvalidRequestError, UnavailableError
from pfl.handler.core.settings import Settings

_ASKS = {
    "secretsmanager": ("secretsmanager.GetSecretValue", "SecretId"),
    "ssm": ("AmazonSSM.GetParameter", "Name"),
}


def post(
    service: str, region: str, body: bytes, headers: Mapping[str, str], *, path: str = "/"
) -> bytes:
    """
    What *service* answers to a POST of *body*.

    Args:
        service: Its name, as in an ARN.
        region: Its region.
        body: What is sent.
        headers: What is sent with it, names in lower case.
        path: Of letters, digits, slashes, dashes and dots alone.

    Raises:
        UnavailableError: It refused, or did not answer.
    """
    url = os.environ.get("AWS_ENDPOINT_URL") or f"https://{service}.{region}.amazonaws.com"
    signed = sign(
        url, body, headers, service=service, region=region, environ=_credentials(), path=path
    )
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url + path, body, signed), timeout=10
        ) as response:
            return response.read()
    except urllib.error.HTTPError as exc:
        raise UnavailableError(
            f"{service} refused", why=f"HTTP {exc.code}: {exc.read(300).decode(errors='replace')}"
        ) from exc
    except OSError as exc:
        raise UnavailableError(
            f"{service} did not answer", why=f"{type(exc).__name__}: {exc}"
        ) from exc


def _credentials() -> Mapping[str, str]:
    """The variables that hold them; in Lambda they always do, elsewhere it may be a profile, a single sign-on or a role."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return os.environ
    from pfl.handler.core.store import objects

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

    Source: AWS Identity and Access Management User Guide, "Create a signed AWS API request" (Signature Version 4).

    Args:
        url: Scheme and host, without a path.
        body: What is sent.
        headers: What is sent with it, names in lower case.
        service: The service's name, as in an ARN.
        region: Its region.
        environ: Where the credentials are.
        path: Of letters, digits, slashes, dashes and dots alone.
        now: The time as ``20260102T030405Z``; the present one if empty.
    """
    now = now or datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    signed = dict(headers) | {"host": url.split("://")[1], "x-amz-date": now}
    if token := environ.get("AWS_SESSION_TOKEN"):
        signed["x-amz-security-token"] = token
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    canonical = f"POST\n{path}\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{now[:8]}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{environ.get('AWS_SECRET_ACCESS_KEY', '')}".encode()
    for part in (now[:8], region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"{environ.get('AWS_ACCESS_KEY_ID', '')}/{scope}"
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    )
    return signed


def with_secret(settings: Settings) -> Settings:
    """
    *settings* with the key that they only name.

    Raises:
        InvalidRequestError: The name is no ARN of a secret or a parameter.
        UnavailableError: The service refused, or did not answer.
    """
    if settings.prefect_api_key or not settings.prefect_secret:
        return settings
    return settings._replace(prefect_api_key=_read(settings.prefect_secret))


@functools.cache
def _read(arn: str) -> str:
    parts = arn.split(":", 5)
    if len(parts) != 6 or parts[0] != "arn" or parts[2] not in _ASKS:
        raise InvalidRequestError(
            "PFL_PREFECT_SECRET is no ARN of a secret or a parameter",
            why=f"it is {arn!r}",
            hint="arn:aws:secretsmanager:… or arn:aws:ssm:…",
        )
    service, region = parts[2], parts[3]
    target, field = _ASKS[service]
    name = (
        arn if service == "secretsmanager" else "/" + parts[5].removeprefix("parameter").lstrip("/")
    )
    body = json.dumps(
        {field: name} | ({"WithDecryption": True} if service == "ssm" else {})
    ).encode()
    try:
        said = json.loads(
            post(
                service,
                region,
                body,
                {"content-type": "application/x-amz-json-1.1", "x-amz-target": target},
            )
        )
        return said["SecretString"] if service == "secretsmanager" else said["Parameter"]["Value"]
    except UnavailableError as exc:
        raise UnavailableError(
            f"Prefect's key could not be read from {arn}",
            why=exc.why or exc.what,
            hint="does the function's role allow it?",
        ) from exc
    except (ValueError, KeyError) as exc:
        raise UnavailableError(
            f"Prefect's key could not be read from {arn}",
            why=f"{type(exc).__name__}: {exc}",
            hint="is it text?",
        ) from exc
