"""A step leaves the process as it found it: two calls in one process, with nothing configured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project

from pfl.handler.core.settings import Settings

CALLS = """
import json, os

class Context:
    aws_request_id = "r"
    def get_remaining_time_in_millis(self):
        return 60_000

from pfl.handler import entry
for id in ("one", "two"):
    reply = entry.lambda_handler({"id": id}, Context())
    os.write(2, json.dumps([os.getcwd(), reply]).encode() + b"\\n")
"""

CHANGES = {
    "directory": "os.chdir('/')",
    "deleted directory": "d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "with stdout": "with open(os.devnull, 'w') as sys.stdout: print('noise')",
    "close stdout": "sys.stdout.close()",
    "close both": "sys.stdout.close(), sys.stderr.close()",
    "replace both": "sys.stdout = sys.stderr = io.StringIO()",
    "no streams": "sys.stdout = sys.stderr = None",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("store", ["", "kept", "file://kept"])
def test_a_step_that_changes_the_process_does_not_change_the_next_call(
    project: Project, monkeypatch: pytest.MonkeyPatch, change: str, store: str
):
    project.write(f"""
        import io, os, sys, tempfile

        @step
        def a(id: str) -> str:
            print("before")
            {change}
            return "mine"

        FLOWS = [flow("changing", a)]
    """)
    monkeypatch.delenv("PFL_PROJECT")
    monkeypatch.setenv("PFL_ENGINE", "direct")
    monkeypatch.setenv("PFL_STORE", store)
    (project.root / "kept").mkdir()
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stderr.splitlines()]
    assert [directory for directory, _ in calls] == [str(project.root)] * 2
    for _, reply in calls:
        assert (reply["flow"], reply["status"]) == ("changing", "completed")
        assert [row["status"] for row in reply["steps"]] == ["computed"]
    logged = [json.loads(line) for line in done.stdout.splitlines() if line != "before"]
    assert [line["id"] for line in logged] == ["one", "two"]
    folder = project.root / ("kept" if store else ".pfl/store") / "results"
    assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]


def test_paths_of_the_settings_are_those_of_the_start(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = Settings(project="here", store="kept", manifest="made").with_absolute_paths()
    assert given.project == str(tmp_path / "here")
    assert given.store == str(tmp_path / "kept")
    assert given.manifest == str(tmp_path / "made")
    for store in ("s3://bucket/prefix", "memory://name", "", "file://", "/kept"):
        assert Settings(store=store).with_absolute_paths().store == store
