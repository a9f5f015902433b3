"""Busts: what was computed before one is not served after it, in any order of requests."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from conftest import statuses, values

from pfl.handler import entry
from pfl.handler.core.cache import bust, history, lease, shared
from pfl.handler.core.declare import catalog
from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError
from pfl.handler.core.store import keys, layout, records
from pfl.handler.core.store import objects as stores

OUTSIDE = """
from pathlib import Path

@step
def a(id: str) -> int:
    return len(id)

@step
def b(a: int) -> int:
    return a + int(Path('outside.txt').read_text())

@step
def c(b: int, rate: int = 10) -> int:
    return b * rate

FLOWS = [flow("chain", a, b, c)]
"""
HIT, NEW = "hit", "computed"
DAY_S = 86_400


def of(*each: str) -> dict[str, str]:
    return dict(zip("abc", each, strict=True))


@pytest.fixture
def outside(project):
    """Step b rests on a file that no key knows of: what a bust is for."""
    project.write(OUTSIDE)
    (project.root / "outside.txt").write_text("1")
    project.store = stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
    return project


def change(project, number: int) -> None:
    (project.root / "outside.txt").write_text(str(number))


def busted(
    project,
    *steps: str,
    id: str | None = "abc",
    prefix: str = "",
    retention_s: float = DAY_S,
) -> str:
    """Bust as the command does; the name of the bust."""
    flow = catalog.load(project.settings).flows["chain"]
    scope = bust.Scope(
        bust.ALL if id is None else keys.encode_id(id),
        keys.escape_id(prefix),
        steps or (bust.ALL,),
    )
    name = bust.new_name()
    reach = flow.dependents(steps)
    bust.bust(
        project.results,
        scope,
        name,
        dependents=reach,
        known=frozenset(flow.steps),
        retention_s=retention_s,
    )
    return name


def restored(project, name: str) -> int:
    flow = catalog.load(project.settings).flows["chain"]
    undone = [mark for mark in bust.list_marks(project.results) if mark.name == name]
    reach = flow.dependents([mark.step for mark in undone])
    return bust.restore(project.results, undone, dependents=reach, known=frozenset(flow.steps))


def would(project, *steps: str, id: str | None = "abc", prefix: str = "") -> list[str]:
    """ID folder and step of the results that a bust would make void."""
    scope = bust.Scope(
        bust.ALL if id is None else keys.encode_id(id),
        keys.escape_id(prefix),
        steps or (bust.ALL,),
    )
    return sorted(
        "/".join(found.key.split("/")[1:3]) for found in bust.list_results(project.results, scope)
    )


# What a bust does.


def test_a_busted_step_is_computed_again_and_its_dependents_with_its_new_value(outside):
    outside.call()
    change(outside, 5)
    busted(outside, "b")
    reply = outside.call()
    assert statuses(reply) == of(HIT, NEW, NEW)
    assert values(reply) == {"a": 3, "b": 8, "c": 80}
    assert reply["steps"][1]["why"].startswith("busted at 20")
    assert outside.call()["store"] == {"get": 1}


def test_a_busted_step_that_gives_the_same_value_leaves_its_dependents_stored(outside):
    outside.call()
    busted(outside, "b")
    assert statuses(outside.call()) == of(HIT, NEW, HIT)


def test_a_bust_leaves_what_the_step_needs_one_read_away(outside):
    outside.call()
    busted(outside, "b")
    assert outside.call(step="a")["store"] == {"get": 1}


def test_busted_dependents_are_computed_even_from_the_same_value(outside):
    outside.call()
    busted(outside, "b", "c")
    assert statuses(outside.call()) == of(HIT, NEW, NEW)


def test_a_bust_of_an_id_is_of_all_its_steps(outside):
    outside.call()
    busted(outside)
    assert statuses(outside.call()) == of(NEW, NEW, NEW)


def test_a_bust_of_one_id_leaves_the_others_alone(outside):
    outside.call("abc")
    outside.call("abcd")
    busted(outside, "b")
    assert outside.call("abcd")["store"] == {"get": 1}
    assert statuses(outside.call("abc"))["b"] == NEW


def test_a_bust_of_a_step_is_of_every_id_also_of_one_not_stored_yet(outside):
    for id in ("abc", "abcd", "x"):
        outside.call(id)
    busted(outside, "b", id=None)
    for id in ("abc", "abcd", "x"):
        assert statuses(outside.call(id)) == of(HIT, NEW, HIT)


@pytest.mark.parametrize(
    ("prefix", "hit"),
    [("ab", ["abc", "ab"]), ("a", ["abc", "ab", "a/b"]), ("a/", ["a/b"]), (".", [".x"]), ("q", [])],
)
def test_a_bust_of_a_prefix_is_of_the_ids_that_begin_so(outside, prefix, hit):
    ids = ["abc", "ab", "a/b", ".x", "x"]
    for id in ids:
        outside.call(id)
    assert would(outside, "b", id=None, prefix=prefix) == sorted(
        f"{keys.encode_id(id)}/b" for id in hit
    )
    busted(outside, "b", id=None, prefix=prefix)
    assert [id for id in ids if statuses(outside.call(id))["b"] == NEW] == hit


def test_a_bust_of_a_prefix_reaches_an_id_too_long_for_its_folder(outside):
    id = "long-" + "x" * 400
    outside.call(id)
    busted(outside, "b", id=None, prefix=id[:39])
    assert statuses(outside.call(id))["b"] == NEW
    busted(outside, "b", id=None, prefix=id[:100])
    assert statuses(outside.call(id))["b"] == NEW


def test_a_bust_finds_plans_of_an_older_version_of_the_code(outside):
    """c once took b and does not now. A return to the old code must not find the old value."""
    outside.call()
    outside.write(
        OUTSIDE.replace("def c(b: int, rate: int = 10)", "def c(rate: int = 10)").replace(
            "b * rate", "rate"
        )
    )
    change(outside, 5)
    busted(outside, "b")
    outside.write(OUTSIDE)
    assert values(outside.call(step="c"))["c"] == 80


def test_a_bust_leaves_history_so_that_a_skip_and_previous_still_find_a_value(outside):
    outside.call()
    busted(outside, "b")
    assert values(outside.call(step="c", skip=["b"]))["b"] == 4
    outside.call()
    assert outside.call(step="c", skip=["b"])["warnings"] == []


def test_what_would_be_busted_is_told_without_a_read_and_not_told_twice(outside):
    for id in ("abc", "abcd"):
        outside.call(id)
    before = dict(outside.results.counts)
    assert would(outside, "b", id=None) == ["abc/b", "abcd/b"]
    assert outside.results.counts["get"] == before["get"]
    busted(outside, "b", id=None)
    assert would(outside, "b", id=None) == []
    outside.call("abc")
    assert would(outside, "b") == ["abc/b"]


def test_a_call_that_busts_makes_only_its_own_result_void(outside):
    outside.write(
        OUTSIDE.replace("def b(a: int)", "def b(a: int, more: int = 0)").replace(
            "return a +", "return a + more +"
        )
    )
    outside.call(params={"more": 0})
    outside.call(params={"more": 1})
    outside.call(params={"more": 0}, bust=["b"])
    assert statuses(outside.call(params={"more": 1})) == of(HIT, HIT, HIT)


def test_busting_an_id_in_many_calls_keeps_few_marks(outside):
    for _ in range(5):
        outside.call(bust="all")
    assert len(bust.list_marks(outside.results)) == 3
    for _ in range(3):
        busted(outside, "b", retention_s=-1)
    assert len([mark for mark in bust.list_marks(outside.results) if not mark.is_from_call]) == 1


# Back again.


def test_a_restored_value_is_served_again(outside):
    outside.call()
    name = busted(outside, "b")
    restored(outside, name)
    assert statuses(outside.call()) == of(HIT, HIT, HIT)
    assert outside.call()["store"] == {"get": 1}


def test_a_restored_value_replaces_the_one_computed_since(outside):
    outside.call()
    change(outside, 5)
    name = busted(outside, "b")
    assert values(outside.call())["c"] == 80
    assert restored(outside, name) == 2
    reply = outside.call()
    assert (statuses(reply), values(reply)) == (of(HIT, HIT, HIT), {"a": 3, "b": 4, "c": 40})


def test_a_restored_large_value_comes_back_too(outside):
    outside.knobs["inline_bytes"] = 50
    outside.write(
        OUTSIDE.replace("return a + int(", "return 'x' * 99 + (")
        .replace("b: int", "b")
        .replace("b * rate", "len(b)")
    )
    outside.call()
    change(outside, 5)
    name = busted(outside, "b")
    outside.call()
    restored(outside, name)
    assert values(outside.call(step="b"))["b"] == "x" * 99 + "1"


def test_of_two_busts_restoring_one_leaves_the_other_in_force(outside):
    outside.call()
    first = busted(outside, "b")
    busted(outside, "b")
    restored(outside, first)
    assert statuses(outside.call())["b"] == NEW


def test_restoring_a_value_that_another_bust_made_void_too_leaves_the_one_computed_since(outside):
    outside.call()
    first = busted(outside, "b")
    outside.call()
    busted(outside, "b")
    change(outside, 5)
    outside.call()
    restored(outside, first)
    assert values(outside.call(cached_only=True))["c"] == 80


def test_a_restored_value_is_back_also_where_a_call_busted_its_successor(outside):
    outside.call()
    name = busted(outside, "b")
    change(outside, 5)
    outside.call(bust=["b"])
    restored(outside, name)
    assert values(outside.call(cached_only=True))["c"] == 40


def test_restoring_also_undoes_what_calls_have_busted_since(outside):
    outside.call()
    name = busted(outside, "c")
    change(outside, 5)
    outside.call(bust=["b"])
    assert values(outside.call(cached_only=True))["c"] == 80
    outside.call(bust=["c"])
    restored(outside, name)
    assert values(outside.call(cached_only=True))["b"] == 8
    assert [mark.step for mark in bust.list_marks(outside.results)] == ["b"]


def test_a_value_that_has_expired_meanwhile_replaces_none_that_is_valid(outside, monkeypatch):
    outside.write(OUTSIDE.replace("@step\ndef b", "@step(cache_for='1h')\ndef b"))
    outside.call()
    name = busted(outside, "b")
    change(outside, 5)
    later = time.time() + 4_000
    monkeypatch.setattr(time, "time", lambda: later)
    outside.call()
    restored(outside, name)
    assert values(outside.call(cached_only=True))["c"] == 80


def test_a_bust_of_all_ids_is_restored_for_all(outside):
    for id in ("abc", "abcd"):
        outside.call(id)
    name = busted(outside, "b", id=None)
    outside.call("abc")
    restored(outside, name)
    for id in ("abc", "abcd"):
        assert statuses(outside.call(id)) == of(HIT, HIT, HIT)


def test_a_bust_of_an_id_too_long_for_its_folder_is_restored(outside):
    id = "é" * 100
    outside.call(id)
    change(outside, 5)
    name = busted(outside, "b", id=id)
    assert values(outside.call(id))["c"] == 1050
    assert restored(outside, name) == 2
    assert values(outside.call(id))["c"] == 1010


def test_the_fence_of_an_id_too_long_for_its_folder_stays_while_a_call_may_write(outside):
    id = "é" * 100
    outside.call(id, step="b")
    folder = keys.encode_id(id)
    [plan] = [each.key for each in outside.results.list(f"plans/{folder}/b")]
    asleep = lease.LeaseHolder(outside.results, id, {"request_id": "asleep"}, ttl_s=600)
    asleep.claim({"b": {"plan_key": plan.rpartition("/")[2].removesuffix(".json")}})
    busted(outside, "b", id=id)
    busted(outside, "b", id=id)
    assert "next" in records.unseal(outside.results.get(plan), plan)
    asleep.end()


# Races.


class Interrupted(stores.Store):
    """
    A store that lets others act just before its operations: ``acts[n]`` before the n-th.

    A bust neither reads nor writes what is unrelated, so of several such operations in a row only
    the first counts.
    """

    APART = ("calls/", "code/", "accepted/", "ids/", "history/", "recent/", shared.KEY, layout.KEY)

    def __init__(self, url: str, acts: dict) -> None:
        inner = stores.open_store(url, environ={})
        super().__init__(inner._backend, url)
        self.acts, self.done, self.was_apart = acts, 0, False
        self.is_local = True  # One request after another, so that they can be counted.

    def _next(self, *keys: str) -> None:
        is_apart = all(key.startswith(self.APART) for key in keys)
        if is_apart and self.was_apart:
            return
        self.was_apart = is_apart
        self.done += 1
        for act in self.acts.pop(self.done, ()):
            act()

    def get(self, key):
        self._next(key)
        return super().get(key)

    def put(self, key, data, *, mode="overwrite"):
        self._next(key)
        super().put(key, data, mode=mode)

    def list(self, prefix):
        self._next(prefix + "/")
        yield from super().list(prefix)

    def delete(self, keys):
        keys = list(keys)
        self._next(*keys)
        super().delete(keys)


def copied(whole: stores.Store) -> stores.Store:
    """A store of its own with the same objects."""
    copy = stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
    for each in whole.list(""):
        copy.put(each.key, whole.get(each.key))
    return copy


def race(project, url: str, acts: dict, **event) -> int:
    """One call, with others acting inside it; how many operations it took."""
    own = project.store

    def apart(act) -> None:
        between, project.store = project.store, own
        act()
        project.store = between

    project.store = mine = Interrupted(
        url, {n: [lambda act=act: apart(act) for act in some] for n, some in acts.items()}
    )
    project.call(**event)
    project.store = own
    for late in [act for n in sorted(mine.acts) for act in mine.acts[n]]:
        late()
    return mine.done


@pytest.mark.parametrize("stored", ["nothing", "all", "an older plan", "another rate"])
def test_a_bust_at_any_moment_of_a_call_wins(outside, monkeypatch, stored):
    """The mark comes before operation n of the call, the removal of plans before m: all pairs."""
    kept = {}
    removal = bust._remove_plans
    monkeypatch.setattr(bust, "_remove_plans", lambda *args: kept.setdefault("removal", args) and 0)

    def mark() -> None:
        change(outside, 5)
        busted(outside, "b")

    def remove() -> None:
        removal(*kept.pop("removal"))

    first = last = 1
    tried = 0
    if stored != "nothing":
        outside.call(**({"params": {"rate": 7}} if stored == "another rate" else {}))
    if stored == "an older plan":
        outside.results.delete([e.key for e in outside.results.list("plans/abc")])
    before = outside.store
    while True:
        change(outside, 1)
        outside.store = copied(before)
        acts: dict = {}
        acts.setdefault(first, []).append(mark)
        acts.setdefault(last, []).append(remove)
        count = race(outside, outside.store.url, acts)
        assert values(outside.call())["c"] == 80, (first, last)
        assert values(outside.call())["c"] == 80, (first, last)
        tried += 1
        last += 1
        if last > count + 1:
            first += 1
            last = first
        if first > count + 1:
            break
    assert tried >= count


def test_a_call_that_busts_wins_over_one_that_computes_from_the_old_value(outside):
    """Call one computes c from the old b; call two busts b at any moment of it."""
    moment = 0
    outside.call(step="b")
    before = outside.store
    while True:
        moment += 1
        change(outside, 1)
        whole = outside.store = copied(before)

        late: list = []

        def act(late: list = late) -> None:
            """In one thread nobody goes on while another waits: call two gives up, and repeats."""
            change(outside, 5)
            reply = entry.handle(
                {"id": "abc", "step": "b", "bust": "this"},
                outside.settings,
                results=outside.store,
                deadline=time.monotonic() + outside.settings.margin_s + 0.2,
            )
            if reply["status"] == "busy":
                late.append(act)

        count = race(outside, whole.url, {moment: [act]}, step="c")
        for again in late[:1]:
            again()
        assert values(outside.call(step="c"))["c"] == 80, moment
        if moment > count:
            break


def test_a_bust_keeps_a_plan_from_being_written_that_a_call_is_about_to_write(outside):
    """It waits for nobody: it leaves a fence, and the next bust that meets no call removes it."""
    writing, go_on = threading.Event(), threading.Event()

    class Slow(stores.Store):
        def put(self, key, data, *, mode="overwrite"):
            if key.startswith("plans/abc/b/"):
                writing.set()
                assert go_on.wait(60)
            super().put(key, data, mode=mode)

    whole = outside.results
    outside.store = Slow(whole._backend, whole.url)
    replies: list[dict] = []
    caller = threading.Thread(target=lambda: replies.append(outside.call(step="b")))
    caller.start()
    assert writing.wait(60)
    outside.store = whole
    change(outside, 5)
    busted(outside, "b")
    go_on.set()
    caller.join(60)
    assert values(replies[0])["b"] == 4
    assert values(outside.call(step="b"))["b"] == 8
    assert outside.call(step="b")["store"] == {"get": 2}
    busted(outside, "b")
    outside.call(step="b")
    assert outside.call(step="b")["store"] == {"get": 1}


def test_a_fence_stays_while_a_call_that_counts_as_dead_may_wake(outside):
    outside.call(step="b")
    [plan] = [each.key for each in whole_plans(outside) if "/b/" in each.key]
    asleep = lease.LeaseHolder(outside.results, "abc", {"request_id": "asleep"}, ttl_s=600)
    plan_key = plan.rpartition("/")[2].removesuffix(".json")
    asleep.claim({"b": {"plan_key": plan_key}})
    busted(outside, "b")
    busted(outside, "b")
    assert "next" in records.unseal(outside.results.get(plan), plan)
    asleep.end()
    busted(outside, "b")
    assert outside.results.get(plan) is None


def whole_plans(outside) -> list[stores.ObjectInfo]:
    return list(outside.results.list("plans/abc"))


# The format of the store.


def test_a_new_store_notes_its_format_and_is_asked_once(outside):
    outside.call()
    assert outside.results.get(layout.KEY) == b'{"version": 2, "by": "pfl"}'
    asked = outside.results.counts["get"]
    layout.check(outside.results)
    assert outside.results.counts["get"] == asked


def test_a_store_of_another_format_is_not_written_and_says_which(outside):
    outside.results.put(layout.KEY, b'{"version": 7}')
    reply = outside.call()
    assert (reply["status"], reply["error"]["type"]) == ("invalid", "InvalidRequestError")
    assert "format 7" in reply["error"]["what"]
    assert [entry.key for entry in outside.results.list("")] == [layout.KEY]


def test_a_hit_does_not_ask_for_the_format(outside):
    outside.call()
    fresh = stores.open_store(outside.results.url, environ={})
    outside.store = fresh
    assert outside.call()["store"] == {"get": 1}


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version": "1"}', b'{"version": true}', b"\xff"])
def test_a_format_that_cannot_be_read_is_damage(outside, data):
    outside.results.put(layout.KEY, data)
    with pytest.raises(CorruptRecordError, match="format.json"):
        layout.check(outside.results)


def test_a_prefix_too_long_to_be_noted_is_refused(outside):
    with pytest.raises(InvalidRequestError, match="prefix is too long"):
        busted(outside, "b", id=None, prefix="é" * 100)


def test_a_record_of_history_with_another_status_is_no_last_value(outside):
    outside.call()
    body = {"id": "abc", "step": "b", "status": "crashed"}
    outside.results.put(history.new_name("abc", "b", "f" * 16).path, records.seal(body))
    assert values(outside.call(step="c", skip=["b"]))["b"] == 4


# What the clocks of machines have to do with it: nothing.


@pytest.mark.parametrize("skew_s", [-36_000, -61, 61, 36_000])
def test_a_bust_by_a_machine_with_another_clock_voids_what_a_call_is_about_to_publish(
    outside, monkeypatch, skew_s
):
    """It comes after the call computed the step, and before each of its writes."""
    for kind in ("results/abc/b", "plans/abc/b", "plans/abc/c"):
        store = outside.store = stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
        change(outside, 1)
        busts: list[str] = []

        def put(key, data, store=store, real=store.put, kind=kind, busts=busts, **more):
            if key.startswith(kind) and not busts:
                busts.append(key)
                change(outside, 5)
                with monkeypatch.context() as patch:
                    clock = time.time
                    patch.setattr(time, "time", lambda: clock() + skew_s)
                    busted(outside, "b")
            real(key, data, **more)

        monkeypatch.setattr(store, "put", put)
        assert outside.call()["status"] == "completed"
        assert len(busts) == 1
        assert values(outside.call()) == {"a": 3, "b": 8, "c": 80}, kind


@pytest.mark.parametrize("age_s", [-2 * DAY_S, 0, 2 * DAY_S])
def test_a_call_that_busts_one_result_brings_none_back_that_an_earlier_call_busted(
    outside, monkeypatch, age_s
):
    """However old the earlier bust is; the result is looked for by its inputs after an edit."""
    text = OUTSIDE.replace("b * rate", "b * rate + int(Path('outside.txt').read_text())")
    outside.write(text)
    outside.call()
    change(outside, 5)
    clock = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: clock() - age_s)
        assert values(outside.call(bust=["c"]))["c"] == 45
    outside.call(bust=["c"], params={"rate": 3})
    outside.write(text.replace("return len(id)", "return 0 + len(id)"))
    reply = outside.call()
    assert (statuses(reply), values(reply)["c"]) == (of(NEW, HIT, HIT), 45)
