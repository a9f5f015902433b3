"""The short part of the fault suite; ``python -m tests.faults`` is the long one."""

from __future__ import annotations

import os

import pytest
from faults import suite


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_a_death_at_any_point_is_repaired_by_the_next_call(tmp_path, monkeypatch, place, request):
    if place == "s3":
        monkeypatch.setenv("PFL_STORE", f"s3://{request.getfixturevalue('bucket')}/pfl")
    settings = suite.project(tmp_path / "project")
    assert suite.every_point(tmp_path / "project", settings, "direct", once=place == "s3") == {}


def test_a_death_at_any_change_of_a_flow_runs_state_or_around_a_slot_leaves_nothing_running(tmp_path, prefect_server):
    os.environ |= {"PREFECT_API_URL": prefect_server.url, "PFL_TAG_LIMITS": "per-id"}
    settings = suite.project(tmp_path / "project")
    assert suite.every_point(tmp_path / "project", settings, "prefect", only="flow run|slot", once=True) == {}
