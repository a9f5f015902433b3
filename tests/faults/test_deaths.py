"""The short part of the fault suite; ``python -m tests.faults`` is the long one."""

from __future__ import annotations

import os

import pytest

from faults import suite
from pfl.handler import entry


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_a_death_at_any_point_is_repaired_by_the_next_call(tmp_path, monkeypatch, place, request):
    if place == "s3":
        monkeypatch.setenv("PFL_STORE", f"s3://{request.getfixturevalue('bucket')}/pfl")
    settings = suite.project(tmp_path / "project")
    count, wrong = suite.every_point(tmp_path / "project", settings, "direct", once=place == "s3")
    assert (count > 8, wrong) == (True, {})


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_a_pause_at_any_point_leaves_one_value_though_another_call_took_over(
    tmp_path, monkeypatch, place, request
):
    if place == "s3":
        monkeypatch.setenv("PFL_STORE", f"s3://{request.getfixturevalue('bucket')}/pfl")
    settings = suite.project(tmp_path / "project")
    count, wrong = suite.every_pause(tmp_path / "project", settings, "direct", once=place == "s3")
    assert (count > 8, wrong) == (True, {})


def test_a_saved_step_is_completed_in_prefect_though_its_process_died_before_reporting_it(
    tmp_path, prefect_server
):
    os.environ["PREFECT_API_URL"] = prefect_server.url
    settings = suite.project(tmp_path / "project")
    with suite.Nursery(tmp_path / "project") as nursery:
        points = nursery.call({"id": "saved-0", "engine": "prefect"})["points"]
        ends = [at for at, point in enumerate(points) if point == "before emit task run state"][
            2::3
        ]  # Pending, Running, Completed.
        assert "killed" in nursery.order({"id": "saved-1", "engine": "prefect"}, ends[-1])
    assert [row["steps"] for row in entry.handle({"action": "reap"}, settings)["reaped"]] == [[]]
    flows, tasks = suite.runs_of(suite.environment.configured(settings), "saved-1")
    assert [run["state_type"] for run in flows] == ["CRASHED"]
    assert [run["state_type"] for run in tasks] == ["COMPLETED", "COMPLETED"]


def test_a_death_at_any_change_of_a_flow_runs_state_or_around_a_slot_leaves_nothing_running(
    tmp_path, prefect_server
):
    os.environ |= {"PREFECT_API_URL": prefect_server.url, "PFL_TAG_LIMITS": "per-id"}
    settings = suite.project(tmp_path / "project")
    count, wrong = suite.every_point(
        tmp_path / "project", settings, "prefect", only="flow_runs|slot", once=True
    )
    assert (count, wrong) == (4, {})
