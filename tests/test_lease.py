"""One computation at a time, and a dead call is noticed: every store, and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import forked
import pytest

from pfl.handler import entry
from pfl.handler.core import event
from pfl.handler.core.cache import history, lease
from pfl.handler.core.cache.lease import Held, LeaseHolder
from pfl.handler.core.declare import catalog
from pfl.handler.core.errors import UnavailableError, exit_code

FIRST = "leases/abc=b=first.json"


@pytest.fixture
def call(store):
    """A function that makes a call which may take leases; all of them end with the test."""
    made: list[LeaseHolder] = []

    def make(**options) -> LeaseHolder:
        options = {"ttl_s": 600, **options}
        made.append(LeaseHolder(store, "abc", {"request_id": "req"}, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def bounded_call(call, monkeypatch, tmp_path):
    """A function that makes a call of Lambda, which kills it at its deadline."""
    monkeypatch.setattr(lease, "SANDBOX_NOTE", str(tmp_path / "pfl-call"))

    def make(*steps: str) -> LeaseHolder:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
            holder = call(deadline=time.monotonic() + 300)
            assert take(holder, *steps) == {}
        return holder

    return make


def take(holder: LeaseHolder, *steps: str) -> dict[str, Held]:
    """Claim steps; returns those that others hold."""
    return holder.claim({step: {} for step in steps})


def later(monkeypatch, seconds: float) -> None:
    """Let the store's clock be ahead, as if nobody had written for so long."""
    real = lease.store_now
    monkeypatch.setattr(lease, "store_now", lambda store, **more: real(store, **more) + seconds)


def left(store) -> list[str]:
    """What calls have left behind; a note that a dead call was cleaned up may stay."""
    listed = [each.key for kind in ("leases", "calls") for each in store.list(kind)]
    return sorted(key for key in listed if not key.endswith("-reaped.json"))


def count(store) -> int:
    return sum(store.counts.values())


# Claims.


def test_one_of_two_calls_gets_a_step_and_the_other_learns_by_whom_it_is_held(store, call):
    first, second = call(), call()
    assert take(first, "b") == {}
    held = take(second, "b", "c")
    assert list(held) == ["b"]
    assert held["b"].description.startswith(f"held by process {os.getpid()} on ")
    assert list(second.claims) == ["c"]


def test_nothing_is_left_of_calls_that_have_ended(store, call):
    for _ in range(3):
        one = call()
        assert take(one, "b", "c") == {}
        one.release(["c"])
        assert left(store) == [FIRST]
        one.end()
        assert left(store) == []


def test_a_poll_of_a_held_step_is_one_request(store, call):
    first, second = call(), call()
    take(first, "b")
    held = take(second, "b")["b"]
    before = count(store)
    assert second.still_held(held) is held
    assert count(store) == before + 1


def test_a_released_step_is_free_for_the_call_that_waits(store, call):
    first, second = call(), call()
    take(first, "b")
    held = take(second, "b")["b"]
    first.release(["b"])
    assert second.still_held(held) is None
    assert take(second, "b") == {}


def test_a_step_that_is_held_again_by_a_third_call_is_not_still_held_by_the_first(store, call):
    first, second, third = call(), call(), call()
    take(first, "b")
    held = take(second, "b")["b"]
    first.release(["b"])
    take(third, "b")
    assert second.still_held(held) is None
    assert take(second, "b")["b"].body["call"] == third.token


def test_a_damaged_lease_belongs_to_nobody(store, call):
    store.put(FIRST, b"?")
    one = call()
    assert take(one, "b") == {}
    [dead] = one.claims["b"].dead
    assert one.claims["b"].key == f"leases/abc=b=after-{dead.body['call']}.json"
    one.end()
    assert left(store) == []


def test_an_answer_that_was_lost_is_not_taken_for_the_claim_of_another_call(
    store, call, monkeypatch
):
    """The first request was carried out, its answer lost, and the request sent again."""
    real = store.put

    def put(key, data, **more):
        real(key, data, **more)
        if key.startswith("leases/"):
            real(key, data, **more)

    monkeypatch.setattr(store, "put", put)
    first, second = call(), call()
    assert take(first, "b") == {}
    assert list(take(second, "b")) == ["b"]


def test_a_claim_that_fails_midway_leaves_no_lease(store, call, monkeypatch):
    real = store.put

    def put(key, data, **more):
        if "=c=" in key:
            raise UnavailableError("the store blinked")
        real(key, data, **more)

    monkeypatch.setattr(store, "put", put)
    one = call()
    with pytest.raises(UnavailableError):
        take(one, "b", "c")
    one.end()
    assert left(store) == []


# Calls that died.


def test_an_expired_lease_is_taken_over_and_stays_if_its_process_may_wake(store, call, monkeypatch):
    first, second = call(), call()
    take(first, "b")
    assert list(take(second, "b")) == ["b"]
    with monkeypatch.context() as patch:
        later(patch, 603)
        assert take(second, "b") == {}
    [claim] = second.claims.values()
    assert claim.key == f"leases/abc=b=after-{first.token}.json"
    assert [dead.body["call"] for dead in claim.dead] == [first.token]
    second.end()
    assert left(store) == [FIRST]
    first.end()
    assert left(store) == []


def test_a_takeover_is_taken_over_in_turn(store, bounded_call, call, monkeypatch):
    first = bounded_call("b")
    later(monkeypatch, 303)
    second = bounded_call("b")
    later(monkeypatch, 303)
    third = call()
    assert take(third, "b") == {}
    [claim] = third.claims.values()
    assert claim.key == f"leases/abc=b=after-{second.token}.json"
    assert [dead.body["call"] for dead in claim.dead] == [first.token, second.token]


def test_a_dead_lease_that_was_cleaned_up_is_deleted_before_the_lease_that_took_it_over(
    store, bounded_call, call, monkeypatch
):
    first = bounded_call("b")
    later(monkeypatch, 303)
    second = call()
    take(second, "b")
    lease.mark_reaped(store, first.token)
    second.reaped[first.token] = 1
    deleted: list[str] = []
    real = store.delete
    monkeypatch.setattr(store, "delete", lambda keys: real(noted(keys, deleted)))
    second.release(["b"])
    leases = [key for key in deleted if key.startswith("leases/")]
    assert leases == [FIRST, f"leases/abc=b=after-{first.token}.json"]
    assert left(store) == []


def noted(keys, deleted: list[str]) -> list[str]:
    deleted += (keys := list(keys))
    return keys


def test_a_dead_lease_that_nobody_cleaned_up_stays_for_a_reaper(
    store, bounded_call, call, monkeypatch
):
    first = bounded_call("b")
    later(monkeypatch, 303)
    second = call()
    take(second, "b")
    second.end()
    assert left(store) == [FIRST]
    assert list(lease.open_calls(store)) == [first.token]


def test_a_takeover_of_a_lease_that_was_deleted_meanwhile_is_none(store, call, monkeypatch):
    first, second = call(), call()
    take(first, "b")
    later(monkeypatch, 603)
    real = lease._create

    def create(target, key, data):
        if "after-" in key:
            first.end()
        return real(target, key, data)

    monkeypatch.setattr(lease, "_create", create)
    assert take(second, "b") == {}
    [claim] = second.claims.values()
    assert (claim.key, claim.dead) == (FIRST, ())
    assert left(store) == [FIRST]


def test_a_takeover_of_a_lease_that_a_third_call_holds_meanwhile_is_none(store, call, monkeypatch):
    """The dead call was cleaned up between two requests, and the name of its lease used again."""
    first, second, third = call(), call(), call()
    take(first, "b")
    real_alive, real_create = lease.is_alive, lease._create

    def is_alive(target, found, **more):
        return found.body["call"] != first.token and real_alive(target, found, **more)

    def create(target, key, data):
        if "after-" in key and not third.claims:
            first.end()
            assert take(third, "b") == {}
        return real_create(target, key, data)

    monkeypatch.setattr(lease, "is_alive", is_alive)
    monkeypatch.setattr(lease, "_create", create)
    assert take(second, "b")["b"].body["call"] == third.token
    assert left(store) == [FIRST]


@pytest.mark.parametrize("skew_s", [-36_000, -60, 60, 36_000])
def test_the_clocks_of_the_machines_do_not_matter(store, call, monkeypatch, skew_s):
    first, second = call(ttl_s=30), call()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew_s)
    take(first, "b")
    monkeypatch.setattr(time, "time", real)
    assert list(take(second, "b")) == ["b"]
    later(monkeypatch, 35)
    assert take(second, "b") == {}


def test_a_call_that_gives_a_sign_of_life_is_alive(store, call, monkeypatch):
    first, second = call(ttl_s=30), call()
    take(first, "b")
    first.renew()
    real = store.list

    def aged(prefix, **more):
        for each in real(prefix, **more):
            age_s = 100 if prefix == "leases" else 0
            yield each._replace(modified=each.modified - age_s)

    monkeypatch.setattr(store, "list", aged)
    assert list(take(second, "b")) == ["b"]
    store.delete([f"calls/{first.token}-alive.json"])
    assert take(second, "b") == {}
    second.end()
    first.renew()
    first.end()
    assert left(store) == []


def test_a_call_with_a_deadline_is_alive_until_then_without_a_sign_of_life(
    store, call, monkeypatch
):
    first, second = call(ttl_s=1, deadline=time.monotonic() + 600), call()
    take(first, "b")
    later(monkeypatch, 590)
    assert list(take(second, "b")) == ["b"]


def test_a_call_that_recorded_its_end_is_dead_at_once_and_its_leases_stay(store, call):
    first, second = call(), call()
    take(first, "b")
    first.end("Prefect does not know yet", outcome="COMPLETED")
    assert left(store) == [f"calls/{first.token}-ended.json", FIRST]
    assert lease.read_end(store, first.token)["outcome"] == "COMPLETED"
    assert take(second, "b") == {}
    first.release(["b"])
    store.delete([f"calls/{first.token}-ended.json"])


def test_a_clock_object_that_a_killed_process_left_is_removed(store, monkeypatch):
    store.put("calls/clock-0123456789abcdef", b"")
    real = store.list

    def aged(prefix, **more):
        for each in real(prefix, **more):
            age_s = 3_600 if each.key.endswith("abcdef") else 0
            yield each._replace(modified=each.modified - age_s)

    monkeypatch.setattr(store, "list", aged)
    lease.store_now(store)
    assert left(store) == []


# Real processes.

CHILD = """
import json, os, sys, uuid
from pfl.handler import entry
from pfl.handler.core.cache import lease
from pfl.handler.core.settings import Settings
settings = Settings.from_env(os.environ)
if ahead_s := float(os.environ.get("AHEAD_S", 0)):
    real = lease.store_now
    lease.store_now = lambda store, **more: real(store, **more) + ahead_s
tell = lambda step, doing: print(json.dumps([step, doing]), flush=True)
reply = entry.handle(json.loads(sys.argv[1]), settings, request_id=str(uuid.uuid4()), notify=tell)
print(json.dumps(reply), flush=True)
"""

GATED = """
import os
@step
def a(id: str) -> int:
    with open("ran", "a") as log:
        log.write(f"{os.getpid()}\\n")
    open("gate").read()
    return 7
@step
def b(id: str, a: int) -> int:
    with open("ran", "a") as log:
        log.write("b\\n")
    return a * 6
FLOWS = [flow("gated", a, b)]
"""


def start(project, *, ahead_s: float = 0, **event) -> subprocess.Popen:
    """
    A process that makes a call.

    Args:
        project: Its project.
        ahead_s: How long nobody has written, as it believes, in seconds.
        event: The event of the call, besides its ID.
    """
    env = {**os.environ, "PFL_ENGINE": "direct", "AHEAD_S": str(ahead_s)}
    command = [sys.executable, "-c", CHILD, json.dumps({"id": "abc", **event})]
    return forked.Popen(command, cwd=project.root, env=env, stdout=subprocess.PIPE, text=True)


def until(child: subprocess.Popen, word: str) -> None:
    for line in child.stdout:
        if word in line:
            return
    raise AssertionError(f"it ended without saying {word!r}")


def reply_of(child: subprocess.Popen) -> dict:
    with child:
        return json.loads(child.stdout.read().splitlines()[-1])


@pytest.fixture
def gated(project):
    """A flow whose step a computes until someone writes to ``gate``."""
    project.write(GATED)
    os.mkfifo(project.root / "gate")
    return project


def open_gate(project) -> None:
    (project.root / "gate").write_text("go")


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_of_sixteen_processes_that_call_at_once_one_computes(gated, place, request, monkeypatch):
    if place == "s3":
        monkeypatch.setenv("PFL_STORE", f"s3://{request.getfixturevalue('bucket')}/pfl")
    children = [start(gated) for _ in range(16)]
    for child in children:
        until(child, '["a", ')
    open_gate(gated)
    replies = [reply_of(child) for child in children]
    assert [reply["status"] for reply in replies] == ["completed"] * 16
    assert {tuple(row["value"] for row in reply["steps"]) for reply in replies} == {(7, 42)}
    assert len((gated.root / "ran").read_text().splitlines()) == 2
    seen = sorted(reply["steps"][0]["status"] for reply in replies)
    assert seen == ["computed"] + ["joined"] * 15
    if place == "directory":
        assert left(gated.results) == []


def test_a_killed_holder_is_followed_at_once_by_the_call_that_waits(gated):
    first = start(gated)
    until(first, "computing")
    second = start(gated)
    until(second, "waiting")
    with first:
        first.kill()
    until(second, "computing")
    open_gate(gated)
    assert reply_of(second)["steps"][0]["status"] == "computed"
    assert left(gated.results) == []


DRAWN = """
import os
@step
def a(id: str, previous=None) -> list:
    with open("ran", "a") as log:
        log.write(f"{os.getpid()}\\n")
    if not os.path.exists("no-gate"):
        open("gate").read()
    return [*(previous or ["x" * SIZE]), os.getpid()]
FLOWS = [flow("drawn", a)]
"""


@pytest.mark.parametrize("size", [1, 1_000_000])
@pytest.mark.parametrize("place", ["directory", "s3"])
def test_a_holder_that_pauses_past_its_lease_publishes_nothing_when_another_call_has(
    gated, place, size, request, monkeypatch
):
    """The value is drawn, so that the calls compute different ones; a large one is not inline."""
    if place == "s3":
        monkeypatch.setenv("PFL_STORE", f"s3://{request.getfixturevalue('bucket')}/pfl")
        gated.knobs["store"] = os.environ["PFL_STORE"]
    gated.write(DRAWN.replace("SIZE", str(size)))
    assert size == 1 or size > gated.settings.inline_bytes
    paused = start(gated)
    until(paused, "computing")
    gate = os.open(gated.root / "gate", os.O_WRONLY)  # It is inside the step now.
    paused.send_signal(signal.SIGSTOP)
    (gated.root / "no-gate").touch()
    second = reply_of(start(gated, ahead_s=3_600))
    assert [row["status"] for row in second["steps"]] == ["computed"]
    paused.send_signal(signal.SIGCONT)
    os.close(gate)
    first = reply_of(paused)
    assert len((gated.root / "ran").read_text().splitlines()) == 2
    values = [reply["steps"][0]["value"] for reply in (first, second, gated.call())]
    assert values[0] == values[1] == values[2]
    assert first["steps"][0]["computed_at"] == second["steps"][0]["computed_at"]
    found = list(history.list_records(gated.results, id="abc", step="a", warn=pytest.fail))
    assert [record["status"] for _, record in found if record["status"] == "computed"] == [
        "computed"
    ]
    assert left(gated.results) == []


def test_a_paused_holder_that_busts_its_step_replaces_no_value_that_another_call_published(gated):
    """Each call adds a turn to a conversation, and each reply stays part of it."""
    gated.write(DRAWN.replace("SIZE", "1"))
    (gated.root / "no-gate").touch()
    gated.call()
    (gated.root / "no-gate").unlink()
    paused = start(gated, bust=["a"])
    until(paused, "computing")
    gate = os.open(gated.root / "gate", os.O_WRONLY)
    paused.send_signal(signal.SIGSTOP)
    (gated.root / "no-gate").touch()
    second = reply_of(start(gated, ahead_s=3_600, bust=["a"]))["steps"][0]["value"]
    paused.send_signal(signal.SIGCONT)
    os.close(gate)
    first = reply_of(paused)["steps"][0]["value"]
    assert len(second) == 3
    assert first == second == gated.call()["steps"][0]["value"]


def test_a_call_that_cannot_wait_until_its_deadline_replies_who_computes_and_until_when(gated):
    other = LeaseHolder(gated.results, "abc", {"request_id": "first"}, ttl_s=600)
    take(other, "a")
    reply = entry.handle(
        {"id": "abc"}, gated.settings, request_id="second", deadline=time.monotonic() + 2
    )
    assert (reply["status"], reply["error"]["type"]) == ("busy", "BusyError")
    assert exit_code(reply["error"]["type"]) == 5
    assert f"held by process {os.getpid()}" in reply["error"]["why"]
    assert " until 20" in reply["error"]["why"]
    assert [row["status"] for row in reply["steps"]] == ["busy"]
    assert lease.open_calls(gated.results).keys() == {other.token}
    other.end()


def test_a_hit_takes_no_lease(project):
    project.call()
    assert {verb: count for verb, count in project.call()["store"].items() if count} == {"get": 1}
    assert left(project.results) == []


def test_a_step_that_fails_releases_its_lease(project):
    project.write(
        """
        @step
        def a(id: str) -> int:
            raise ValueError("no")
        FLOWS = [flow("failing", a)]
        """
    )
    for _ in range(2):
        assert project.call()["error"]["type"] == "StepFailedError"
        assert left(project.results) == []


def test_independent_steps_of_two_calls_do_not_wait_for_each_other_in_a_circle(project):
    """Each call may hold one step and wait for the other's; neither holds more than it computes."""
    project.write(
        """
        @step
        def a(id: str) -> int:
            return 1
        @step
        def b(id: str) -> int:
            return 2
        FLOWS = [flow("both", a, b)]
        """
    )
    children = [start(project) for _ in range(6)]
    assert [reply_of(child)["status"] for child in children] == ["completed"] * 6
    assert left(project.results) == []


def test_a_call_that_waits_makes_about_four_requests_a_second_at_most(gated, monkeypatch):
    """Counted in requests per second of intended sleep, checks of the holder included."""
    from pfl.handler.engine import claims

    gated.write(GATED.replace('open("gate").read()', "pass"))
    gated.store = gated.results
    other = LeaseHolder(gated.store, "abc", {"request_id": "first"}, ttl_s=600)
    take(other, "a")
    pauses, asked = [], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        asked.append(count(gated.store))
        if len(pauses) == 60:
            other.end()

    monkeypatch.setattr(claims, "_sleep", sleep)
    monkeypatch.setattr(lease, "_clock", lambda: time.monotonic() + sum(pauses))
    assert gated.call()["status"] == "completed"
    assert len(pauses) == 60
    assert min(pauses) >= 0.25
    assert len({round(pause, 6) for pause in pauses}) > 50  # Many that wait do not ask together.
    assert (asked[-1] - asked[0]) / sum(pauses[1:]) < 4.2


def test_calls_that_wait_for_a_call_that_fails_fail_with_it_and_compute_nothing(gated):
    gated.write(GATED.replace("return 7", "raise ValueError('no')"))
    children = [start(gated) for _ in range(4)]
    for child in children:
        until(child, '["a", ')
    open_gate(gated)
    replies = [reply_of(child) for child in children]
    assert [reply["error"]["why"] for reply in replies] == ["ValueError: no"] * 4
    assert {reply["error"]["hint"] for reply in replies} == {"see flows/pipeline.py:9"}
    assert len((gated.root / "ran").read_text().splitlines()) == 1
    assert left(gated.results) == []


@pytest.mark.parametrize(
    ("failed_rate", "rate", "outcome"), [(1, 2, "computed"), (3, 3, "failed"), (3, 4, "computed")]
)
def test_the_failure_of_another_call_is_taken_over_only_with_the_same_parameters(
    project, monkeypatch, failed_rate, rate, outcome
):
    from pfl.handler.engine import claims

    project.write(
        """
        @step
        def a(id: str, rate: int = 1) -> int:
            return rate
        FLOWS = [flow("rated", a)]
        """
    )
    project.store = project.results
    raw = {"id": "abc", "params": {"rate": failed_rate}}
    failed = event.parse(raw, catalog.load(project.settings), engine="direct")
    other = LeaseHolder(project.store, "abc", {"request_id": "first"}, ttl_s=600)
    other.claim({"a": {"plan_key": failed.plan_key("a")}})

    def fail_meanwhile(seconds: float) -> None:
        if not other.claims:
            return
        error = {"type": "ValueError", "what": "no", "why": "", "hint": "see flows/pipeline.py:3"}
        fields = {
            "id": "abc",
            "request_id": "first",
            "plan_key": failed.plan_key("a"),
            "error": error,
        }
        history.note(project.store, "abc", "a", history.FAILED, fields)
        other.end()

    monkeypatch.setattr(claims, "_sleep", fail_meanwhile)
    [row] = project.call(params={"rate": rate})["steps"]
    assert (row["status"], row["value"]) == (outcome, rate if outcome == "computed" else None)
    assert left(project.results) == []
