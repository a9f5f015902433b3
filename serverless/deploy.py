"""
What stands between the code here and a function in AWS: checked at once, built, pushed by digest, deployed with osls.

Each step looks first whether its work is done, so a deployment that was interrupted is repeated, and one without changes
does nothing.
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
from urllib.parse import urlsplit

from pfl.handler.core import errors
from pfl.handler.core.declare import catalog
from pfl.handler.core.errors import InvalidRequestError, NotFoundError, PflError, UnavailableError
from pfl.handler.core.settings import Settings
from pfl.serverless import aws, image, remote

HERE = Path(__file__).resolve().parent
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_OSLS = HERE / "node_modules" / ".bin" / "osls"
_NO_IMAGE = "sha256:" + "0" * 64
# Nothing has been deployed in these; CloudFormation refuses to update them.
_STUCK = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
_ANSWER_S = 5

Tell = Callable[[str], None]


@dataclasses.dataclass
class Deployment:
    """
    One stage of one name: the stack, the function, the bucket.

    Args:
        settings: The settings of whoever deploys; Prefect's address and the engine go into the function.
        name: Of the service; a letter, then letters, digits and dashes, 20 at most.
        stage: Likewise.
        arch: ``x86_64`` or ``arm64``.
        image_uri: An image that is in the registry already, as ``…@sha256:…``; built and pushed if empty.
        plain_key: Put PREFECT_API_KEY into the function's variables, where whoever may see the function reads it.
        tell: Told what is done.
    """

    settings: Settings
    name: str = "pfl"
    stage: str = "dev"
    arch: str = "x86_64"
    image_uri: str = ""
    plain_key: bool = False
    tell: Tell = print

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("stage", self.stage)):
            if not NAME.fullmatch(text):
                why = f"{text!r} is not a lower-case letter followed by up to 19 letters, digits and dashes"
                raise InvalidRequestError(
                    f"the {what} cannot be used",
                    why=why,
                    hint=f"--{what} {'pfl' if what == 'name' else 'dev'}",
                )
        if self.image_uri and not re.search(r"@sha256:[0-9a-f]{64}$", self.image_uri):
            raise InvalidRequestError(
                "the image is not named by digest",
                why=self.image_uri,
                hint="--image REPOSITORY@sha256:…",
            )
        self.region = self.account = ""
        self.warnings: list[str] = []

    @property
    def function(self) -> str:
        return f"{self.name}-{self.stage}"

    @property
    def bucket(self) -> str:
        return f"{self.function}-{self.account}-{self.region}"

    @property
    def store(self) -> str:
        return f"s3://{self.bucket}/pfl"

    def client(self, service: str):
        return aws.client(service, region=self.region)

    def check(self, *, building: bool = True, dirty: bool = False) -> None:
        """
        See whether all that is needed is here.

        Args:
            building: Whether an image will be built.
            dirty: Whether flows may be deployed that git does not have.

        Raises:
            InvalidRequestError: It is not; *why* names all that is missing, a line each.
        """
        missing = []
        looks = [
            self._node,
            self._region,
            self._identity,
            self._stack,
            self._prefect,
            self._key,
            lambda: catalog.load(self.settings),
        ]
        looks += [self._tool, self._registry] if building else []
        looks += [] if dirty else [self._git]
        for look in looks:
            try:
                look()
            except PflError as exc:
                missing.append(f"{exc}" + (f" ({exc.hint})" if exc.hint else ""))
        if missing:
            many = f"{len(missing)} things are" if len(missing) > 1 else "one thing is"
            raise InvalidRequestError(f"{many} missing for a deployment", why="\n".join(missing))

    def _node(self) -> None:
        node = shutil.which("node")
        version = (
            subprocess.run(
                [node, "--version"], capture_output=True, text=True, check=False
            ).stdout.strip()
            if node
            else ""
        )
        if not node or not shutil.which("npm"):
            raise InvalidRequestError(
                "Node and npm are not here",
                hint="Node 20.19 or newer: apt-get install nodejs npm, or nodejs.org",
            )
        if [int(part) for part in re.findall(r"\d+", version)[:2]] < [20, 19]:
            raise InvalidRequestError("Node is too old", why=f"{version}, 20.19 at least")
        if not _OSLS.exists():
            raise InvalidRequestError(
                "osls is not installed",
                hint=f"pfl deploy --install, or npm install --no-package-lock in {HERE}",
            )

    def _tool(self) -> None:
        if image.tool() is None:
            raise InvalidRequestError(
                "there is no container tool that works",
                hint="docker with its engine running, podman or buildah; or --image",
            )

    def _registry(self) -> None:
        if self.account and self.region:  # Else they are missing already, and told.
            self._login()

    def _login(self) -> tuple[str, str]:
        with aws.told("the registry of images (ECR)"):
            token = self.client("ecr").get_authorization_token()["authorizationData"][0][
                "authorizationToken"
            ]
        user, _, password = base64.b64decode(token).decode().partition(":")
        return user, password

    def _repository(self) -> str:
        """The repository of the images, without a tag; made where it is not there."""
        ecr = self.client("ecr")
        with aws.told("the registry of images (ECR)"):
            try:
                return ecr.describe_repositories(repositoryNames=[self.name])["repositories"][0][
                    "repositoryUri"
                ]
            except ecr.exceptions.RepositoryNotFoundException:
                more = {"imageScanningConfiguration": {"scanOnPush": True}}
                return ecr.create_repository(repositoryName=self.name, **more)["repository"][
                    "repositoryUri"
                ]

    def _region(self) -> None:
        import boto3

        with aws.told("AWS"):
            self.region, known = (
                aws.chosen_region(),
                boto3.Session().get_available_regions("lambda"),
            )
        if self.region not in known:
            wrong, self.region = self.region, ""
            near = [each for each in known if each[:2] == wrong[:2]]
            raise InvalidRequestError(
                f"AWS has no region {wrong!r}",
                hint=f"for instance {', '.join((near or known)[:4])}",
            )

    def _identity(self) -> None:
        import boto3

        with aws.told("AWS"):
            # Where the region is wrong, the credentials can be seen all the same.
            self.account = (
                boto3.Session()
                .client("sts", region_name=self.region or "us-east-1")
                .get_caller_identity()["Account"]
            )
        if len(self.bucket) > 63:
            raise InvalidRequestError(
                "the bucket's name is too long",
                why=f"{self.bucket}: {len(self.bucket)} characters, 63 at most",
                hint="--name",
            )

    def _stack(self) -> None:
        status = self.stack_status() if self.account and self.region else ""
        if status in _STUCK:
            raise InvalidRequestError(
                f"the stack {self.function} is in {status}",
                hint=f"pfl remove --stage {self.stage}, then deploy again",
            )
        if (
            status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS"
        ):  # In that one nothing has begun.
            raise UnavailableError(
                f"the stack {self.function} is in {status}",
                hint="another deployment is under way: wait until it is through",
            )

    def stack_status(self) -> str:
        """CloudFormation's word for the stack; empty where there is none."""
        try:
            with aws.told(f"stack {self.function}"):
                return self.client("cloudformation").describe_stacks(StackName=self.function)[
                    "Stacks"
                ][0]["StackStatus"]
        except UnavailableError as exc:
            if "does not exist" in exc.why:
                return ""
            raise
        except NotFoundError:
            return ""

    def _prefect(self) -> None:
        if self.settings.engine != "prefect":
            return
        from pfl.handler.engine.prefect import environment

        api = environment.configured(self.settings)
        if api is None:
            raise InvalidRequestError(
                "no Prefect API is named", hint="PREFECT_API_URL, or --engine direct"
            )
        self._api = api
        self._reach(api.url)

    def _key(self) -> None:
        if (api := getattr(self, "_api", None)) and api.key and not self.settings.prefect_secret:
            if not self.plain_key:
                hint = "put it into Secrets Manager or SSM and set PFL_PREFECT_SECRET=arn:…, or --plain-key"
                raise InvalidRequestError(
                    "PREFECT_API_KEY would stand in the function's variables", hint=hint
                )
            self.warnings.append(
                "PREFECT_API_KEY is a plain variable of the function: whoever may see the function can read it"
            )

    def _reach(self, url: str) -> None:
        host, hint = (
            urlsplit(url),
            "PREFECT_API_URL of Prefect Cloud or a public server, or --engine direct",
        )
        try:
            at = (host.hostname or "", host.port or (443 if host.scheme == "https" else 80))
            addresses = [
                ipaddress.ip_address(row[4][0])
                for row in socket.getaddrinfo(*at, type=socket.SOCK_STREAM)
            ]
            if any(each.is_loopback or each.is_unspecified for each in addresses):
                raise InvalidRequestError(
                    f"Lambda cannot reach {url}", why="that is this machine", hint=hint
                )
            if any(each.is_private for each in addresses):
                return self.warnings.append(
                    f"{url} is a private address: the function has to be in its VPC"
                )
            socket.create_connection(at, timeout=_ANSWER_S).close()
        except OSError as exc:
            if host.scheme in urllib.request.getproxies():
                return  # A proxy stands before this machine, and none before Lambda.
            raise UnavailableError(
                f"Prefect at {url} cannot be reached", why=str(exc), hint=hint
            ) from exc
        except ValueError as exc:  # Of the port, or of the name's letters.
            raise InvalidRequestError(
                f"Lambda cannot reach {url}", why=str(exc), hint=hint
            ) from exc

    def _git(self) -> None:
        if not shutil.which("git"):
            return
        done = subprocess.run(
            ["git", "status", "--porcelain", "--", "flows", "handler"],
            cwd=self.settings.root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0 and done.stdout.strip():
            changed = ", ".join(line[3:] for line in done.stdout.splitlines()[:5])
            raise InvalidRequestError(
                "there are changes that git does not have",
                why=changed,
                hint="commit them, or --dirty",
            )

    def install(self) -> None:
        """Install osls, as package.json pins it."""
        self.tell("installing osls")
        done = subprocess.run(
            ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UnavailableError(
                "npm could not install osls", why="\n".join(done.stderr.strip().splitlines()[-5:])
            )

    def find_image(self, *, build: bool) -> str:
        """The image of this code, by digest; built and pushed where the registry has none and *build* says so."""
        if self.image_uri:
            return self.image_uri
        tag = f"{image.digest(self.settings.root, self.arch)[:16]}-{self.arch}"
        if not build:
            return f"{self.name}@{self._pushed(tag) or _NO_IMAGE}"
        uri = self._repository()
        if not (found := self._pushed(tag)):
            name = image.tool()
            assert name is not None
            self.tell(f"building {uri}:{tag} with {name}")
            image.build(name, self.settings.root, f"{uri}:{tag}", arch=self.arch, tell=self.tell)
            user, password = self._login()
            self.tell("pushing it")
            image.push(name, f"{uri}:{tag}", user=user, password=password, tell=self.tell)
            found = self._pushed(tag)
        if not found:
            raise UnavailableError(f"{uri}:{tag} is not in the registry after it was pushed")
        return f"{uri}@{found}"

    def _pushed(self, tag: str) -> str:
        """The digest of the image with this tag; empty where there is none."""
        try:
            with aws.told(f"ECR repository {self.name}"):
                rows = self.client("ecr").describe_images(
                    repositoryName=self.name, imageIds=[{"imageTag": tag}]
                )["imageDetails"]
                return rows[0]["imageDigest"]
        except NotFoundError:
            return ""

    def osls(self, command: str, uri: str = "") -> None:
        """
        Run osls for this stage.

        Raises:
            UnavailableError: It failed; its last words say why.
        """
        secret = self.settings.prefect_secret
        service = secret.split(":")[2] if secret.count(":") >= 5 else "secretsmanager"
        none = f"arn:aws:secretsmanager:{self.region}:{self.account}:secret:none"
        api = getattr(self, "_api", None)
        environ = os.environ | {
            "AWS_REGION": self.region, "SLS_TELEMETRY_DISABLED": "1", "NODE_NO_WARNINGS": "1",
            "PFL_NAME": self.name, "PFL_ARCH": self.arch, "PFL_BUCKET": self.bucket, "PFL_BUCKET_IS": "kept" if self._outlived() else "made",
            "PFL_IMAGE_URI": uri or f"none@{_NO_IMAGE}", "PFL_ENGINE": self.settings.engine, "PFL_PRELOAD": str(int(self.settings.preload)),
            "PFL_CODE": catalog.load(self.settings).digest if command != "remove" else "", "PFL_PREFECT_SECRET": secret, "PREFECT_API_URL": api.url if api else "",
            "PFL_PLAIN_KEY": api.key if api and self.plain_key and not secret else "",
            "PFL_SECRET_ACTION": "ssm:GetParameter" if service == "ssm" else "secretsmanager:GetSecretValue", "PFL_SECRET_RESOURCE": secret or none,
        }  # fmt: skip
        lines = image.run(
            [str(_OSLS), command, "--stage", self.stage],
            lambda line: self.tell(f"  {line}") if line else None,
            cwd=HERE,
            env=environ,
        )
        if lines is not None:
            said = [line for line in lines if line.strip()]
            start = next((i for i, line in enumerate(said) if line.startswith("Error")), -5)
            raise UnavailableError(
                f"osls {command} failed",
                why="\n".join(said[start:][:6]),
                hint="what was there before stays; run it again",
            )

    def _outlived(self) -> bool:
        """Whether the bucket is left from a stack that was removed."""
        return "Store" not in self.resources() and self._bucket_is_there()

    def _bucket_is_there(self) -> bool:
        try:
            with aws.told(f"bucket {self.bucket}"):
                self.client("s3").head_bucket(Bucket=self.bucket)
            return True
        except NotFoundError:
            return False

    def resources(self) -> dict[str, tuple[str, str]]:
        """What the stack has made: type and physical name, by logical name."""
        if not self.stack_status():
            return {}
        with aws.told(f"stack {self.function}"):
            rows = self.client("cloudformation").describe_stack_resources(StackName=self.function)[
                "StackResources"
            ]
        return {
            row["LogicalResourceId"]: (row["ResourceType"], row.get("PhysicalResourceId", ""))
            for row in rows
            if "LogicalResourceId" in row
        }

    def planned(self) -> Iterator[dict[str, str]]:
        """What a deployment would make, keep or remove, a row each."""
        self.osls("package", self.find_image(build=False))
        template = json.loads(
            (HERE / ".serverless" / "cloudformation-template-update-stack.json").read_text(
                encoding="utf-8"
            )
        )
        there, wanted = self.resources(), template["Resources"]
        for name in sorted(wanted.keys() | there.keys()):
            would = "remove" if name not in wanted else "keep" if name in there else "create"
            yield {
                "resource": name,
                "type": (wanted.get(name) or {}).get("Type") or there[name][0],
                "would": would,
            }

    def changes(self) -> Iterator[dict[str, object]]:
        """The steps whose code differs from the deployed one, and why: their next call is a miss."""
        from pfl.handler.core.cache import reasons as stored
        from pfl.handler.core.declare import project
        from pfl.handler.core.fingerprint import changes
        from pfl.handler.core.store import objects

        there: dict = {}
        unknown = "new"
        try:
            reply = (
                remote.call(remote.Target(self.function, self.region), {"action": "check"}).reply
                or {}
            )
            there = reply["fingerprints"]
        except NotFoundError:
            pass
        except (UnavailableError, KeyError) as exc:
            unknown = "what is deployed does not say which code it is"
            self.tell(f"warning: {unknown} ({exc})")
        loaded = project.load(self.settings)
        kept = objects.open_store(self.store, environ=os.environ) if there else None
        for name, flow in loaded.manifest.flows.items():
            for step, entry in flow.steps.items():
                old = there.get(name, {}).get(step)
                if old == entry.fingerprint:
                    continue
                reasons = [unknown]
                if old is not None and kept is not None:
                    parts = stored.parts(kept, step, old)
                    reasons = (
                        changes.explain(parts, loaded.prints[step].parts)
                        if parts
                        else ["its code changed"]
                    )
                yield {
                    "flow": name,
                    "step": step,
                    "why": "; ".join(reasons) or "its code changed",
                    "then": sorted(flow.dependents([step]) - {step}),
                }

    def deploy(self, uri: str) -> dict[str, object]:
        """Deploy the image, keep the function's name for ``pfl invoke``, and ask the function whether it works."""
        self.osls("deploy", uri)
        made = remote.Target(
            self.function, self.region, self.stage, catalog.load(self.settings).digest
        )
        path = remote.deployed_path(self.settings)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(made._asdict()), encoding="utf-8")
        if self.settings.engine == "prefect":
            from pfl.handler.engine.prefect import session
            from pfl.serverless import prefect_setup

            settings = self.settings._replace(store=self.store)
            with session.session(
                settings, lambda step, doing: None
            ) as api:  # Its key may be known to the secret alone.
                for change in prefect_setup.blocks(
                    api, settings, name="cache", with_keys=False, dry_run=False
                ):
                    self.tell(f"{change.kind} {change.name}: {change.action}")
        self.tell("asking the function whether it reaches its store and Prefect")
        reply = remote.call(made, {"action": "check"}, tell=self.tell).reply or {}
        if "error" in reply:
            error = reply["error"]
            kind = UnavailableError if errors.exit_code(error["type"]) == 5 else PflError
            raise kind(
                f"{self.function} is deployed, and does not work: {error['what']}",
                why=error["why"],
                hint=error["hint"],
            )
        return reply

    def remove(self, *, purge: bool) -> None:
        """Remove the stack; the bucket with cache and history stays unless *purge*."""
        if self.stack_status():
            self.osls("remove")
        if purge and self._bucket_is_there():
            import boto3

            with aws.told(f"bucket {self.bucket}"):
                bucket = boto3.resource("s3", region_name=self.region).Bucket(self.bucket)
                bucket.object_versions.delete()
                bucket.delete()
        path = remote.deployed_path(self.settings)
        with contextlib.suppress(PflError):
            if (known := remote.target(self.settings)) and known.function == self.function:
                path.unlink(missing_ok=True)

    def link(self, kind: str, name: str) -> str:
        """The page of a resource in AWS's console; empty for one that has none of its own."""
        at = f"https://{self.region}.console.aws.amazon.com"
        return {
            "AWS::Lambda::Function": f"{at}/lambda/home?region={self.region}#/functions/{name}",
            "AWS::S3::Bucket": f"{at}/s3/buckets/{name}",
            "AWS::Logs::LogGroup": f"{at}/cloudwatch/home?region={self.region}#logsV2:log-groups/log-group/{name.replace('/', '$252F')}",
            "AWS::CloudWatch::Alarm": f"{at}/cloudwatch/home?region={self.region}#alarmsV2:alarm/{name}",
        }.get(kind, "")
