"""Cancelled by Ctrl-C or in Prefect: the run ends as Cancelled, and lease and slot are free."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import forked
import pytest
from faults import suite
from test_lease import GATED, until
from test_limits import client_of, limit
from test_reap import states

from pfl.handler.core.cache import lease
from pfl.handler.core.store import records
from pfl.handler.engine.causes import TERMINATED
from pfl.handler.engine.prefect import client as prefect_api
from pfl.handler.engine.prefect import environment, limits

CHILD = """
import json, os, sys
from pfl.handler import entry
from pfl.handler.core.settings import Settings
from pfl.handler.engine.prefect import session
session.POLL_S = 0.1
def notify(step, doing):
    print(json.dumps([step, doing]), flush=True)
settings = Settings.from_env(os.environ)
try:
    reply = entry.handle({"id": sys.argv[1]}, settings, request_id="r", notify=notify)
    print(json.dumps(reply), flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def on_server(project, prefect_server, monkeypatch):
    project.write(GATED)
    os.mkfifo(project.root / "gate")
    project.knobs |= {"engine": "prefect", "prefect_api_url": prefect_server.url}
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    monkeypatch.setenv("PFL_TAG_LIMITS", "per-id")
    return project


def begun(project, id: str) -> tuple[subprocess.Popen, int]:
    """A process inside step a, known to Prefect, and the gate it waits at."""
    env = {**os.environ}
    child = forked.Popen(
        [sys.executable, "-c", CHILD, id],
        cwd=project.root,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(child, '"computing"')
    gate = os.open(project.root / "gate", os.O_WRONLY)
    while states(project, id)[1] != ["RUNNING"]:
        pass
    return child, gate


def all_free(project, id: str, state: str = "CANCELLED", taken: int = 0) -> None:
    assert states(project, id)[:2] == ([state], [state])
    assert lease.open_calls(project.results) == {}
    assert limit(project, f"id={id}:task-a")["taken"] == taken
    assert list(project.results.list("results")) == []


def test_ctrl_c_leaves_nothing_running_and_nothing_taken(on_server):
    child, gate = begun(on_server, "stop-1")
    with child:
        child.send_signal(signal.SIGINT)
        child.stdout.read()  # Until it ends: a pipe that is closed before would end it otherwise.
    os.close(gate)
    assert child.returncode == 130
    all_free(on_server, "stop-1")


def test_ctrl_c_ends_the_wait_for_a_slot_that_another_keeps(on_server):
    tag, api = "id=stop-3:task-a", environment.configured(on_server.settings)
    limits.set_limit(api, on_server.results, tag, 1)
    kept = {"names": [f"tag:{tag}"], "slots": 1, "mode": "concurrency", "lease_duration": 600}
    assert prefect_api.ask(api, "/v2/concurrency_limits/increment-with-lease", kept)["limits"]
    env = {**os.environ}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, "stop-3"],
        cwd=on_server.root,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        until(child, '"computing"')
        while states(on_server, "stop-3")[1] != ["PENDING"]:
            pass
        assert limits.count_waiting(api, tag) == 1
        child.send_signal(signal.SIGINT)
        child.stdout.read()  # Until it ends: a pipe that is closed before would end it otherwise.
    assert child.returncode == 130
    all_free(on_server, "stop-3", taken=1)


def test_sigterm_leaves_a_crash_with_our_cause_and_advice(on_server):
    child, gate = begun(on_server, "stop-4")
    with child:
        child.send_signal(signal.SIGTERM)
        child.stdout.read()  # Until it ends: a pipe that is closed before would end it otherwise.
    os.close(gate)
    assert child.returncode == 130
    all_free(on_server, "stop-4", "CRASHED")
    runs = [
        run
        for kind in suite.runs_of(environment.configured(on_server.settings), "stop-4")
        for run in kind
    ]
    assert {run["state"]["message"] for run in runs} == {TERMINATED.lines}
    (record,) = [
        records.unseal(on_server.results.get(each.key), each.key)
        for each in on_server.results.list("history/stop-4/a")
    ]
    assert (record["status"], record["error"]["what"]) == ("failed", TERMINATED.what)


def test_a_run_that_is_cancelled_in_prefect_stops_and_says_so(on_server):
    from prefect.states import Cancelled

    child, gate = begun(on_server, "stop-2")
    with client_of(on_server) as client:
        client.set_flow_run_state(states(on_server, "stop-2")[2][0].id, Cancelled())
    with child:
        reply = json.loads(child.stdout.read().splitlines()[-1])
    os.close(gate)
    assert (reply["status"], reply["error"]["type"]) == ("cancelled", "RunCancelledError")
    all_free(on_server, "stop-2")
