"""
``pfl deploy``, ``status``, ``logs`` and ``remove``: osls against moto, calls to real sandboxes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Project
from lambda_service import LambdaService
from test_cli import Ran
from test_imports import loaded_after
from test_lambda import run

from pfl.handler import bake
from pfl.handler.core import signature
from pfl.handler.core.declare import project as projects
from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.settings import Settings
from pfl.handler.engine import aws
from pfl.handler.engine.prefect import client as prefect_api
from pfl.handler.engine.prefect import environment
from pfl.serverless import deploy, image, logs, remote

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/pfl@sha256:" + "a" * 64
HAS_OSLS = deploy.OSLS.exists() and shutil.which("node")
needs_osls = pytest.mark.skipif(
    not HAS_OSLS,
    reason="osls is not installed: npm install --no-package-lock in serverless/ (.ci/lambda does)",
)

IN_REGISTRY = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {
        "digest": "sha256:" + "c" * 64,
        "size": 2,
        "mediaType": "application/vnd.docker.container.image.v1+json",
    },
    "layers": [],
}

FLOWS = """
    RATE = 3

    @step
    def one(id: str) -> int:
        print("one is computed")
        return RATE

    @step
    def two(id: str, one) -> int:
        return one * 2

    FLOWS = [flow("main", one, two)]
"""


@pytest.fixture(scope="module")
def service(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaService]:
    task = tmp_path_factory.mktemp("deployed")
    with LambdaService(s3_url, task, {"PFL_PROJECT": str(task)}) as running:
        yield running


@pytest.fixture
def here(service: LambdaService, project: Project, s3_env, monkeypatch) -> Project:
    """A project that deploys to the service; the code of its image is a copy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
    monkeypatch.setenv("PFL_ENGINE", "direct")
    monkeypatch.delenv("PFL_PROJECT")
    shutil.rmtree(project.root / "flows")
    project.write(FLOWS)
    return project


def put_into_image(project: Project, service: LambdaService) -> None:
    """Do what a build does, for a sandbox: copy the flows."""
    shutil.rmtree(service.task / "flows", ignore_errors=True)
    shutil.copytree(
        project.root / "flows", service.task / "flows", ignore=shutil.ignore_patterns("__pycache__")
    )
    service.reset()


@needs_osls
def test_a_function_is_deployed_called_updated_and_removed(here, service):
    import boto3

    put_into_image(here, service)
    bucket = "pfl-dev-123456789012-us-east-1"
    planned = run("deploy", "--image", IMAGE, "--dry-run", "--json").data
    assert {row["would"] for row in planned["resource_changes"]} == {"create"}
    assert [(row["step"], row["why"]) for row in planned["misses"]] == [
        ("one", "new"),
        ("two", "new"),
    ]

    made = run("deploy", "--image", IMAGE, "--json")
    assert (made.code, made.data["status"]) == (0, "deployed"), made.err
    names = {row["type"]: row["name"] for row in made.data["resources"]}
    assert names["AWS::Lambda::Function"] == "pfl-dev"
    known = json.loads((here.root / ".pfl" / "deployed.json").read_text())
    assert (known["function"], known["region"], known["stage"]) == ("pfl-dev", "us-east-1", "dev")
    s3, logs = boto3.client("s3"), boto3.client("logs")
    assert (
        logs.describe_log_groups(logGroupNamePrefix="/aws/lambda/pfl-dev")["logGroups"][0][
            "retentionInDays"
        ]
        == 30
    )
    targets = boto3.client("events").list_targets_by_rule(Rule="pfl-dev-reap")["Targets"]
    assert [json.loads(target["Input"]) for target in targets] == [{"action": "reap"}]

    called = run("invoke", "--id", "abc", "--json")  # It finds the function itself.
    assert "calling function pfl-dev in us-east-1" in called.err
    assert [row["value"] for row in called.data["steps"]] == [3, 6]
    assert run("invoke", "--id", "abc").err.count("2 of 2 steps from the cache") == 1
    lines = [json.loads(line) for line in run("logs", "--id", "abc", "--json").out.splitlines()]
    assert [line["text"] for line in lines if line["call"] is None] == ["one is computed"]
    assert [line["call"]["steps"] for line in lines if line["call"]] == [
        {"one": "computed", "two": "computed"},
        {"one": "hit", "two": "hit"},
    ]
    assert re.search(
        r"completed abc  one=hit two=hit  [\d.]+ ms  \S+", run("logs", "--id", "abc").out
    )
    assert run("logs", "--id", "other").out == ""
    told = run("status", "--json").data
    assert (told["is_current"], told["state"], told["concurrency"]) == (True, "Active", 20)
    assert told["stack"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE")

    again = run("deploy", "--image", IMAGE)
    assert again.code == 0
    assert "Deployment skipped" in again.err or "No changes" in again.err, again.err

    here.write(FLOWS.replace("RATE = 3", "RATE = 4"))
    assert run("status", "--json").data["is_current"] is False
    assert "deployed code differs from the code here" in run("invoke", "--id", "abc", "--json").err
    planned = run("deploy", "--image", IMAGE, "--dry-run", "--json").data
    would = {
        row["type"]: row["would"] for row in planned["resource_changes"]
    }  # moto does not list all that it creates.
    assert {
        would[f"AWS::{kind}"]
        for kind in (
            "Lambda::Function",
            "IAM::Role",
            "SQS::Queue",
            "Events::Rule",
            "Logs::LogGroup",
        )
    } == {"keep"}
    (change,) = planned["misses"]
    assert (change["step"], change["then"]) == ("one", ["two"])
    assert change["why"].startswith("`RATE` in flows/pipeline.py")
    assert change["why"].endswith("3 → 4")

    put_into_image(here, service)
    updated = run("deploy", "--image", IMAGE.replace("a" * 64, "b" * 64), "--json")
    assert (updated.code, updated.data["status"]) == (0, "deployed"), updated.err
    told = run("status", "--json").data
    assert (told["stack"], told["is_current"], told["image"][-3:]) == (
        "UPDATE_COMPLETE",
        True,
        "bbb",
    )
    assert [row["value"] for row in run("invoke", "--id", "abc", "--json").data["steps"]] == [4, 8]

    assert run("remove").code == 2  # It cannot ask without a terminal.
    gone = run("remove", "--yes")
    assert (gone.code, f"s3://{bucket}/pfl is kept" in gone.err) == (0, True), gone.err
    assert s3.list_objects_v2(Bucket=bucket, Prefix="pfl/history/")["KeyCount"] > 0
    assert not (here.root / ".pfl" / "deployed.json").exists()
    assert run("status", "--json").code == 3
    # The next deployment uses the bucket that stayed.
    back = run("deploy", "--image", IMAGE, "--json")
    assert back.code == 0, back.err
    assert [row["status"] for row in run("invoke", "--id", "abc", "--json").data["steps"]] == [
        "hit",
        "hit",
    ]
    assert run("remove", "--yes", "--purge").code == 0
    assert bucket not in {each["Name"] for each in s3.list_buckets()["Buckets"]}
    assert run("remove", "--yes").code == 3


@needs_osls
def test_the_stack_grants_no_more_than_the_function_uses(here):
    at = deploy.Deployment(
        Settings(project=str(here.root), engine="direct"), image_uri=IMAGE, report=lambda text: None
    )
    at.find_region()
    at.find_account()
    list(at.planned())
    template = json.loads(
        (
            ROOT / "serverless" / ".serverless" / "cloudformation-template-update-stack.json"
        ).read_text()
    )
    policy = template["Resources"]["Role"]["Properties"]["Policies"][0]["PolicyDocument"][
        "Statement"
    ]
    granted = {
        action
        for row in policy
        for action in (row["Action"] if isinstance(row["Action"], list) else [row["Action"]])
    }
    assert granted == {
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:ListBucket",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
        "secretsmanager:GetSecretValue",
        "sqs:SendMessage",
    }
    assert not any(row["Resource"] == "*" for row in policy)
    bucket = template["Resources"]["Store"]
    held = bucket["Properties"]
    assert held["VersioningConfiguration"] == {"Status": "Enabled"}
    assert all(held["PublicAccessBlockConfiguration"].values())
    assert held["BucketEncryption"]
    assert {rule["Prefix"] for rule in held["LifecycleConfiguration"]["Rules"]} == {
        f"pfl/{name}/" for name in ("plans", "results", "leases", "calls")
    }
    (tls,) = template["Resources"]["StorePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (tls["Effect"], tls["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": False}})
    assert (bucket["DeletionPolicy"], template["Resources"]["StorePolicy"]["DeletionPolicy"]) == (
        "Retain",
        "Retain",
    )
    assert {"ErrorAlarm", "DeadLetterAlarm", "DeadLetters"} <= template["Resources"].keys()


def test_all_that_is_missing_is_reported_at_once(here, monkeypatch):
    monkeypatch.setenv("PATH", str(here.root))  # Neither Node nor a container tool.
    monkeypatch.setattr(deploy, "OSLS", here.root / "nowhere")
    ran = run(
        "deploy",
        "--json",
        "--engine",
        "prefect",
        PREFECT_API_URL="http://127.0.0.1:4200/api",
        PREFECT_API_KEY="pnu_1",
        AWS_DEFAULT_REGION="us-eats-1",
    )
    assert ran.code == 2
    why = ran.data["error"]["why"].splitlines()
    assert [line.split(" (")[0] for line in why] == [
        "Node and npm are not installed",
        "unknown AWS region 'us-eats-1'",
        "Lambda cannot reach http://127.0.0.1:4200/api: it is the address of this machine",
        "PREFECT_API_KEY would be readable in the function's variables",
        "no working container tool found",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "a/b"], "invalid --stage"),
        (["--stage", "x" * 21], "invalid --stage"),
        (["--name", "Über"], "invalid --name"),
        (["--arch", "sparc"], "'x86_64', 'arm64'"),
        (["--image", "pfl:latest"], "invalid --image"),
    ],
)
def test_an_invalid_name_is_refused(here, arguments, words):
    ran = run("deploy", *arguments, "--json")
    assert (ran.code, ran.data["error"]["what"]) == (2, words) or words in ran.data["error"]["what"]
    assert ran.data["error"]["hint"]


def checked(root: Path, name: str = "pfl", stage: str = "dev", **more: object) -> list[str]:
    """What a check of this deployment finds missing."""
    at = deploy.Deployment(
        Settings(project=str(root), **more), name, stage, image_uri=IMAGE, report=lambda text: None
    )
    try:
        at.check(building=False)
    except InvalidRequestError as exc:
        return exc.why.splitlines()
    return []


def test_following_the_log_shows_what_arrives_late_and_nothing_twice(here, monkeypatch):
    import boto3

    group, now, client = "/aws/lambda/follow-dev", int(time.time() * 1e3), boto3.client("logs")
    client.create_log_group(logGroupName=group)
    for stream in ("one", "two"):
        client.create_log_stream(logGroupName=group, logStreamName=stream)

    def put(stream: str, at_ms: int, *texts: str) -> None:
        client.put_log_events(
            logGroupName=group,
            logStreamName=stream,
            logEvents=[{"timestamp": now + at_ms, "message": text} for text in texts],
        )

    died = {
        "pfl": 1,
        "request_id": "r",
        "id": "abc",
        "flow": "main",
        "action": None,
        "status": "crashed",
        "ms": None,
        "cold_start": None,
    }
    died |= {
        "steps": {"b": "crashed"},
        "error": {"type": "memory", "what": "request r ran out of memory"},
    }

    def follow(*arguments: str) -> Ran:
        arriving = iter(
            [
                lambda: put("two", -5_000, "late"),
                lambda: put("one", 0, "START RequestId: r", "printed", json.dumps(died)),
            ]
        )
        # More arrives between two reads; then somebody presses Ctrl-C.
        monkeypatch.setattr(
            logs,
            "_sleep",
            lambda seconds: next(arriving, lambda: signal.raise_signal(signal.SIGINT))(),
        )
        return run("logs", "-f", "--name", "follow", *arguments)

    put("one", -1_000, "early")
    ran = follow()
    assert [line.split("  ", 1)[1] for line in ran.out.splitlines()] == [
        "early",
        "late",
        "printed",
        "crashed   abc  b=crashed  r: request r ran out of memory",
    ]
    assert ran.code == 130
    picked = run("logs", "--name", "follow", "--id", "abc", "--json").out.splitlines()
    assert [json.loads(line)["text"] for line in picked] == ["printed", json.dumps(died)]


def test_no_credentials_a_plain_key_and_a_private_address_are_reported(here, monkeypatch):
    monkeypatch.setattr(deploy.Deployment, "check_node", lambda self: None)
    found = checked(here.root, prefect_api_url="http://10.0.0.1/api", prefect_api_key="pnu_1")
    assert found == [
        (
            "PREFECT_API_KEY would be readable in the function's variables"
            " (put it in Secrets Manager or SSM and set PFL_PREFECT_SECRET=arn:…, or --plain-key)"
        )
    ]
    told: list[str] = []
    at = deploy.Deployment(
        Settings(
            project=str(here.root), prefect_api_url="http://10.0.0.1/api", prefect_api_key="k"
        ),
        plain_key=True,
        report=told.append,
    )
    at._check_prefect()
    at._check_key()
    assert [line.split(": ")[0] for line in told] == ["warning"] * 2
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no AWS credentials found" in checked(here.root, engine="direct")[0]
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    assert [line.split(" (")[0] for line in checked(here.root, engine="direct")] == [
        "no AWS region is set",
        "no AWS credentials found: Unable to locate credentials",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:4200/api",
        "http://[::1]:4200/api",
        "http://0.0.0.0/api",
        "http://prefect.invalid/api",
        "http://h:x/api",
    ],
)
def test_an_address_of_prefect_that_lambda_cannot_reach_is_reported(here, monkeypatch, url):
    monkeypatch.setattr(deploy.Deployment, "check_node", lambda self: None)
    (found,) = checked(here.root, prefect_api_url=url)
    assert url in found
    assert "reach" in found
    assert "--engine direct" in found


def test_without_permission_for_the_registry_nothing_is_built(here, s3_url, monkeypatch):
    """moto checks policies like AWS, once that is switched on."""
    import boto3

    def enforced(after: str) -> None:
        urllib.request.urlopen(
            urllib.request.Request(
                f"{s3_url}/moto-api/reset-auth", after.encode(), {"content-type": "text/plain"}
            )
        )

    iam = boto3.client("iam")
    iam.create_user(UserName="half")
    allowed = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["sts:*", "cloudformation:*"], "Resource": "*"}
        ],
    }
    iam.put_user_policy(UserName="half", PolicyName="half", PolicyDocument=json.dumps(allowed))
    key = iam.create_access_key(UserName="half")["AccessKey"]
    monkeypatch.setattr(deploy.Deployment, "check_node", lambda self: None)
    monkeypatch.setattr(image, "tool", lambda: "docker")
    enforced("0")
    try:
        ran = run(
            "deploy",
            "--json",
            AWS_ACCESS_KEY_ID=key["AccessKeyId"],
            AWS_SECRET_ACCESS_KEY=key["SecretAccessKey"],
        )
    finally:
        enforced("inf")
    assert ran.code == 2
    assert ran.data["error"]["why"].startswith("the image registry (ECR): access denied: ")
    assert "ecr:GetAuthorizationToken" in ran.data["error"]["why"]


def test_flows_that_are_not_committed_are_not_deployed_by_accident(here, monkeypatch):
    monkeypatch.setattr(deploy.Deployment, "check_node", lambda self: None)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    for arguments in (["init", "-q"], ["add", "flows"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *arguments], cwd=here.root, check=True)
    assert checked(here.root, engine="direct") == []
    here.write(FLOWS + "\n")
    assert "flows/pipeline.py" in checked(here.root, engine="direct")[0]


def test_a_name_and_a_stage_that_are_too_long_together_are_reported(here, monkeypatch):
    monkeypatch.setattr(deploy.Deployment, "check_node", lambda self: None)
    (found,) = checked(here.root, name="n" * 20, stage="s" * 20, engine="direct")
    assert found.startswith("the bucket's name is too long: nnnn")
    assert found.endswith("characters, 63 at most (use a shorter --name)")


def test_a_stack_that_cannot_be_updated_is_reported_with_a_hint(here, service, monkeypatch):
    monkeypatch.setattr(deploy.Deployment, "check_node", lambda self: None)
    monkeypatch.setattr(deploy.Deployment, "stack_status", lambda self: "UPDATE_IN_PROGRESS")
    assert checked(here.root, engine="direct") == [
        (
            "the stack pfl-dev is in UPDATE_IN_PROGRESS"
            " (another deployment is in progress: wait until it is done)"
        )
    ]
    # moto cannot get into this state.
    monkeypatch.setattr(deploy.Deployment, "stack_status", lambda self: "ROLLBACK_COMPLETE")
    assert checked(here.root, engine="direct") == [
        "the stack pfl-dev is in ROLLBACK_COMPLETE (pfl remove --stage dev, then deploy again)"
    ]


def test_a_flow_that_cannot_be_imported_is_not_baked_and_names_its_line(here):
    here.write("raise ValueError('no')\n")
    environ = {**os.environ, "PFL_PROJECT": str(here.root)}
    done = subprocess.run(
        [os.sys.executable, "-m", "pfl.handler.bake", "m.json"],
        cwd=here.root,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: the flows cannot be imported: ValueError: no at flows/pipeline.py:2"
    )


def test_an_image_has_the_parts_of_its_fingerprints_in_its_manifest(here, monkeypatch):
    settings = Settings(project=str(here.root))
    expected = projects.load(settings).prints
    bake.bake(settings, here.root / "m.json")
    monkeypatch.setattr(projects, "_fingerprints", None)
    found = projects.load(settings._replace(manifest=str(here.root / "m.json"))).prints
    assert {step: (one.digest, one.parts, one.opaque) for step, one in found.items()} == {
        step: (one.digest, one.parts, one.opaque) for step, one in expected.items()
    }


def test_prefect_is_imported_without_fastapi(on_prefect):
    """FastAPI's encoder would cost each cold start 200 ms."""
    (on_prefect.root / "store").mkdir()
    program = (
        "from pfl.handler.entry import lambda_handler; "
        "assert lambda_handler({'id': 'cold'})['status'] == 'completed'"
    )
    environ = {
        "PFL_PROJECT": str(on_prefect.root),
        "PFL_STORE": str(on_prefect.root / "store"),
        "PREFECT_API_URL": on_prefect.settings.prefect_api_url,
    }
    loaded = loaded_after(program, on_prefect.root, **environ)
    assert "prefect.task_engine" in loaded
    assert "fastapi" not in loaded


def test_the_same_files_give_the_same_image_and_a_changed_one_another(here):
    first = image.digest(here.root, "x86_64")
    (here.root / "flows" / "__pycache__").mkdir(exist_ok=True)
    (here.root / "flows" / "__pycache__" / "x.pyc").write_bytes(b"")
    assert image.digest(here.root, "x86_64") == first
    assert image.digest(here.root, "arm64") != first
    here.write(FLOWS + "\n")
    assert image.digest(here.root, "x86_64") != first


def test_a_deployment_makes_the_block_of_its_store_in_prefect(here, prefect_server, monkeypatch):
    import boto3

    told: list[str] = []
    settings = Settings(project=str(here.root), prefect_api_url=prefect_server.url)
    at = deploy.Deployment(settings, "blocky", report=told.append)
    at.find_region()
    at.find_account()
    boto3.client("s3").create_bucket(Bucket=at.bucket)
    monkeypatch.setattr(at, "osls", lambda command, uri="": None)
    monkeypatch.setattr(remote, "call", lambda *args, **more: {"status": "completed"})
    at.deploy(IMAGE)
    assert "block s3-bucket/cache: create" in told
    api = environment.Api(prefect_server.url, "", "")
    block = prefect_api.ask(api, "/block_types/slug/s3-bucket/block_documents/name/cache")
    assert block["data"]["bucket_name"] == at.bucket
    at.deploy(IMAGE)
    assert told[-2:] == [
        "block s3-bucket/cache: keep",
        "checking that the function reaches its store and Prefect",
    ]
    prefect_api.ask(api, f"/block_documents/{block['id']}", method="DELETE")


def test_an_image_that_is_pushed_already_is_found_by_the_digest_of_its_files(here):
    import boto3

    at = deploy.Deployment(
        Settings(project=str(here.root), engine="direct"), report=lambda text: None
    )
    at.find_region()
    at.find_account()
    assert at.find_image(build=False).endswith("@sha256:" + "0" * 64)
    ecr = boto3.client("ecr")
    ecr.create_repository(repositoryName="pfl")
    tag = f"{image.digest(here.root, 'x86_64')[:16]}-x86_64"
    pushed = ecr.put_image(
        repositoryName="pfl", imageTag=tag, imageManifest=json.dumps(IN_REGISTRY)
    )["image"]["imageId"]["imageDigest"]
    assert at.find_image(build=True) == f"123456789012.dkr.ecr.us-east-1.amazonaws.com/pfl@{pushed}"


def test_prefects_key_is_read_from_secrets_manager_and_the_parameter_store(here, s3_env):
    import boto3

    arn = boto3.client("secretsmanager").create_secret(
        Name="prefect-key", SecretString="pnu_secret"
    )["ARN"]
    boto3.client("ssm").put_parameter(Name="/pfl/key", Value="pnu_parameter", Type="SecureString")
    assert aws.with_secret(Settings(prefect_secret=arn)).prefect_api_key == "pnu_secret"
    assert (
        aws.with_secret(
            Settings(prefect_secret="arn:aws:ssm:us-east-1:123456789012:parameter/pfl/key")
        ).prefect_api_key
        == "pnu_parameter"
    )
    assert (
        aws.with_secret(Settings(prefect_secret=arn, prefect_api_key="mine")).prefect_api_key
        == "mine"
    )
    with pytest.raises(aws.UnavailableError, match="could not be read"):
        aws.with_secret(Settings(prefect_secret=arn + "x"))
    with pytest.raises(InvalidRequestError, match="not the ARN"):
        aws.with_secret(Settings(prefect_secret="prefect-key"))


def test_prefects_key_is_read_with_the_aws_profile(here, s3_env, monkeypatch, tmp_path):
    import boto3

    arn = boto3.client("secretsmanager").create_secret(
        Name="of-a-profile", SecretString="pnu_profile"
    )["ARN"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "aws").write_text(
        "[work]\naws_access_key_id = of-work\naws_secret_access_key = s\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    signed, sign = [], signature.sign
    monkeypatch.setattr(
        signature, "sign", lambda *args, **more: signed.append(sign(*args, **more)) or signed[-1]
    )
    assert aws.with_secret(Settings(prefect_secret=arn)).prefect_api_key == "pnu_profile"
    assert ["Credential=of-work/" in headers["authorization"] for headers in signed] == [True]


def test_a_request_is_signed_as_botocore_signs_it(monkeypatch):
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    url, path, body, headers = (
        "https://ssm.eu-west-1.amazonaws.com",
        "/a/b-1",
        b'{"Name": "/k"}',
        {"content-type": "application/x-amz-json-1.1", "x-amz-target": "AmazonSSM.GetParameter"},
    )
    request = AWSRequest("POST", url + path, headers=headers, data=body)
    SigV4Auth(Credentials("AKID", "SECRET", "TOKEN"), "ssm", "eu-west-1").add_auth(request)
    environ = {
        "AWS_ACCESS_KEY_ID": "AKID",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_SESSION_TOKEN": "TOKEN",
    }
    ours = signature.sign(
        "POST",
        url,
        body,
        headers,
        service="ssm",
        region="eu-west-1",
        environ=environ,
        path=path,
        now=request.headers["X-Amz-Date"],
    )
    assert ours["authorization"] == request.headers["Authorization"]
