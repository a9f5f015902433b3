"""What a call publishes: the first result decides, and a plan is never overwritten."""

from __future__ import annotations

import threading

import pytest
from conftest import values

from pfl.handler.core import event
from pfl.handler.core.cache import bust, history, lease, lookup
from pfl.handler.core.cache.entry import Entry
from pfl.handler.core.cache.publish import Publisher
from pfl.handler.core.declare import catalog, project
from pfl.handler.core.store import keys, records
from pfl.handler.core.store import objects as stores
from pfl.handler.engine import claims

FLOW = """
@step
def a(id: str) -> int:
    return 1
FLOWS = [flow("one", a)]
"""


@pytest.fixture
def one(project, store):
    project.write(FLOW)
    project.store = store
    return project


def request_of(one) -> event.Request:
    return event.parse({"id": "abc"}, catalog.load(one.settings))


def publisher(one, *, inline_bytes: int = 1_000, is_bounded: bool = False) -> Publisher:
    return Publisher(request_of(one), one.results, [], inline_bytes, is_bounded)


def entry(one, value: object, **more: object) -> tuple[Entry, str]:
    key = lookup.result_key(request_of(one), "a", {})
    text = keys.canonical(value)
    made = Entry("a", key, keys.value_digest(value), len(text), records.now_iso(), None)
    return made._replace(value=value, engine="direct", **more), text


def published(one, value: object, **more: object) -> Entry:
    """The entry that a call with this value ends with."""
    maker = publisher(one)
    made, text = entry(one, value, **more)
    found, fields = maker.commit(made, text, {"status": "computed"})
    print = project.load(one.settings).prints["a"]
    maker.publish(maker.publication(found, fields, [found], print))
    maker.finish()
    assert maker.errors == {}
    return found


def kept(one, kind: str) -> list[str]:
    return sorted(each.key for each in one.results.list(kind))


def test_the_first_result_decides_and_the_second_call_takes_its_value(one):
    assert published(one, 1).value == 1
    assert published(one, 2).value == 1
    assert len(kept(one, "results/abc")) == len(kept(one, "history/abc")) == 1
    assert one.call()["steps"][0]["value"] == 1


def test_the_first_large_result_decides_too(one):
    first = publisher(one, inline_bytes=10)
    made, text = entry(one, "x" * 99)
    first.commit(made, text, {})
    other = publisher(one, inline_bytes=10)
    made, text = entry(one, "y" * 99)
    assert other.commit(made, text, {})[0].value == "x" * 99


def test_a_result_that_was_busted_gets_a_successor_and_stays(one):
    published(one, 1)
    flow = catalog.load(one.settings).flows["one"]
    name = bust.new_name()
    known = frozenset(flow.steps)
    bust.bust(one.results, bust.Scope("abc"), name, dependents=known, known=known, retention_s=9)
    assert published(one, 2, after=(name,)).value == 2
    first, second = kept(one, "results/abc")
    assert second.startswith(f"{first}~")
    assert one.call()["steps"][0]["value"] == 2


def test_of_sixteen_threads_that_publish_at_once_all_end_with_one_value(one):
    results: list[object] = []
    start = threading.Barrier(16)

    def publish(value: int) -> None:
        start.wait()
        results.append(published(one, value).value)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    assert len(set(results)) == 1
    names = history.list_computed(one.results, "abc", "a", pytest.fail)
    assert [record["value"] for _, record in names] == [results[0]]


def test_a_plan_behind_a_fence_is_found_with_a_second_read(one):
    request = request_of(one)
    holder = lease.LeaseHolder(one.results, "abc", {"request_id": "r"}, ttl_s=600)
    holder.claim({"a": {"plan_key": request.plan_key("a")}})
    flow = catalog.load(one.settings).flows["one"]
    name = bust.new_name()
    known = frozenset(flow.steps)
    bust.bust(one.results, bust.Scope("abc"), name, dependents=known, known=known, retention_s=9)
    published(one, 2, after=(name,))
    assert one.call()["store"] == {"get": 2}
    holder.end()


def test_a_value_that_was_busted_while_it_was_computed_gets_no_plan(one):
    request = request_of(one)
    holder = lease.LeaseHolder(one.results, "abc", {"request_id": "r"}, ttl_s=600)
    holder.claim({"a": {"plan_key": request.plan_key("a")}})
    known = frozenset(request.flow.steps)
    scope = bust.Scope("abc")
    bust.bust(one.results, scope, bust.new_name(), dependents=known, known=known, retention_s=9)
    assert published(one, 1).value == 1
    holder.end()
    assert one.call(cached_only=True)["status"] == "miss"


@pytest.mark.parametrize("is_bounded", [True, False])
def test_an_expired_plan_makes_way(one, is_bounded):
    published(one, 1, expires_at="2020-01-01T00:00:00.000000Z")
    maker = publisher(one, is_bounded=is_bounded)
    made, text = entry(one, 2)
    found, fields = maker.commit(made, text, {})
    print = project.load(one.settings).prints["a"]
    maker.publish(maker.publication(found, fields, [found], print))
    maker.finish()
    assert found.value == 2
    # Only a call that certainly cannot wake later may delete the old plan.
    assert one.call()["store"] == {"get": 1 if is_bounded else 2}


def test_what_cannot_be_written_is_an_error_of_its_step(one, monkeypatch):
    from pfl.handler.core.errors import UnavailableError

    maker = publisher(one)
    made, text = entry(one, 1)
    found, fields = maker.commit(made, text, {"status": "computed"})
    print = project.load(one.settings).prints["a"]
    maker.publish(maker.publication(found, fields, [found], print))

    def refuse(*args: object, **more: object) -> None:
        raise UnavailableError("no")

    monkeypatch.setattr(one.results, "put", refuse)
    maker.finish()
    assert maker.errors.keys() == {"a"}
    assert not maker.is_writing


COUNTING = """
import itertools
counter = itertools.count(1)
@step
def a(id: str) -> int:
    return next(counter)
@step
def b(a: int) -> int:
    return a * 10
@step
def c(b: int) -> int:
    return b + 1
FLOWS = [flow("counting", a, b, c)]
"""


@pytest.fixture
def networked(project):
    """A project whose store is not a directory."""
    project.write(COUNTING)
    project.store = stores.open_store(f"memory://{id(project)}", environ={}, create=True)
    return project


def test_a_call_that_went_on_with_a_value_which_came_second_is_made_again(networked, monkeypatch):
    """It counted as dead before it created its first result, and another call took over."""
    project = networked
    put = stores.Store.put
    others: list[dict] = []

    def put_late(store, key, data, **more):
        if key.startswith("results/abc/a/") and not others:
            others.append({})
            store.delete([each.key for each in store.list("leases")])
            others[0] = project.call()
        put(store, key, data, **more)

    monkeypatch.setattr(stores.Store, "put", put_late)
    reply = project.call()
    assert values(others[0]) == {"a": 2, "b": 20, "c": 21}
    assert values(reply) == {"a": 2, "b": 20, "c": 21}
    assert reply["status"] == "completed"
    store = project.store
    found = {
        step: [record["value"] for _, record in history.list_computed(store, "abc", step, print)]
        for step in "abc"
    }
    assert found == {"a": [2], "b": [20], "c": [21]}
    assert list(store.list("leases")) == []
    assert values(project.call(cached_only=True)) == values(reply)


def test_nobody_computes_while_a_call_that_found_the_id_new_takes_its_leases(
    networked, monkeypatch
):
    other = lease.LeaseHolder(networked.store, "abc", {}, ttl_s=600)
    networked.store.put("ids/abc", other.marker())
    computed_meanwhile: list[list[str]] = []

    def settle(pause_s: float) -> None:
        computed_meanwhile.append(kept(networked, "results"))
        networked.store.put("ids/abc", b"settled")

    monkeypatch.setattr(claims, "_sleep", settle)
    assert networked.call()["status"] == "completed"
    assert computed_meanwhile == [[]]


def test_a_call_that_died_while_it_took_its_leases_holds_up_nobody(networked):
    other = lease.LeaseHolder(networked.store, "abc", {}, ttl_s=600)
    networked.store.put("ids/abc", other.marker())
    lease.write_end(networked.store, other.token, {"cause": "killed", "why": ""})
    assert networked.call()["status"] == "completed"
    assert lease.read_marker(networked.store, "ids/abc") is None


def test_a_new_id_is_marked_as_claimed_once_its_call_has_taken_its_leases(networked):
    assert networked.call()["status"] == "completed"
    assert kept(networked, "ids") == ["ids/abc"]
    for thread in threading.enumerate():
        if thread.name == "settle":
            thread.join()
    assert lease.read_marker(networked.store, "ids/abc") is None
