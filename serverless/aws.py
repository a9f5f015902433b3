"""boto3 clients; only this module handles botocore's exceptions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..handler.core.errors import InvalidRequestError, NotFoundError, PflError, UnavailableError

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

# AWS's codes of errors; each service has its own for the same.
_DENIED = "AccessDenied|Expired|InvalidClientToken|InvalidSignature|Unauthorized|Unrecognized|^403$"
_THROTTLED = "Throttl|RequestLimitExceeded|TooManyRequests"


def client(
    service: str,
    *,
    endpoint_url: str = "",
    region: str = "",
    read_timeout_s: int = 60,
    attempts: int = 3,
) -> BaseClient:
    """
    Return a boto3 client; profile, credentials, region and endpoint come from where AWS's own tools
    find them.

    Args:
        service: The service's name in boto3.
        endpoint_url: The service's address, if not that of the environment.
        region: The region, if neither the environment nor the profile names one.
        read_timeout_s: How long to wait for an answer.
        attempts: How often botocore sends a request.

    Raises:
        InvalidRequestError: No region is chosen, or the profile does not exist.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=10,
        read_timeout=read_timeout_s,
    )
    with converted_errors(f"AWS {service}"):
        region = chosen_region(region)
        return boto3.Session().client(
            service, endpoint_url=endpoint_url or None, region_name=region, config=config
        )


def chosen_region(default: str = "") -> str:
    """
    Return the region of the profile or the environment, or else *default*.

    Raises:
        InvalidRequestError: No region is chosen.
    """
    import boto3

    region = boto3.Session().region_name or os.environ.get("AWS_REGION") or default
    if not region:
        raise InvalidRequestError(
            "no AWS region is set", hint="set AWS_REGION, or use a profile with a region"
        )
    return region


@contextmanager
def converted_errors(resource: str) -> Iterator[None]:
    """
    Convert what botocore raises into one of our errors.

    Args:
        resource: What is requested, for messages: ``"function pfl-dev"``.
    """
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as exc:
        raise _refusal(exc, resource) from exc
    except boto.ProfileNotFound as exc:
        raise InvalidRequestError(
            "the AWS profile does not exist", why=str(exc), hint="set AWS_PROFILE, or aws configure"
        ) from exc
    except (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
    ) as exc:
        raise InvalidRequestError(
            "no AWS credentials found",
            why=str(exc),
            hint="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in",
        ) from exc
    # boto3 also raises ValueError for an invalid endpoint or region.
    except (boto.ParamValidationError, ValueError) as exc:
        raise InvalidRequestError(
            f"{resource}: invalid request",
            why=str(exc),
            hint="check the name, AWS_ENDPOINT_URL and AWS_REGION",
        ) from exc
    except boto.BotoCoreError as exc:
        raise UnavailableError(
            f"{resource} cannot be reached",
            why=str(exc),
            hint="check the region and the endpoint (AWS_ENDPOINT_URL)",
        ) from exc


def _refusal(exc: ClientError, resource: str) -> PflError:
    answer = exc.response
    kind, why = answer["Error"]["Code"], answer["Error"]["Message"]
    # CloudFormation has no name of its own for a stack that does not exist.
    is_no_stack = kind == "ValidationError" and "does not exist" in why
    if is_no_stack or re.search("NotFound|^NoSuch|^404$", kind):
        return NotFoundError(
            f"{resource} does not exist",
            why=why,
            hint="check the region, or create it with pfl deploy",
        )
    if re.search(_DENIED, kind):
        return UnavailableError(
            f"{resource}: access denied",
            why=why,
            hint="log in again, or use credentials that have this permission (AWS_PROFILE)",
        )
    if re.search(_THROTTLED, kind):
        tries = 1 + answer["ResponseMetadata"].get("RetryAttempts", 0)
        return UnavailableError(
            f"{resource} is throttled",
            why=f"refused {tries} times: {kind}: {why}",
            hint="call it less often; of a function, raise its reserved concurrency in "
            "serverless.yml",
        )
    return UnavailableError(f"{resource} refused", why=f"{kind}: {why}")
