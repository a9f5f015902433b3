"""Prefect goes away, fails or is slow during a run: results are kept, and nothing stays open."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import statuses, values
from test_engine import task_runs

from faults import gate, suite
from pfl.handler.core.cache import lease

FLOW = """
from pathlib import Path
@step
def a(id: str) -> int:
    return 1
@step
def b(id: str, a: int, fault: str = "") -> int:
    Path("fault").write_text(fault)
    return a + 1
@step
def c(id: str, b: int) -> int:
    return b + 1
FLOWS = [flow("troubled", a, b, c)]
"""


@pytest.mark.parametrize("fault", ["down", "500", "slow"])
def test_a_prefect_that_fails_in_the_middle_of_a_run_costs_no_result_and_leaves_nothing_open(
    project, prefect_server, fault, capfd
):
    project.write(FLOW)
    told, id = project.root / "fault", f"trouble-{fault}"
    with gate.Gate(
        prefect_server.port, lambda: told.read_text() if told.exists() else ""
    ) as between:
        project.knobs |= {"engine": "prefect", "prefect_api_url": between.url}
        reply = project.call(id, params={"fault": fault})
        if reply["status"] == "completed":
            assert values(reply) == {"a": 1, "b": 2, "c": 3}
        else:
            assert (reply["error"]["type"], fault == "slow") == ("UnavailableError", False)
            assert "a and b" in reply["error"]["hint"]
            assert "computed and saved" in reply["error"]["hint"]
            assert statuses(reply) == {"a": "computed", "b": "computed", "c": "failed"}
        assert capfd.readouterr().err == ""
        told.unlink()
        reaped = project.handle({"action": "reap"})
        assert reaped["status"] == "completed", json.dumps(reaped)
        flows, tasks = suite.runs_of(suite.environment.configured(project.settings), id)
        assert [
            run["state_type"] for run in flows if run["state_type"] not in suite.client.FINAL
        ] == []
        if reply["status"] == "completed":
            assert [run["state_type"] for run in flows] == [
                "COMPLETED"
            ]  # A reaper tells what Prefect has not heard.
            tasks = task_runs(
                project, flows[0]["id"], 3
            )  # Events that arrived in time are handled later.
        assert {run["state_type"] for run in tasks} <= {
            "COMPLETED"
        }  # Prefect may not have heard of all, but of none falsely.
        assert lease.open_calls(project.results) == {}
        again = project.call(id, params={"fault": fault})
        assert (again["status"], values(again)) == ("completed", {"a": 1, "b": 2, "c": 3})
        assert statuses(again) == {"a": "hit", "b": "hit", "c": "hit"}


def test_a_prefect_that_is_restarted_in_the_middle_of_a_run_loses_nothing(
    project, tmp_path, monkeypatch
):
    """It stops while a step computes under a slot, and restarts when the next waits for its own."""
    from pfl.handler.engine.prefect import server

    home = tmp_path / "prefect" / ".pfl"
    monkeypatch.setenv("PFL_TAG_LIMITS", "per-id")
    project.write(
        FLOW.replace(
            'Path("fault").write_text(fault)', 'Path("began").touch()\n    Path("gate").read_text()'
        )
    )
    os.mkfifo(project.root / "gate")
    try:
        with gate.Gate(server.ensure(home, idle_s=900).port) as between:
            project.knobs |= {
                "engine": "prefect",
                "prefect_api_url": between.url,
                "tag_limits": "per-id",
            }
            with ThreadPoolExecutor() as beside:
                called = beside.submit(project.call, "restart")
                opened = os.open(project.root / "gate", os.O_WRONLY)  # Step b is inside now.
                server.stop(home)
                os.close(opened)
                while not list(project.results.list("results/restart/b")):
                    pass
                between.port = server.ensure(home, idle_s=900).port
                reply = called.result()
            assert (reply["status"], values(reply), reply["warnings"]) == (
                "completed",
                {"a": 1, "b": 2, "c": 3},
                [],
            )
            flows, _ = suite.runs_of(suite.environment.configured(project.settings), "restart")
            assert [run["state_type"] for run in flows] == ["COMPLETED"]
            assert {run["state_type"] for run in task_runs(project, flows[0]["id"], 3)} == {
                "COMPLETED"
            }
            assert suite.left_open(project.settings, ["restart"]) == []
            assert suite.taken(project.results) == []
    finally:
        server.stop(home)
