"""Limits in Prefect: managed from the terminal, respected by steps, free for steps without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest
from test_lease import GATED, open_gate, reply_of, start, until
from test_reap import killed, pfl, states

from pfl.handler.core.cache import lease
from pfl.handler.engine.prefect import environment, limits


@pytest.fixture
def on_server(project, prefect_server, monkeypatch):
    project.write(GATED)
    os.mkfifo(project.root / "gate")
    project.knobs |= {"engine": "prefect", "prefect_api_url": prefect_server.url}
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    return project


@pytest.fixture
def id() -> str:
    return f"lim-{uuid.uuid4().hex[:8]}"


def client_of(project):
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(project.settings.prefect_api_url)


def rows(project, *arguments: str) -> list[dict]:
    done = pfl(project, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def limit(project, tag: str) -> dict | None:
    api = environment.configured(project.settings)
    return next(limits.list_limits(api, project.results, tag=tag), None)


def test_a_limit_is_set_listed_and_removed(on_server, id):
    dry = pfl(on_server, "limits", "set", "--id", id, "--step", "b", "1", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, f"id={id}:task-b: 1 at once (not done: --dry-run)\n")
    assert limit(on_server, f"id={id}:task-b") is None
    assert rows(on_server, "limits", "set", "--id", id, "--step", "b", "1") == [
        {"tag": f"id={id}:task-b", "limit": 1, "dry_run": False}
    ]
    assert rows(on_server, "limits", "set", "--tag", f"any-{id}", "3")[0]["limit"] == 3
    (found,) = [row for row in rows(on_server, "limits", "ls") if row["tag"] == f"id={id}:task-b"]
    assert (found["limit"], found["taken"], found["leaked"], found["set_by_pfl"]) == (1, 0, 0, True)
    assert f"0 of 3  any-{id}" in pfl(on_server, "limits", "ls").stdout
    assert rows(on_server, "limits", "rm", "--tag", f"any-{id}", "--dry-run")[0]["dry_run"] is True
    assert limit(on_server, f"any-{id}")["limit"] == 3
    for selection in (["--tag", f"any-{id}"], ["--id", id, "--step", "b"]):
        assert pfl(on_server, "limits", "rm", *selection).returncode == 0
    assert limit(on_server, f"id={id}:task-b") is None
    assert list(on_server.results.list("limits")) == []


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["set", "1"], 2, "no limit is selected"),
        (["set", "--id", "abc", "1"], 2, "no limit is selected"),
        (["set", "--tag", "x", "--step", "b", "1"], 2, "no limit is selected"),
        (["set", "--step", "nope", "1"], 2, "unknown step 'nope'"),
        (["set", "--id", "", "--step", "b", "1"], 2, "the ID is empty"),
        (["set", "--tag", "a/b", "1"], 2, "Prefect does not allow '/'"),
        (["set", "--step", "b", "-1"], 2, "-1"),
        (["set", "--step", "b", "x"], 2, "x"),
        (["rm", "--tag", "never-set"], 3, "the tag never-set has no limit"),
        (["rm", "--idle", "soon"], 2, "invalid --idle 'soon'"),
        (
            ["rm", "--idle", "7d", "--tag", "x"],
            2,
            "--idle and --id, --step or --tag cannot be used together",
        ),
        (["reset", "--tag", "never-set"], 3, "the tag never-set has no limit"),
    ],
)
def test_wrong_input_is_told(on_server, arguments, code, word):
    done = pfl(on_server, "limits", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert word in done.stderr


def test_a_step_without_a_limit_asks_nothing_about_limits(on_server, id, asked):
    on_server.write("@step\ndef a(id: str) -> int:\n    return 1\nFLOWS = [flow('free', a)]")
    assert on_server.call(id)["status"] == "completed"
    assert any("flow_runs" in path for path in asked)
    assert [path for path in asked if "concurrency" in path] == []


def test_a_step_with_a_limit_runs_under_its_tag_and_gives_the_slot_back(on_server, id):
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "1")
    child = start(on_server, id=id, engine="prefect")
    until(child, '"computing"')
    gate = os.open(on_server.root / "gate", os.O_WRONLY)
    (holder,) = limit(on_server, f"id={id}:task-a")["holders"]
    assert holder["is_dead"] is False
    os.write(gate, b"go")
    os.close(gate)
    assert reply_of(child)["status"] == "completed"
    found = limit(on_server, f"id={id}:task-a")
    assert (found["taken"], found["holders"], found["leaked"]) == (0, [], 0)


def test_a_limit_of_zero_is_told_and_leaves_nothing_waiting(on_server, id):
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "0")
    reply = on_server.call(id)
    assert (reply["status"], reply["error"]["type"]) == ("busy", "BusyError")
    assert reply["error"]["what"] == f"id={id}:task-a: a limit of 0 lets nothing run"
    assert states(on_server, id)[:2] == (["FAILED"], ["CRASHED"])
    assert lease.open_calls(on_server.results) == {}


def test_a_hit_never_waits_for_a_slot(on_server, id, asked):
    on_server.write("@step\ndef a(id: str) -> int:\n    return 1\nFLOWS = [flow('free', a)]")
    on_server.call(id)
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "0")
    del asked[:]
    assert on_server.call(id)["steps"][0]["status"] == "hit"
    assert asked == []


def test_a_limit_in_the_code_is_made_once_and_yields_to_one_set_by_hand(on_server, id, asked):
    name = f"s{uuid.uuid4().hex[:8]}"
    on_server.write(
        f"@step(limit=5)\ndef {name}(id: str) -> int:\n    return 1\nFLOWS = [flow('five', {name})]"
    )
    for each in (f"{id}-1", f"{id}-2"):
        assert on_server.call(each)["status"] == "completed"
    assert len([path for path in asked if path.endswith("/concurrency_limits/")]) == 1
    assert limit(on_server, f"task-{name}")["limit"] == 5
    rows(on_server, "limits", "set", "--step", name, "2")
    assert on_server.call(f"{id}-3")["status"] == "completed"
    assert limit(on_server, f"task-{name}")["limit"] == 2


def test_per_id_gives_each_step_of_each_id_a_limit_and_idle_ones_are_collected(on_server, id):
    on_server.write("@step\ndef a(id: str) -> int:\n    return 1\nFLOWS = [flow('free', a)]")
    on_server.knobs["tag_limits"] = "per-id"
    assert on_server.call(f"{id}/x")["status"] == "completed"
    tag = f"id={id}~2Fx:task-a"
    found = limit(on_server, tag)
    assert (found["limit"], found["taken"]) == (1, 0)
    kept = f"id={id}:task-a"
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "1")
    assert tag not in [
        row["tag"] for row in rows(on_server, "limits", "rm", "--idle", "999999999w")
    ]
    while tag not in (
        collected := [row["tag"] for row in rows(on_server, "limits", "rm", "--idle", "0s")]
    ):
        pass
    assert kept not in collected
    assert limit(on_server, tag) is None
    assert limit(on_server, kept)["limit"] == 1


def test_reset_frees_a_slot_that_nobody_holds_and_keeps_what_runs(on_server, id):
    tag = f"id={id}:task-a"
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "2")
    child = start(on_server, id=id, engine="prefect")
    until(child, '"computing"')
    gate = os.open(on_server.root / "gate", os.O_WRONLY)
    with client_of(on_server) as client:
        client.increment_concurrency_slots([f"tag:{tag}"], 1, "concurrency")
    found = limit(on_server, tag)
    assert (found["taken"], found["leaked"], len(found["holders"])) == (2, 1, 1)
    assert (
        pfl(on_server, "limits", "reset", "--tag", tag, "--dry-run")
        .stderr.strip()
        .endswith(f"{tag}: 1 would be freed, 2 of 2 taken")
    )
    (row,) = rows(on_server, "limits", "reset", "--tag", tag)
    assert (row["freed"], row["taken"]) == (["slots without a holder: 1"], 1)
    os.write(gate, b"go")
    os.close(gate)
    assert reply_of(child)["status"] == "completed"
    assert limit(on_server, tag)["taken"] == 0


def test_a_killed_holder_is_shown_as_leaked_and_reset_frees_its_slot_at_once(on_server, id):
    tag = f"id={id}:task-a"
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "1")
    killed(on_server, id=id, engine="prefect")
    found = limit(on_server, tag)
    assert (found["taken"], found["leaked"], found["holders"][0]["is_dead"]) == (1, 1, True)
    done = pfl(on_server, "limits", "reset", "--id", id, "--step", "a")
    assert done.stdout.startswith(f"freed: a[{id}], held by a dead process since ")
    assert limit(on_server, tag)["taken"] == 0
    assert (
        pfl(on_server, "limits", "reset", "--id", id, "--step", "a")
        .stderr.strip()
        .endswith("0 freed, 0 of 1 taken")
    )


def test_reaping_a_killed_holder_frees_its_slot(on_server, id):
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "1")
    killed(on_server, id=id, engine="prefect")
    assert len(on_server.handle({"action": "reap"})["reaped"]) == 1
    assert limit(on_server, f"id={id}:task-a")["taken"] == 0


def test_the_next_call_under_a_limit_of_one_does_not_wait_for_the_slot_of_the_dead(on_server, id):
    rows(on_server, "limits", "set", "--id", id, "--step", "a", "1")
    killed(on_server, id=id, engine="prefect")
    second = start(on_server, id=id, engine="prefect")
    until(second, '"computing"')
    open_gate(on_server)
    assert reply_of(second)["status"] == "completed"
    assert limit(on_server, f"id={id}:task-a")["taken"] == 0
    assert states(on_server, id)[1] == ["COMPLETED", "COMPLETED", "CRASHED"]
    assert lease.open_calls(on_server.results) == {}


def test_removing_a_limit_that_someone_waits_for_is_asked(on_server, id):
    tag = f"any-{id}"
    rows(on_server, "limits", "set", "--tag", tag, "0")
    import prefect
    from prefect.states import Pending

    @prefect.task(name="waits", tags=[tag])
    def waits() -> None: ...

    @prefect.flow(name="waits")
    def flow() -> None: ...

    with client_of(on_server) as client:
        run = client.create_flow_run(flow)
        client.create_task_run(waits, run.id, "0", state=Pending())
    refused = pfl(on_server, "limits", "rm", "--tag", tag)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "1 waiting task run" in refused.stderr
    assert "--yes" in refused.stderr
    assert limit(on_server, tag) is not None
    assert pfl(on_server, "limits", "rm", "--tag", tag, "--yes").returncode == 0
    assert limit(on_server, tag) is None


def test_a_prefect_that_takes_slots_by_another_name_is_refused(project):
    """Ours would not be asked then, and a waiter could not be interrupted."""
    script = (
        "import prefect.task_engine as e; del e._concurrency\n"
        "from pfl.handler.entry import lambda_handler as f; print(f({'id': 'abc'})['error'])"
    )
    environ = {**os.environ, "PFL_ENGINE": "prefect", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    project.write("@step\ndef a(id: str) -> int:\n    return 1\nFLOWS = [flow('free', a)]")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.root,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert "takes slots of a limit in a way that pfl does not support" in done.stdout, done.stderr
    assert "has no _concurrency" in done.stdout
