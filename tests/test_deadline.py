"""
Shortly before the Lambda deadline a call stops, saves what is finished, and replies.

No clock runs here: the deadline is far away, and its two moments come when a step, or the test,
lets them come.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from pfl.handler import entry
from pfl.handler.core.cache import lease
from pfl.handler.core.errors import exit_code
from pfl.handler.engine import deadline
from pfl.handler.engine.interrupt import Interruptible
from pfl.handler.engine.invocation import Invocation

SLOW = """
import time
@step
def a(id: str) -> int:
    return 1
@step
def b(id: str, a: int) -> int:
    open("time_to_stop", "w").close()
    {slow}
    return 2
@step
def c(id: str, b: int) -> int:
    return 3
FLOWS = [flow("slow", a, b, c)]
"""


@pytest.fixture(autouse=True)
def moments(project, monkeypatch):
    """``time_to_stop`` and ``time_to_reply`` are pipes: to open one for writing is that moment."""
    both = ("time_to_reply", "time_to_stop")
    for name in both:
        os.mkfifo(project.root / name)
    left = list(both)
    monkeypatch.setattr(
        deadline, "_wait_until", lambda when, over: open(project.root / left.pop()).close()
    )
    yield
    opened = [
        os.open(project.root / name, os.O_RDWR) for name in both
    ]  # Processes that wait for them go on.
    for thread in threading.enumerate():
        if thread.name == "deadline":
            thread.join()
    for each in opened:
        os.close(each)


def call(project, within_s: float = 3_600, **event) -> dict:
    project.knobs["margin_s"] = 1
    return entry.handle(
        {"id": "abc", **event},
        project.settings,
        request_id="r",
        deadline=time.monotonic() + within_s,
    )


def rows(reply: dict) -> list[tuple[str, str]]:
    return [(row["step"], row["status"]) for row in reply["steps"]]


def runs_of(server, call_url: str):
    """State types and messages of the flow run of a reply and of its task runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.settings import PREFECT_API_URL, temporary_settings

    run_id = call_url.rsplit("/", 1)[1]
    with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        )
        return client.read_flow_run(run_id).state, {
            task.task_key.split("-")[0].split(".")[-1]: task.state for task in tasks
        }


@pytest.mark.parametrize("engine", ["direct", "prefect"])
@pytest.mark.parametrize("slow", ["time.sleep(60)", "while True: pass"])
def test_a_step_is_stopped_in_time_and_what_was_finished_is_saved(project, engine, slow, request):
    project.write(SLOW.format(slow=slow))
    if engine == "prefect":
        request.getfixturevalue("on_prefect")
    reply = call(project, engine=engine)
    assert (reply["status"], reply["error"]["type"]) == ("failed", "OutOfTimeError")
    assert exit_code(reply["error"]["type"]) == 5
    assert "PFL_MARGIN_S" in reply["error"]["why"]
    assert rows(reply) == [("a", "computed"), ("b", "failed")]
    assert lease.open_calls(project.results) == {}
    project.write(SLOW.format(slow="pass").replace('open("time_to_stop", "w").close()', ""))
    assert rows(project.call(engine="direct")) == [
        ("a", "hit"),
        ("b", "computed"),
        ("c", "computed"),
    ]
    if engine == "prefect":
        state, tasks = runs_of(request.getfixturevalue("prefect_server"), reply["url"])
        assert state.is_crashed()
        assert "the Lambda deadline was 1 s away" in state.message
        assert sorted(task.type.value for task in tasks.values()) == ["COMPLETED", "CRASHED"]


def test_steps_side_by_side_are_stopped_too_even_one_that_does_not_heed_it(
    on_prefect, prefect_server, monkeypatch
):
    on_prefect.write(
        """
        import time
        @step
        def heeds(id: str) -> int:
            while True:
                time.sleep(0.01)
        @step
        def hangs(id: str) -> int:
            time.sleep(600)
        @step
        def quick(id: str) -> int:
            return 1
        FLOWS = [flow("three", heeds, hangs, quick)]
        """
    )

    def stop_when_quick_is_saved(real=Invocation._note):
        def note(self, name, outcome):
            real(self, name, outcome)
            if name == "quick":
                open("time_to_stop", "w").close()
                while (
                    not self._stop_is_due
                ):  # It comes while no step may be interrupted, and is not lost.
                    os.sched_yield()

        return note

    monkeypatch.setattr(Invocation, "_note", stop_when_quick_is_saved())
    reply = call(on_prefect)
    assert dict(rows(reply)) == {"heeds": "failed", "hangs": "failed", "quick": "computed"}
    state, tasks = runs_of(prefect_server, reply["url"])
    assert state.is_crashed()
    assert sorted(task.type.value for task in tasks.values()) == ["COMPLETED", "CRASHED", "CRASHED"]
    assert lease.open_calls(on_prefect.results) == {}


def test_a_step_is_not_started_when_less_than_the_margin_is_left(project):
    reply = call(project, 0.9)
    assert reply["error"]["what"] == "step a was not started"
    assert list(project.results.list("results")) == []


def test_a_call_that_hangs_outside_its_steps_replies_all_the_same(project, monkeypatch):
    """Prefect's API may take longer than there is time; what was saved is told."""
    from pfl.handler.engine import direct

    def hang(invocation, real=direct.compute):
        real(invocation)
        for moment in ("time_to_stop", "time_to_reply"):
            open(moment, "w").close()
        try:
            threading.Event().wait()
        except BaseException:
            asyncio.run(asyncio.Event().wait())  # As Prefect does: it catches, and waits again.

    monkeypatch.setattr(direct, "compute", hang)
    reply = call(project, step="b")
    assert (reply["status"], rows(reply)) == ("completed", [("a", "computed"), ("b", "computed")])
    assert "pfl runs reap" in reply["warnings"][0]


def test_a_call_that_is_late_from_the_start_replies_and_is_left_alone_afterwards(
    project, monkeypatch
):
    """Its time was over before anything could be stopped; nothing is raised after the call."""
    monkeypatch.setattr(deadline, "_wait_until", lambda when, over: None)
    real = Invocation.run_without_engine

    def late(invocation):
        ready = real(invocation)
        object.__setattr__(invocation.call, "deadline", time.monotonic() - 1)
        return ready

    monkeypatch.setattr(Invocation, "run_without_engine", late)
    for _ in range(20):
        reply = entry.handle({"id": "abc"}, project.settings, deadline=time.monotonic() + 60)
        assert reply["error"]["type"] == "OutOfTimeError"
    watching = [thread for thread in threading.enumerate() if thread.name == "deadline"]
    for thread in watching:
        thread.join(30)
    assert [thread for thread in watching if thread.is_alive()] == []


def test_a_signal_handler_of_the_user_is_there_again_afterwards(project, monkeypatch):
    import signal

    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(deadline, "_wait_until", lambda when, over: over.wait())
    assert call(project)["status"] == "completed"
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("number", [0, signal.SIGUSR1])
def test_an_interruption_that_comes_while_another_part_is_entered_is_not_lost(number):
    entering, tried = threading.Event(), threading.Event()

    class Due(BaseException):
        pass

    def watch(scope: Interruptible) -> None:
        entering.wait()
        scope.poke()

    def begin() -> None:
        entering.set()
        while not outer.was_poked:
            tried.wait(0.001)
        tried.wait(0.05)  # A poke by a signal, and its handler, end in here.

    outer = Interruptible("outer", watch, lambda: Due, number)
    inner = Interruptible("inner", lambda scope: None, lambda: None)
    inner._watcher.start = begin
    with pytest.raises(Due), outer, inner:
        for _ in range(20_000):
            tried.wait(0.001)
    assert inner.over.is_set()
