"""
Runs that Prefect schedules: claimed once, and run by a worker or a poll, with the right states.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import forked
import pytest
from conftest import ROOT, Project
from lambda_service import DENIED, THROTTLED, LambdaService
from servers import Loopback, function_url, s3_error
from test_engine import ask, task_runs
from test_lambda import Deployed, _role

from pfl.handler import entry
from pfl.handler.core.cache import lease
from pfl.handler.engine.prefect import client as prefect_api
from pfl.handler.engine.prefect import session
from pfl.handler.engine.prefect.environment import Api

ORDINARY = """
    import asyncio
    from prefect import flow, task

    @task
    def double(n: int) -> int:
        return 2 * n

    @flow
    def plain(n: int = 3) -> int:
        return double(n)

    @flow(retries=1)
    def parent(n: int) -> int:
        return plain(n) + plain(n + 1)

    @flow
    async def slowly(n: int = 3) -> int:
        if n < 0:
            raise ValueError("n is below zero")
        return n
"""


class Pool:
    """A work pool with the deployments of a project, and runs as the UI's Run button makes them."""

    def __init__(self, project: Project, url: str, name: str) -> None:
        self.project, self.url, self.name = project, url, name

    def set_up(self, function: str = "pfl") -> None:
        from pfl.serverless import prefect_setup

        with session.session(self.project.settings, lambda step, doing: None):
            for change in prefect_setup.deployments(
                Api(self.url, "", ""), self.project.settings, pool=self.name, function=function
            ):
                change.make()

    def run(self, flow: str, job_variables: dict | None = None, **parameters: object) -> str:
        """Press *Run*, and return the flow run's ID."""
        deployment = ask(self.url, f"/deployments/name/{flow}/lambda")["id"]
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}} | (
            {"job_variables": job_variables} if job_variables else {}
        )
        return ask(self.url, f"/deployments/{deployment}/create_flow_run", body)["id"]

    def seen(self, id: str) -> dict:
        return ask(self.url, f"/flow_runs/{id}")

    def states(self, id: str) -> list[str]:
        return [state["name"] for state in ask(self.url, f"/flow_run_states/?flow_run_id={id}")]

    def until(self, id: str, *types: str) -> dict:
        """Wait until the run has one of these states, and return it."""
        for _ in range(3000):  # Reached only if something is broken.
            if (run := self.seen(id))["state_type"] in types:
                return run
            threading.Event().wait(0.1)
        raise AssertionError(f"{run['state_name']}: {run['state']['message']}")

    def cancel(self, id: str, type: str) -> None:
        ask(
            self.url,
            f"/flow_runs/{id}/set_state",
            {"state": {"type": type, "name": type.capitalize()}, "force": True},
        )


@pytest.fixture
def pool(on_prefect: Project, prefect_server, request, monkeypatch) -> Pool:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    name = f"pool-{abs(hash(request.node.name)) % 10**8}"
    on_prefect.knobs["work_pool"] = name
    return Pool(on_prefect, prefect_server.url, name)


def test_a_scheduled_run_runs_here_once_with_the_usual_name_and_tags(pool):
    pool.set_up()
    id = pool.run("meaning", id="ui-1", step="b")
    reply = pool.project.handle({"flow_run_id": id})
    assert (reply["status"], reply["claimed"], reply["flow_run_id"]) == ("completed", True, id)
    assert {row["step"]: row["status"] for row in reply["steps"]} == {
        "a": "computed",
        "b": "computed",
    }
    assert {row["flow_run_id"] for row in reply["steps"]} == {id}
    assert pool.states(id) == ["Scheduled", "Claimed", "Running", "Completed"]
    run = pool.seen(id)
    assert run["name"] == "meaning/ui-1/b"
    assert {"id=ui-1", "step=b", "pfl"} <= set(run["tags"])
    again = pool.project.handle({"flow_run_id": id})
    assert (again["status"], again["claimed"], again["why"]) == (
        "completed",
        False,
        "it is already Completed",
    )
    assert len(task_runs(pool.project, id, 2)) == 2
    assert lease.open_calls(pool.project.results) == {}


def test_what_is_stored_is_shown_as_cached(pool):
    pool.set_up()
    pool.project.call("ui-2", engine="direct", step="b")
    id = pool.run("meaning", id="ui-2")
    assert pool.project.handle({"flow_run_id": id})["status"] == "completed"
    tasks = {task["name"]: task for task in task_runs(pool.project, id, 3)}
    assert {name: task["state_name"] for name, task in tasks.items()} == {
        "a[ui-2]": "Cached",
        "b[ui-2]": "Cached",
        "c[ui-2]": "Completed",
    }
    assert (
        tasks["b[ui-2]"]["cache_key"] and tasks["b[ui-2]"]["task_inputs"]["id"][0]["name"] == "ui-2"
    )
    whole = pool.run("meaning", id="ui-2", step="c")
    assert pool.project.handle({"flow_run_id": whole})["steps"][-1]["status"] == "hit"
    assert [task["state_name"] for task in task_runs(pool.project, whole, 1)] == ["Cached"]


def test_one_of_many_claims_succeeds(pool):
    from pfl.handler.engine.prefect import scheduled_runs

    pool.set_up()
    api, meet, won = Api(pool.url, "", ""), threading.Barrier(8), []
    for type in ("SCHEDULED", "PENDING"):
        id = pool.run("meaning", id="ui-3")
        if type == "PENDING":
            ask(
                pool.url,
                f"/flow_runs/{id}/set_state",
                {"state": {"type": type, "name": "Submitting"}},
            )

        def race(id=id) -> None:
            meet.wait()
            won.append(
                scheduled_runs._claim(api, id, threading.current_thread().name, {}) is not None
            )

        racers = [threading.Thread(target=race) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
    assert sorted(won) == [False] * 14 + [True] * 2


def test_a_run_that_was_cancelled_before_it_began_does_not_begin(pool):
    pool.set_up()
    for type in ("CANCELLED", "CANCELLING"):
        id = pool.run("meaning", id="ui-4")
        pool.cancel(id, type)
        assert pool.project.handle({"flow_run_id": id})["claimed"] is False
        assert pool.seen(id)["state_type"] == "CANCELLED"
    assert list(pool.project.results.list("results/ui-4")) == []


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Prefect leaves the sockets of an async flow to the garbage collector.
def test_ordinary_flows_run_as_they_are(pool):
    pool.project.write(ORDINARY, "more")
    pool.set_up()
    ids = [
        pool.run("plain", n=4),
        pool.run("slowly"),
        pool.run("slowly", n=-1),
        pool.run("parent", n=1),
    ]
    replies = [pool.project.handle({"flow_run_id": id}) for id in ids]
    assert [reply["status"] for reply in replies] == [
        "completed",
        "completed",
        "failed",
        "completed",
    ]
    assert [pool.states(id)[-2:] for id in ids] == [
        ["Running", end] for end in ("Completed", "Completed", "Failed", "Completed")
    ]
    assert "n is below zero" in pool.seen(ids[2])["state"]["message"]
    assert len(task_runs(pool.project, ids[0], 1)) == 1
    assert len(task_runs(pool.project, ids[3], 2)) == 2  # For the flows within it.
    gc.collect()  # Here, where its warning is expected.


STOPPED = """
    import os, signal, threading
    from prefect import flow

    @flow
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @flow
    def hangs() -> None:
        threading.Event().wait()
"""


def test_an_ordinary_flow_that_dies_or_is_stopped_ends_in_prefect(pool):
    pool.project.write(STOPPED, "more")
    pool.set_up()
    dead, cancelled, late = pool.run("dies"), pool.run("hangs"), pool.run("hangs")
    script = (
        f"from pfl.handler.entry import lambda_handler; lambda_handler({{'flow_run_id': {dead!r}}})"
    )
    environ = {**os.environ, "PREFECT_API_URL": pool.url, "PFL_ENGINE": "prefect"}
    assert forked.run([sys.executable, "-c", script], env=environ).returncode == -9
    assert pool.seen(dead)["state_type"] == "RUNNING"
    (row,) = pool.project.handle({"action": "reap"})["reaped"]
    assert (row["runs"], pool.seen(dead)["state_type"]) == ([dead], "CRASHED")
    threading.Thread(
        target=lambda: (pool.until(cancelled, "RUNNING"), pool.cancel(cancelled, "CANCELLING")),
        daemon=True,
    ).start()
    assert pool.project.handle({"flow_run_id": cancelled})["status"] == "cancelled"
    assert pool.seen(cancelled)["state_type"] == "CANCELLED"
    raw = {"flow_run_id": late}
    reply = entry.handle(
        raw, pool.project.settings, deadline=time.monotonic() + pool.project.settings.margin_s + 3
    )
    assert (reply["status"], reply["error"]["type"]) == ("failed", "OutOfTimeError")
    state = pool.seen(late)["state"]
    assert (state["type"], "flow hangs was stopped" in state["message"]) == ("CRASHED", True)
    assert lease.open_calls(pool.project.results) == {}


def test_ctrl_c_ends_an_ordinary_flow_as_cancelled_at_once(pool):
    pool.project.write(STOPPED, "more")
    pool.set_up()
    id = pool.run("hangs")
    script = (
        f"from pfl.handler.entry import lambda_handler; lambda_handler({{'flow_run_id': {id!r}}})"
    )
    environ = {**os.environ, "PREFECT_API_URL": pool.url, "PFL_ENGINE": "prefect"}
    with forked.Popen([sys.executable, "-c", script], env=environ) as child:
        pool.until(id, "RUNNING")
        child.send_signal(signal.SIGINT)
    assert child.returncode
    state = pool.seen(id)["state"]
    assert (state["type"], state["message"]) == ("CANCELLED", "interrupted")
    assert lease.open_calls(pool.project.results) == {}


def test_a_run_that_cannot_start_has_the_reason_in_prefect(pool):
    pool.project.write(ORDINARY, "more")
    pool.set_up()
    runs = [
        pool.run("parent", n=1, more=2),
        pool.run("plain"),
        pool.run("meaning", id="a\nb"),
        pool.run("meaning", id="ui-5", bust="all"),
    ]
    reply = pool.project.handle({"flow_run_id": runs[0]})
    (pool.project.root / "flows" / "more.py").unlink()
    sys.modules.pop("flows.more", None)
    replies = [reply, *(pool.project.handle({"flow_run_id": id}) for id in runs[1:])]
    assert [(reply["status"], reply["claimed"]) for reply in replies] == [("invalid", True)] * 3 + [
        ("completed", True)
    ]
    told = [pool.seen(id)["state"] for id in runs[:3]]
    assert {state["type"] for state in told} == {
        "FAILED"
    }  # Not scheduled again, though parent has a retry.
    for words, state in zip(
        ("parameters ['n', 'more']", "the image lacks the flow 'plain'", "control character"),
        told,
        strict=True,
    ):
        assert words in state["message"]


def test_a_run_whose_store_refuses_is_a_crash_with_the_reason(pool, s3_env, monkeypatch):
    pool.set_up()
    id = pool.run("meaning", id="ui-6")
    with Loopback(lambda method, path: s3_error(403, "AccessDenied")) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        pool.project.knobs["store"] = "s3://denied/pfl"
        reply = pool.project.handle({"flow_run_id": id})
    assert (reply["status"], reply["claimed"], reply["error"]["type"]) == (
        "failed",
        True,
        "UnavailableError",
    )
    assert (
        pool.seen(id)["state_type"],
        "s3://denied/pfl" in pool.seen(id)["state"]["message"],
    ) == ("CRASHED", True)


def test_a_run_for_later_is_not_claimed(pool):
    pool.set_up()
    deployment = ask(pool.url, "/deployments/name/meaning/lambda")["id"]
    state = {
        "type": "SCHEDULED",
        "state_details": {"scheduled_time": (datetime.now(UTC) + timedelta(hours=1)).isoformat()},
    }
    id = ask(
        pool.url,
        f"/deployments/{deployment}/create_flow_run",
        {"parameters": {"id": "ui-7"}, "state": state},
    )["id"]
    reply = pool.project.handle({"flow_run_id": id})
    assert (reply["status"], reply["claimed"], "it is scheduled for" in reply["why"]) == (
        "completed",
        False,
        True,
    )
    assert pool.states(id) == ["Scheduled"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ({"flow_run_id": "x"}, "invalid"),
        ({"flow_run_id": 3}, "invalid"),
        ({"flow_run_id": ""}, "invalid"),
        ({"flow_run_id": None}, "invalid"),
        ({"flow_run_id": "00000000-0000-4000-8000-000000000000"}, "miss"),
        ({"flow_run_id": "x", "id": "abc"}, "invalid"),
        ({"action": "poll", "pool": "no-such-pool"}, "miss"),
        ({"action": "poll", "pool": 3}, "invalid"),
        ({"action": "poll", "id": "abc"}, "invalid"),
    ],
)
def test_an_invalid_event_is_an_error(pool, raw, status):
    reply = pool.project.handle(raw)
    assert (reply["status"], bool(reply["error"]["hint"] or reply["error"]["why"])) == (
        status,
        True,
    )


def test_a_poll_runs_what_is_due_and_ends_what_never_began(pool, monkeypatch):
    from pfl.handler.engine.prefect import scheduled_runs

    pool.set_up()
    ids = [pool.run("meaning", id=f"poll-{n}") for n in range(2)]
    lost, cancelled = pool.run("meaning", id="poll-lost"), pool.run("meaning", id="poll-cancelled")
    ask(
        pool.url,
        f"/flow_runs/{lost}/set_state",
        {"state": {"type": "PENDING", "name": "Submitting"}},
    )
    pool.cancel(cancelled, "CANCELLING")
    reply = pool.project.handle({"action": "poll"})
    assert {
        row["flow_run_id"]: (row["status"], row["claimed"]) for row in reply["runs"]
    } == dict.fromkeys(ids, ("completed", True))
    assert pool.project.handle({"action": "poll"})["runs"] == []
    assert pool.seen(lost)["state_type"] == "PENDING"
    monkeypatch.setattr(scheduled_runs, "_LOST_S", -60)
    pool.project.handle({"action": "poll"})
    assert (
        pool.seen(lost)["state_type"],
        "never started" in pool.seen(lost)["state"]["message"],
    ) == ("CRASHED", True)
    assert pool.seen(cancelled)["state_type"] == "CANCELLED"


def test_the_automation_of_the_docs_calls_the_function_s_url(pool):
    pool.set_up()
    recipe = json.loads(
        re.search(r"```json\n(.*?)```", (ROOT / "docs" / "prefect.md").read_text(), flags=re.S)[
            1
        ].replace('"pfl"', f'"{pool.name}"')
    )
    from prefect.blocks.webhook import Webhook

    called: list[dict] = []
    with function_url(lambda request: called.append(entry.lambda_handler(request))) as url:
        with session.session(pool.project.settings, lambda step, doing: None):
            block = Webhook(method="POST", url=url, allow_private_urls=True).save(
                pool.name, overwrite=True
            )
        recipe["actions"][0]["block_document_id"] = str(block)
        automation = ask(pool.url, "/automations/", recipe)["id"]
        try:
            ids = []
            # Prefect loads a new automation after a while, and also reports runs that it fails to
            # save.
            while not (done := [answer for answer in called if answer["statusCode"] == 200]):
                ids.append(pool.run("meaning", id=f"hook-{len(ids)}"))
                before = len(called)
                for _ in range(50):
                    threading.Event().wait(0.1 if len(called) == before else 0)
            id = json.loads(done[0]["body"])["flow_run_id"]
            assert id in ids
            assert pool.until(id, "COMPLETED", "FAILED", "CRASHED")["state_type"] == "COMPLETED"
            assert pool.states(id) == ["Scheduled", "Claimed", "Running", "Completed"]
        finally:
            prefect_api.ask(Api(pool.url, "", ""), f"/automations/{automation}", method="DELETE")


# The worker in its own process, with a function in AWS's emulator.


@pytest.fixture
def function(pool, s3_url, s3_env, monkeypatch, tmp_path):
    """A function in the service that has the project's code, and a worker's environment."""
    import boto3

    with LambdaService(s3_url, pool.project.root) as service:
        service.refusals |= {"busy": THROTTLED, "shut": DENIED}
        client = boto3.client("lambda", endpoint_url=service.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
        deployed = Deployed(service, pool.project.root, client, _role(), tmp_path)
        more = {
            "PFL_ENGINE": "prefect",
            "PFL_MANIFEST": "",
            "PREFECT_API_URL": pool.url,
            "PFL_STORE": str(pool.project.root / ".pfl" / "store"),
        }
        (pool.project.root / ".pfl" / "store").mkdir(parents=True, exist_ok=True)
        yield deployed.function(timeout=300, memory=1024, **more)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """An installation of what pyproject.toml registers now, in case pfl was installed earlier."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "pfl_as_declared-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pfl-as-declared\nVersion: 0\n")
    named = "".join(
        f"{name} = {module}\n"
        for name, module in project["entry-points"]["prefect.collections"].items()
    )
    (info / "entry_points.txt").write_text(f"[prefect.collections]\n{named}")
    return info.parent


def test_both_workers_send_runs_and_what_aws_refuses_is_a_crash(pool, function, collection):
    pool.set_up(function)
    environ = {
        **os.environ,
        "PYTHONPATH": f"{collection}{os.pathsep}{ROOT}",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    }
    environ["PREFECT_CLIENT_MAX_RETRIES"] = (
        "20"  # The server that all tests share is busy now and then.
    )
    commands = [
        ["-m", "prefect", "worker", "start", "--type", "aws-lambda", "--pool", pool.name],
        ["-m", "pfl.cli.main", "worker", "start", "--pool", pool.name, "--every", "0.5"],
    ]
    workers = [
        subprocess.Popen(
            [sys.executable, *each],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for each in commands
    ]
    try:
        for worker in workers:
            assert any("started!" in line for line in worker.stdout), f"{worker.args} did not start"
        ids = [pool.run("meaning", id=f"worker-{n}") for n in range(2)]
        refused = {
            "no-such-function": ("no-such-function does not exist", "create it with pfl deploy"),
            "busy": ("function busy is throttled", "raise its reserved concurrency"),
            "shut": (
                "function shut: access denied",
                "use credentials that have this permission",
            ),
        }
        bad = {
            name: pool.run("meaning", {"function": name}, id=f"worker-{name}") for name in refused
        }
        runs = [pool.until(id, "COMPLETED", "FAILED", "CRASHED") for id in ids]
        assert [run["state_type"] for run in runs] == ["COMPLETED"] * 2, [
            run["state"]["message"] for run in runs
        ]
        # Of two workers, one takes each.
        states = [
            [name for name in pool.states(id) if name not in ("Late", "Submitting")] for id in ids
        ]
        assert states == [["Scheduled", "Pending", "Claimed", "Running", "Completed"]] * 2
        assert all(run["infrastructure_pid"].startswith(f"{function}/") for run in runs)
        for name, words in refused.items():
            run = pool.until(bad[name], "CRASHED", "COMPLETED")
            assert (run["state_type"], [word in run["state"]["message"] for word in words]) == (
                "CRASHED",
                [True, True],
            ), run["state"]
    finally:
        for worker in workers:
            worker.terminate()
        told = [worker.communicate()[0] for worker in workers]
    assert [text for text in told if "Traceback" in text] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--pool", "no-such-pool"], 3, "the work pool no-such-pool does not exist"),
        (["--pool", "typed"], 2, "is of type process"),
        (["--limit", "0"], 2, "--limit"),
    ],
)
def test_a_worker_without_its_pool_does_not_start(pool, arguments, code, words):
    from test_cli import pfl

    if "typed" in arguments:
        ask(pool.url, "/work_pools/", {"name": "typed", "type": "process", "base_job_template": {}})
    ran = pfl("worker", "start", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
