"""Prefect's key from Secrets Manager or the Parameter Store: read on a miss, once per process, and kept in memory alone."""

from __future__ import annotations

import functools
import json

from handler.core.errors import InvalidRequestError, UnavailableError
from handler.core.settings import Settings
from handler.engine import aws_api

_ASKS = {"secretsmanager": ("secretsmanager.GetSecretValue", "SecretId"), "ssm": ("AmazonSSM.GetParameter", "Name")}


def filled(settings: Settings) -> Settings:
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
            "PFL_PREFECT_SECRET is no ARN of a secret or a parameter", why=f"it is {arn!r}", hint="arn:aws:secretsmanager:… or arn:aws:ssm:…"
        )
    service, region = parts[2], parts[3]
    target, field = _ASKS[service]
    name = arn if service == "secretsmanager" else "/" + parts[5].removeprefix("parameter").lstrip("/")
    body = json.dumps({field: name} | ({"WithDecryption": True} if service == "ssm" else {})).encode()
    try:
        said = json.loads(aws_api.post(service, region, body, {"content-type": "application/x-amz-json-1.1", "x-amz-target": target}))
        return said["SecretString"] if service == "secretsmanager" else said["Parameter"]["Value"]
    except UnavailableError as exc:
        raise UnavailableError(f"Prefect's key could not be read from {arn}", why=exc.why or exc.what, hint="does the function's role allow it?") from exc
    except (ValueError, KeyError) as exc:
        raise UnavailableError(f"Prefect's key could not be read from {arn}", why=f"{type(exc).__name__}: {exc}", hint="is it text?") from exc
