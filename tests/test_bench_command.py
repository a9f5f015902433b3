"""What ``pfl bench`` counts on a user's own flow, and that it leaves the user's store alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfl.cli import main as command


def bench(*arguments: str) -> int:
    """The exit code of ``pfl bench`` in this process."""
    with pytest.raises(SystemExit) as ended:
        command.main(["bench", *arguments])
    return ended.value.code


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_hits_are_counted_warm_and_cold_and_the_users_store_is_not_touched(
    project, tmp_path, monkeypatch, capsys
):
    project.call("bench")
    before = files(project.root)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert bench("--rounds", "2", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["flow"], report["engine"], report["rounds"]) == ("meaning", "direct", 2)
    counts = [
        (row["process"], row["call"], row["computed"], row["hits"]) for row in report["calls"]
    ]
    assert counts == [
        ("warm", "miss", 3, 0),
        ("warm", "hit", 0, 3),
        ("cold", "miss", 3, 0),
        ("cold", "hit", 0, 3),
    ]
    for row in report["calls"]:
        assert row["median_ms"] > 0
        assert (row["store_requests"] == 1) == (row["call"] == "hit")
        assert row["call"] == "hit" or row["saved_ms"] == 0
    assert files(project.root) == before
    assert list(temporary.iterdir()) == []


def test_the_table_holds_a_row_for_each_kind_of_call_and_no_output_of_a_step(project, capfd):
    project.write("""
        @step
        def loud(id: str) -> str:
            print("printed by the step")
            return id

        FLOWS = [flow("other", loud), flow("noisy", loud)]
    """)
    assert bench("--flow", "noisy", "--id", "abc", "--rounds", "1") == 0
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["warm", "miss", "1", "0"],
        ["warm", "hit", "0", "1"],
        ["cold", "miss", "1", "0"],
        ["cold", "hit", "0", "1"],
    ]
    assert "printed by the step" not in printed.out


def test_a_step_that_raises_ends_it_with_the_exit_code_of_a_failed_step(project, capsys):
    project.write("""
        @step
        def broken(id: str) -> int:
            return 1 / 0

        FLOWS = [flow("broken", broken)]
    """)
    assert bench("--json") == 4
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["type"] == "StepFailedError"
    assert "ZeroDivisionError" in printed.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--flow", "absent"], 2), (["--rounds", "0"], 2), (["--id", ""], 2)],
)
def test_invalid_input_is_refused_before_anything_is_computed(project, arguments, code, capsys):
    assert bench(*arguments) == code
    assert capsys.readouterr().out == ""


def test_misses_through_prefect_are_measured_too(on_prefect, prefect_server, monkeypatch, capsys):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    assert bench("--engine", "prefect", "--rounds", "1", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["engine"] == "prefect"
    assert [row["computed"] for row in report["calls"]] == [3, 0, 3, 0]
