"""A flow run that pfl starts: few requests, and nothing a step does leaves it open or fails it."""

from __future__ import annotations

import logging
import threading
import uuid

import pytest
import servers
from conftest import Project, statuses
from test_engine import ask, flow_runs, task_runs

from pfl.handler import entry
from pfl.handler.core.declare import project as projects
from pfl.handler.core.settings import Settings
from pfl.handler.engine.prefect import client, connections, environment, outbox, own_run, plain

CHAIN = """
    import builtins
    @step
    def a(id):
        builtins.noted.append("first step")
        return 1
    @step
    def b(a):
        return a + 1
    @step
    def c(b):
        builtins.noted.append("last step")
        return b + 1
    FLOWS = [flow("counted", a, b, c)]
"""


@pytest.fixture
def behind(on_prefect, prefect_server):
    """The project, with a proxy before Prefect; the project asks Prefect itself."""
    with servers.Loopback(lambda method, path: None, prefect_server.url[:-4]) as proxy:
        yield proxy


def through(project: Project, proxy: servers.Loopback, id: str) -> dict:
    """The reply to a call that uses Prefect through a proxy."""
    settings = project.settings._replace(prefect_api_url=f"{proxy.url}/api")
    return entry.handle({"id": id}, settings, request_id=id, results=project.store)


def test_a_miss_of_three_steps_asks_once_before_them_and_all_at_once_after_them(
    on_prefect, asked, monkeypatch
):
    on_prefect.write(CHAIN)
    monkeypatch.setattr(outbox, "_PAUSE_S", 60)  # However slow this machine is.
    monkeypatch.setattr("builtins.noted", asked, raising=False)
    assert on_prefect.call("cold")["status"] == "completed"
    asked.clear()
    together, exchange = threading.Barrier(2), connections.exchange

    def meet(method: str, url: str, *args: object) -> tuple[int, bytes]:
        # Neither the events nor the final state are sent before the other is.
        if url.endswith(("/events", "/set_state")) and not together.broken:
            together.wait(30)
        return exchange(method, url, *args)

    monkeypatch.setattr(connections, "exchange", meet)
    reply = on_prefect.call("warm")
    assert (reply["status"], reply["warnings"]) == ("completed", [])
    (run,) = flow_runs(on_prefect, "warm")
    first = asked.index("first step")
    assert asked[:first] == ["/api/flow_runs/"]
    assert sorted(path for path in asked[first:] if path.startswith("/")) == [
        *["/api/artifacts/"] * 3,
        "/api/events",
        f"/api/flow_runs/{run['id']}/set_state",
    ]
    assert len(task_runs(on_prefect, run["id"], 3)) == 3


def test_what_a_step_logs_and_a_nested_flow_are_shown(on_prefect):
    on_prefect.write(
        """
        @step
        def a(id):
            from prefect import flow, get_run_logger, runtime, task
            get_run_logger().info(f"in {runtime.flow_run.name} {runtime.flow_run.parameters}")
            @task
            def inner(x):
                return x + 1
            @flow
            def nested(x):
                return inner(x)
            return nested(1) + inner.submit(2).result()
        FLOWS = [flow("nesting", a)]
        """
    )
    reply = on_prefect.call("nest")
    assert reply["steps"][0]["value"] == 5
    (run,) = flow_runs(on_prefect, "nest")
    assert len(task_runs(on_prefect, run["id"], 3)) == 3
    url = on_prefect.settings.prefect_api_url
    lines = ask(url, "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert any("in nesting/nest/all {'id': 'nest'" in line["message"] for line in lines)


def test_a_flow_that_was_deleted_in_prefect_is_created_again(on_prefect):
    on_prefect.call("before")
    (run,) = flow_runs(on_prefect, "before")
    # The server drops events together with those of a run that it does not know.
    task_runs(on_prefect, run["id"], 3)
    api = environment.configured(on_prefect.settings)
    client.ask(api, f"/flows/{run['flow_id']}", method="DELETE")
    assert on_prefect.call("after")["status"] == "completed"


def test_a_run_whose_creation_was_not_answered_is_created_once(on_prefect, behind):
    on_prefect.write(CHAIN.replace("builtins.noted.append", "print"))
    lost = iter(["lost"])
    behind.answer = lambda method, path: path == "/api/flow_runs/" and next(lost, None) or None
    id = f"lost-{uuid.uuid4().hex[:8]}"
    assert through(on_prefect, behind, id)["status"] == "completed"
    assert [path for _, path in behind.asked].count("/api/flow_runs/") >= 2
    assert len(flow_runs(on_prefect, id)) == 1


def test_events_that_prefect_does_not_take_are_a_warning(on_prefect, behind):
    behind.answer = lambda method, path: (422, b"no") if path == "/api/events" else None
    reply = through(on_prefect, behind, "no-events")
    assert reply["status"] == "completed"
    assert any("events were not written" in warning for warning in reply["warnings"])


# What Prefect cannot take.

_DEEP = "[" * 900 + "]" * 900
STRANGE = {
    "a long text": "'x' * 1_600_000",
    "a large integer": "2 ** 70",
    "a reference": "{'$ref': 'x', '__prefect_kind': 'jinja'}",
    "half a character": "'\\ud800'",
    "a NUL": "'a\\x00b'",
    "a deep value": f"__import__('json').loads({_DEEP!r})",
    "a wide value": "{str(n): 'y' * 200 for n in range(10_000)}",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_value_that_prefect_cannot_take_fails_neither_a_step_nor_a_listing(on_prefect, kind):
    on_prefect.write(
        f"""
        @step
        def make(id) -> object:
            return {STRANGE[kind]}
        @step
        def take(make, id, param: object = None):
            return len(str(make)) + len(str(param))
        FLOWS = [flow("strange", make, take)]
        """
    )
    id = f"s-{uuid.uuid4().hex[:8]}"
    param = eval(STRANGE[kind])
    direct = on_prefect.call(id, engine="direct", params={"param": param})
    reply = on_prefect.call(id, bust="all", params={"param": param})
    assert statuses(reply) == statuses(direct)
    assert reply.get("warnings", []) == []
    if reply["status"] == "completed":
        (run,) = flow_runs(on_prefect, id)
        assert run["state_type"] == "COMPLETED"
        assert len(task_runs(on_prefect, run["id"], 2)) == 2


def test_text_for_prefect_is_cut_and_coded():
    assert plain.plain({"\ud800": [2**63, -(2**63), 1e999, True, None, "\0"]}) == {
        "\\ud800": [str(2**63), -(2**63), "inf", True, None, "\\x00"]
    }
    assert plain.shown(["é" * 100], 10) == '["ééééééé…'
    assert plain.parameter("x" * 3_000) == "x" * 1_999 + "…"
    assert plain.parameter([1] * 10) == [1] * 10


# What a step raises.

RAISED = {
    "Pause": "from prefect.exceptions import Pause\n    raise Pause('p')",
    "Abort": "from prefect.exceptions import Abort\n    raise Abort('p')",
    "TerminationSignal": "from prefect.exceptions import TerminationSignal as T\n    raise T(15)",
    "SystemExit": "raise SystemExit(3)",
    "GeneratorExit": "raise GeneratorExit",
    "CancelledError": "import asyncio\n    raise asyncio.CancelledError",
    "BaseException": "raise BaseException('b')",
    "no text": "class E(Exception):\n        def __str__(self): 1 / 0\n    raise E",
    "no repr": "class E(Exception):\n        def __repr__(self): 1 / 0\n    raise E('e')",
    "half a character": "raise ValueError('\\ud800')",
    "a long text": "raise ValueError('x' * 5_000_000)",
    "not to be pickled": "raise ValueError(__import__('threading').Lock())",
}


@pytest.fixture
def unlogged(monkeypatch):
    """No log, which would have half a character that pytest cannot report."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("kind", RAISED)
def test_whatever_a_step_raises_its_runs_end_as_failed(on_prefect, kind):
    on_prefect.write(f"@step\ndef a(id):\n    {RAISED[kind]}\nFLOWS = [flow('raising', a)]")
    id = f"r-{uuid.uuid4().hex[:8]}"
    reply = on_prefect.call(id)
    assert statuses(reply) == {"a": "failed"}
    (run,) = flow_runs(on_prefect, id)
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"].startswith("Flow run encountered an exception: ")
    (task,) = task_runs(on_prefect, run["id"], 1)
    assert task["state_type"] == "FAILED"


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("kind", RAISED)
def test_whatever_a_step_raises_a_run_that_prefect_started_ends_too(on_prefect, kind):
    from prefect import settings as knobs

    on_prefect.write(f"@step\ndef a(id):\n    {RAISED[kind]}\nFLOWS = [flow('raising', a)]")
    id = f"p-{uuid.uuid4().hex[:8]}"
    url = on_prefect.settings.prefect_api_url
    with (
        knobs.temporary_settings(updates={knobs.PREFECT_API_URL: url}),
        pytest.raises(BaseException),  # noqa: B017  # Whatever it is.
    ):
        projects.load(on_prefect.settings).flows["raising"].to_prefect()(id=id)
    (run,) = flow_runs(on_prefect, id)
    assert run["state_type"] in ("FAILED", "CRASHED")
    (task,) = task_runs(on_prefect, run["id"], 1)
    assert task["state_type"] in ("FAILED", "CRASHED")


def test_the_errors_of_a_group_are_in_the_state_of_both_runs(on_prefect):
    on_prefect.write(
        "@step\ndef a(id):\n"
        "    raise ExceptionGroup('both', [ValueError('one'), KeyError('two')])\n"
        "FLOWS = [flow('grouped', a)]"
    )
    on_prefect.call("group")
    (run,) = flow_runs(on_prefect, "group")
    (task,) = task_runs(on_prefect, run["id"], 1)
    for each in (run, task):
        assert (
            "both (2 sub-exceptions): ValueError: one; KeyError: 'two'" in each["state"]["message"]
        )


# Connections.


def test_requests_share_a_connection_and_survive_its_end(behind):
    url = f"{behind.url}/api/health"
    opened = []
    connection = connections._connection
    connections._connection = lambda *where: opened.append(where) or connection(*where)
    try:
        for _ in range(3):
            assert connections.exchange("GET", url, None, {}) == (200, b"true")
        assert len(opened) == 1
        behind.answer = lambda method, path: "reset" if len(behind.asked) == 4 else None
        assert connections.exchange("GET", url, None, {})[0] == 200
        assert len(opened) == 2
    finally:
        connections._connection = connection


def test_a_password_in_the_url_is_used_and_shown_nowhere():
    api = environment.configured(Settings(prefect_api_url="https://me:s%40crét@host:1/api/"))
    assert api == environment.Api("https://host:1/api", "", "PREFECT_API_URL", "me:s@crét")


def test_a_flow_run_is_linked_without_the_password(on_prefect, prefect_server):
    url = prefect_server.url.replace("://", "://me:secret@")
    on_prefect.knobs["prefect_api_url"] = url
    reply = on_prefect.call("secret-url")
    assert reply["status"] == "completed"
    assert "secret@" not in str(reply)
    created = own_run._client_context.cache_info().misses
    own_run._client_context(environment.configured(on_prefect.settings))
    assert own_run._client_context.cache_info().misses == created


def test_a_call_within_a_step_leaves_the_outer_call_its_outbox(on_prefect):
    from prefect.events.worker import EventsWorker

    api = environment.Api("http://127.0.0.1:9/api", "", "a test")
    with outbox.collecting(api) as outer:
        with outbox.collecting(api):
            pass
        override = EventsWorker._client_override
        assert override is not None and override[1] == (("event_queue", outer),)
