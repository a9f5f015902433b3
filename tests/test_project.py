"""One process, many threads, and files that are edited under it: each call is answered rightly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import statuses, values

from pfl.handler import bake
from pfl.handler.core import files
from pfl.handler.core.declare import project as projects

STEPS = """
import time
from flows.helper import FACTOR
@step
def a(id: str) -> int:
    return len(id) * FACTOR
@step
def late(id: str) -> str:
    from flows.late import NAME
    return NAME + id
@step
def b(a: int, late: str, rate: float = 1.0) -> list:
    return [a, late, rate]
FLOWS = [flow("p", a, late, b)]
"""
HELPER = "import time\ntime.sleep(0.1)\nFACTOR = 3\n"

# Calls from 16 threads: all first calls at the same time, then many, then while a file is edited.
THREADS = """
import collections, itertools, json, os, random, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pfl.handler.entry import lambda_handler

helper, calls, is_edited = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
answers = collections.Counter()
chance = random.Random(5)
barrier = threading.Barrier(16)


def call(event):
    try:
        reply = lambda_handler(event)
        if reply.get("error") or reply["warnings"]:
            answers[str(reply.get("error") or reply["warnings"])] += 1
            return
        id, rate = event["id"], event.get("params", {}).get("rate", 1.0)
        expected = [len(id) * 3, "late" + id, rate]
        value = reply["steps"][-1]["value"]
        answers["right" if value == expected else f"{value} instead of {expected}"] += 1
    except BaseException as exc:
        answers[repr(exc)] += 1


def call_first(number):
    barrier.wait()
    call({"id": f"first{number}"})


def event(number):
    more = chance.choice([{}, {"params": {"rate": float(number % 3)}}, {"bust": ["a"]}])
    return {"id": "x" * chance.randint(1, 30), **more}


with ThreadPoolExecutor(16) as pool:
    list(pool.map(call_first, range(16)))
    list(pool.map(call, map(event, range(calls))))
    if is_edited:
        text = helper.read_text()
        running = [pool.submit(call, event(number)) for number in range(calls)]
        for number in itertools.count():
            Path("helper.new").write_text(f"{text}# {number}\\n")
            os.replace("helper.new", helper)
            if all(each.done() for each in running):
                break
            running[number % calls].result()
print(json.dumps(answers))
"""


@pytest.fixture
def threaded(project):
    project.write(STEPS)
    project.write(HELPER, "helper")
    project.write("NAME = 'late'\n", "late")
    return project


def run(project, code: str, *arguments: str, **environ: str) -> str:
    """What a new Python process of the project prints."""
    environ = {**os.environ, "PFL_PROJECT": str(project.root), "PFL_ENGINE": "direct", **environ}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.check_output(command, env=environ, text=True, cwd=project.root)


@pytest.mark.parametrize("where", ["image", "project"])
def test_threads_of_one_process_are_all_answered_rightly(threaded, tmp_path, where):
    environ = {}
    if where == "image":
        environ["PFL_MANIFEST"] = str(tmp_path / "manifest.json")
        bake.bake(threaded.settings, Path(environ["PFL_MANIFEST"]))
    is_edited = where == "project"
    helper = threaded.root / "flows" / "helper.py"
    printed = run(threaded, THREADS, str(helper), "100", json.dumps(is_edited), **environ)
    answers = json.loads(printed)
    assert answers == {"right": 216 if is_edited else 116}


EDITED = """
from flows.helper import FACTOR
import builtins
from pathlib import Path
DATA = (Path(__file__).parent / "data.txt").read_text()
builtins.edit()
@step
def a(id: str) -> list:
    return [FACTOR, DATA]
FLOWS = [flow("p", a)]
"""


@pytest.mark.parametrize("name", ["helper.py", "data.txt"])
def test_an_edit_during_the_import_that_keeps_an_old_time_is_noticed(
    project, tmp_path, monkeypatch, name
):
    """As ``rsync -a``, ``cp -p`` and ``tar`` do."""
    flows = project.root / "flows"
    project.write(EDITED)
    project.write("FACTOR = 1\n", "helper")
    (flows / "data.txt").write_text("1")
    new = tmp_path / name
    new.write_text((flows / name).read_text().replace("1", "2"))
    os.utime(new, (1_000_000_000, 1_000_000_000))
    edits = [lambda: os.replace(new, flows / name)]
    monkeypatch.setattr("builtins.edit", lambda: edits and edits.pop()(), raising=False)
    now = {"helper.py": [2, "1"], "data.txt": [1, "2"]}[name]
    first = project.call()
    assert values(first)["a"] in ([1, "1"], now)
    assert values(project.call())["a"] == now
    shutil.rmtree(project.root / ".pfl" / "store")
    projects._current = None
    assert values(project.call())["a"] == now


WAITS = """
import builtins
from pathlib import Path
RATES = Path(__file__).parent / "rates"
@step(depends_on=[RATES])
def a(id: str) -> list:
    builtins.edit()
    return sorted(path.read_text() for path in RATES.iterdir())
FLOWS = [flow("p", a)]
"""


@pytest.mark.parametrize("edited", ["one.csv", "two.csv"])
def test_a_declared_file_that_changes_while_the_step_runs_leaves_no_result(
    project, monkeypatch, edited
):
    """Its value belongs to neither content."""
    rates = project.root / "flows" / "rates"
    rates.mkdir()
    (rates / "one.csv").write_text("1")
    project.write(WAITS)
    edits = [lambda: (rates / edited).write_text("2")]
    monkeypatch.setattr("builtins.edit", lambda: edits and edits.pop()(), raising=False)
    reply = project.call()
    assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
    assert f"rates{os.sep}{edited}" in reply["error"]["why"] or "rates" in reply["error"]["why"]
    assert "call again" in reply["error"]["hint"]
    after = sorted(path.read_text() for path in rates.iterdir())
    assert values(project.call())["a"] == after
    (rates / edited).unlink()
    (rates / "one.csv").write_text("1")
    assert statuses(project.call()) == {"a": "computed"}
    assert values(project.call())["a"] == ["1"]


LATE = """
import builtins
@step
def a(id: str) -> int:
    builtins.edit()
    from flows.late import NUMBER
    return NUMBER
FLOWS = [flow("p", a)]
"""


def test_a_step_that_imports_what_another_thread_has_replaced_leaves_no_result(
    project, monkeypatch
):
    """Otherwise the value of the new code is kept as that of the old code."""
    project.write(LATE)
    project.write("NUMBER = 1\n", "late")

    def edit() -> None:
        monkeypatch.setattr("builtins.edit", lambda: None)
        project.write("NUMBER = 2\n", "late")
        thread = threading.Thread(target=project.call, args=("other",))
        thread.start()
        thread.join()

    monkeypatch.setattr("builtins.edit", edit, raising=False)
    reply = project.call()
    assert reply["error"]["type"] == "UnavailableError"
    assert "flows.late" in reply["error"]["why"]
    assert values(project.call())["a"] == 2
    project.write("NUMBER = 1\n", "late")
    assert values(project.call())["a"] == 1


def test_an_edit_of_a_module_that_the_process_already_runs_counts_in_the_next_process(
    project,
):
    """A web app imported it, so this process goes on running the old code."""
    project.write(
        "import shared\n@step\ndef a(id):\n    return shared.get()\nFLOWS = [flow('p', a)]\n"
    )
    shared = project.root / "shared.py"
    shared.write_text("def get():\n    return 1\n")
    app = """
import json, os, sys
sys.path.insert(0, os.environ["PFL_PROJECT"])
import shared
from pathlib import Path
from pfl.handler.entry import lambda_handler
values = [lambda_handler({"id": "x"})["steps"][0]["value"]]
Path("shared.py").write_text("def get():\\n    return 2\\n")
with open("flows/pipeline.py", "a") as file:
    file.write("# The flows are imported again.\\n")
values += [lambda_handler({"id": id})["steps"][0]["value"] for id in ("x", "y")]
print(json.dumps(values))
"""
    assert json.loads(run(project, app)) == [1, 1, 1]
    assert json.loads(run(project, app)) == [2, 2, 2]


READS_VARIABLES = """
import os
os.environ.setdefault("PFL_SET_BY_IMPORT", "yes")
STAGE = os.environ.get("PFL_STAGE")
@step
def a(id: str) -> str:
    return STAGE
FLOWS = [flow("p", a)]
"""
HIT_WITHOUT_FLOWS = """
import sys
from pfl.handler.entry import lambda_handler
print(lambda_handler({"id": "x"})["steps"][0]["value"], "flows.pipeline" in sys.modules)
"""


def test_processes_that_differ_keep_a_manifest_each(project):
    """So a web app and a terminal in one project do not import the flows in turns."""
    project.write(READS_VARIABLES)
    for is_imported in (True, False, False):
        for stage in ("one", "two"):
            printed = run(project, HIT_WITHOUT_FLOWS, PFL_STAGE=stage)
            assert printed.split() == [stage, str(is_imported)]


def test_old_manifests_are_removed(project):
    project.write(READS_VARIABLES)
    home = project.root / ".pfl"
    home.mkdir(exist_ok=True)
    (home / "manifest.json").write_text("of an earlier version")
    for number in range(12):
        os.environ["PFL_STAGE"] = str(number)
        project.call()
    kept = list(home.glob("manifest*"))
    assert len(kept) == 8
    assert home / "manifest.json" not in kept


SECRET = """
import os
AUTH = os.environ["MY_SECRET"]
HEADERS = {"Authorization": "Bearer " + AUTH}
@step
def a(id: str) -> int:
    return len(HEADERS)
FLOWS = [flow("p", a)]
"""


def test_the_value_of_a_variable_is_neither_stored_nor_shown(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "s3cr3t-old")
    project.write(SECRET)
    project.call()
    bake.bake(project.settings, tmp_path / "baked.json")
    stored = [path for path in project.root.glob(".pfl/**/*") if path.is_file()]
    for path in (*stored, *tmp_path.glob("baked.json*")):
        assert b"s3cr3t" not in path.read_bytes()
    monkeypatch.setenv("MY_SECRET", "s3cr3t-new")
    [row] = project.call()["steps"]
    assert row["why"] == (
        "`HEADERS` in flows/pipeline.py:5: the value of MY_SECRET (from the environment) changed"
    )


@pytest.mark.parametrize("is_imported", [True, False])
def test_a_warm_hit_reads_no_file_of_the_project(project, monkeypatch, is_imported):
    project.call()
    if not is_imported:
        projects._current = None
    opened: list[str] = []

    def note(event: str, args: tuple) -> None:
        if event == "open" and is_watched and str(args[0]).startswith(str(project.root)):
            opened.append(str(args[0]))

    is_watched = False
    sys.addaudithook(note)
    hour_ns = 3_600_000_000_000
    now_ns = time.time_ns()
    # Files that are as young as these are read each time.
    monkeypatch.setattr(files.time, "time_ns", lambda: now_ns + hour_ns)
    project.call()
    is_watched = True
    assert set(statuses(project.call()).values()) == {"hit"}
    store = str(project.root / ".pfl" / "store")
    assert [path for path in opened if not path.startswith(store)] == []
    project.write("FACTOR = 4\n", "c")
    assert project.call()["status"] == "invalid"
    is_watched = False


def test_a_file_that_was_just_written_is_read_again(tmp_path):
    """A second write of the same size could get the same time."""
    path = tmp_path / "file"
    path.write_text("1")
    status = path.stat()
    old = files.state("files", str(path))
    path.write_text("2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.state("files", str(path)) != old
