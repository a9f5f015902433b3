"""The Lambda extension ends the call that died in its sandbox: with AWS's own emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, values
from lambda_service import Sandbox
from test_reap import crashed, states

from pfl.handler.core.cache import history, lease
from pfl.handler.engine import causes, reap

FLOWS = """
import ctypes, os, resource, signal, threading
@step
def a(id: str) -> int:
    return 7
@step
def b(id: str, a: int, how: str = "") -> int:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(3)
    if how == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        kept = []
        while True:
            kept.append(bytearray(1 << 24))
    if how == "hang":
        # It ignores the signal that its time is over.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        threading.Event().wait()
    return a * 6
FLOWS = [flow("dying", a, b)]
"""


@pytest.fixture
def sandboxed(project, tmp_path):
    """A function that makes a sandbox with the extension."""
    if (
        sys.platform != "linux"
        or subprocess.run(["unshare", "-r", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("no mount namespace to show the emulator an extension in")
    project.write(FLOWS)
    extension = tmp_path / "pfl"
    extension.write_text(
        f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m pfl.serverless.extension\n"
    )
    extension.chmod(0o755)
    made = []

    def make(timeout_s: int, **environ: str) -> Sandbox:
        environ |= {"PFL_PROJECT": str(project.root), "TMPDIR": str(tmp_path)}
        config = {"FunctionName": "dying", "Timeout": timeout_s, "MemorySize": 3008}
        made.append(Sandbox(config, environ, project.root, extension))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()
        sandbox._process.stdout.close()


def invoke(sandbox: Sandbox, **event) -> tuple[dict | None, dict]:
    error, body, _ = sandbox.invoke(json.dumps(event).encode())
    return error, json.loads(body)


def test_the_call_of_a_killed_runtime_is_ended_while_its_caller_waits(
    sandboxed, project, prefect_server
):
    """Nobody else reaps here: the extension did it all."""
    project.knobs |= {"engine": "prefect", "prefect_api_url": prefect_server.url}
    sandbox, id = (
        sandboxed(
            120, PREFECT_API_URL=prefect_server.url, PFL_ENGINE="prefect", PFL_TAG_LIMITS="per-id"
        ),
        "ext-1",
    )
    error, _ = invoke(sandbox, id=id, params={"how": "kill"})
    assert "signal: killed" in error["errorMessage"]
    flows, tasks, runs = states(project, id)
    assert (flows, tasks) == (["CRASHED"], ["COMPLETED", "CRASHED"]), sandbox.log
    summary, detail, advice = runs[0].state.message.splitlines()
    assert "died: it exited by itself, or was killed while computing b" in summary
    assert "Lambda shut its sandbox down: releasefail" in detail
    assert "memory" in advice
    assert [
        body["cause"]
        for _, body in history.list_records(
            project.results, id=id, step="b", status="crashed", warn=pytest.fail
        )
    ] == ["failure"]
    assert lease.open_calls(project.results) == {}
    (line,) = [
        json.loads(line)
        for line in sandbox.log
        if line.startswith('{"pfl"') and '"crashed"' in line
    ]
    assert (line["id"], line["status"], line["steps"], line["error"]["type"]) == (
        id,
        "crashed",
        {"b": "crashed"},
        "failure",
    )
    error, reply = invoke(sandbox, id=id)
    assert (error, values(reply)) == (None, {"a": 7, "b": 42})


def test_the_call_of_a_runtime_that_ended_itself_is_ended(sandboxed, project, tmp_path):
    """The next call of the same sandbox computes; a MemoryError is no death."""
    sandbox = sandboxed(120, PFL_ENGINE="direct")
    for how, said in (("segfault", "signal: segmentation fault"), ("exit", "exit status 3")):
        error, _ = invoke(sandbox, id=how, params={"how": how})
        assert said in error["errorMessage"]
        (body,) = [
            body
            for _, body in history.list_records(
                project.results, id=how, step="b", status="crashed", warn=pytest.fail
            )
        ]
        assert (body["cause"], lease.open_calls(project.results)) == ("failure", {}), sandbox.log
        assert not os.path.exists(tmp_path / "pfl-call")
    error, reply = invoke(sandbox, id="memory", params={"how": "memory"})
    assert (error, reply["status"], reply["error"]["why"]) == (None, "failed", "MemoryError")
    for how in ("segfault", "exit", "memory"):
        assert values(invoke(sandbox, id=how)[1]) == {"a": 7, "b": 42}


def test_the_call_of_a_runtime_at_its_time_limit_is_ended_with_that_cause(
    sandboxed, project, tmp_path
):
    sandbox = sandboxed(5, PFL_ENGINE="direct", PFL_MARGIN_S="1")
    while invoke(sandbox, id="warm")[0] is not None:
        # The emulator counts the cold start, which can take five seconds on a busy machine.
        pass
    error, _ = invoke(sandbox, id="ext-2", params={"how": "hang"})
    assert error["errorType"] == "Sandbox.Timedout"
    assert [
        body["cause"]
        for _, body in history.list_records(
            project.results, id="ext-2", step="b", status="crashed", warn=pytest.fail
        )
    ] == ["timeout"], sandbox.log
    assert lease.open_calls(project.results) == {}
    assert not os.path.exists(tmp_path / "pfl-call")
    while "error" in (reply := invoke(sandbox, id="ext-2")[1]) or "steps" not in reply:
        # As above.
        pass
    assert values(reply) == {"a": 7, "b": 42}
    assert [row["status"] for row in reply["steps"]] == ["hit", "computed"]
    assert not os.path.exists(tmp_path / "pfl-call")


def test_without_its_store_the_extension_leaves_the_call_to_the_next_reap(project, tmp_path):
    call = lease.LeaseHolder(
        project.results, "abc", {"request_id": "r", "engine": "direct"}, ttl_s=600
    )
    call.claim({"b": {}})
    (tmp_path / "pfl-call").write_text(json.dumps({"call": call.token, "id": "abc"}))
    script = (
        "import time; from pfl.serverless import extension; "
        "extension.end_dead_call('timeout', killed_for_memory=False, until=time.time() + 2)"
    )
    for store, said in (
        ("/nowhere", "pfl runs reap will clean up the call"),
        ("", "reached the function's time limit while computing b"),
    ):
        environ = {**os.environ, "TMPDIR": str(tmp_path), "PFL_STORE": store}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True
        )
        assert (done.returncode, said in done.stderr) == (0, True), done.stderr
    assert lease.open_calls(project.results) == {}


@pytest.mark.parametrize(
    ("reason", "for_memory", "cause"),
    [
        ("timeout", False, "timeout"),
        ("failure", False, "failure"),
        ("failure", True, "memory"),
        ("spindown", False, "gone"),
    ],
)
def test_the_reason_of_a_shutdown_gives_the_cause(reason, for_memory, cause):
    assert causes.from_shutdown(reason, killed_for_memory=for_memory)[0] == cause
    assert cause in causes.CAUSES


def test_the_receiver_of_a_function_error_ends_the_call_with_its_cause(project):
    call = lease.LeaseHolder(
        project.results, "abc", {"request_id": "req-7", "engine": "direct"}, ttl_s=600
    )
    call.claim({"a": {}})
    assert reap.reap_failed_request(project.results, project.settings, "req-8", "memory", "") == []
    (row,) = reap.reap_failed_request(
        project.results, project.settings, "req-7", "memory", "Runtime.OutOfMemory"
    )
    assert (row["cause"], row["steps"]) == ("memory", ["a"])
    assert "ran out of memory while computing a" in row["what"]
    assert [record["cause"] for record in crashed(project)] == ["memory"]
    assert lease.open_calls(project.results) == {}
