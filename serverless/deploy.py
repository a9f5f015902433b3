"""
Deployment of a function to AWS: checked first, built, pushed by digest, deployed with osls.

Each step first checks whether its work is done, so an interrupted deployment can be repeated, and
one without changes does nothing.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..handler.core.declare import catalog
from ..handler.core.errors import (
    InvalidRequestError,
    NotFoundError,
    PflError,
    UnavailableError,
    unknown,
)
from ..handler.core.settings import Settings
from ..handler.core.store.values import JsonObject
from ..handler.engine.prefect import environment
from ..handler.engine.prefect.environment import Api
from . import aws, image, remote

if TYPE_CHECKING:
    from botocore.client import BaseClient

HERE = Path(__file__).resolve().parent
OSLS = HERE / "node_modules" / ".bin" / "osls"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_NO_IMAGE = "sha256:" + "0" * 64
# Nothing was deployed in these states; CloudFormation refuses to update them.
_STUCK = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
_CHECK = {"action": "check"}


@dataclasses.dataclass
class Deployment:
    """
    One stage of one service: the stack, the function, the bucket.

    Args:
        settings: The settings; Prefect's address and the engine go into the function.
        name: The service's name: a letter, then letters, digits and dashes, 20 at most.
        stage: The stage's name, likewise.
        arch: ``x86_64`` or ``arm64``.
        image_uri: An image in the registry, as ``…@sha256:…``; one is built and pushed if this is
            empty.
        plain_key: Put PREFECT_API_KEY into the function's variables, which anybody who sees the
            function can read.
        report: Called with a line about each step of the deployment.
    """

    settings: Settings
    name: str = "pfl"
    stage: str = "dev"
    arch: str = "x86_64"
    image_uri: str = ""
    plain_key: bool = False
    report: Callable[[str], None] = print

    def __post_init__(self) -> None:
        for option, text in (("name", self.name), ("stage", self.stage)):
            if not _NAME.fullmatch(text):
                raise InvalidRequestError(
                    f"invalid --{option} {text!r}",
                    why="it must be a lower-case letter and up to 19 letters, digits and dashes",
                    hint=f"--{option} my-{option}",
                )
        if self.image_uri and not re.search(r"@sha256:[0-9a-f]{64}$", self.image_uri):
            raise InvalidRequestError(
                f"invalid --image {self.image_uri!r}",
                why="it has no digest",
                hint="--image REPOSITORY@sha256:…",
            )
        self.region = ""
        self.account = ""
        self.api = Api("", "", "")

    @property
    def function(self) -> str:
        return f"{self.name}-{self.stage}"

    @property
    def bucket(self) -> str:
        return f"{self.function}-{self.account}-{self.region}"

    @property
    def store(self) -> str:
        return f"s3://{self.bucket}/pfl"

    def client(self, service: str) -> BaseClient:
        return aws.client(service, region=self.region)

    def _ask(self, service: str, method: str, **request: object) -> Any:
        """What AWS answers about a resource; None if it does not exist."""
        resources = {
            "cloudformation": f"stack {self.function}",
            "ecr": "the image registry (ECR)",
            "s3": f"bucket {self.bucket}",
        }
        try:
            with aws.converted_errors(resources[service]):
                return getattr(self.client(service), method)(**request)
        except NotFoundError:
            return None

    # What a deployment needs.

    def check(self, *, building: bool = True, dirty: bool = False) -> None:
        """
        Check all that a deployment needs.

        Args:
            building: Whether an image will be built.
            dirty: Whether to deploy changes that are not committed.

        Raises:
            InvalidRequestError: Something is missing; *why* has a line for each.
        """
        missing = []
        for check in self._checks(building, dirty):
            try:
                check()
            except PflError as exc:
                missing.append(f"{exc} ({exc.hint})" if exc.hint else str(exc))
        if missing:
            raise InvalidRequestError(
                "something is missing for a deployment", why="\n".join(missing)
            )

    def _checks(self, building: bool, dirty: bool) -> Iterator[Callable[[], object]]:
        yield from (self.check_node, self.find_region, self.find_account)
        # Without these two, the region or the credentials are reported already.
        has_account = self.region and self.account
        if has_account:
            yield self._check_stack
        yield from (self._check_prefect, self._check_key)
        yield lambda: catalog.load(self.settings)
        if building:
            yield image.tool
            if has_account:
                yield self._login
        if not dirty:
            yield self._check_git

    def check_node(self) -> None:
        if not shutil.which("node") or not shutil.which("npm"):
            raise InvalidRequestError(
                "Node and npm are not installed",
                hint="install Node 20.19 or newer: apt-get install nodejs npm, or nodejs.org",
            )
        if not OSLS.exists():
            raise InvalidRequestError(
                "osls is not installed",
                hint=f"pfl deploy --install, or npm install --no-package-lock in {HERE}",
            )

    def find_region(self) -> None:
        import boto3

        with aws.converted_errors("AWS"):
            region = aws.chosen_region()
            regions = boto3.Session().get_available_regions("lambda")
        if region not in regions:
            raise unknown("AWS region", region, regions)
        self.region = region

    def find_account(self) -> None:
        import boto3

        # Credentials can be checked even if the region is wrong.
        region = self.region or "us-east-1"
        with aws.converted_errors("AWS"):
            sts = boto3.Session().client("sts", region_name=region)
            self.account = sts.get_caller_identity()["Account"]
        if len(self.bucket) > 63:
            raise InvalidRequestError(
                "the bucket's name is too long",
                why=f"{self.bucket}: {len(self.bucket)} characters, 63 at most",
                hint="use a shorter --name",
            )

    def _check_stack(self) -> None:
        status = self.stack_status()
        hint = ""
        if status in _STUCK:
            hint = f"pfl remove --stage {self.stage}, then deploy again"
        # While a stack is in review, its creation has not begun.
        elif status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS":
            hint = "another deployment is in progress: wait until it is done"
        if hint:
            raise InvalidRequestError(f"the stack {self.function} is in {status}", hint=hint)

    def _check_prefect(self) -> None:
        if self.settings.engine != "prefect":
            return
        api = environment.configured(self.settings)
        if api is None:
            raise InvalidRequestError(
                "no Prefect API is configured", hint="set PREFECT_API_URL, or use --engine direct"
            )
        self.api = api
        self._check_reachable(api.url)

    def _check_key(self) -> None:
        if not self.api.key or self.settings.prefect_secret:
            return
        if not self.plain_key:
            raise InvalidRequestError(
                "PREFECT_API_KEY would be readable in the function's variables",
                hint="put it in Secrets Manager or SSM and set PFL_PREFECT_SECRET=arn:…, "
                "or --plain-key",
            )
        self.report("warning: everybody who can see the function can read PREFECT_API_KEY")

    def _check_reachable(self, url: str) -> None:
        """Check Prefect's address as Lambda sees it."""
        parts = urlsplit(url)
        try:
            rows = socket.getaddrinfo(parts.hostname, parts.port)
            addresses = [ipaddress.ip_address(row[4][0]) for row in rows]
            if any(each.is_loopback or each.is_unspecified for each in addresses):
                raise ValueError("it is the address of this machine")
        except (OSError, ValueError) as exc:
            # This machine may be behind a proxy, and Lambda is not.
            if isinstance(exc, OSError) and parts.scheme in urllib.request.getproxies():
                return
            raise InvalidRequestError(
                f"Lambda cannot reach {url}",
                why=str(exc),
                hint="PREFECT_API_URL of Prefect Cloud or a public server, or --engine direct",
            ) from exc
        if any(each.is_private for each in addresses):
            self.report(f"warning: {url} is a private address: the function must be in its VPC")

    def _check_git(self) -> None:
        if not shutil.which("git"):
            return
        root = self.settings.root
        command = ["git", "status", "--porcelain", "--", "flows", "handler"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.stdout:
            raise InvalidRequestError(
                "some changes are not committed to git",
                why=", ".join(line[3:] for line in done.stdout.splitlines()[:5]),
                hint="commit them, or use --dirty",
            )

    # The image.

    def find_image(self, *, build: bool) -> str:
        """
        Return the image of this code, by digest; build and push it if *build* and the registry has
        none.
        """
        if self.image_uri:
            return self.image_uri
        tag = f"{image.digest(self.settings.root, self.arch)[:16]}-{self.arch}"
        digest = self._pushed_digest(tag)
        if not build:
            return f"{self.name}@{digest or _NO_IMAGE}"
        uri = self._repository()
        if not digest:
            name = image.tool()
            tagged = f"{uri}:{tag}"
            self.report(f"building {tagged} with {name}")
            image.build(name, self.settings.root, tagged, arch=self.arch, report=self.report)
            user, password = self._login()
            self.report("pushing it")
            image.push(name, tagged, user=user, password=password, report=self.report)
            digest = self._pushed_digest(tag)
        return f"{uri}@{digest}"

    def _login(self) -> tuple[str, str]:
        """The user and the password of the registry."""
        (row,) = self._ask("ecr", "get_authorization_token")["authorizationData"]
        user, _, password = base64.b64decode(row["authorizationToken"]).decode().partition(":")
        return user, password

    def _repository(self) -> str:
        """The address of the image repository, which is created if necessary."""
        found = self._ask("ecr", "describe_repositories", repositoryNames=[self.name])
        if found is None:
            scanning = {"scanOnPush": True}
            self._ask(
                "ecr",
                "create_repository",
                repositoryName=self.name,
                imageScanningConfiguration=scanning,
            )
            return self._repository()
        return str(found["repositories"][0]["repositoryUri"])

    def _pushed_digest(self, tag: str) -> str:
        """The digest of the image with this tag; empty if it is not in the registry."""
        found = self._ask(
            "ecr",
            "describe_images",
            repositoryName=self.name,
            imageIds=[{"imageTag": tag}],
        )
        return found["imageDetails"][0]["imageDigest"] if found else ""

    # The stack.

    def stack_status(self) -> str:
        """The state of the stack, as CloudFormation calls it; empty if it does not exist."""
        found = self._ask("cloudformation", "describe_stacks", StackName=self.function)
        return found["Stacks"][0]["StackStatus"] if found else ""

    def resources(self) -> dict[str, tuple[str, str]]:
        """The resources of the stack: type and physical name, by logical name."""
        request = {"StackName": self.function}
        found = self._ask("cloudformation", "describe_stack_resources", **request) or {}
        return {
            row["LogicalResourceId"]: (row["ResourceType"], row.get("PhysicalResourceId", ""))
            for row in found.get("StackResources", ())
            if "LogicalResourceId" in row
        }

    def bucket_exists(self) -> bool:
        return self._ask("s3", "head_bucket", Bucket=self.bucket) is not None

    def install(self) -> None:
        """Install osls, as package.json pins it."""
        self.report("installing osls")
        image.run(
            ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"],
            "npm could not install osls",
            report=self.report,
            cwd=HERE,
        )

    def osls(self, command: str, uri: str = f"none@{_NO_IMAGE}") -> None:
        """
        Run osls for this stage.

        Raises:
            UnavailableError: It failed; *why* is the end of its output.
        """
        settings = self.settings
        secret = settings.prefect_secret
        is_parameter = secret.startswith("arn:aws:ssm:")
        # The policy has to name a secret, even if the function has none.
        no_secret = f"arn:aws:secretsmanager:{self.region}:{self.account}:secret:none"
        # A bucket may be left from a stack that was removed.
        is_kept = "Store" not in self.resources() and self.bucket_exists()
        variables = {
            "AWS_REGION": self.region,
            "SLS_TELEMETRY_DISABLED": "1",
            "NODE_NO_WARNINGS": "1",
            "PFL_NAME": self.name,
            "PFL_ARCH": self.arch,
            "PFL_BUCKET": self.bucket,
            "PFL_BUCKET_IS": "kept" if is_kept else "made",
            "PFL_IMAGE_URI": uri,
            "PFL_ENGINE": settings.engine,
            "PFL_PRELOAD": str(int(settings.preload)),
            "PFL_CODE": "" if command == "remove" else catalog.load(settings).digest,
            "PFL_PREFECT_SECRET": secret,
            "PFL_PLAIN_KEY": self.api.key if self.plain_key and not secret else "",
            "PFL_SECRET_ACTION": (
                "ssm:GetParameter" if is_parameter else "secretsmanager:GetSecretValue"
            ),
            "PFL_SECRET_RESOURCE": secret or no_secret,
            "PREFECT_API_URL": self.api.url_with_password,
        }
        image.run(
            [str(OSLS), command, "--stage", self.stage],
            f"osls {command} failed",
            hint="run it again; the previous deployment is unchanged",
            report=lambda line: self.report(f"  {line}"),
            cwd=HERE,
            env=os.environ | variables,
        )

    def planned(self) -> Iterator[JsonObject]:
        """Yield each resource that a deployment would ``create``, ``keep`` or ``remove``."""
        self.osls("package", self.find_image(build=False))
        path = HERE / ".serverless/cloudformation-template-update-stack.json"
        template = json.loads(path.read_bytes())
        wanted = {name: row["Type"] for name, row in template["Resources"].items()}
        existing = {name: type for name, (type, _) in self.resources().items()}
        for name, type in sorted((existing | wanted).items()):
            would = "create"
            if name in existing:
                would = "keep" if name in wanted else "remove"
            yield {"resource": name, "type": type, "would": would}

    def changes(self) -> Iterator[JsonObject]:
        """
        Yield the steps whose code differs from what is deployed: their next call is a miss.

        For each, why, and the steps that run again ``then``, if its value changes.
        """
        from ..handler.core.cache import reasons
        from ..handler.core.declare import project
        from ..handler.core.store import objects

        deployed: dict[str, dict[str, str]] = {}
        unexplained = "new"
        try:
            target = remote.Target(self.function, self.region)
            deployed = remote.call(target, _CHECK, report=self.report)["fingerprints"]
        except NotFoundError:
            pass
        except (UnavailableError, KeyError) as exc:
            unexplained = "the deployed function does not report its code"
            self.report(f"warning: {unexplained} ({exc})")
        loaded = project.load(self.settings)
        for name, flow in loaded.manifest.flows.items():
            for step, entry in flow.steps.items():
                fingerprint = deployed.get(name, {}).get(step)
                if fingerprint == entry.fingerprint:
                    continue
                why = unexplained
                if fingerprint is not None:
                    store = objects.open_store(self.store, environ=os.environ)
                    now = loaded.prints[step].parts
                    why = "; ".join(reasons.code_changes(store, step, fingerprint, now))
                then = sorted(flow.dependents([step]) - {step})
                yield {"flow": name, "step": step, "why": why, "then": then}

    def deploy(self, uri: str) -> None:
        """Deploy the image, record the function for ``pfl invoke``, and check that it works."""
        self.osls("deploy", uri)
        code = catalog.load(self.settings).digest
        target = remote.Target(self.function, self.region, self.stage, code)
        path = remote.deployed_path(self.settings)
        path.parent.mkdir(0o700, exist_ok=True)
        path.write_text(json.dumps(target._asdict()))
        if self.settings.engine == "prefect":
            from ..handler.engine.prefect import session
            from . import prefect_setup

            settings = self.settings._replace(store=self.store)
            # The session reads the API's key, which may be in the secret only.
            with session.session(settings, lambda step, doing: None) as api:
                block = prefect_setup.block(api, settings, name="cache", with_keys=False)
                block.make()
                self.report(f"block {block.name}: {block.action}")
        self.report("checking that the function reaches its store and Prefect")
        error = remote.call(target, _CHECK, report=self.report).get("error")
        if error is not None:
            raise UnavailableError(
                f"{self.function} is deployed, but does not work: {error['what']}",
                why=error["why"],
                hint=error["hint"],
            )

    def remove(self, *, purge: bool) -> None:
        """Remove the stack; the bucket with cache and history stays unless *purge*."""
        if self.stack_status():
            self.osls("remove")
        if purge and self.bucket_exists():
            import boto3

            with aws.converted_errors(f"bucket {self.bucket}"):
                bucket = boto3.resource("s3", region_name=self.region).Bucket(self.bucket)
                bucket.object_versions.delete()
                bucket.delete()
        with contextlib.suppress(PflError):
            target = remote.target(self.settings)
            if target is not None and target.function == self.function:
                remote.deployed_path(self.settings).unlink(missing_ok=True)
