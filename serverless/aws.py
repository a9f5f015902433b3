"""boto3 clients, and what they raise in the words of pfl; the one place that knows botocore's exceptions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pfl.handler.core.errors import InvalidRequestError, NotFoundError, PflError, UnavailableError


def client(
    service: str,
    *,
    endpoint_url: str = "",
    region: str = "",
    read_timeout_s: int = 60,
    attempts: int = 3,
):
    """
    A boto3 client; profile, credentials, region and endpoint come from where AWS's own tools take them.

    Args:
        service: Its name in boto3.
        endpoint_url: Where it listens, if not where the environment says.
        region: Used where the environment and the profile name none.
        read_timeout_s: How long to wait for an answer.
        attempts: How often botocore asks by itself.

    Raises:
        InvalidRequestError: There is no region, or the profile is unknown.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=10,
        read_timeout=read_timeout_s,
    )
    with told(f"AWS {service}"):
        region = chosen_region(region)
        try:
            return boto3.Session().client(
                service, endpoint_url=endpoint_url or None, region_name=region, config=config
            )
        except ValueError as exc:
            raise InvalidRequestError(
                "the endpoint or the region is not one",
                why=str(exc),
                hint="AWS_ENDPOINT_URL, AWS_REGION",
            ) from exc


def chosen_region(default: str = "") -> str:
    """
    The region of the profile or the environment, else *default*.

    Raises:
        InvalidRequestError: There is none.
    """
    import boto3

    region = boto3.Session().region_name or os.environ.get("AWS_REGION") or default
    if not region:
        raise InvalidRequestError(
            "no AWS region is chosen", hint="AWS_REGION=eu-central-1, or a profile that names one"
        )
    return region


@contextmanager
def told(asked: str) -> Iterator[None]:
    """
    Let what botocore raises rise as one of our errors.

    Args:
        asked: What was asked, for messages: ``"function pfl-dev"``.
    """
    from botocore import exceptions as boto

    try:
        yield
    except boto.ProfileNotFound as exc:
        raise InvalidRequestError(
            "the AWS profile is not known", why=str(exc), hint="AWS_PROFILE, or aws configure"
        ) from exc
    except (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
    ) as exc:
        hint = "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or aws sso login"
        raise InvalidRequestError("there are no AWS credentials", why=str(exc), hint=hint) from exc
    except (boto.InvalidRegionError, boto.ParamValidationError) as exc:
        raise InvalidRequestError(
            f"{asked}: the request is not one AWS knows", why=str(exc)
        ) from exc
    except (boto.EndpointConnectionError, boto.ConnectTimeoutError) as exc:
        hint = "is the region's name right, and the endpoint (AWS_ENDPOINT_URL)?"
        raise UnavailableError(f"{asked} could not be reached", why=str(exc), hint=hint) from exc
    except boto.ClientError as exc:
        raise of(exc, asked) from exc
    except boto.BotoCoreError as exc:
        raise UnavailableError(f"{asked} did not answer", why=str(exc)) from exc


def code(exc) -> str:
    """The service's name for what went wrong."""
    return str(exc.response.get("Error", {}).get("Code", ""))


def of(exc, asked: str) -> PflError:
    """Our error for a refusal of the service."""
    kind, why = code(exc), str(exc.response.get("Error", {}).get("Message", exc))
    if "NotFound" in kind or kind.startswith("NoSuch") or kind == "404":
        return NotFoundError(
            f"{asked} is not there",
            why=why,
            hint="pfl deploy makes it; is the region the right one?",
        )
    if "AccessDenied" in kind or kind in ("403", "UnauthorizedOperation"):
        return UnavailableError(
            f"{asked}: access is denied",
            why=why,
            hint="the credentials in use lack this permission",
        )
    if kind in (
        "ExpiredToken",
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
    ):
        return UnavailableError(
            f"{asked}: the credentials were not accepted",
            why=why,
            hint="log in again, or check AWS_PROFILE",
        )
    return UnavailableError(f"{asked} refused", why=f"{kind}: {why}")
