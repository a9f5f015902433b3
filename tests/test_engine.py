"""Both engines: the same steps, keys and bytes; what Prefect shows; and that no error is silent."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import forked
import pytest
import servers
from conftest import Project, statuses, values

from pfl.handler.core.declare import project as projects
from pfl.handler.core.store import keys, records
from pfl.handler.core.store import objects as stores
from pfl.handler.engine.prefect import own_run

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture(params=["direct", "prefect"])
def computing(request: pytest.FixtureRequest, project: Project) -> Project:
    """A project that computes through each of the engines."""
    return project if request.param == "direct" else request.getfixturevalue("on_prefect")


def ask(url: str, path: str, body: object = None) -> object:
    """What Prefect's API answers."""
    data = None if body is None else json.dumps(body).encode()
    for left in reversed(range(30)):
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url + path, data, {"content-type": "application/json"})
            ) as response:
                return json.load(response)
        except urllib.error.HTTPError as exc:
            if exc.code != 503 or not left:  # Its SQLite was locked: a client is to ask again.
                raise
            threading.Event().wait(0.3)


def flow_runs(project: Project, id: str) -> list[dict]:
    return ask(
        project.settings.prefect_api_url,
        "/flow_runs/filter",
        {"flow_runs": {"tags": {"all_": [f"id={id}"]}}},
    )


def task_runs(project: Project, flow_run_id: str, count: int) -> list[dict]:
    """The *count* task runs of a flow run, once the server has worked off all their events."""
    deadline = time.monotonic() + 60
    while True:
        runs = ask(
            project.settings.prefect_api_url,
            "/task_runs/filter",
            {"flow_runs": {"id": {"any_": [flow_run_id]}}},
        )
        if len(runs) == count and all(run["state_type"] in FINAL for run in runs):
            return runs
        assert time.monotonic() < deadline, [(run["name"], run["state_type"]) for run in runs]
        threading.Event().wait(0.1)


def objects(project: Project, prefix: str) -> dict[str, bytes]:
    return {entry.key: project.results.get(entry.key) for entry in project.results.list(prefix)}


# The same from both.

KINDS = """
@step
def number(id: str) -> float:
    return 1 / 3
@step
def text(number, note: str = "é") -> str:
    return f"{number} 👾 {note}"
@step
async def nested(id, text) -> dict:
    rows = [{"t": text, "n": None, "b": True, "i": 2**70, "e": 1e-300}]
    return {"rows": rows, "": [[], {}], "t": (1, 2)}
FLOWS = [flow("kinds", number, text, nested)]
"""


def test_both_engines_leave_the_same_bytes_under_the_same_keys(on_prefect, tmp_path):
    on_prefect.write(KINDS)
    left = []
    for engine in ("direct", "prefect"):
        on_prefect.store = stores.open_store(str(tmp_path / engine), environ={}, create=True)
        reply = on_prefect.call("same/✓", engine=engine)
        assert reply["engine"] == engine
        assert set(statuses(reply).values()) == {"computed"}
        # All but the name of the record, which starts with the time, and the digest that covers it.
        results = {
            path: re.sub(rb'"(record|sha256)":"[^"]*"', b"", data)
            for path, data in objects(on_prefect, "results").items()
        }
        left.append((values(reply), results, set(objects(on_prefect, "plans"))))
    assert left[0] == left[1]
    assert len(left[0][1]) == 3


def test_what_one_engine_computed_is_a_hit_for_the_other(on_prefect):
    on_prefect.call(engine="direct")
    reply = on_prefect.call(engine="prefect")
    assert reply["store"] == {"get": 1}
    assert reply["engine"] is None


def test_the_meaning_of_abc_comes_out(computing):
    reply = computing.call()
    assert values(reply) == {"a": 1234, "b": 1234 / 3, "c": 1234 / 3 * 10}
    assert set(statuses(computing.call("other")).values()) == {"computed"}
    assert set(statuses(computing.call()).values()) == {"hit"}


# Joining.


def test_steps_that_do_not_wait_for_one_another_run_at_the_same_time(computing):
    """b and c meet inside: neither can end before the other has begun."""
    computing.write("import threading\nBARRIER = threading.Barrier(2, timeout=60)\n", "meet")
    computing.write(
        """
        from flows import meet
        @step
        def a(id):
            return 1
        @step
        def b(a):
            meet.BARRIER.wait()
            return a + 1
        @step
        def c(a):
            meet.BARRIER.wait()
            return a + 2
        @step
        def d(b, c):
            return [b, c]
        FLOWS = [flow("diamond", d, c, b, a)]
        """
    )
    reply = computing.call("diamond")
    assert reply["status"] == "completed", reply
    assert values(reply)["d"] == [2, 3]
    assert set(statuses(reply).values()) == {"computed"}


def test_async_steps_run_at_the_same_time_too(computing):
    computing.write("import threading\nBARRIER = threading.Barrier(2, timeout=60)\n", "meet")
    computing.write(
        """
        import asyncio
        from flows import meet
        @step
        async def b(id):
            await asyncio.to_thread(meet.BARRIER.wait)
            return id
        @step
        async def c(id):
            await asyncio.to_thread(meet.BARRIER.wait)
            return id
        @step
        async def d(b, c):
            return b + c
        FLOWS = [flow("both", b, c, d)]
        """
    )
    assert values(computing.call("x"))["d"] == "xx"


def test_only_what_the_asked_step_needs_is_computed(computing):
    assert set(statuses(computing.call("need", step="b"))) == {"a", "b"}
    assert statuses(computing.call("need")) == {"a": "hit", "b": "hit", "c": "computed"}


# Retries and time.


def test_a_step_is_tried_again_as_often_as_it_says(computing):
    computing.write(
        """
        from pathlib import Path
        @step(retries=2)
        def a(id):
            tries = Path("tries.txt")
            tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
            if len(tries.read_text()) < 3:
                raise ValueError("not yet")
            return tries.read_text()
        FLOWS = [flow("again", a)]
        """
    )
    reply = computing.call("retry")
    assert (reply["status"], values(reply)) == ("completed", {"a": "xxx"})


def test_a_step_that_fails_every_time_fails_with_its_last_exception(computing):
    computing.write(
        """
        from pathlib import Path
        @step(retries=1)
        def a(id):
            tries = Path("tries.txt")
            tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
            raise ValueError(tries.read_text())
        FLOWS = [flow("again", a)]
        """
    )
    assert computing.call("retry")["error"]["why"] == "ValueError: xx"


def test_a_step_is_not_tried_again_for_a_value_that_cannot_be_stored(computing):
    computing.write(
        """
        from pathlib import Path
        @step(retries=3)
        def a(id):
            with Path("tries.txt").open("a") as file:
                file.write("x")
            return {1}
        FLOWS = [flow("again", a)]
        """
    )
    assert computing.call("retry")["error"]["type"] == "UnstorableValueError"
    assert Path("tries.txt").read_text() == "x"


@pytest.mark.parametrize("body", ["while True:\n        pass", "await asyncio.sleep(600)"])
def test_a_step_whose_time_is_over_fails_and_says_so(computing, body):
    kind = "async def" if "await" in body else "def"
    computing.write(
        "import asyncio\n"
        "@step(timeout_s=0.3)\n"
        f"{kind} a(id):\n"
        f"    {body}\n"
        "FLOWS = [flow('slow', a)]\n"
    )
    reply = computing.call("slow")
    assert statuses(reply) == {"a": "failed"}
    assert reply["error"]["type"] == "StepFailedError"
    assert "Timeout" in reply["error"]["why"]
    assert objects(computing, "results") == {}


def test_a_timeout_that_the_step_raises_itself_is_told_as_its_own(computing):
    computing.write(
        "@step(timeout_s=60)\n"
        "async def a(id):\n"
        "    raise TimeoutError('the bank')\n"
        "FLOWS = [flow('x', a)]\n"
    )
    assert computing.call("slow")["error"]["why"] == "TimeoutError: the bank"


# Failing.

FORK = """
@step
def a(id):
    return 1
@step
def good(a):
    return "saved"
@step
def bad(a):
    raise KeyError("no " + str(a))
@step
def after(bad):
    return bad
@step
def join(good, after):
    return good
FLOWS = [flow("fork", a, good, bad, after, join)]
"""


def test_a_failing_step_fails_the_call_and_its_independent_sibling_is_saved(computing):
    computing.write(FORK)
    reply = computing.call("fork")
    assert reply["status"] == "failed"
    assert statuses(reply) == {"a": "computed", "good": "computed", "bad": "failed"}
    assert reply["error"] == {
        "type": "StepFailedError",
        "what": "step bad failed",
        "why": "KeyError: 'no 1'",
        "hint": "see flows/pipeline.py:11",
    }
    again = computing.call("fork", step="good")
    assert (statuses(again), again["store"]) == ({"good": "hit"}, {"get": 1})


def test_a_failure_deep_in_a_helper_is_told_with_the_line_of_the_helper(computing):
    computing.write("def clean(text):\n    return text.nope()\n", "helpers")
    computing.write(
        "from flows.helpers import clean\n"
        "@step\n"
        "def a(id):\n"
        "    return clean(id)\n"
        "FLOWS = [flow('x', a)]\n"
    )
    error = computing.call("deep")["error"]
    assert error["hint"] == "see flows/helpers.py:2"
    assert error["why"].startswith("AttributeError: 'str' object has no attribute 'nope'")


def test_a_failure_inside_the_standard_library_is_told_with_the_users_line(computing):
    computing.write(
        "import json\n@step\ndef a(id):\n    return json.loads('{')\nFLOWS = [flow('x', a)]\n"
    )
    assert computing.call("std")["error"]["hint"] == "see flows/pipeline.py:5"


def test_a_project_in_a_directory_called_handler_gets_its_line_too(project, tmp_path, monkeypatch):
    moved = Project(tmp_path / "handler" / "project")
    moved.root.mkdir(parents=True)
    monkeypatch.chdir(moved.root)
    moved.write("@step\ndef a(id):\n    raise ValueError\nFLOWS = [flow('x', a)]\n")
    assert moved.call("line")["error"]["hint"] == "see flows/pipeline.py:4"


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (
            "{'rows': [0, 1, 2, {'when': datetime.now()}]}",
            "result.rows[3].when: datetime.datetime is not JSON",
        ),
        ("float('nan')", "result: nan is not a JSON number"),
        ("[{1: 2}]", "result[0][1]: the key is int, not a string"),
        ("object()", "result: object is not JSON"),
        ("(x for x in [])", "result: generator is not JSON"),
    ],
)
def test_a_value_that_cannot_be_stored_fails_the_step_with_its_path(computing, returned, why):
    computing.write(
        "from datetime import datetime\n"
        "@step\n"
        "def a(id):\n"
        f"    return {returned}\n"
        "FLOWS = [flow('x', a)]\n"
    )
    reply = computing.call("odd")
    assert (reply["status"], statuses(reply)) == ("failed", {"a": "failed"})
    assert reply["error"]["what"] == "step a returned a value that cannot be stored"
    assert reply["error"]["why"] == why
    assert objects(computing, "results") == objects(computing, "plans") == {}


def test_a_step_may_return_nothing_and_that_is_cached(computing):
    computing.write("@step\ndef a(id):\n    pass\nFLOWS = [flow('x', a)]\n")
    assert statuses(computing.call("none")) == {"a": "computed"}
    reply = computing.call("none")
    assert (statuses(reply), values(reply), reply["store"]) == (
        {"a": "hit"},
        {"a": None},
        {"get": 1},
    )


@pytest.mark.parametrize(
    "raised", ["SystemExit(3)", "BaseException('odd')", "GeneratorExit()", "CancelledError()"]
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_whatever_a_step_raises_is_a_failure_of_the_step(computing, raised, kind):
    computing.write(
        "from asyncio import CancelledError\n"
        "@step\n"
        f"{kind} a(id):\n"
        f"    raise {raised}\n"
        "FLOWS = [flow('x', a)]\n"
    )
    reply = computing.call("base")
    assert (reply["status"], statuses(reply)) == ("failed", {"a": "failed"})
    assert reply["error"]["why"] == f"RuntimeError: the step raised {raised}"
    assert reply["error"]["hint"] == "see flows/pipeline.py:5"


# What steps are given.


def test_previous_is_the_last_output_for_this_id_and_no_part_of_the_key(computing):
    computing.write(
        "@step\n"
        "def a(id, previous=None):\n"
        "    return [id, *(previous or [])]\n"
        "FLOWS = [flow('x', a)]\n"
    )
    assert values(computing.call("p")) == {"a": ["p"]}
    assert statuses(computing.call("p")) == {"a": "hit"}
    assert values(computing.call("p", bust="all")) == {"a": ["p", "p"]}
    assert values(computing.call("q")) == {"a": ["q"]}
    stored = objects(computing, f"results/{keys.encode_id('p')}")
    assert len({path.partition("~")[0] for path in stored}) == 1


def test_previous_is_the_last_output_also_when_the_code_has_changed(project):
    project.write("@step\ndef a(id, previous=None):\n    return 1\nFLOWS = [flow('x', a)]\n")
    project.call()
    project.write(
        "@step\ndef a(id, previous=None):\n    return [2, previous]\nFLOWS = [flow('x', a)]\n"
    )
    assert values(project.call()) == {"a": [2, 1]}


def test_previous_is_there_also_when_it_is_large(project):
    project.knobs["inline_bytes"] = 50
    project.write(
        "@step\n"
        "def a(id, previous=None):\n"
        "    return 'x' * 100 if previous is None else len(previous)\n"
        "FLOWS = [flow('x', a)]\n"
    )
    project.call()
    assert values(project.call(bust="all")) == {"a": 100}


def test_every_try_of_a_step_sees_the_same_previous(computing):
    computing.write(
        """
        from pathlib import Path
        @step(retries=1)
        def a(id, previous=None):
            previous = previous or []
            previous.append("spoiled")
            if not Path("tried.txt").exists():
                Path("tried.txt").touch()
                raise ValueError
            return len(previous)
        FLOWS = [flow("x", a)]
        """
    )
    assert values(computing.call("p")) == {"a": 1}


def test_a_step_that_changes_its_input_changes_it_for_nobody_else(computing):
    computing.write(
        """
        @step
        def a(id):
            return {"rows": [1, 2]}
        @step
        def spoil(a):
            a["rows"].clear()
            return len(a["rows"])
        @step
        def later(a, spoil):
            return a["rows"]
        FLOWS = [flow("x", a, spoil, later)]
        """
    )
    assert values(computing.call("m")) == {"a": {"rows": [1, 2]}, "spoil": 0, "later": [1, 2]}
    assert values(computing.call("m")) == {"a": {"rows": [1, 2]}, "spoil": 0, "later": [1, 2]}


def test_a_default_that_a_step_changes_is_whole_in_the_next_call(computing):
    computing.write(
        "@step\n"
        "def a(id, rows: list = []):\n"
        "    rows.append(id)\n"
        "    return rows\n"
        "FLOWS = [flow('x', a)]\n"
    )
    assert values(computing.call("m")) == {"a": ["m"]}
    assert values(computing.call("n")) == {"a": ["n"]}


def test_a_step_is_given_what_every_later_reader_would_see(computing):
    computing.write(
        "@step\n"
        "def a(id):\n"
        "    return {'t': (1, 2)}\n"
        "@step\n"
        "def b(a):\n"
        "    return type(a['t']).__name__\n"
        "FLOWS = [flow('x', a, b)]\n"
    )
    assert values(computing.call("t"))["b"] == "list"


def test_a_step_may_print(computing, capsys):
    computing.write(
        "@step\ndef a(id):\n    print('hello from', id)\n    return 1\nFLOWS = [flow('x', a)]\n"
    )
    assert computing.call("abc")["status"] == "completed"
    assert capsys.readouterr().out == "hello from abc\n"


# A store that fails.


@pytest.mark.parametrize("engine", ["direct", "prefect"])
@pytest.mark.parametrize("kind", ["results", "history", "plans"])
def test_what_could_not_be_saved_fails_the_call_and_is_computed_again(
    project, request, s3_env, s3_url, bucket, engine, kind
):
    if engine == "prefect":
        request.getfixturevalue("on_prefect")
    refusing = [True]

    def answer(method: str, path: str):
        return (
            servers.s3_error(403, "AccessDenied")
            if method == "PUT" and f"/{kind}/" in path and refusing[0]
            else None
        )

    project.write(
        "@step(retries=2)\n"
        "def a(id):\n"
        "    return 1\n"
        "@step\n"
        "def b(a):\n"
        "    return 2\n"
        "FLOWS = [flow('x', a, b)]\n"
    )
    with servers.Loopback(answer, s3_url) as proxy:
        project.store = stores.open_store(
            f"s3://{bucket}", environ=s3_env | {"AWS_ENDPOINT_URL": proxy.url}
        )
        reply = project.call("saved", engine=engine)
        assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError"), reply
        # It is written while the next step computes; in Prefect, a result is created before that.
        assert set(statuses(reply).values()) == {"failed"}
        assert "grant this identity access" in reply["error"]["hint"]
        written = sum(method == "PUT" and f"/{kind}/" in path for method, path in proxy.asked)
        assert written in ((1, 2) if engine == "direct" else (len(reply["steps"]),))
        # If the refusal came before the result of b was created, that is missing.
        results = [path for method, path in proxy.asked if method == "PUT" and "/results/" in path]
        is_whole = kind != "results" and any("/saved/b/" in path for path in results)
        later = project.call("saved", cached_only=True)
        assert later["status"] == ("completed" if is_whole else "miss")
        refusing[0] = False
        again = project.call("saved", engine=engine)
        assert (again["status"], values(again)) == ("completed", {"a": 1, "b": 2})
        assert statuses(again)["a"] == ("computed" if kind == "results" else "hit")
        if engine == "prefect" and kind == "results":
            assert {run["state_type"] for run in flow_runs(project, "saved")} == {
                "FAILED",
                "COMPLETED",
            }


@pytest.mark.parametrize("verb", ["GET", "PUT"])
def test_a_store_that_forbids_access_is_an_error_and_never_a_miss(
    project, s3_env, s3_url, bucket, verb
):
    with servers.Loopback(
        lambda m, p: servers.s3_error(403, "AccessDenied") if m == verb else None, s3_url
    ) as proxy:
        project.store = stores.open_store(
            f"s3://{bucket}", environ=s3_env | {"AWS_ENDPOINT_URL": proxy.url}
        )
        reply = project.call()
    assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")


# Read by stock Prefect.


def stored(project: Project) -> dict[str, object]:
    reply = project.call("stock/✓")
    assert reply["status"] == "completed"
    return {
        records.result_path("stock/✓", row["step"], row["key"]): row["value"]
        for row in reply["steps"]
    }


def test_stock_prefect_reads_every_result_from_a_directory(project, prefect_server):
    from prefect.filesystems import LocalFileSystem
    from prefect.results import ResultStore

    project.write(KINDS.replace("@step\ndef number", '@step(cache_for="1h")\ndef number'))
    block = LocalFileSystem(basepath=str(project.root / ".pfl" / "store"))
    for path, value in stored(project).items():
        record = ResultStore(result_storage=block).read(path)
        assert record.result == value
        assert (record.metadata.expiration is not None) == ("/number/" in path)


def test_stock_prefect_reads_every_result_from_s3(project, prefect_server, bucket, s3_env):
    from prefect.results import ResultStore
    from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket

    project.write(KINDS)
    project.knobs["store"] = f"s3://{bucket}/pre/fix"
    credentials = AwsCredentials(
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
        aws_client_parameters=AwsClientParameters(endpoint_url=s3_env["AWS_ENDPOINT_URL"]),
    )
    block = S3Bucket(bucket_name=bucket, bucket_folder="pre/fix", credentials=credentials)
    for path, value in stored(project).items():
        assert ResultStore(result_storage=block).read(path).result == value


def test_a_result_that_stock_prefect_wrote_is_a_hit(project, prefect_server):
    """A record under our key, in Prefect's own serializer, with none of our fields."""
    from prefect.filesystems import LocalFileSystem
    from prefect.results import ResultStore
    from prefect.serializers import JSONSerializer

    reply = project.call()
    a = reply["steps"][0]
    path = records.result_path("abc", "a", a["key"])
    for kind in ("results", "plans"):
        project.results.delete(objects(project, f"{kind}/abc"))
    block = LocalFileSystem(basepath=str(project.root / ".pfl" / "store"))
    ResultStore(result_storage=block, serializer=JSONSerializer()).write(obj=1234, key=path)
    again = project.call()
    assert statuses(again) == {"a": "hit", "b": "computed", "c": "computed"}
    assert values(again) == values(reply)


# What Prefect is told.


def test_the_api_has_one_flow_run_with_one_task_run_for_each_computed_step(on_prefect):
    on_prefect.write(
        "@step\n"
        "def a(id, rate: float = 2):\n"
        "    return rate\n"
        "@step\n"
        "def b(a):\n"
        "    return a\n"
        "@step\n"
        "def c(b):\n"
        "    return b\n"
        "FLOWS = [flow('told', a, b, c, description='What it is for.')]\n"
    )
    reply = on_prefect.call("api,✓", step="b", params={"rate": 3}, bust="this")
    [run] = flow_runs(on_prefect, "api%2C✓")
    assert run["name"] == "told/api,✓/b"
    assert {"id=api%2C✓", "step=b"} <= set(run["tags"])
    assert run["parameters"] == {"id": "api,✓", "step": "b", "bust": ["b"], "skip": [], "rate": 3.0}
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Completed")
    tasks = sorted(task_runs(on_prefect, run["id"], 2), key=lambda task: task["name"])
    assert [task["name"] for task in tasks] == ["a[api,✓]", "b[api,✓]"]
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    pages = on_prefect.settings.prefect_api_url.removesuffix("/api") + "/v2/runs"
    for task, row in zip(tasks, reply["steps"], strict=True):
        assert (row["flow_run_id"], row["task_run_id"]) == (run["id"], task["id"])
        assert (reply["url"], row["url"]) == (
            f"{pages}/flow-run/{run['id']}",
            f"{pages}/task-run/{task['id']}?tab=TaskInputs",
        )
    flow = ask(on_prefect.settings.prefect_api_url, f"/flows/{run['flow_id']}")
    assert flow["name"] == "told"


def test_a_hit_tells_where_it_was_computed_and_makes_no_flow_run(on_prefect):
    first = on_prefect.call("hits")
    second = on_prefect.call("hits")
    assert len(flow_runs(on_prefect, "hits")) == 1
    told = ("flow_run_id", "task_run_id", "url", "computed_at")
    assert [[row[t] for t in told] for row in second["steps"]] == [
        [row[t] for t in told] for row in first["steps"]
    ]
    assert second["steps"][0]["url"]


def test_early_cut_off_that_computes_nothing_makes_no_flow_run(on_prefect):
    on_prefect.call("cut")
    for step in "abc":
        on_prefect.results.delete(objects(on_prefect, f"plans/cut/{step}"))
    assert set(statuses(on_prefect.call("cut")).values()) == {"hit"}
    assert len(flow_runs(on_prefect, "cut")) == 1


def test_a_partial_hit_makes_task_runs_only_for_the_rest(on_prefect):
    on_prefect.call("part", step="a", engine="direct")
    on_prefect.call("part")
    [run] = flow_runs(on_prefect, "part")
    assert sorted(task["name"] for task in task_runs(on_prefect, run["id"], 2)) == [
        "b[part]",
        "c[part]",
    ]
    assert "step=all" in run["tags"]


def test_a_failed_step_is_a_failed_run_and_a_failed_task(on_prefect):
    on_prefect.write(FORK)
    on_prefect.call("failed")
    [run] = flow_runs(on_prefect, "failed")
    assert run["state_type"] == "FAILED"
    states = {
        task["name"].split("[")[0]: task["state_type"]
        for task in task_runs(on_prefect, run["id"], 3)
    }
    assert states == {"a": "COMPLETED", "good": "COMPLETED", "bad": "FAILED"}


def test_a_direct_computation_is_not_told_to_prefect(on_prefect):
    on_prefect.call("quiet", engine="direct")
    assert flow_runs(on_prefect, "quiet") == []


# Prefect that does not answer.


@pytest.fixture(params=["unreachable", "401", "500"])
def broken_api(request, project, prefect_server):
    """A project whose Prefect is not there, or answers nothing but an error."""
    project.knobs["engine"] = "prefect"
    if request.param == "unreachable":
        project.knobs["prefect_api_url"] = "http://127.0.0.1:9/api"
        yield project, request.param
        return
    with servers.Loopback(lambda method, path: (int(request.param), b'{"detail": "no"}')) as server:
        project.knobs["prefect_api_url"] = server.url + "/api"
        yield project, request.param


def test_without_prefect_a_hit_still_works_and_a_miss_says_what_to_do(broken_api, monkeypatch):
    project, kind = broken_api
    monkeypatch.setattr(own_run, "BUSY_S", 2)
    project.call("here", engine="direct")
    assert project.call("here")["store"] == {"get": 1}
    reply = project.call("elsewhere")
    assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
    assert project.settings.prefect_api_url in reply["error"]["what"]
    assert "--engine direct" in reply["error"]["hint"]
    assert ("PREFECT_API_KEY" in reply["error"]["hint"]) == (kind == "401")
    assert project.call("elsewhere", engine="direct")["status"] == "completed"


def test_a_prefect_that_is_too_busy_to_make_a_run_is_asked_again(on_prefect, prefect_server):
    made, api = iter([503, 503, 503]), prefect_server.url.removesuffix("/api")

    def answer(method: str, path: str) -> servers.Answer | None:
        status = next(made, None) if path == "/api/flow_runs/" else None
        return None if status is None else (status, b'{"exception_message": "Service Unavailable"}')

    with servers.Loopback(answer, api) as proxy:
        proxy.drops = {"accept-encoding"}
        on_prefect.knobs["prefect_api_url"] = proxy.url + "/api"
        assert on_prefect.call("busy")["status"] == "completed"
        assert [path for _, path in proxy.asked].count("/api/flow_runs/") == 4
        assert len(flow_runs(on_prefect, "busy")) == 1


def test_a_prefect_url_that_is_none_is_an_invalid_setting(project):
    project.knobs |= {"engine": "prefect", "prefect_api_url": "localhost:4200"}
    reply = project.call()
    assert (reply["status"], reply["error"]["type"]) == ("invalid", "InvalidRequestError")


def test_in_lambda_without_a_prefect_no_server_is_started(project, monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "pfl")
    project.knobs["engine"] = "prefect"
    reply = project.call()
    assert reply["error"]["type"] == "UnavailableError"
    assert "PREFECT_API_URL is not set" in reply["error"]["why"]
    assert not (project.root / ".pfl" / "server.lock").exists()


# The ordinary Prefect flow.


@pytest.fixture
def prefect_flow(on_prefect, monkeypatch):
    """The flow as Prefect's own tools get it, at a server."""
    on_prefect.write(
        """
        from typing import Literal
        @step
        def a(id, rate: float = 2, mode: Literal["x", "y"] | None = None):
            \"\"\"
            Known.

            Args:
                rate: How fast, per second.
            \"\"\"
            return rate
        @step
        def b(a, rows: list = []):
            return [a, *rows]
        FLOWS = [flow("plain", a, b, description="What it is for.")]
        """
    )
    from prefect import settings as knobs

    with knobs.temporary_settings(
        updates={knobs.PREFECT_API_URL: on_prefect.settings.prefect_api_url}
    ):
        yield projects.load(on_prefect.settings).flows["plain"].to_prefect()


def test_the_prefect_flow_can_be_called_like_any_other(prefect_flow, on_prefect):
    import prefect

    assert isinstance(prefect_flow, prefect.Flow)
    assert prefect_flow(id="called", rate=3) == {"a": 3.0, "b": [3.0]}
    assert prefect_flow("called", "a", rate=3) == {"a": 3.0}
    assert len(flow_runs(on_prefect, "called")) == 2
    assert values(on_prefect.call("called", params={"rate": 3})) == {"a": 3.0, "b": [3.0]}
    assert on_prefect.call("called", params={"rate": 3})["store"] == {"get": 1}


def test_the_prefect_flow_of_a_failing_step_raises_what_the_step_raised(on_prefect):
    from prefect import settings as knobs

    on_prefect.write(FORK)
    with knobs.temporary_settings(
        updates={knobs.PREFECT_API_URL: on_prefect.settings.prefect_api_url}
    ):
        flow = projects.load(on_prefect.settings).flows["fork"].to_prefect()
        with pytest.raises(KeyError, match="no 1"):
            flow(id="raises")


def test_the_prefect_flow_has_a_parameter_schema_with_every_field(prefect_flow):
    schema = prefect_flow.parameters.model_dump()
    assert list(schema["properties"]) == ["id", "step", "bust", "skip", "rate", "mode", "rows"]
    assert schema["required"] == ["id"]
    assert schema["properties"]["rate"] | {"position": 0} == {
        "type": "number",
        "default": 2.0,
        "title": "rate",
        "position": 0,
        "description": "How fast, per second.",
    }
    assert schema["properties"]["id"]["description"] == "The ID of the results."
    assert prefect_flow.description.startswith("What it is for.")


def test_the_prefect_flow_refuses_a_parameter_of_the_wrong_type(prefect_flow):
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError):
        prefect_flow(id="x", mode="z")
    with pytest.raises(ParameterTypeError):
        prefect_flow(id="x", step="nope")


# Ctrl-C.

WAITING = """
import os, threading
@step
def a(id):
    return 1
@step
def b(a):
    os.write(1, b"inside\\n")  # In one piece: two threads do.
    threading.Event().wait(600)
@step
def c({c_takes}):
    os.write(1, b"inside\\n")  # In one piece: two threads do.
    threading.Event().wait(600)
FLOWS = [flow("waiting", a, b, c)]
"""

CHILD = """
import sys
from pfl.handler.entry import lambda_handler
try:
    print(lambda_handler({"id": sys.argv[1]}))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("shape", ["one step", "two steps at once"])
@pytest.mark.parametrize("engine", ["direct", "prefect"])
def test_ctrl_c_inside_a_step_ends_the_process_and_leaves_no_run_running(
    project, request, engine, shape
):
    environ = os.environ | {"PFL_ENGINE": engine}
    if engine == "prefect":
        request.getfixturevalue("on_prefect")
        environ["PREFECT_API_URL"] = project.settings.prefect_api_url
    project.write(WAITING.replace("{c_takes}", "a" if shape == "two steps at once" else "b"))
    id = f"int-{shape.replace(' ', '-')}"
    command = [sys.executable, "-c", CHILD, id]
    with forked.Popen(
        command,
        cwd=project.root,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        for _ in range(2 if shape == "two steps at once" else 1):
            assert child.stdout.readline() == "inside\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    assert child.returncode == 130, (out, err)
    assert len(objects(project, "results")) == 1
    if engine == "prefect":
        [run] = flow_runs(project, id)
        assert run["state_type"] == "CANCELLED"
        states = [
            task["state_type"]
            for task in task_runs(project, run["id"], 3 if shape == "two steps at once" else 2)
        ]
        assert sorted(states) == ["CANCELLED"] * (len(states) - 1) + ["COMPLETED"]


def test_a_flow_that_was_pickled_as_prefect_does_keeps_its_fingerprints(project):
    """A served flow is pickled by value; its steps must stay those whose results are stored."""
    script = (
        f"import sys, cloudpickle; sys.path.insert(0, {str(project.root)!r})\n"
        "from flows.pipeline import FLOWS\n"
        "from pfl.handler.core.fingerprint import fingerprint\n"
        "served = cloudpickle.loads(cloudpickle.dumps(FLOWS[0]))\n"
        "cloudpickle.dumps(FLOWS[0].to_prefect())\n"
        "digests = lambda steps: [fingerprint(s).digest for s in steps.values()]\n"
        "print(digests(served.steps) == digests(FLOWS[0].steps))\n"
    )
    environ = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environ
    )
    assert done.stdout.strip() == "True", done.stderr
