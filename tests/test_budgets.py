"""How many requests a miss makes, and how many of them have to wait for one another."""

from __future__ import annotations

import json
import threading
import time
import uuid

import pytest
from conftest import statuses

from pfl.handler.core.cache import lease
from pfl.handler.core.store import objects as stores

# Long enough that what runs side by side overlaps; nothing is asserted about it.
DELAY_S = 0.03


class Delayed(stores.Store):
    """
    A store that delays each request, and counts round trips.

    Attributes:
        requests: The verb and key of each request, with its start and its end.
    """

    def __init__(self) -> None:
        url = f"memory://{uuid.uuid4().hex}"
        super().__init__(stores.open_store(url, environ={})._backend, url)
        self.requests: list[tuple[str, str, float, float]] = []
        self.lock = threading.Lock()

    def _note(self, verb: str, key: str, started: float) -> None:
        with self.lock:
            self.requests.append((verb, key, started, time.monotonic()))

    def get(self, key):
        started = self._delay()
        try:
            return super().get(key)
        finally:
            self._note("get", key, started)

    def info(self, key):
        started = self._delay()
        try:
            return super().info(key)
        finally:
            self._note("get", key, started)

    def put(self, key, data, *, mode="overwrite"):
        started = self._delay()
        try:
            super().put(key, data, mode=mode)
        finally:
            self._note("put", key, started)

    def list(self, prefix):
        started = self._delay()
        found = list(super().list(prefix))
        self._note("list", prefix, started)
        yield from found

    def delete(self, keys):
        keys = list(keys)
        if not keys:
            return 0
        started = self._delay()
        try:
            return super().delete(keys)
        finally:
            self._note("delete", keys[0], started)

    def _delay(self) -> float:
        started = time.monotonic()
        time.sleep(DELAY_S)
        return started

    @property
    def round_trips(self) -> int:
        """The length of the longest chain of requests of which each begins after the one before."""
        count = 0
        free_at = 0.0
        for _, _, started, ended in sorted(self.requests, key=lambda each: each[3]):
            if started >= free_at:
                count += 1
                free_at = ended
        return count

    def cost(self) -> tuple[int, int, int]:
        """Requests, round trips and listings since the last call of this."""
        lists = sum(verb == "list" for verb, *_ in self.requests)
        found = (len(self.requests), self.round_trips, lists)
        self.requests.clear()
        return found


def chain(count: int) -> str:
    """A flow of *count* steps that need one another."""
    lines = ["@step", "def s0(id: str) -> int:", "    return 1"]
    for number in range(1, count):
        lines += ["@step", f"def s{number}(s{number - 1}: int) -> int:"]
        lines += [f"    return s{number - 1} + 1"]
    steps = ", ".join(f"s{number}" for number in range(count))
    return "\n".join([*lines, f"FLOWS = [flow('chain', {steps})]", ""])


@pytest.fixture
def delayed(project):
    """A project whose store delays each request, warm: one call was made before."""

    def make(count: int):
        project.write(chain(count))
        project.store = Delayed()
        project.call("first")
        project.store.requests.clear()
        return project

    return make


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_a_miss_of_a_chain_of_n_steps(delayed, count):
    project = delayed(count)
    costs = []
    # On a busy machine, a thread may begin its request when that of another has ended.
    for number in range(6):
        assert project.call(f"id-{number}")["status"] == "completed"
        costs.append(project.store.cost())
    assert all(requests <= 4 * count + 6 for requests, _, _ in costs)
    # Whatever the length of the chain: results, records and plans are written beside the steps.
    assert min(round_trips for _, round_trips, _ in costs) <= 6
    assert all(lists == 0 for _, _, lists in costs)


def test_a_hit_is_one_request(delayed):
    project = delayed(3)
    project.call()
    project.store.cost()
    project.call()
    assert project.store.cost() == (1, 1, 0)


def test_a_busted_step_in_the_middle(delayed):
    project = delayed(3)
    project.call()
    project.store.cost()
    assert statuses(project.call(bust=["s1"]))["s1"] == "computed"
    requests, round_trips, lists = project.store.cost()
    assert requests <= 40
    assert round_trips <= 30
    assert lists <= 12


def test_changed_code_of_all_steps(delayed):
    project = delayed(3)
    project.call()
    project.write(chain(3).replace("+ 1", "+ 2").replace("return 1", "return 2"))
    project.store.cost()
    assert set(statuses(project.call()).values()) == {"computed"}
    requests, round_trips, _ = project.store.cost()
    assert requests <= 40
    assert round_trips <= 14


def test_a_failed_step(delayed):
    project = delayed(3)
    project.write(chain(3).replace("return s1 + 1", "raise ValueError"))
    project.call("other")
    project.store.cost()
    assert statuses(project.call())["s2"] == "failed"
    requests, round_trips, lists = project.store.cost()
    assert requests <= 4 * 3 + 6
    assert round_trips <= 3 + 9
    assert lists == 0


def test_a_call_that_finds_all_results_after_a_crash_before_the_last_plan(delayed):
    project = delayed(3)
    project.call()
    [plan] = [each.key for each in project.store.list("plans/abc/s2")]
    project.store.delete([plan])
    project.store.cost()
    assert statuses(project.call())["s2"] == "hit"
    requests, round_trips, _ = project.store.cost()
    assert requests <= 25
    assert round_trips <= 12


def test_a_poll_of_a_call_that_waits(delayed):
    project = delayed(1)
    store = project.store
    holder = lease.LeaseHolder(store, "abc", {"request_id": "other"}, ttl_s=600)
    holder.claim({"s0": {}})
    other = lease.LeaseHolder(store, "abc", {"request_id": "mine"}, ttl_s=600)
    [held] = other.claim({"s0": {}}).values()
    store.cost()
    assert other.still_held(held) is not None
    assert store.cost() == (1, 1, 0)
    other.end()
    holder.end()


def test_a_reap_of_one_dead_call_among_many_ids(delayed):
    project = delayed(1)
    for number in range(5):
        project.call(f"id-{number}")
    dead = lease.LeaseHolder(project.store, "abc", {"request_id": "dead"}, ttl_s=600)
    dead.claim({"s0": {}})
    lease.write_end(project.store, dead.token, {"cause": "killed", "why": ""})
    project.store.cost()
    assert len(project.handle({"action": "reap"})["reaped"]) == 1
    requests, round_trips, _ = project.store.cost()
    assert requests <= 26
    assert round_trips <= 26
    project.handle({"action": "reap"})
    assert project.store.cost()[0] <= 6


def test_commands_that_bust_and_list_one_id(delayed, monkeypatch):
    from typer.testing import CliRunner

    from pfl.cli.main import app
    from pfl.handler.core.settings import Settings

    project = delayed(3)
    for number in range(5):
        project.call(f"id-{number}")
    monkeypatch.setattr(stores, "of", lambda settings: project.store)
    assert isinstance(project.settings, Settings)
    project.store.cost()
    ran = CliRunner().invoke(app, ["history", "ls", "--id", "id-1", "--json"])
    assert len([json.loads(line) for line in ran.stdout.splitlines()]) == 3, ran.output
    assert project.store.cost()[0] <= 3 + 5
    ran = CliRunner().invoke(app, ["cache", "bust", "--id", "id-1", "--yes", "--json"])
    assert ran.exit_code == 0, ran.output
    assert project.store.cost()[0] <= 20
