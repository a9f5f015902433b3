"""``pfl invoke`` and boto3 on a deployed function: real sandboxes behind Lambda's own contract."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import io
import json
import os
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, statuses, values
from lambda_service import ASYNC_BYTES, SYNC_BYTES, LambdaService
from test_cli import Ran, pfl
from test_imports import loaded_after

from pfl.handler.core.cache import lease
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import objects as stores
from pfl.serverless import remote

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="AWS's emulator and runtime client are Linux programs"
)

FLOWS = """
    import os, signal, sys, threading

    os.write(2, b"the flows are imported\\n")

    @step
    def one(id: str, size: int = 0, rate: float = 1.0) -> object:
        return "x" * size if size else rate

    @step
    def two(id: str, one) -> object:
        print("two is computed")
        return [one, 2]

    @step
    def die(id: str, one, how: str = "") -> int:
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raise":
            raise ValueError("as asked")
        if how == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            threading.Event().wait()
        if how == "eat":
            eaten = []
            while True:
                eaten.append(bytearray(os.urandom(1024)) * 4096)
        return 7

    @step
    def where(id: str) -> list:
        threading.Barrier(1).wait()
        with open(os.environ["MEET"] + "/" + id, "w"):
            pass
        while len(os.listdir(os.environ["MEET"])) < 8:
            threading.Event().wait(0.01)
        return [os.getpid()]

    FLOWS = [flow("main", one, two), flow("deaths", one, die), flow("meet", where)]
"""


def _role() -> str:
    import boto3

    iam = boto3.client("iam")
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "lambda.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    return iam.create_role(
        RoleName=f"pfl-{uuid.uuid4().hex[:8]}", AssumeRolePolicyDocument=json.dumps(trust)
    )["Role"]["Arn"]


class Deployed:
    """A project with a function in the service, called with boto3 and by ``pfl``."""

    def __init__(self, service: LambdaService, root: Path, client, role: str, meet: Path) -> None:
        self.service, self.root, self.client, self.role, self.meet = (
            service,
            root,
            client,
            role,
            meet,
        )

    @property
    def plain(self) -> str:
        """A function that many tests share, so that few have a cold start."""
        if not self.service.__dict__.get("plain"):
            self.service.plain = self.function()
        return self.service.plain

    def function(
        self,
        timeout: int = 30,
        memory: int = 512,
        concurrency: int | None = None,
        handler: str = "",
        **variables: str,
    ) -> str:
        """Create a function of this code, and return its name."""
        name = f"pfl-{uuid.uuid4().hex[:8]}"
        with io.BytesIO() as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("empty", "")
            code = file.getvalue()
        environ = {
            "PFL_PROJECT": str(self.root),
            "PFL_STORE": str(self.root / "store"),
            "PFL_ENGINE": "direct",
            "PFL_MANIFEST": str(self.root / "manifest.json"),
            "MEET": str(self.meet),
        }
        self.client.create_function(
            FunctionName=name,
            Runtime="python3.12",
            Role=self.role,
            Handler=handler or "pfl.handler.entry.lambda_handler",
            Code={"ZipFile": code},
            Timeout=timeout,
            MemorySize=memory,
            Environment={"Variables": environ | variables},
        )
        if concurrency is not None:
            self.client.put_function_concurrency(
                FunctionName=name, ReservedConcurrentExecutions=concurrency
            )
        return name

    def raw(self, function: str, event: object) -> dict:
        """The answer to *event*, as it is."""
        answer = self.client.invoke(FunctionName=function, Payload=json.dumps(event).encode())
        return json.loads(answer["Payload"].read())

    def pfl(self, function: str, *arguments: str, **environ: str) -> Ran:
        """``pfl invoke`` in this process, since importing boto3 takes long."""
        return run(
            "invoke",
            "--function",
            function,
            *arguments,
            **{"PFL_STORE": str(self.root / "store"), "PFL_ENGINE": "direct"} | environ,
        )


def run(*arguments: str, **environ: str) -> Ran:
    """A command of ``pfl`` in this process."""
    from pfl.cli import main

    before, out, err = dict(os.environ), io.StringIO(), io.StringIO()
    os.environ.update(environ)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main.main(list(arguments))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Ran(
        subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())
    )


@pytest.fixture(scope="module")
def service(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaService]:
    with LambdaService(s3_url, tmp_path_factory.mktemp("task")) as running:
        yield running


@pytest.fixture
def deployed(
    service: LambdaService,
    s3_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory,
) -> Deployed:
    import boto3
    from botocore.config import Config

    root = service.task
    monkeypatch.chdir(root)
    monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
    if not (root / "manifest.json").exists():
        project = Project(root)
        project.write(FLOWS)
        (root / "store").mkdir()
        from pfl.handler import bake

        bake.bake(Settings(project=str(root)), root / "manifest.json")
    client = boto3.client(
        "lambda", endpoint_url=service.url, config=Config(retries={"total_max_attempts": 1})
    )
    return Deployed(service, root, client, _role(), tmp_path_factory.mktemp("meet"))


def test_a_miss_is_computed_in_a_sandbox_and_the_next_call_is_a_hit(deployed):
    function = deployed.function()
    first, second = deployed.raw(function, {"id": "m1"}), deployed.raw(function, {"id": "m1"})
    assert statuses(first) == {"one": "computed", "two": "computed"}
    assert values(first) == {"one": 1.0, "two": [1.0, 2]}
    assert statuses(second) == {"one": "hit", "two": "hit"}
    assert second["store"] == {"get": 1}
    assert (first["cold_start"], second["cold_start"]) == (True, False)
    assert first["request_id"] != second["request_id"]


def test_pfl_invoke_calls_the_function_and_prints_its_reply(deployed):
    function = deployed.plain
    ran = deployed.pfl(function, "--id", "m2", "--param", "rate=2", "--json")
    assert (ran.code, values(ran.data)) == (0, {"one": 2.0, "two": [2.0, 2]})
    assert f"calling function {function}" in ran.err
    assert "deployed code" not in ran.err
    again = deployed.pfl(function, "--id", "m2", "--param", "rate=2")
    assert again.out.splitlines()[1].split()[:3] == ["one", "hit", "2.0"]
    assert "2 of 2 steps from the cache" in again.err
    assert deployed.pfl(function, "--id", "m2", "--step", "nope").code == 2
    assert deployed.pfl(function, "--id", "never", "--cached-only").code == 3
    local = run(
        "invoke",
        "--id",
        "m2",
        "--local",
        PFL_FUNCTION=function,
        PFL_STORE=str(deployed.root / "store"),
        PFL_ENGINE="direct",
    )
    assert "running here" in local.err
    process = pfl(
        "invoke",
        "--id",
        "m2",
        "--endpoint-url",
        deployed.service.url,
        "--json",
        PFL_FUNCTION=function,
        AWS_ENDPOINT_URL="",
    )
    assert values(process.data) == {"one": 1.0, "two": [1.0, 2]}


def test_a_function_of_other_code_is_called_with_a_warning(deployed, monkeypatch):
    function = deployed.plain
    path = deployed.root / "flows" / "pipeline.py"
    before = path.read_text()
    try:
        path.write_text(before.replace("[one, 2]", "[one, 3]"))
        ran = deployed.pfl(function, "--id", "m1", "--flow", "main", "--json")
    finally:
        path.write_text(before)
    assert ran.code == 0
    assert "the deployed code differs from the code here" in ran.err


def test_a_step_that_raises_is_a_reply_and_not_a_function_error(deployed):
    ran = deployed.pfl(
        deployed.plain, "--id", "e1", "--flow", "deaths", "--param", "how=raise", "--json"
    )
    assert (ran.code, ran.data["error"]["type"]) == (4, "StepFailedError")
    assert statuses(ran.data) == {"one": "computed", "die": "failed"}


DEATHS = {
    "exit": ({}, "FunctionExitedError", "exit status 3"),
    "kill": ({}, "FunctionOutOfMemoryError", "probably because it ran out of memory"),
    "eat": ({"memory": 128}, "FunctionOutOfMemoryError", "ran out of memory"),
    "hang": (
        {"timeout": 3, "PFL_MARGIN_S": "1"},
        "FunctionTimedOutError",
        "Task timed out after 3.00 seconds",
    ),
}


@pytest.mark.parametrize("how", DEATHS)
def test_each_death_of_the_process_has_its_error_and_the_next_call_works(deployed, how):
    config, kind, words = DEATHS[how]
    function = deployed.function(**config)
    ran = deployed.pfl(
        function, "--id", f"d-{how}", "--flow", "deaths", "--param", f"how={how}", "--json"
    )
    assert ran.code == 5
    assert ran.data["error"]["type"] == kind
    assert words in ran.data["error"]["what"] + ran.data["error"]["why"]
    assert ran.data["error"]["hint"]
    assert "the end of its log:" in ran.err
    assert "while computing die: its runs are marked as Crashed" in ran.err
    assert (
        lease.open_calls(
            stores.of(Settings(project=str(deployed.root), store=str(deployed.root / "store")))
        )
        == {}
    )
    assert "START RequestId" in ran.err
    after = deployed.raw(
        function, {"id": f"d-{how}", "flow": "deaths", "step": "one", "params": {}}
    )
    assert statuses(after) == {"one": "hit"}  # What was finished before the death is saved.


def test_a_module_that_cannot_be_imported_is_an_import_error(deployed):
    ran = deployed.pfl(deployed.function(handler="pfl.handler.nowhere.f"), "--id", "x", "--json")
    assert "No module named" in ran.err  # From the log.
    assert (ran.code, ran.data["error"]["type"]) == (5, "FunctionImportError")
    assert "No module named" in ran.data["error"]["why"]


def test_a_value_too_large_to_send_comes_back_by_reference_and_is_fetched(deployed):
    function = deployed.plain
    size = SYNC_BYTES + 1
    raw = deployed.raw(function, {"id": "big", "step": "one", "params": {"size": size}})
    assert (raw["steps"][0]["value"], raw["steps"][0]["value_bytes"]) == (None, size + 2)
    ran = deployed.pfl(
        function, "--id", "big", "--step", "one", "--param", f"size={size}", "--json"
    )
    assert ran.data["steps"][0]["value"] == "x" * size
    assert "value_bytes" not in ran.data["steps"][0]
    lost = deployed.pfl(
        function, "--id", "big", "--step", "one", "--param", f"size={size}", PFL_STORE=""
    )
    assert lost.code == 5
    assert "PFL_STORE" in lost.err


def test_an_event_too_large_is_refused_before_it_is_sent(deployed):
    function = deployed.plain
    before = len(deployed.service.asked)
    for more, most in (([], SYNC_BYTES), (["--async"], ASYNC_BYTES)):
        event = deployed.root / "event.json"
        event.write_text(json.dumps({"id": "x", "params": {"rate": "9" * most}}))
        ran = deployed.pfl(function, "--event", f"@{event}", *more, "--json")
        assert (ran.code, ran.data["error"]["what"]) == (2, "the event is too large for Lambda")
        assert f"{event.stat().st_size} bytes, {most} at most" in ran.data["error"]["why"]
    assert len(deployed.service.asked) == before
    # What Lambda itself answers.
    with pytest.raises(deployed.client.exceptions.RequestTooLargeException):
        deployed.client.invoke(
            FunctionName=function, Payload=event.read_bytes(), InvocationType="Event"
        )


def test_a_throttled_call_is_tried_again(deployed):
    function = deployed.plain
    deployed.service.throttle = 2
    ran = deployed.pfl(function, "--id", "t1", "--json")
    assert ran.code == 0
    assert deployed.service.throttle == 0


def test_a_function_that_stays_throttled_is_an_error(deployed, monkeypatch):
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda self, context: 0)
    function = deployed.function(concurrency=0)
    with pytest.raises(remote.UnavailableError, match="is throttled: refused 6 times") as caught:
        remote.call(remote.Target(function), {"id": "x"})
    answer = caught.value.__cause__.response
    assert answer["ResponseMetadata"]["RetryAttempts"] == 5


def test_an_async_call_returns_at_once_and_computes_later(deployed):
    function = deployed.plain
    ran = deployed.pfl(function, "--id", "later", "--async", "--json")
    assert (ran.code, ran.data["status"]) == (0, "queued")
    assert "to follow it: pfl logs -f --id later" in ran.err
    deployed.service.drain()
    assert statuses(deployed.raw(function, {"id": "later", "cached_only": True})) == {
        "one": "hit",
        "two": "hit",
    }


def test_the_image_calls_its_own_function_without_boto3(deployed, monkeypatch):
    from pfl.handler.engine.prefect import scheduled_runs

    monkeypatch.setitem(sys.modules, "boto3", None)
    function, run_id = deployed.plain, str(uuid.uuid4())
    scheduled_runs._invoke(function, run_id)
    assert deployed.service.asked[-1] == (function, "Event")
    with pytest.raises(remote.UnavailableError, match="Function not found"):
        scheduled_runs._invoke("nowhere", run_id)
    deployed.service.drain()


def test_an_async_call_that_dies_is_tried_three_times(deployed):
    function, event = deployed.function(handler="pfl.handler.nowhere.f"), {"id": "dead"}
    deployed.client.invoke(
        FunctionName=function, Payload=json.dumps(event).encode(), InvocationType="Event"
    )
    deployed.service.drain()
    (name, payload, error) = deployed.service.dead.pop()
    assert (name, json.loads(payload), error["errorType"]) == (
        function,
        event,
        "Runtime.ImportModuleError",
    )


def test_eight_calls_at_once_run_in_eight_sandboxes_and_a_ninth_is_refused(deployed):
    function = deployed.function(concurrency=8)
    for path in deployed.meet.iterdir():
        path.unlink()
    deployed.client.put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=8)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(lambda n: deployed.raw(function, {"id": f"c{n}", "flow": "meet"}), range(8))
        )
    assert len({reply["steps"][0]["value"][0] for reply in replies}) == 8
    assert all(reply["cold_start"] for reply in replies)
    # They ran together; now each sandbox is thawed and answers again.
    assert statuses(deployed.raw(function, {"id": "c3", "flow": "meet"})) == {"where": "hit"}


def test_a_sandbox_that_was_frozen_between_calls_continues(deployed, bucket, prefect_server):
    """Its connections to S3 and Prefect are open when it is frozen."""
    function = deployed.function(
        timeout=600,
        PFL_STORE=f"s3://{bucket}/pfl",
        PFL_ENGINE="prefect",
        PREFECT_API_URL=prefect_server.url,
    )
    first = deployed.raw(function, {"id": "f1"})
    frozen = [pid for box in deployed.service.sandboxes for pid in box.processes()]
    assert {
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in frozen
    } == {"T"}
    second, third = deployed.raw(function, {"id": "f2"}), deployed.raw(function, {"id": "f2"})
    assert [statuses(reply) for reply in (first, second)] == [
        {"one": "computed", "two": "computed"}
    ] * 2
    assert [reply["warnings"] for reply in (first, second, third)] == [[], [], []]
    assert (second["cold_start"], third["store"]) == (False, {"get": 1})
    assert all(
        reply["url"].startswith(prefect_server.url.removesuffix("/api"))
        for reply in (first, second)
    )


def test_a_request_of_a_function_url_is_answered_with_a_status(deployed):
    function = deployed.plain

    def post(body: str, **more: object) -> dict:
        context = {"http": {"method": "POST", "path": "/"}}
        answer = deployed.raw(
            function,
            {"version": "2.0", "requestContext": context, "body": body, "isBase64Encoded": False}
            | more,
        )
        return {"http": answer["statusCode"], **json.loads(answer["body"])}

    assert post('{"id": "u1"}')["steps"][0]["status"] == "computed"
    assert (
        post(base64.b64encode(b'{"id": "u1"}').decode(), isBase64Encoded=True)["steps"][0]["status"]
        == "hit"
    )
    got = {
        body: post(body)["http"]
        for body in (
            '{"id": "u2", "cached_only": true}',
            '{"id": ""}',
            "{",
            "",
            '{"id": "u1", "flow": "deaths", "params": {"how": "raise"}}',
        )
    }
    assert list(got.values()) == [404, 400, 400, 400, 500]
    assert (
        deployed.raw(function, {"version": "2.0", "requestContext": {"http": {}}, "body": "{}"})[
            "statusCode"
        ]
        == 400
    )


def test_a_schedule_reaps_or_sends_what_it_was_given(deployed):
    function = deployed.plain
    tick = {
        "version": "0",
        "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
        "source": "aws.events",
        "detail-type": "Scheduled Event",
        "detail": {},
        "time": "2026-01-01T00:00:00Z",
    }
    assert deployed.raw(function, tick)["action"] == "reap"
    assert deployed.raw(function, {"action": "reap"})["status"] == "completed"
    assert statuses(deployed.raw(function, tick | {"detail": {"id": "s1", "step": "one"}})) == {
        "one": "computed"
    }


@pytest.mark.parametrize(
    "event",
    [
        {"Records": [{"eventSource": "aws:sqs"}]},
        {"httpMethod": "GET", "requestContext": {"elb": {}}},
        {"source": "aws.s3", "detail-type": "Object Created", "detail": {"id": "x"}},
    ],
)
def test_an_event_of_an_unknown_shape_is_an_error(deployed, event):
    reply = deployed.raw(deployed.plain, event)
    field = next(iter(event))
    assert (reply["status"], reply["error"]["what"]) == (
        "invalid",
        f"unknown field {field!r} in the event",
    )


def test_each_call_leaves_one_line_of_json_in_the_log(deployed, s3_env):
    function = deployed.plain
    reply = deployed.raw(function, {"id": "l1"})
    deployed.raw(function, {"id": "l1", "flow": "deaths", "params": {"how": "raise"}})
    logged = [
        json.loads(line)
        for box in deployed.service.sandboxes
        for line in box.log
        if line.startswith('{"pfl"')
    ]
    mine = [line for line in logged if line["id"] == "l1"]
    assert mine[0]["request_id"] == reply["request_id"]
    assert (mine[0]["steps"], mine[0]["status"], mine[0]["cold_start"]) == (
        {"one": "computed", "two": "computed"},
        "completed",
        reply["cold_start"],
    )
    assert mine[1]["error"]["type"] == "StepFailedError"


@pytest.mark.parametrize("preload", ["0", "1"])
def test_with_preload_the_flows_are_imported_in_the_init_phase(deployed, preload):
    function, before = deployed.function(PFL_PRELOAD=preload), deployed.service.sandboxes
    assert statuses(deployed.raw(function, {"id": f"p{preload}", "step": "one"})) == {
        "one": "computed"
    }
    (sandbox,) = set(deployed.service.sandboxes) - set(before)
    order = [
        word
        for line in sandbox.log
        for word in ("the flows are imported", "INVOKE START")
        if word in line
    ]
    assert order == (
        ["the flows are imported", "INVOKE START"]
        if preload == "1"
        else ["INVOKE START", "the flows are imported"]
    )


def test_with_preload_prefect_is_imported_before_the_first_call(deployed):
    loaded = loaded_after(
        "import pfl.handler.entry",
        deployed.root,
        PFL_PRELOAD="1",
        PFL_PROJECT=str(deployed.root),
        PREFECT_API_URL="http://127.0.0.1:9/api",
    )
    assert {"prefect.context", "pfl.handler.engine.prefect.session", "flows.pipeline"} <= loaded


def test_errors_name_what_is_wrong_with_a_name_or_the_credentials(deployed):
    ran = deployed.pfl("nowhere", "--id", "x", "--json")
    assert (ran.code, ran.data["error"]["type"]) == (3, "NotFoundError")
    assert "pfl deploy" in ran.data["error"]["hint"]
    none = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    ran = deployed.pfl("nowhere", "--id", "x", "--json", **none)
    assert (ran.code, ran.data["error"]["what"]) == (2, "no AWS credentials found")
    ran = deployed.pfl(
        "nowhere", "--id", "x", "--json", AWS_REGION="", AWS_DEFAULT_REGION="", AWS_ENDPOINT_URL=""
    )
    assert (ran.code, ran.data["error"]["what"]) == (2, "no AWS region is set"), ran.data
    ran = deployed.pfl("nowhere", "--id", "x", "--json", AWS_PROFILE="nobody")
    assert (ran.code, ran.data["error"]["what"]) == (2, "the AWS profile does not exist")
    ran = deployed.pfl("f", "--id", "x", "--endpoint-url", "http://127.0.0.1:9", "--json")
    assert (ran.code, "cannot be reached" in ran.data["error"]["what"]) == (5, True)
