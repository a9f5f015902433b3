"""Why a step computes again, from what is stored; and edits that are declared harmless."""

from __future__ import annotations

import re

import pytest
from conftest import Project, statuses, values
from test_cli import pfl

HELPERS = """
RATE = 3
API_TOKEN = "sk-1234567890abcdefghij"


def clean(x):
    return x / RATE
"""

FLOW = """
from flows.helpers import API_TOKEN, clean

@step
def a(id: str) -> int:
    return 1234

@step
def b(id: str, a: int, rate: int = 2) -> float:
    API_TOKEN
    return clean(a) * rate

@step
def c(id: str, b: float) -> float:
    return b * 10

FLOWS = [flow("meaning", a, b, c)]
"""


@pytest.fixture
def edited(project: Project, monkeypatch) -> Project:
    """A project whose results are stored, and whose helpers a test may edit."""
    monkeypatch.delenv("PFL_PROJECT")
    project.write(HELPERS, "helpers")
    project.write(FLOW)
    assert set(statuses(project.call()).values()) == {"computed"}
    return project


def edit(project: Project, old: str, new: str, name: str = "helpers") -> None:
    path = project.root / "flows" / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def reason(project: Project, step: str = "b", **event: object) -> str:
    """The reply's own word for why *step* would be computed."""
    return {row["step"]: row["why"] for row in project.call(cached_only=True, **event)["steps"]}[
        step
    ]


@pytest.mark.parametrize(
    ("old", "new", "name", "said"),
    [
        ("RATE = 3", "RATE = 4", "helpers", "`RATE` in flows/helpers.py:2: 3 → 4"),
        ("x / RATE", "x // RATE", "helpers", "`clean()` in flows/helpers.py:6 changed"),
        ("* rate", "+ rate", "pipeline", "`b()` in flows/pipeline.py:10 changed"),
        ("1234", "1235", "pipeline", "`a()` in flows/pipeline.py:6 changed"),
    ],
)
def test_each_changed_part_is_named_with_its_place(edited, old, new, name, said):
    edit(edited, old, new, name)
    assert reason(edited, "a" if "`a()`" in said else "b") == said


def test_a_secret_is_not_shown(edited):
    edit(edited, "sk-1234567890", "sk-0987654321")
    assert reason(edited) == "`API_TOKEN` in flows/helpers.py:3 changed"
    stored = b"".join(
        path.read_bytes() for path in (edited.root / ".pfl" / "store").rglob("*") if path.is_file()
    )
    assert b"sk-" not in stored


def test_a_changed_parameter_and_a_changed_input_are_shown_old_and_new(edited):
    assert reason(edited, params={"rate": 3}) == "parameter `rate`: 2 → 3"
    edit(edited, "1234", "1235", "pipeline")
    assert {row["step"]: row["why"] for row in edited.call()["steps"]}[
        "b"
    ] == "input `a`: 1234 → 1235"


def test_never_computed_busted_and_expired_are_told_apart(edited):
    assert reason(edited, "a", id="new") == "never computed"
    assert edited.call(bust=["b"])["steps"][1]["why"] == "busted by this call"


def test_why_works_from_what_is_stored_when_the_old_code_is_gone(edited):
    edit(edited, "return x / RATE", "return x / RATE + 0")
    ran = pfl("cache", "why", "--id", "abc", "--step", "b", "--diff")
    assert ran.code == 0
    assert (
        "-    return x / RATE\n" in ran.out.replace("  -", "-")
        and "+    return x / RATE + 0" in ran.out
    )
    rows = pfl("cache", "why", "--id", "abc", "--json").rows
    assert [row["status"] for row in rows] == ["hit", "compute", "depends"]
    assert rows[1]["reasons"] == ["`clean()` in flows/helpers.py:6 changed"]
    assert pfl("cache", "why", "--id", "abc", "--step", "z").code == 2


def test_what_cannot_be_known_and_what_never_stays_the_same_is_warned_of(edited):
    edit(
        edited,
        "    API_TOKEN\n",
        "    API_TOKEN, START, flows.helpers, open\n",
        "pipeline",
    )
    started = "import os, time\nimport flows.helpers\nSTART = time.time_ns()\nos.system('true')\n"
    edit(edited, "from flows.helpers", f"{started}from flows.helpers", "pipeline")
    said = pfl("plan", "--id", "abc", "--step", "b").err
    assert "b never hits: `START` at flows/pipeline.py:" in said
    assert "the fingerprint of b is incomplete: " in said
    assert "flows/pipeline.py:6 starts a process or opens a connection at import" in said


def test_flows_that_a_fresh_process_cannot_import_end_a_plan_with_their_module(edited):
    broken = "import os\nif os.environ.get('PYTHONHASHSEED') == '1':\n    import no_such_package\n"
    edit(edited, "from flows.helpers", f"{broken}from flows.helpers", "pipeline")
    ran = pfl("plan", "--id", "new")
    assert ran.code == 2
    assert "error: the flows worked in this process, but not in a fresh one" in ran.err
    assert re.search(r"why: .*'no_such_package' at flows/pipeline.py:\d+\n", ran.err)
    assert "hint: an import must not depend on what ran before it" in ran.err


def test_an_accepted_edit_keeps_results_and_undoing_it_computes_again(edited):
    before = values(edited.call())
    edit(edited, "x / RATE", "x / RATE + 0")
    refused = pfl("cache", "accept", "--step", "b")
    assert (
        refused.code == 2
        and "--yes" in refused.err
        and "`clean()` in flows/helpers.py:6 changed" in refused.err
    )
    assert pfl("cache", "accept", "--step", "b", "--dry-run", "--json").data["step"] == "b"
    assert statuses(edited.call(cached_only=True))["b"] == "miss"

    told = pfl("cache", "accept", "--step", "b", "--yes", "--json").data
    assert (
        told["by"]
        and told["at"]
        and told["code_changes"] == ["`clean()` in flows/helpers.py:6 changed"]
    )
    reply = edited.call()
    assert statuses(reply) == {"a": "hit", "b": "hit", "c": "hit"} and values(reply) == before
    # The new code has no plan; one listing finds the acceptance, and the old plan answers.
    single = edited.call(step="b")
    assert (statuses(single), single["store"]) == ({"b": "hit"}, {"get": 2, "list": 1})

    assert (
        "no longer be accepted" in pfl("cache", "accept", "--step", "b", "--undo", "--dry-run").err
    )
    assert pfl("cache", "accept", "--step", "b", "--undo").code == 0
    assert statuses(edited.call(cached_only=True))["b"] == "miss"
    assert pfl("cache", "accept", "--step", "b", "--undo", "--dry-run").code == 3


def test_nothing_computed_from_an_accepted_result_outlives_the_acceptance(edited):
    edit(edited, "x / RATE", "x / 5")
    pfl("cache", "accept", "--step", "b", "--yes")
    edit(edited, "b * 10", "b * 20", "pipeline")
    assert statuses(edited.call()) == {"a": "hit", "b": "hit", "c": "computed"}
    pfl("cache", "accept", "--step", "b", "--undo")
    reply = edited.call()
    assert (statuses(reply)["b"], values(reply)["c"]) == ("computed", 1234 / 5 * 2 * 20)


def test_accepting_needs_a_known_step_with_older_results(edited):
    assert pfl("cache", "accept", "--step", "z", "--yes").code == 2
    assert pfl("cache", "accept", "--step", "b", "--yes").code == 3


def test_what_was_computed_for_another_parameter_later_is_no_reason_and_not_what_is_inspected(
    edited,
):
    edited.call(params={"rate": 3})
    for asked, rate, current in ((2, 2, True), (3, 3, True), (4, 3, False)):
        row = pfl(
            "cache", "inspect", "--id", "abc", "--step", "b", "--param", f"rate={asked}", "--json"
        ).data
        assert (row["params"], row["current"]) == ({"rate": rate}, current)
    assert pfl("cache", "bust", "--id", "abc", "--step", "b", "--yes").code == 0
    assert reason(edited).startswith("busted at 20")
