"""
A call that dies is cleaned up once: runs Crashed, leases free, a record in history.

Nothing that lives is touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import forked
import pytest
from test_lease import GATED, left, open_gate, reply_of, start, until

from pfl.handler.core.cache import history, lease
from pfl.handler.core.store import records

CLI = "from pfl.cli.main import main; main()"


@pytest.fixture
def gated(project):
    project.write(GATED)
    os.mkfifo(project.root / "gate")
    return project


@pytest.fixture
def on_server(gated, prefect_server, monkeypatch):
    gated.knobs |= {"engine": "prefect", "prefect_api_url": prefect_server.url}
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    return gated


def pfl(project, *arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ}
    return forked.run([sys.executable, "-c", CLI, *arguments], cwd=project.root, env=env)


def killed(project, **event) -> None:
    """A process that computed step a, and was killed."""
    child = start(project, **event)
    until(child, '"computing"')
    # The gate opens for reading in the step: it is inside now.
    gate = os.open(project.root / "gate", os.O_WRONLY)
    while event.get("engine") == "prefect" and states(project, event["id"])[1] != ["RUNNING"]:
        pass  # Task states are events, on their way to the server.
    with child:
        child.kill()
    os.close(gate)


def states(project, id: str = "abc") -> tuple[list[str], list[str], list]:
    """State types of the flow runs and task runs of an ID in Prefect, and the flow runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.settings import PREFECT_API_URL, temporary_settings

    chosen = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"id={id}"]))
    url = project.settings.prefect_api_url
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        flows = client.read_flow_runs(flow_run_filter=chosen)
        tasks = client.read_task_runs(flow_run_filter=chosen)
    return _types(flows), _types(tasks), flows


def _types(runs: list) -> list[str]:
    # Under load Prefect may have a task run whose state is not in its table yet.
    kinds = [run.state.type if run.state else run.state_type for run in runs]
    return sorted(kind.value if kind else "NONE" for kind in kinds)


def crashed(project, id: str = "abc") -> list[dict]:
    bodies = history.list_records(project.results, id=id, step="a", warn=pytest.fail)
    return [body for _, body in bodies if body.get("status") == "crashed"]


def test_a_killed_run_is_marked_with_its_cause_by_the_reap_event_once(on_server):
    id = "reap-1"
    killed(on_server, id=id, engine="prefect")
    assert states(on_server, id)[0] == ["RUNNING"]
    reply = on_server.handle({"action": "reap", "dry_run": True})
    assert (reply["status"], [row["id"] for row in reply["reaped"]]) == ("completed", [id])
    assert states(on_server, id)[0] == ["RUNNING"]
    reply = on_server.handle({"action": "reap"})
    (row,) = reply["reaped"]
    assert (row["cause"], row["steps"]) == ("killed", ["a"])
    flows, tasks, runs = states(on_server, id)
    assert (flows, tasks) == (["CRASHED"], ["CRASHED"])
    summary, detail, advice = runs[0].state.message.splitlines()
    assert "was killed while computing a" in summary
    assert "last seen" in detail
    assert "memory" in advice
    (record,) = crashed(on_server, id)
    assert (record["cause"], record["flow_run_id"]) == ("killed", str(runs[0].id))
    assert set(row["runs"]) == {record["flow_run_id"], record["task_run_id"]}
    assert lease.open_calls(on_server.results) == {}
    assert on_server.handle({"action": "reap"})["reaped"] == []
    assert len(crashed(on_server, id)) == 1


def test_the_next_invocation_buries_whom_it_follows(on_server):
    id = "reap-2"
    killed(on_server, id=id, engine="prefect")
    second = start(on_server, id=id, engine="prefect")
    until(second, '"computing"')
    open_gate(on_server)
    assert reply_of(second)["status"] == "completed"
    assert states(on_server, id)[:2] == (
        ["COMPLETED", "CRASHED"],
        ["COMPLETED", "COMPLETED", "CRASHED"],
    )
    assert len(crashed(on_server, id)) == 1
    assert lease.open_calls(on_server.results) == {}


def test_a_live_run_and_a_finished_one_are_left_alone(on_server):
    id = "reap-3"
    child = start(on_server, id=id, engine="prefect")
    until(child, '"computing"')
    assert on_server.handle({"action": "reap"})["reaped"] == []
    open_gate(on_server)
    assert reply_of(child)["status"] == "completed"
    assert on_server.handle({"action": "reap"})["reaped"] == []
    assert states(on_server, id)[0] == ["COMPLETED"]


def test_a_terminal_state_stays_though_the_call_is_still_on_record(on_server, monkeypatch):
    """It died after Prefect took its end, and before it deleted its leases."""
    id = "reap-4"
    on_server.write(GATED.replace('open("gate").read()', "pass"))
    with monkeypatch.context() as patch:
        patch.setattr(lease.LeaseHolder, "end", lambda holder, *args, **ended: holder._ended.set())
        assert on_server.call(id)["status"] == "completed"
    monkeypatch.setattr(lease, "is_gone", lambda host: True)
    assert [row["runs"] for row in on_server.handle({"action": "reap"})["reaped"]] == [[]]
    assert states(on_server, id)[:2] == (["COMPLETED"], ["COMPLETED", "COMPLETED"])
    assert crashed(on_server, id) == []


def test_reapers_side_by_side_mark_and_tell_once(on_server):
    id = "reap-5"
    killed(on_server, id=id, engine="prefect")
    env = {**os.environ}
    command = [sys.executable, "-c", CLI, "runs", "reap", "--json"]
    reapers = [
        forked.Popen(command, cwd=on_server.root, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    lines = [
        json.loads(line) for reaper in reapers for line in reaper.communicate()[0].splitlines()
    ]
    assert [row["id"] for row in lines] == [id]
    assert states(on_server, id)[:2] == (["CRASHED"], ["CRASHED"])
    assert len(crashed(on_server, id)) == 1
    assert lease.open_calls(on_server.results) == {}


DYING_REAPER = """
import os, signal
from pfl.cli.main import main
from pfl.handler.core.cache import lease
lease.mark_reaped = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
main(["runs", "reap"])
"""


def test_a_reaper_that_died_midway_is_followed_by_another(gated):
    """The first of them leaves its own lease, which is no lease of a step that anyone computed."""
    killed(gated)
    [dead] = lease.open_calls(gated.results)
    forked.run([sys.executable, "-c", DYING_REAPER], cwd=gated.root)
    assert len(lease.open_calls(gated.results, with_reapers=True)) == 2
    for is_dry in (True, False):
        reply = gated.handle({"action": "reap", "dry_run": is_dry})
        assert [row["call"] for row in reply["reaped"]] == [dead]
    assert len(crashed(gated)) == 1
    assert left(gated.results) == []


def test_a_call_that_follows_a_dead_reaper_cleans_up_after_both(gated):
    killed(gated)
    forked.run([sys.executable, "-c", DYING_REAPER], cwd=gated.root)
    gated.write(GATED.replace('open("gate").read()', "pass"))
    assert gated.call()["status"] == "completed"
    assert len(crashed(gated)) == 1
    assert left(gated.results) == []


def test_a_lease_of_a_call_that_was_killed_while_it_deleted_leases_is_reaped(gated):
    """It had taken over from a dead call, and the older lease was gone already."""
    killed(gated)
    for dead in lease.list_leases(gated.results):
        gated.results.put(dead.key.replace("first", "after-0123"), records.seal(dead.body))
        gated.results.delete([dead.key])
    [row] = gated.handle({"action": "reap"})["reaped"]
    assert row["call"] == dead.body["call"]
    assert left(gated.results) == []
    assert len(crashed(gated)) == 1


def test_without_prefect_a_dead_call_waits_for_the_next_reap(on_server, prefect_server):
    id = "reap-6"
    killed(on_server, id=id, engine="prefect")
    on_server.knobs["prefect_api_url"] = "http://127.0.0.1:9/api"
    reply = on_server.handle({"action": "reap"})
    assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
    on_server.knobs["prefect_api_url"] = prefect_server.url
    assert [row["id"] for row in on_server.handle({"action": "reap"})["reaped"]] == [id]
    assert states(on_server, id)[0] == ["CRASHED"]


def test_the_direct_engine_is_covered_and_a_crash_is_no_result(gated):
    open_gate_later = start(gated)
    until(open_gate_later, '"computing"')
    open_gate(gated)
    assert reply_of(open_gate_later)["status"] == "completed"
    killed(gated, bust="all")
    (row,) = gated.handle({"action": "reap"})["reaped"]
    assert (row["engine"], row["cause"], row["runs"]) == ("direct", "killed", [])
    assert len(crashed(gated)) == 1
    assert lease.open_calls(gated.results) == {}
    computed = history.list_computed(gated.results, "abc", "a", pytest.fail)
    assert [body["value"] for _, body in computed] == [7]
    reply = gated.call(skip=["a"], bust=["b"])
    assert [(r["status"], r["value"]) for r in reply["steps"]] == [("skipped", 7), ("computed", 42)]


@pytest.mark.parametrize(
    "raw",
    [
        {"action": "rape"},
        {"action": "reap", "id": "abc"},
        {"action": "reap", "dry_run": "yes"},
        {"action": []},
    ],
)
def test_a_wrong_action_is_told(project, raw):
    reply = project.handle(raw)
    assert (reply["status"], reply["error"]["type"]) == ("invalid", "InvalidRequestError")


def test_runs_ls_shows_what_is_stuck_and_reap_says_what_it_would_do(on_server):
    id = "reap-7"
    killed(on_server, id=id, engine="prefect")
    done = pfl(on_server, "runs", "ls", "--id", id, "--stuck", "--json")
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, row["id"], row["status"], row["stuck"], row["flow"]) == (
        0,
        id,
        "running",
        True,
        "gated",
    )
    assert "1 stuck: pfl runs reap" in done.stderr
    opened = pfl(on_server, "runs", "open", row["flow_run_id"])
    assert (opened.returncode, opened.stdout.strip()) == (0, row["url"])
    dry = pfl(on_server, "runs", "reap", "--dry-run", "--json")
    assert [json.loads(line)["dry_run"] for line in dry.stdout.splitlines()] == [True]
    assert "1 dead run would be marked" in dry.stderr
    reaped = pfl(on_server, "runs", "reap")
    assert reaped.returncode == 0
    assert f"gated/{id}/a: process" in reaped.stdout
    after = pfl(on_server, "runs", "ls", "--id", id, "--status", "crashed")
    assert "crashed" in after.stdout
    assert pfl(on_server, "runs", "ls", "--id", id, "--stuck", "--json").stdout == ""


def test_runs_ls_shows_a_live_run_of_the_direct_engine(on_server):
    child = start(on_server, id="reap-8")
    until(child, '"computing"')
    (row,) = [
        json.loads(line)
        for line in pfl(on_server, "runs", "ls", "--id", "reap-8", "--json").stdout.splitlines()
    ]
    assert (row["status"], row["stuck"], row["flow_run_id"]) == ("running", False, None)
    open_gate(on_server)
    reply_of(child)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["runs", "ls", "--status", "dead"], 2, "unknown status 'dead'"),
        (["runs", "ls", "--id", ""], 2, "the ID is empty"),
        (["runs", "ls", "--limit", "0"], 2, "--limit"),
        (["runs", "open", "abc"], 2, "'abc' is not a run ID"),
        (["runs", "open", "00000000-0000-4000-8000-000000000000"], 3, "does not exist"),
        (["runs", "open"], 2, "'run'"),
    ],
)
def test_wrong_input_is_told_by_exit_code_and_on_stderr(on_server, arguments, code, word):
    done = pfl(on_server, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert word in done.stderr


def test_a_prefect_that_does_not_answer_is_exit_code_5(on_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    done = pfl(on_server, "runs", "ls", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["type"]) == (5, "UnavailableError")


def test_a_reap_starts_the_embedded_server_of_the_project_if_it_is_a_run_of_its_own(project):
    """Nothing runs any more: neither the call nor the server that its run is in."""
    from pfl.handler.engine.prefect import server

    call = lease.LeaseHolder(
        project.results, "abc", {"request_id": "r", "engine": "prefect"}, ttl_s=600
    )
    call.claim({"a": {}})
    lease.write_end(project.results, call.token, {"cause": "killed", "why": ""})
    (shown,) = [
        json.loads(line)
        for line in pfl(project, "runs", "ls", "--stuck", "--json").stdout.splitlines()
    ]
    assert (shown["id"], shown["stuck"], server.find(project.root / ".pfl")) == (
        "abc",
        True,
        None,
    )  # To look starts none.
    try:
        (row,) = project.handle({"action": "reap"})["reaped"]
        assert (row["cause"], row["runs"]) == ("killed", [])
        assert server.find(project.root / ".pfl") is not None
    finally:
        server.stop(project.root / ".pfl")
    assert len(crashed(project)) == 1
    assert lease.open_calls(project.results) == {}
