"""One computation at a time, and a dead call is noticed: every store, and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

from pfl.handler import entry
from pfl.handler.core.cache import lease
from pfl.handler.core.cache.lease import Claim, HeldByOther, LeaseHolder
from pfl.handler.core.errors import LeaseLostError, exit_code
from pfl.handler.core.store import records

ROOT = Path(__file__).resolve().parents[1]


def nothing(waited: dict) -> None:
    return None


def call(store, **more) -> LeaseHolder:
    return LeaseHolder(store, "abc", {"request_id": "req"}, **{"ttl_s": 600, **more})


def later(monkeypatch, seconds: float) -> None:
    """Let the store's clock be ahead, as if nobody had written for so long."""
    real = lease.store_now
    monkeypatch.setattr(lease, "store_now", lambda store, **more: real(store, **more) + seconds)


def numbers(store) -> list[int]:
    return sorted(int(entry.key[-17:-5]) for entry in store.list("leases/abc/b"))


def test_one_of_two_calls_gets_a_step_and_the_other_is_told_by_whom_it_is_held(store):
    first, second = call(store), call(store)
    assert isinstance(first.try_claim("b", None, nothing), Claim)
    held = second.try_claim("b", None, nothing)
    assert isinstance(held, HeldByOther)
    assert held.description.startswith(f"held by process {os.getpid()} on ")
    assert isinstance(second.try_claim("c", None, nothing), Claim)


def test_a_waiter_is_given_what_was_computed_instead_of_the_lease(store):
    first, second = call(store), call(store)
    first.try_claim("b", None, nothing)
    held = second.try_claim("b", None, nothing)
    first.release("b")
    assert second.try_claim("b", held, lambda waited: waited["state"]) == "free"
    assert isinstance(second.try_claim("b", held, nothing), Claim)


def test_a_poll_of_a_held_step_is_one_request(store):
    first, second = call(store), call(store)
    first.try_claim("b", None, nothing)
    held = second.try_claim("b", None, nothing)
    before = sum(store.counts.values())
    assert second.try_claim("b", held, nothing) is held
    assert sum(store.counts.values()) == before + 1


def test_a_folder_keeps_its_two_newest_numbers_and_a_call_nothing(store):
    for _ in range(4):
        one = call(store)
        one.try_claim("b", None, nothing)
        one.note("b", task_run_id="t")
        one.end()
    assert numbers(store) == [11, 12]
    assert list(store.list("calls")) == []


def test_a_late_create_of_a_number_that_was_there_before_is_no_claim(store, monkeypatch):
    """It listed an empty folder; while it slept, others came, went and tidied up."""
    slow, real = call(store), lease._create
    done = []

    def create(target, path, body):
        if path.startswith("leases/") and not done:
            done.append(path)
            for _ in range(3):
                other = call(store)
                other.try_claim("b", None, nothing)
                other.end()
            holding = call(store)
            holding.try_claim("b", None, nothing)
        return real(target, path, body)

    monkeypatch.setattr(lease, "_create", create)
    assert isinstance(slow.try_claim("b", None, nothing), HeldByOther)
    assert done == ["leases/abc/b/000000000001.json"]
    assert numbers(store)[0] > 1


def test_an_expired_call_loses_its_step_and_may_publish_nothing(store, monkeypatch):
    first, second = call(store, deadline=time.monotonic() + 600), call(store)
    first.try_claim("b", None, nothing)
    first.check("b")
    assert isinstance(second.try_claim("b", None, nothing), HeldByOther)
    later(monkeypatch, 603)
    assert isinstance(second.try_claim("b", None, nothing), Claim)
    assert second.dead == [first.token]
    for attempt in (first.check, first.note):
        with pytest.raises(LeaseLostError):
            attempt("b")
    first.release("b")
    second.check("b")


def test_a_call_past_its_deadline_may_not_publish_even_if_nobody_took_over(store):
    now = [100.0]
    one = call(store, deadline=105.0, clock=lambda: now[0])
    one.try_claim("b", None, nothing)
    one.check("b")
    now[0] = 105.5
    with pytest.raises(LeaseLostError):
        one.check("b")


def test_a_call_that_woke_late_goes_on_if_nobody_took_it_for_dead(store, monkeypatch):
    now = [100.0]
    one, other = [call(store, clock=lambda: now[0]) for _ in range(2)]
    one.try_claim("b", None, nothing)
    other.try_claim("c", None, nothing)
    later(monkeypatch, 700)
    assert lease.claim_dead_call(store, other.token) is not None
    now[0] = 800.0
    one.check("b")
    with pytest.raises(LeaseLostError, match="counted as dead"):
        other.check("c")


@pytest.mark.parametrize("skew_s", [-3600, -60, 60, 3600])
def test_the_clocks_of_the_machines_do_not_matter(store, monkeypatch, skew_s):
    real = time.time
    first, second = call(store, ttl_s=30), call(store)
    monkeypatch.setattr(time, "time", lambda: real() + skew_s)
    first.try_claim("b", None, nothing)
    monkeypatch.setattr(time, "time", real)
    assert isinstance(second.try_claim("b", None, nothing), HeldByOther)
    later(monkeypatch, 35)
    assert isinstance(second.try_claim("b", None, nothing), Claim)


def test_a_renewed_call_lives(store, monkeypatch):
    one = call(store, ttl_s=30)
    one.try_claim("b", None, nothing)
    later(monkeypatch, 20)
    one._renew()
    (entries,) = lease.open_calls(store).values()
    assert [entry.key[-6:-5] for entry in entries] == ["1", "2"]
    assert lease.call_state(store, one.token).is_alive
    one.end()
    assert list(store.list("calls")) == []


def test_of_many_that_bury_a_dead_call_one_gets_it(store, monkeypatch):
    one = call(store)
    one.try_claim("b", None, nothing)
    assert lease.claim_dead_call(store, one.token) is None
    with monkeypatch.context() as patch:
        later(patch, 700)
        assert lease.claim_dead_call(store, one.token) is not None
    assert [lease.claim_dead_call(store, one.token) for _ in range(3)] == [None] * 3
    later(monkeypatch, 70)  # The one that had it died too.
    assert lease.claim_dead_call(store, one.token).body["call"] == one.token
    lease.forget_call(store, one.token)
    assert lease.claim_dead_call(store, one.token) is None


def test_a_late_word_about_a_buried_call_leaves_nothing_behind(store, monkeypatch):
    one, real = call(store), lease._create
    one.try_claim("b", None, nothing)
    later(monkeypatch, 700)

    def create(target, path, body):
        lease.forget_call(store, one.token)
        return real(target, path, body)

    monkeypatch.setattr(lease, "_create", create)
    assert lease.claim_dead_call(store, one.token) is None
    assert list(store.list("calls")) == []


def test_a_claim_whose_call_is_not_on_record_is_free(store):
    one, two = call(store), call(store)
    one.try_claim("b", None, nothing)
    lease.forget_call(store, one.token)
    assert isinstance(two.try_claim("b", None, nothing), Claim)


def test_a_damaged_lease_is_held_by_nobody(store):
    store.put("leases/abc/b/000000000007.json", b"?")
    assert call(store).try_claim("b", None, nothing).number == 8


def test_an_answer_that_was_lost_is_not_taken_for_anothers_claim(store, monkeypatch):
    """The first request was carried out, its answer lost, and the request sent again."""
    real = store.put

    def put(key, data, **more):
        real(key, data, **more)
        if key.startswith("leases/"):
            real(key, data, **more)

    monkeypatch.setattr(store, "put", put)
    assert call(store).try_claim("b", None, nothing).number == 1


CHILD = """
import json, os, sys, uuid
from pfl.handler import entry
from pfl.handler.core.settings import Settings
settings = Settings.from_env(os.environ)
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


def start(project, **event) -> subprocess.Popen:
    env = {**os.environ, "PFL_ENGINE": "direct"}
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


def test_a_killed_holder_is_followed_at_once_by_who_waits(gated):
    first = start(gated)
    until(first, "computing")
    second = start(gated)
    until(second, "waiting")
    with first:
        first.kill()
    until(second, "computing")
    open_gate(gated)
    assert reply_of(second)["steps"][0]["status"] == "computed"


def test_who_cannot_wait_until_its_deadline_says_who_computes_and_until_when(gated):
    other = LeaseHolder(gated.results, "abc", {"request_id": "first"}, ttl_s=600)
    other.try_claim("a", None, nothing)
    reply = entry.handle(
        {"id": "abc"}, gated.settings, request_id="second", deadline=time.monotonic() + 2
    )
    assert (reply["status"], reply["error"]["type"]) == ("busy", "BusyError")
    assert exit_code(reply["error"]["type"]) == 5
    assert f"held by process {os.getpid()}" in reply["error"]["why"]
    assert " until 20" in reply["error"]["why"]
    assert [row["status"] for row in reply["steps"]] == ["busy"]
    assert lease.open_calls(gated.results).keys() == {other.token}


def test_a_hit_takes_no_lease(project):
    project.call()
    before = [entry.key for entry in project.results.list("leases")]
    assert {verb: count for verb, count in project.call()["store"].items() if count} == {"get": 1}
    assert [entry.key for entry in project.results.list("leases")] == before


def test_a_step_that_fails_gives_its_lease_back(project):
    project.write(
        """
        @step
        def a(id: str) -> int:
            raise ValueError("no")
        FLOWS = [flow("failing", a)]
        """
    )
    assert project.call()["error"]["type"] == "StepFailedError"
    assert list(project.results.list("calls")) == []
    bodies = [
        records.unseal(project.results.get(e.key), e.key) for e in project.results.list("leases")
    ]
    assert sorted(body["state"] for body in bodies) == ["free", "held"]
    assert project.call()["error"]["type"] == "StepFailedError"


def test_a_call_that_lost_its_lease_saves_nothing_and_says_so(project):
    project.write(
        """
        import os
        from pfl.handler.core.cache import lease
        from pfl.handler.core.store import objects as store
        from pfl.handler.core.settings import Settings
        @step(depends_on=())
        def a(id: str) -> int:
            results = store.of(Settings.from_env(os.environ))
            (call,) = lease.open_calls(results)
            lease.free(results, lease.claims_of(results, id, call)[0])
            return 1
        FLOWS = [flow("lost", a)]
        """
    )
    reply = project.call()
    assert (reply["error"]["type"], reply["status"]) == ("LeaseLostError", "failed")
    assert list(project.results.list("results")) + list(project.results.list("plans")) == []


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


def test_who_waits_asks_the_store_about_four_times_a_second_at_most(gated, monkeypatch):
    """Counted in requests per second of intended sleep, checks of the holder included."""
    from pfl.handler.engine import invocation

    gated.write(GATED.replace('open("gate").read()', "pass"))
    gated.store = gated.results
    other = LeaseHolder(gated.store, "abc", {"request_id": "first"}, ttl_s=600)
    other.try_claim("a", None, nothing)
    pauses, asked = [], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        asked.append(sum(gated.store.counts.values()))
        if len(pauses) == 60:
            other.end()

    monkeypatch.setattr(invocation, "_sleep", sleep)
    monkeypatch.setitem(
        LeaseHolder.__init__.__kwdefaults__, "clock", lambda: time.monotonic() + sum(pauses)
    )
    assert gated.call()["status"] == "completed"
    assert len(pauses) == 60
    assert min(pauses) >= 0.25
    assert len({round(pause, 6) for pause in pauses}) > 50  # Many that wait do not ask together.
    assert (asked[-1] - asked[0]) / sum(pauses[1:]) < 4.2


def test_who_waits_for_a_call_that_fails_fails_with_it_and_computes_nothing(gated):
    gated.write(GATED.replace("return 7", "raise ValueError('no')"))
    children = [start(gated) for _ in range(4)]
    for child in children:
        until(child, '["a", ')
    open_gate(gated)
    replies = [reply_of(child) for child in children]
    assert [reply["error"]["why"] for reply in replies] == ["ValueError: no"] * 4
    assert {reply["error"]["hint"] for reply in replies} == {"see flows/pipeline.py:9"}
    assert len((gated.root / "ran").read_text().splitlines()) == 1
    assert lease.open_calls(gated.results) == {}


def test_a_failure_with_other_parameters_is_not_taken_over(project):
    project.write(
        """
        @step
        def a(id: str, rate: int = 1) -> int:
            if rate == 1:
                raise ValueError("no")
            return rate
        FLOWS = [flow("rated", a)]
        """
    )
    results = project.store = project.results
    other = LeaseHolder(results, "abc", {"request_id": "first"}, ttl_s=600)
    real = LeaseHolder.try_claim
    other.try_claim("a", None, nothing)
    told = {
        "failure": {"what": "step a failed", "why": "ValueError: no", "hint": ""},
        "failed_plan": "of rate 1",
    }

    def try_claim(self, step, held, look):
        if held is not None and other._claims:
            other.release("a", **told)
        return real(self, step, held, look)

    LeaseHolder.try_claim = try_claim
    try:
        assert project.call(params={"rate": 2})["steps"][0]["value"] == 2
    finally:
        LeaseHolder.try_claim = real
