"""What Prefect's pages tell of a step: real inputs, cache key, and an artifact per ID and step."""

from __future__ import annotations

import re

import pytest
from conftest import statuses
from hypothesis import given
from hypothesis import strategies as st
from test_engine import ask, flow_runs, task_runs

from pfl.handler.engine.prefect import artifacts

SHOWN = """
    @step
    def rows(id: str, rate: float = 2) -> list:
        return [{"name": "a|b", "rate": rate}, {"name": "`c`", "more": None}]

    @step
    def size(rows, id: str) -> int:
        return len(rows)

    FLOWS = [flow("shown", rows, size)]
"""


def versions(project, key: str) -> list[dict]:
    return ask(
        project.settings.prefect_api_url,
        "/artifacts/filter",
        {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"},
    )


def test_task_runs_show_what_went_in_and_under_which_key(on_prefect):
    on_prefect.write(SHOWN)
    reply = on_prefect.call("in-1")
    (run,) = flow_runs(on_prefect, "in-1")
    tasks = {task["name"]: task for task in task_runs(on_prefect, run["id"], 2)}
    keys = {row["step"]: row["key"] for row in reply["steps"]}
    shown = {
        name: [
            each["name"]
            for each in tasks["size[in-1]"]["task_inputs"][name]
            if each["input_type"] == "parameter"
        ]
        for name in ("id", "rows")
    }
    assert shown["id"] == ["in-1"]
    assert shown["rows"][0].startswith('[{"name": "a|b", "rate": 2.0}')
    assert {name: task["cache_key"] for name, task in tasks.items()} == {
        "rows[in-1]": keys["rows"],
        "size[in-1]": keys["size"],
    }
    assert tasks["rows[in-1]"]["task_inputs"]["rate"] == [
        {"input_type": "parameter", "name": "2.0"}
    ]


def test_each_computation_is_a_version_of_the_step_s_artifact(on_prefect):
    on_prefect.write(SHOWN)
    first = on_prefect.call("art-1")
    second = on_prefect.call("art-1", bust="all")
    newest, oldest = versions(on_prefect, "art-1-task-rows")
    for reply, artifact in ((first, oldest), (second, newest)):
        row = reply["steps"][0]
        assert (artifact["flow_run_id"], artifact["task_run_id"]) == (
            row["flow_run_id"],
            row["task_run_id"],
        )
        assert row["key"] in artifact["data"]
        assert f"{row['url']}" in artifact["data"]
        assert '"name": "a|b"' in artifact["data"]
    link = first["steps"][0]["url"].replace("TaskInputs", "Artifacts")
    assert link in newest["data"]
    assert link not in oldest["data"]
    assert statuses(on_prefect.call("art-1")) == {"rows": "hit", "size": "hit"}
    assert len(versions(on_prefect, "art-1-task-rows")) == 2


def test_artifacts_can_be_off_and_a_refused_one_is_a_warning(on_prefect, monkeypatch):
    on_prefect.write(SHOWN)
    on_prefect.knobs["artifacts"] = 0.0
    on_prefect.call("art-2")
    assert versions(on_prefect, "art-2-task-rows") == []
    on_prefect.knobs["artifacts"] = 0.1
    monkeypatch.setattr("random.random", iter([0.05, 0.2]).__next__)
    on_prefect.call("art-4")
    assert [len(versions(on_prefect, f"art-4-task-{step}")) for step in ("rows", "size")] == [1, 0]
    monkeypatch.undo()
    on_prefect.knobs["artifacts"] = 1.0
    monkeypatch.setattr(artifacts, "key_of", lambda id, step: "Not a key")
    reply = on_prefect.call("art-3")
    assert reply["status"] == "completed"
    assert any("2 artifacts were not written" in warning for warning in reply["warnings"])


@pytest.mark.parametrize("id", ["Zoë/../B_c, d|e {{ x }} `y` <b>[z](javascript:1)</b>", "-" * 300])
def test_prefect_takes_the_artifacts_of_any_id_and_its_runs_are_found_by_tag(on_prefect, id):
    on_prefect.write(SHOWN)
    reply = on_prefect.call(id)
    assert (reply["status"], reply["warnings"]) == ("completed", [])
    (artifact,) = versions(on_prefect, artifacts.key_of(id, "size"))
    assert artifact["description"] == f"step size of {id}"
    assert re.search(r"(?<!\\)[<\[`|]", artifact["data"].splitlines()[0]) is None
    assert {run["id"] for run in flow_runs(on_prefect, id.replace(",", "%2C"))} == {
        reply["steps"][0]["flow_run_id"]
    }


def test_a_plain_id_is_its_own_key():
    assert artifacts.key_of("abc", "b") == "abc-task-b"


@given(
    st.text(min_size=1),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,79}", fullmatch=True),
    st.text(min_size=1),
)
def test_a_key_is_one_that_prefect_takes_and_no_other_id_has_it(id, step, other):
    key = artifacts.key_of(id, step)
    assert re.fullmatch(r"[a-z0-9-]{1,200}", key)
    assert (artifacts.key_of(other, step) == key) == (other == id)
