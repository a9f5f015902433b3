"""Walking the store: what is unusable is reported, and set aside on request; the rest stays."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

import pytest
from conftest import statuses, values
from test_bust import DAY_S, OUTSIDE, busted, change

from pfl.handler.core.cache import accept, bust, inspection, lease, verify
from pfl.handler.core.errors import UnavailableError
from pfl.handler.core.store import keys, records
from pfl.handler.core.store import objects as stores


@pytest.fixture(params=["memory", "local", "s3"])
def chain(request, project):
    project.write(OUTSIDE)
    change(project, 1)
    if request.param == "memory":
        project.store = stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
    elif request.param == "local":
        project.store = stores.open_store(str(project.root / "store"), environ={}, create=True)
    else:
        bucket = request.getfixturevalue("bucket")
        project.store = stores.open_store(
            f"s3://{bucket}/pfl", environ=request.getfixturevalue("s3_env")
        )
    project.call()
    return project


@pytest.fixture
def one(project):
    project.write(OUTSIDE)
    change(project, 1)
    project.store = stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
    project.call()
    return project


def problems(project, *, repair: bool = False, retention_s: float = DAY_S) -> dict[str, str]:
    walked = verify.walk(project.results, repair=repair, retention_s=retention_s)
    return {each.key: each.problem for each in walked if each}


def objects(project, folder: str) -> list[str]:
    return sorted(entry.key for entry in project.results.list(folder))


def test_a_sound_store_has_no_problems_and_is_left_alone(chain):
    busted(chain, "b")
    chain.call()
    before = objects(chain, "")
    assert problems(chain, repair=True) == {}
    assert objects(chain, "") == before


DAMAGES = {
    "empty": b"",
    "no JSON": b"\x00",
    "null": b"null",
    "another shape": b'{"a":1}',
    "sealed, another shape": records.seal({}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["plans", "results", "history", "busts", "code", "accepted"])
def test_damage_is_found_set_aside_and_made_good_by_the_next_call(one, kind, damage):
    busted(one, "b")
    one.call()
    accept.accept(one.results, "a", "f" * 64, "e" * 64, by="x", changes=[])
    path = objects(one, kind)[0]
    if kind == "busts" and damage == DAMAGES["sealed, another shape"]:
        return  # A mark is its name.
    one.results.put(path, damage)
    assert problems(one) == {path: "damaged"}
    assert one.results.get(path) == damage
    assert problems(one, repair=True) == {path: "damaged"}
    assert (one.results.get(path), one.results.get(f"aside/{path}")) == (None, damage)
    assert problems(one) == {}
    assert values(one.call()) == {"a": 3, "b": 4, "c": 40}


@pytest.mark.parametrize("kind", ["plans", "results", "history"])
def test_a_whole_object_in_the_wrong_place_is_damaged(one, kind):
    one.call("x")
    ours, theirs = objects(one, f"{kind}/abc/a")[0], objects(one, f"{kind}/x/a")[0]
    one.results.put(ours, one.results.get(theirs))
    assert problems(one) == {ours: "damaged"}


LARGE = (
    OUTSIDE.replace("return len(id)", "return 'x' * 99")
    .replace("(a: int)", "(a)")
    .replace("return a +", "return len(a) +")
)


def passes(monkeypatch, seconds: float) -> None:
    """Move the store's clock on."""
    real = lease.store_now
    monkeypatch.setattr(lease, "store_now", lambda store: real(store) + seconds)


def orphan(project) -> str:
    """Leave a large value that nothing refers to; returns its key."""
    project.knobs["inline_bytes"] = 5
    project.write(LARGE)
    project.call()
    for kind in ("history", "plans", "results", "leases"):
        project.results.delete(objects(project, kind))
    [value] = objects(project, "values")
    return value


def test_a_value_is_orphaned_when_nothing_refers_to_it_for_a_day_of_the_stores_clock(
    one, monkeypatch
):
    value = orphan(one)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * DAY_S)
    assert problems(one, repair=True) == {}
    passes(monkeypatch, DAY_S - 60)
    assert problems(one, repair=True) == {}
    passes(monkeypatch, 120)
    assert problems(one, repair=True) == {value: "orphaned"}
    assert objects(one, "values") == []


@pytest.mark.parametrize("kind", ["history", "results"])
@pytest.mark.parametrize("damage", [None, b"damaged"])
def test_a_value_is_kept_for_a_record_or_a_result_alone(one, monkeypatch, kind, damage):
    """The next call makes a record of a result that has none."""
    one.knobs["inline_bytes"] = 5
    one.write(LARGE)
    one.call()
    [value] = objects(one, "values")
    sha256 = value.rpartition("/")[2].encode()
    for other in ("history", "plans", "results", "leases"):
        one.results.delete(key for key in objects(one, other) if other != kind)
    passes(monkeypatch, 2 * DAY_S)
    for key in objects(one, f"{kind}/abc/a"):
        if damage:
            one.results.put(key, damage + sha256 * 9)
    found = problems(one)
    assert value not in found
    assert set(found.values()) <= {"damaged"}


def test_a_value_is_kept_while_a_call_is_under_way_for_its_id(one, monkeypatch):
    value = orphan(one)
    lease_key = "leases/abc=b=first.json"
    passes(monkeypatch, 2 * DAY_S)
    one.results.put(lease_key, b"{}")
    assert problems(one, repair=True) == {}
    one.results.delete([lease_key])
    one.results.put(lease_key.replace("abc", "abcd"), b"{}")
    assert problems(one, repair=True) == {value: "orphaned"}


def test_a_value_that_is_written_again_while_it_is_checked_is_kept(one, monkeypatch):
    """A long history takes long to read; the call comes after that, and before the value goes."""
    value = orphan(one)
    passes(monkeypatch, 2 * DAY_S)
    real, moves = one.results.move, []

    def move(key, to):
        if not moves:
            one.call(bust=["a"])
        moves.append(key)
        real(key, to)

    one.results.move = move
    found = [each for each in verify.walk(one.results, repair=True, retention_s=DAY_S) if each]
    assert moves == [value]
    assert [(each.key, each.aside) for each in found] == [(value, None)]
    assert (objects(one, "values"), objects(one, "aside")) == ([value], [])
    assert problems(one) == {}


@pytest.mark.parametrize("kind", ["plans", "results", "history"])
def test_an_object_that_is_written_again_just_before_it_is_set_aside_stays(one, kind):
    path = objects(one, f"{kind}/abc/a")[0]
    whole = one.results.get(path)
    one.results.put(path, b"damaged")
    real = one.results.move

    def move(key, to):
        one.results.put(path, whole)
        real(key, to)

    one.results.move = move
    walk = verify.walk(one.results, repair=True, retention_s=DAY_S)
    [found] = [each for each in walk if each]
    assert (found.key, found.aside) == (path, None)
    assert "rewritten since" in found.why
    assert (one.results.get(path), objects(one, "aside")) == (whole, [])


@pytest.fixture
def directory(project):
    project.write(OUTSIDE)
    change(project, 1)
    project.store = stores.open_store(str(project.root / "store"), environ={}, create=True)
    project.call()
    return project


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_link(path: Path) -> None:
    secret = path.parents[4] / "secret"
    secret.write_bytes(b"secret")
    path.symlink_to(secret)


def put_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)


@pytest.mark.parametrize("put", [put_fifo, put_link, put_large])
@pytest.mark.parametrize("kind", ["plans", "results", "history"])
def test_what_is_not_an_object_is_damaged_and_set_aside_as_it_is(directory, put, kind):
    store = directory.root / "store"
    key = objects(directory, f"{kind}/abc/b")[0]
    (store / key).unlink()
    put(store / key)
    before = os.lstat(store / key)
    assert values(directory.call())["b"] == 4
    if kind == "plans":  # The call has replaced it.
        (store / key).unlink()
        put(store / key)
        before = os.lstat(store / key)
    assert problems(directory, repair=True) == {key: "damaged"}
    assert not os.path.lexists(store / key)
    assert os.lstat(store / "aside" / key).st_ino == before.st_ino
    assert problems(directory) == {}


def test_a_repair_writes_nothing_through_a_link(directory):
    store, outside = directory.root / "store", directory.root / "outside"
    outside.mkdir()
    (store / "aside").symlink_to(outside)
    directory.results.put(objects(directory, "plans")[0], b"damaged")
    with pytest.raises(UnavailableError, match="cannot be used in aside"):
        problems(directory, repair=True)
    assert list(outside.iterdir()) == []


def test_a_check_without_repair_writes_nothing(directory):
    orphan(directory)
    for key in objects(directory, "values"):
        os.utime(directory.root / "store" / key, (0, 0))
    directory.store = stores.open_store(directory.store.url, environ={})
    assert set(problems(directory).values()) == {"orphaned"}
    assert set(directory.store.counts) == {"get", "list"}


def test_a_plan_without_its_large_result_and_history_without_its_large_value_are_orphaned(one):
    one.knobs["inline_bytes"] = 5
    one.write(LARGE)
    one.call(step="a")
    [value], [plan] = (
        objects(one, "values"),
        [
            p
            for p in objects(one, "plans/abc/a")
            if one.results.get(p).count(b"x" * 99) == 0 and b",101," in one.results.get(p)
        ],
    )
    [result] = [p for p in objects(one, "results/abc/a") if b"x" * 99 in one.results.get(p)]
    one.results.delete([value, result])
    found = problems(one)
    assert found.pop(plan) == "orphaned"
    assert list(found.values()) == ["orphaned"] and next(iter(found)).startswith("history/abc/a/")


def test_what_has_expired_is_told(one, monkeypatch):
    one.write(OUTSIDE.replace("@step\ndef b", '@step(cache_for="1h")\ndef b'))
    one.call(bust=["b"])
    assert problems(one) == {}
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3_700)
    assert problems(one, repair=True) == {}  # The store's own clock decides.
    passes(monkeypatch, 3_700)
    found = problems(one, repair=True)
    assert sorted(found.values()) == ["expired"] * 3  # b's result, and the plans of b and c.
    assert problems(one) == {}


def test_a_busted_result_goes_with_its_bust_when_it_cannot_be_restored_any_more(one):
    busted(one, "b")
    assert problems(one) == {}
    [result] = objects(one, "results/abc/b")
    assert problems(one, repair=True, retention_s=-1) == {result: "expired"}
    assert objects(one, "busts") == []
    change(one, 5)
    assert values(one.call())["b"] == 8


def test_a_plan_that_a_dead_publisher_left_is_stale(one):
    """It died after it wrote a plan and before it saw the bust."""
    kept = {path: one.results.get(path) for path in objects(one, "plans")}
    busted(one, "b")
    for path, data in kept.items():
        one.results.put(path, data)
    found = problems(one, repair=True)
    assert sorted((path.split("/")[2], problem) for path, problem in found.items()) == [
        ("b", "stale"),
        ("c", "stale"),
    ]
    change(one, 5)
    assert values(one.call())["c"] == 80


def test_a_pickled_result_is_not_opened(one):
    metadata = {
        "storage_key": "results/abc/a/x",
        "expiration": None,
        "serializer": {"type": "pickle"},
    }
    key = "results/abc/a/x"
    one.results.put(key, json.dumps({"metadata": metadata, "result": "gASVAAAA"}).encode())
    assert problems(one) == {key: "damaged"}


class Alive:
    """Counts live objects, now and at most, undisturbed by other threads."""

    now = most = 0

    def watched(self, kind: type) -> type:
        """*kind*, its things counted from birth to death."""

        class Watched(kind):
            def __new__(cls, value):
                self.now += 1
                self.most = max(self.most, self.now)
                return super().__new__(cls, value)

            def __del__(watched):  # noqa: N805 (self is the counter)
                self.now -= 1

        return Watched


@pytest.mark.parametrize("walker", ["verify", "ls"])
def test_a_walk_of_many_objects_keeps_none_of_them(one, walker):
    for path in objects(one, ""):
        for number in range(40):
            if "/abc/" in path:
                body = one.results.get(path)
                if path.startswith("plans/"):  # One of another ID is no plan, and not listed.
                    body = records.seal(records.unseal(body, path) | {"id": f"id{number}"})
                one.results.put(path.replace("/abc/", f"/id{number}/"), body)
    keys, bodies, list_, get = Alive(), Alive(), one.results.list, one.results.get
    key, body = keys.watched(str), bodies.watched(bytes)
    one.results.list = lambda prefix, **more: (
        entry._replace(key=key(entry.key)) for entry in list_(prefix, **more)
    )
    one.results.get = lambda key: None if (data := get(key)) is None else body(data)
    if walker == "verify":
        seen = sum(1 for _ in verify.walk(one.results, repair=False, retention_s=DAY_S))
    else:
        seen = sum(
            1
            for _ in inspection.entries(
                one.results, id=None, flow=None, step=None, warn=lambda exc: None
            )
        )
    assert seen >= 120
    assert max(keys.most, bodies.most) <= 4


def test_busts_of_all_steps_of_all_ids_and_of_a_long_id_are_no_damage(one):
    long = "x" * 400
    one.call(long)
    for scope in (
        bust.Scope(keys.encode_id("abc")),
        bust.Scope(keys.encode_id(long)),
        bust.Scope(steps=("b",)),
        bust.Scope(prefix="a"),
    ):
        bust.bust(
            one.results,
            scope,
            bust.new_name(),
            dependents={"b", "c"},
            known={"a", "b", "c"},
            retention_s=DAY_S,
        )
    assert problems(one) == {}


def test_busts_of_other_ids_cost_an_object_nothing(one, monkeypatch):
    for number in range(40):
        bust.create_mark(one.results, bust.new_name(), "b", bust.Scope(f"id{number}"))
    applies_to, asked = bust.Mark.applies_to, []
    monkeypatch.setattr(
        bust.Mark,
        "applies_to",
        lambda mark, *place: asked.append(mark) or applies_to(mark, *place),
    )
    assert problems(one) == {}
    assert len(list(bust.list_results(one.results, bust.Scope(steps=("b",))))) == 1
    assert asked == []


def test_a_result_through_which_a_later_one_is_found_stays_with_its_bust(one):
    """Without the bust, a call would find the old value first."""
    change(one, 5)
    busted(one, "b")
    one.call(step="b")
    for _ in range(2):
        found = list(verify.walk(one.results, repair=True, retention_s=-1))
        assert [each.key for each in found if each and "/b/" in each.key] == []
    one.results.delete([each.key for each in one.results.list("plans/abc/b")])
    reply = one.call(step="b")
    assert (statuses(reply)["b"], values(reply)["b"]) == ("hit", 8)
