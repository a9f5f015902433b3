"""Signs requests to AWS, where botocore is not installed or would take too long to import."""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Mapping


def sign(
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    service: str,
    region: str,
    environ: Mapping[str, str],
    path: str = "/",
    query: str = "",
    now: str = "",
) -> dict[str, str]:
    """
    The headers that sign a request to *path* of *url*.

    Source: AWS Identity and Access Management User Guide, "Create a signed AWS API request"
    (Signature Version 4).

    Args:
        method: Such as ``POST``.
        url: Scheme and host, without a path.
        body: The body to send.
        headers: The headers to send, names in lower case.
        service: The service's name, as in an ARN.
        region: Its region.
        environ: The credentials, by the name of their variable.
        path: The path; letters, digits, slashes, dots, dashes and underscores only.
        query: The query, encoded, with its names in order.
        now: The time as ``20260102T030405Z``; empty: the current time.
    """
    now = now or datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "host": url.split("://")[1], "x-amz-date": now}
    if token := environ.get("AWS_SESSION_TOKEN"):
        signed["x-amz-security-token"] = token
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
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
