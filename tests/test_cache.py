"""The cache: what one read answers, what is computed again and why; damage is never a value."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from conftest import statuses, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl.handler import bake
from pfl.handler.core.cache import inspection, verify
from pfl.handler.core.store import keys, records
from pfl.handler.core.store import objects as stores

CHAIN = """
@step
def a(id: str, rate: int = 2) -> int:
    return len(id) * rate

@step
def b(a: int) -> int:
    return a + 1

@step
def c(b: int) -> int:
    return b * 10

FLOWS = [flow("chain", a, b, c)]
"""
# Step b rests on a file, which no key knows of: what a bust is for.
OUTSIDE = CHAIN.replace("return a + 1", "return a + int(Path('outside.txt').read_text())").replace(
    "@step", "from pathlib import Path\n\n@step", 1
)
HIT, NEW = "hit", "computed"


def of(*each: str) -> dict[str, str]:
    return dict(zip("abc", each, strict=True))


@pytest.fixture
def chain(project):
    project.write(CHAIN)
    return project


@pytest.fixture
def outside(project):
    project.write(OUTSIDE)
    (project.root / "outside.txt").write_text("1")
    return project


def objects(project, kind: str, step: str, id: str = "abc") -> list[str]:
    return sorted(
        entry.key for entry in project.results.list(f"{kind}/{keys.encode_id(id)}/{step}")
    )


# One read.


@pytest.fixture(params=["local", "s3"])
def anywhere(request, project, tmp_path):
    """The chain, its store a directory or a bucket that the settings name."""
    project.write(CHAIN)
    if request.param == "s3":
        bucket = request.getfixturevalue("bucket")
        project.knobs["store"] = f"s3://{bucket}/pfl"
    return project


def test_a_hit_at_any_depth_is_one_read(anywhere):
    anywhere.call()
    for step in "abc":
        reply = anywhere.call(step=step)
        assert statuses(reply) == {step: HIT}
        assert reply["store"] == {"get": 1}


def test_three_hits_are_one_read(anywhere):
    first = anywhere.call()
    reply = anywhere.call()
    assert statuses(reply) == of(HIT, HIT, HIT)
    assert values(reply) == values(first) == {"a": 6, "b": 7, "c": 70}
    assert reply["store"] == {"get": 1}


def test_a_hit_that_may_not_be_computed_is_one_read(chain):
    chain.call()
    assert chain.call(cached_only=True)["store"] == {"get": 1}


def test_a_flow_with_two_ends_is_one_read_for_each(project):
    project.write(
        """
        @step
        def a(id):
            return 1
        @step
        def b(a):
            return 2
        @step
        def c(a):
            return 3
        FLOWS = [flow("fork", a, b, c)]
        """
    )
    project.call()
    reply = project.call()
    assert statuses(reply) == of(HIT, HIT, HIT)
    assert reply["store"] == {"get": 2}


def test_a_value_too_large_for_its_plan_is_one_more_read(chain):
    chain.write(CHAIN.replace("return b * 10", "return 'x' * 1000"))
    chain.knobs["inline_bytes"] = 100
    first = chain.call()
    reply = chain.call(step="c")
    assert values(reply) == {"c": "x" * 1000} == {"c": first["steps"][2]["value"]}
    assert reply["store"] == {"get": 2}
    assert chain.call()["store"] == {"get": 2}  # The small ones travel in the plan.
    assert statuses(chain.call()) == of(HIT, HIT, HIT)


def test_a_very_large_value_is_read_only_where_it_is_asked_for_and_is_in_memory_a_few_times_at_most(
    project,
):
    """10 MB here; 200 MB take as many reads, and twenty times the time and memory."""
    code = (
        "import json, resource, sys; from pfl.handler.entry import lambda_handler; "
        "r = lambda_handler(json.loads(sys.argv[1])); size = len(str(r['steps'][0]['value'])); "
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "print(json.dumps([r['store'], size, peak]))"
    )

    def peak(**event) -> list:
        run = [sys.executable, "-c", code, json.dumps({"id": "abc", **event})]
        environ = {**os.environ, "PFL_ENGINE": "direct"}
        return json.loads(
            subprocess.run(run, capture_output=True, text=True, check=True, env=environ).stdout
        )

    project.write("""
        @step
        def a(id: str) -> str:
            return "x" * 10_000_000

        @step
        def b(a: str) -> int:
            return len(a)

        FLOWS = [flow("large", a, b)]
    """)
    assert project.call(step="b")["status"] == "completed"
    store, length, small_kib = peak(step="b")
    assert (store, length) == ({"get": 1}, 8)
    store, length, large_kib = peak(step="a")
    assert (store, length) == ({"get": 2}, 10_000_000)
    assert (large_kib - small_kib) * 1024 < 4 * 10_000_000


def test_values_that_are_large_together_leave_the_asked_one_inside(chain):
    text = CHAIN.replace("return len(id) * rate", "return 'a' * 60").replace(
        "return a + 1", "return 'b' * 60"
    )
    chain.write(text.replace("return b * 10", "return 'c' * 60"))
    chain.knobs["inline_bytes"] = 100
    chain.call()
    assert chain.call(step="c")["store"] == {"get": 1}
    assert values(chain.call()) == {"a": "a" * 60, "b": "b" * 60, "c": "c" * 60}


def test_another_id_another_parameter_and_another_step_are_not_a_hit(chain):
    chain.call("abc", step="b")
    assert statuses(chain.call("abcd")) == of(NEW, NEW, NEW)
    assert statuses(chain.call("abc", step="b", params={"rate": 3})) == {"a": NEW, "b": NEW}
    assert statuses(chain.call("abc")) == of(HIT, HIT, NEW)


def test_a_parameter_that_is_spelled_out_as_its_default_is_a_hit(chain):
    chain.call()
    assert chain.call(params={"rate": 2})["store"] == {"get": 1}


def test_a_parameter_counts_only_for_the_steps_that_take_it(project):
    code = CHAIN.replace("def a(id: str, rate: int = 2)", "def a(id: str)").replace("* rate", "* 2")
    project.write(code.replace("def c(b: int)", "def c(b: int, rate: int = 2)"))
    project.call()
    reply = project.call(params={"rate": 3})
    assert statuses(reply) == of(HIT, HIT, NEW)
    assert reply["steps"][2]["why"] == "parameter `rate`: 2 → 3"


def test_an_id_in_one_letter_case_is_not_answered_from_another(chain):
    chain.call("abc")
    assert statuses(chain.call("ABC")) == of(NEW, NEW, NEW)


# Early cut-off.


def test_a_step_whose_code_changed_and_whose_value_did_not_stops_the_change(chain):
    chain.call()
    chain.write(CHAIN.replace("len(id) * rate", "rate * len(id)"))
    reply = chain.call()
    assert statuses(reply) == of(NEW, HIT, HIT)
    assert reply["steps"][0]["why"] == "`a()` in flows/pipeline.py:4 changed"
    assert chain.call()["store"] == {"get": 1}


def test_early_cut_off_tells_when_the_value_was_first_computed(chain):
    first = chain.call()
    chain.write(CHAIN.replace("len(id) * rate", "rate * len(id)"))
    assert chain.call()["steps"][2]["computed_at"] == first["steps"][2]["computed_at"]


def test_a_step_whose_value_changed_carries_the_change_on(chain):
    chain.call()
    chain.write(CHAIN.replace("len(id) * rate", "len(id) * rate + 1"))
    reply = chain.call()
    assert statuses(reply) == of(NEW, NEW, NEW)
    assert [row["why"] for row in reply["steps"]] == [
        "`a()` in flows/pipeline.py:4 changed", "input `a`: 6 → 7", "input `b`: 7 → 8"
    ]  # fmt: skip
    assert values(reply) == {"a": 7, "b": 8, "c": 80}


def test_code_that_is_put_back_is_a_hit_again(chain):
    chain.call()
    chain.write(CHAIN.replace("a + 1", "a + 2"))
    assert values(chain.call())["c"] == 80
    chain.write(CHAIN)
    reply = chain.call()
    assert values(reply)["c"] == 70
    assert reply["store"] == {"get": 1}


def test_one_and_one_point_zero_from_a_step_are_two_inputs(chain):
    text = CHAIN.replace("return len(id) * rate", "return 1").replace(
        "return a + 1", "return str(a)"
    )
    chain.write(text.replace("return b * 10", "return b"))
    assert values(chain.call())["c"] == "1"
    chain.write(text.replace("return 1", "return 1.0").replace("return b * 10", "return b"))
    assert values(chain.call())["c"] == "1.0"
    chain.write(text.replace("return 1", "return True").replace("return b * 10", "return b"))
    assert values(chain.call())["c"] == "True"


# Edits.


def fresh(project, raw: dict) -> dict:
    """The reply of a new process."""
    code = (
        "import json, sys; from pfl.handler.entry import lambda_handler; "
        "print(json.dumps(lambda_handler(json.loads(sys.argv[1]))))"
    )
    environ = os.environ | {"PFL_ENGINE": "direct"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(raw)],
        cwd=project.root,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_an_edit_is_noticed_by_a_new_process(chain):
    chain.call()
    assert statuses(fresh(chain, {"id": "abc"})) == of(HIT, HIT, HIT)
    chain.write(CHAIN.replace("b * 10", "b * 20"))
    reply = fresh(chain, {"id": "abc"})
    assert statuses(reply) == of(HIT, HIT, NEW)
    assert values(reply)["c"] == 140


def test_an_edit_of_the_same_length_in_the_same_second_is_noticed(chain):
    """Python trusts bytecode by second and size of its source; its value would stay wrong."""
    for number in range(1, 8):
        path = chain.write(CHAIN.replace("a + 1", f"a + {number}"))
        os.utime(path, (1_700_000_000, 1_700_000_000 + number / 100))
        assert values(chain.call())["b"] == 6 + number
    path = chain.write(CHAIN.replace("a + 1", "a + 8"))
    os.utime(path, (1_700_000_000, 1_700_000_000.5))
    assert values(fresh(chain, {"id": "abc"}))["b"] == 14


IMPORTS = "with open('imports.txt', 'a') as file:\n    file.write('x')\n"


def imports(project) -> int:
    return len((project.root / "imports.txt").read_text())


def test_a_touch_is_not_an_edit(chain):
    path = chain.write(CHAIN + IMPORTS)
    chain.call()
    before = imports(chain)
    os.utime(path, (2_000_000_000, 2_000_000_000))
    assert chain.call()["store"] == {"get": 1}
    assert statuses(fresh(chain, {"id": "abc"})) == of(HIT, HIT, HIT)
    assert imports(chain) == before


def test_a_hit_in_a_new_process_does_not_import_the_flows(chain):
    chain.write(CHAIN + IMPORTS)
    chain.call()
    before = imports(chain)
    fresh(chain, {"id": "abc"})
    assert imports(chain) == before


def test_an_edit_of_a_module_beside_the_pipeline_is_noticed(project):
    project.write("from pfl import step\n@step\ndef a(id):\n    return 1\n", "one")
    project.write("from flows.one import a\nFLOWS = [flow('f', a)]\n")
    project.call()
    project.write("from pfl import step\n@step\ndef a(id):\n    return 2\n", "one")
    assert values(project.call()) == {"a": 2}


def test_a_new_parameter_is_known_at_once(chain):
    chain.call()
    chain.write(
        CHAIN.replace("def b(a: int)", "def b(a: int, more: int = 1)").replace("a + 1", "a + more")
    )
    assert values(chain.call(params={"more": 5}))["b"] == 11


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b'{"sha256":"x","body":{}}', b"[]", records.seal([]), records.seal({"version": 1})],
)
def test_a_damaged_manifest_is_made_anew(chain, damage):
    chain.call()
    [remembered] = (chain.root / ".pfl").glob("manifest-*.json")
    remembered.write_bytes(damage)
    assert statuses(chain.call()) == of(HIT, HIT, HIT)
    assert statuses(fresh(chain, {"id": "abc"})) == of(HIT, HIT, HIT)
    records.unseal(remembered.read_bytes(), "manifest")


@pytest.mark.parametrize("asks", ["", "import subprocess\nsubprocess.run(['true'])\n"])
def test_a_baked_manifest_is_trusted_and_a_damaged_one_is_an_error(chain, tmp_path, asks):
    chain.write(asks + CHAIN)
    baked = tmp_path / "manifest.json"
    bake.bake(chain.settings, baked)
    chain.call()
    chain.write("raise ValueError('not imported on a hit')\n")
    chain.knobs["manifest"] = str(baked)
    assert chain.call()["store"] == {"get": 1}
    broken = tmp_path / "broken.json"
    broken.write_bytes(baked.read_bytes()[:-20])
    chain.knobs["manifest"] = str(broken)
    reply = chain.call()
    assert (reply["status"], reply["error"]["type"]) == ("failed", "CorruptRecordError")
    chain.knobs["manifest"] = str(tmp_path / "absent.json")
    assert chain.call()["error"]["type"] == "CorruptRecordError"


# Bust.


def test_a_bust_of_this_step_computes_it_and_nothing_before_it(outside):
    outside.call()
    (outside.root / "outside.txt").write_text("5")
    assert values(outside.call(step="b")) == {"b": 7}  # Nobody told the cache.
    reply = outside.call(step="b", bust="this")
    assert statuses(reply) == {"b": NEW}
    assert reply["steps"][0]["why"] == "busted by this call"
    assert values(outside.call(step="b")) == {"b": 11}


def test_after_a_bust_no_later_step_is_served_from_before_it(outside):
    outside.call()
    (outside.root / "outside.txt").write_text("5")
    outside.call(step="b", bust="this")
    reply = outside.call(step="c")
    assert values(reply)["c"] == 110
    assert statuses(reply)["c"] == NEW
    assert outside.call(step="c")["store"] == {"get": 1}


def test_after_a_bust_that_changed_nothing_the_later_step_is_not_computed(outside):
    outside.call()
    outside.call(step="b", bust="this")
    assert statuses(outside.call(step="c"))["c"] == HIT


def test_a_bust_in_the_middle_of_the_chain_leaves_its_start_alone(outside):
    outside.call()
    (outside.root / "outside.txt").write_text("5")
    reply = outside.call(bust=["b"])
    assert statuses(reply) == of(HIT, NEW, NEW)
    assert values(reply) == {"a": 6, "b": 11, "c": 110}
    assert outside.call()["store"] == {"get": 1}


def test_a_bust_that_gives_the_same_value_stops_there(outside):
    outside.call()
    assert statuses(outside.call(bust=["b"])) == of(HIT, NEW, HIT)


def test_a_bust_of_the_start_reaches_the_end_only_through_values(outside):
    outside.call()
    assert statuses(outside.call(bust=["a"])) == of(NEW, HIT, HIT)


def test_a_bust_of_all_computes_the_step_and_all_it_needs(outside):
    outside.call()
    assert statuses(outside.call(step="b", bust="all")) == {"a": NEW, "b": NEW}
    assert statuses(outside.call(bust="all")) == of(NEW, NEW, NEW)


def test_a_bust_of_this_with_no_step_asked_is_a_bust_of_all(outside):
    outside.call()
    assert statuses(outside.call(bust="this")) == of(NEW, NEW, NEW)


def test_a_bust_of_a_list_computes_just_those(outside):
    outside.call()
    assert statuses(outside.call(bust=["a", "c"])) == of(NEW, HIT, NEW)


def test_a_bust_of_nothing_is_no_bust(outside):
    outside.call()
    assert outside.call(bust=[])["store"] == {"get": 1}


def test_a_bust_for_one_id_leaves_the_others_alone(outside):
    outside.call("abc")
    outside.call("abcd")
    outside.call("abc", bust="all")
    assert outside.call("abcd")["store"] == {"get": 1}


def test_a_bust_under_one_parameter_is_seen_under_another_too(project):
    """The later steps of both rest on the busted one."""
    text = OUTSIDE.replace("def a(id: str, rate: int = 2)", "def a(id: str)").replace(
        "* rate", "* 2"
    )
    project.write(text.replace("def c(b: int)", "def c(b: int, rate: int = 2)"))
    (project.root / "outside.txt").write_text("1")
    project.call(params={"rate": 1})
    project.call(params={"rate": 2})
    (project.root / "outside.txt").write_text("5")
    project.call(params={"rate": 1}, bust=["b"])
    assert values(project.call(params={"rate": 2}))["c"] == 110


def test_every_computation_leaves_one_record_of_history_and_a_hit_none(outside):
    outside.call()
    outside.call()
    outside.call(bust=["b"])
    assert [len(objects(outside, "history", step)) for step in "abc"] == [1, 2, 1]


def test_a_busted_step_that_fails_leaves_the_old_value(outside):
    outside.call()
    (outside.root / "outside.txt").write_text("no number")
    assert outside.call(step="b", bust="this")["status"] == "failed"
    assert values(outside.call()) == {"a": 6, "b": 7, "c": 70}


# Skip.


def test_a_skipped_step_gives_its_newest_value_even_if_it_is_stale(chain):
    chain.call()
    chain.write(CHAIN.replace("a + 1", "a + 2"))
    reply = chain.call(skip=["b"])
    assert statuses(reply) == of(HIT, "skipped", HIT)
    assert values(reply) == {"a": 6, "b": 7, "c": 70}
    assert statuses(chain.call(step="c", skip=["b"])) == {"b": "skipped", "c": HIT}


def test_what_rests_on_a_skipped_step_is_not_served_to_others(chain):
    chain.call()
    chain.write(CHAIN.replace("a + 1", "a + 2").replace("b * 10", "b * 20"))
    reply = chain.call(skip=["b"])
    assert (statuses(reply)["c"], values(reply)["c"]) == (NEW, 140)
    reply = chain.call()
    assert values(reply) == {"a": 6, "b": 8, "c": 160}


def test_the_newest_value_is_the_one_computed_last(outside):
    outside.call()
    for number in ("5", "9", "2"):
        (outside.root / "outside.txt").write_text(number)
        outside.call(bust=["b"])
    assert values(outside.call(step="c", skip=["b"]))["b"] == 8


def test_a_large_value_can_be_skipped_to(chain):
    chain.write(CHAIN.replace("return a + 1", "return 'b' * 500").replace("b * 10", "len(b)"))
    chain.knobs["inline_bytes"] = 100
    chain.call()
    assert values(chain.call(step="c", skip=["b"])) == {"b": "b" * 500, "c": 500}


def test_a_step_that_was_never_computed_cannot_be_skipped(chain):
    reply = chain.call(step="c", skip=["b"])
    assert (reply["status"], reply["error"]["type"]) == ("miss", "NotFoundError")
    assert "step b" in reply["error"]["what"]
    assert reply["error"]["hint"] == "pfl invoke --id abc --step b"


def test_a_skip_of_the_asked_step_gives_its_newest_value(chain):
    chain.call()
    chain.write(CHAIN.replace("b * 10", "b * 20"))
    assert values(chain.call(step="c", skip=["c"])) == {"c": 70}


# Only what is cached.


def test_a_miss_that_may_not_be_computed_computes_nothing(chain):
    reply = chain.call(cached_only=True)
    assert reply["status"] == "miss"
    assert not set(statuses(reply).values()) & {NEW}
    assert objects(chain, "results", "a") == []


def test_what_is_found_by_its_inputs_is_a_hit_where_nothing_may_be_computed(chain):
    chain.call()
    for step in "abc":
        chain.results.delete(objects(chain, "plans", step))
    assert statuses(chain.call(cached_only=True)) == of(HIT, HIT, HIT)


# Time.


@pytest.fixture
def later(monkeypatch):
    """A clock that can be moved on."""
    real, moved_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + moved_s[0])

    def move(seconds: float) -> None:
        moved_s[0] += seconds

    return move


TIMED = OUTSIDE.replace("@step\ndef b", '@step(cache_for="1h")\ndef b')


@pytest.fixture
def timed(outside):
    outside.write(TIMED)
    return outside


def test_a_result_is_valid_until_it_expires(timed, later):
    first = timed.call()
    later(3_500)
    reply = timed.call()
    assert reply["store"] == {"get": 1}
    assert reply["steps"][1]["expires_at"] == first["steps"][1]["expires_at"] is not None
    assert reply["steps"][2]["expires_at"] is None


def test_a_result_that_has_expired_is_computed_and_says_so(timed, later):
    first = timed.call()
    (timed.root / "outside.txt").write_text("5")
    later(3_601)
    reply = timed.call()
    assert statuses(reply) == of(HIT, NEW, NEW)
    assert reply["steps"][1]["why"] == f"expired at {first['steps'][1]['expires_at']}"
    assert values(reply)["c"] == 110


def test_a_plan_expires_with_the_earliest_result_it_rests_on(timed, later):
    timed.call()
    (timed.root / "outside.txt").write_text("5")
    later(3_601)
    assert values(timed.call(step="c"))["c"] == 110


def test_an_expired_result_that_is_found_again_leaves_the_rest_cached(timed, later):
    timed.call()
    later(3_601)
    assert statuses(timed.call()) == of(HIT, NEW, HIT)
    # Outside Lambda the plan is behind a fence: this process could have paused before it wrote it.
    assert timed.call()["store"] == {"get": 2}
    later(3_500)
    assert timed.call()["store"] == {"get": 2}


def test_an_expired_value_can_still_be_skipped_to(timed, later):
    timed.call()
    later(10_000)
    assert values(timed.call(step="c", skip=["b"])) == {"b": 7, "c": 70}


# Damage.


def sealed(text: str) -> bytes:
    """Whole, as far as its digest tells, whatever it is."""
    return (
        records.seal([])
        .replace(keys.digest("[]").encode(), keys.digest(text).encode())
        .replace(b"[]", text.encode())
    )


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-7],
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\n{}",
    "zeros": lambda data: bytes(len(data)),
    "other JSON": lambda data: b"[]",
    "an empty object": lambda data: b"{}",
    "null": lambda data: b"null",
    "a sealed list": lambda data: records.seal([]),
    "a sealed empty object": lambda data: records.seal({}),
    "a digit": lambda data: data.replace(b"7", b"8"),
    "nested too deeply": lambda data: b"[" * 100_000,
    "a sealed nest": lambda data: sealed("[" * 100_000 + "]" * 100_000),
    "a sealed NaN": lambda data: sealed('{"version":NaN}'),
    "sealed half": lambda data: sealed('{"version":'),
}


def others(body: dict):
    """*body* without each of its fields, and with another kind of thing in each."""
    for name in body:
        yield {other: value for other, value in body.items() if other != name}
        for wrong in (5, None, "x", [], [5], {}):
            if type(wrong) is not type(body[name]) and name != "value":
                yield body | {name: wrong}


@pytest.mark.parametrize("step", ["b", "c"])
def test_a_whole_plan_of_another_shape_gives_no_wrong_value(chain, step):
    for id in ("x", "abc"):
        chain.call(id)
    [path], [foreign] = objects(chain, "plans", step), objects(chain, "plans", step, "x")
    before, body = chain.results.get(path), records.unseal(chain.results.get(path), path)
    row, *rest = body["entries"]
    rows = [
        row[:place] + more + row[place + 1 :]
        for place in range(len(row))
        for more in ([], [5], [None], ["x"], [[]], [{}])
        if not more or place < 11
    ]
    tried = [
        *others(body),
        *(
            body | {"entries": [other, *rest]}
            for other in (*rows, row + [1], {}, [], 5, "x" * 12, dict.fromkeys("abcdefghijkl"))
        ),
    ]
    tried += [body | {"entries": [row]}, records.unseal(chain.results.get(foreign), foreign)]
    for other in tried:
        chain.results.put(path, records.seal(other))
        chain.results.delete(objects(chain, "plans", "c") if step == "b" else [])
        reply = chain.call()
        assert (reply["status"], values(reply)) == ("completed", {"a": 6, "b": 7, "c": 70}), other
        list(
            inspection.entries(chain.results, id="abc", flow=None, step=None, warn=lambda exc: None)
        )
        assert list(verify.walk(chain.results, repair=False, retention_s=9e9))
        chain.results.put(path, before)
    assert len(tried) > 70


def test_a_result_of_another_shape_gives_no_wrong_value(chain):
    chain.call()
    [plan], [path] = objects(chain, "plans", "c"), objects(chain, "results", "c")
    body = json.loads(chain.results.get(path))
    foreign = {
        name: value for name, value in body.items() if name != "pfl"
    }  # As Prefect writes it, with no digest.
    tried = [*others(body), *(body | {"metadata": each} for each in others(body["metadata"]))]
    tried += [foreign | {"metadata": each} for each in others(body["metadata"])]
    tried += [
        foreign | {"result": text} for text in ("NaN", "[Infinity]", "[" * 100_000, "", "1 2")
    ]
    tried += [
        foreign | {"metadata": body["metadata"] | {"serializer": {"type": kind}}}
        for kind in ("compressed/json", "other")
    ]
    for other in tried:
        chain.results.put(path, json.dumps(other).encode())
        chain.results.delete([plan])
        reply = chain.call()
        assert (reply["status"], values(reply)) == ("completed", {"a": 6, "b": 7, "c": 70}), other
    assert len(tried) > 50


def test_a_result_whose_expiry_was_changed_is_damaged(timed, later):
    timed.call()
    [path] = objects(timed, "results", "b")
    timed.results.put(
        path, re.sub(rb'"expiration":"2', b'"expiration":"3', timed.results.get(path))
    )
    timed.results.delete(objects(timed, "plans", "b") + objects(timed, "plans", "c"))
    reply = timed.call()
    assert statuses(reply)["b"] == NEW
    assert path in reply["warnings"][0]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_plan_is_a_miss_with_a_warning_that_names_it(chain, damage):
    chain.call()
    [path] = objects(chain, "plans", "c")
    chain.results.put(path, damage(chain.results.get(path)))
    reply = chain.call(step="c")
    assert values(reply) == {"c": 70}
    assert [path in warning for warning in reply["warnings"]] == [True]
    assert chain.call(step="c")["warnings"] == []
    # Outside Lambda the plan is behind a fence: this process could have paused before it wrote it.
    assert chain.call(step="c")["store"] == {"get": 2}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_a_miss_with_a_warning_that_names_it(chain, damage):
    chain.call()
    [plan], [path] = objects(chain, "plans", "b"), objects(chain, "results", "b")
    chain.results.delete([plan])
    before = chain.results.get(path)
    chain.results.put(path, damage(before))
    reply = chain.call(step="b")
    assert (statuses(reply)["b"], values(reply)["b"]) == (NEW, 7)
    assert any(path in warning for warning in reply["warnings"])
    assert reply["steps"][-1]["why"] == "its stored result is gone or damaged"
    [again] = [key for key in objects(chain, "results", "b") if key != path]
    assert json.loads(chain.results.get(again))["result"] == json.loads(before)["result"]


@pytest.mark.parametrize(
    "damage", [each for name, each in DAMAGES.items() if name != "a sealed empty object"]
)
def test_a_damaged_record_of_history_is_passed_over_with_a_warning_that_names_it(outside, damage):
    outside.call()
    (outside.root / "outside.txt").write_text("5")
    outside.call(bust=["b"])
    newest, older = objects(outside, "history", "b")
    outside.results.put(newest, damage(outside.results.get(newest)))
    reply = outside.call(step="b", skip=["b"])
    assert values(reply) == {"b": 7}
    assert newest in reply["warnings"][0]
    outside.results.delete([older])
    reply = outside.call(step="b", skip=["b"])
    assert reply["error"]["type"] == "NotFoundError"
    assert any(newest in warning for warning in reply["warnings"])


@pytest.mark.parametrize("damage", [b"", b"[]", b'"' + b"c" * 500 + b'"', b"\xff"], ids=ascii)
def test_a_damaged_large_value_is_passed_over_with_a_warning_that_names_it(chain, damage):
    chain.write(CHAIN.replace("return a + 1", "return 'b' * 500").replace("b * 10", "len(b)"))
    chain.knobs["inline_bytes"] = 100
    chain.call()
    [value] = [entry.key for entry in chain.results.list("values/abc")]
    chain.results.put(value, damage)
    reply = chain.call(skip=["b"])
    assert reply["error"]["type"] == "NotFoundError"
    assert any(value in warning for warning in reply["warnings"])


def test_a_large_value_whose_result_is_damaged_is_computed_again(chain):
    chain.write(CHAIN.replace("return a + 1", "return 'b' * 500").replace("b * 10", "len(b)"))
    chain.knobs["inline_bytes"] = 100
    chain.call()
    [path] = objects(chain, "results", "b")
    chain.results.put(path, chain.results.get(path).replace(b"bbbb", b"bbbc", 1))
    reply = chain.call(step="b")
    assert (statuses(reply)["b"], values(reply)["b"]) == (NEW, "b" * 500)
    assert any(path in warning for warning in reply["warnings"])


@pytest.mark.parametrize("kind", ["plans", "results"])
def test_the_object_of_another_id_is_not_taken_for_ours(chain, kind):
    """A copy tool gone wrong: whole, undamaged, in the wrong place."""
    chain.call("abc")
    chain.call("a longer one")
    for step in "abc":
        [ours], [theirs] = objects(chain, kind, step), objects(chain, kind, step, "a longer one")
        chain.results.put(ours, chain.results.get(theirs))
        if kind == "results":
            chain.results.delete(objects(chain, "plans", step))
    reply = chain.call("abc")
    assert values(reply) == {"a": 6, "b": 7, "c": 70}
    assert len(reply["warnings"]) == 3


def test_a_pickled_result_is_not_opened_and_computed_again(chain):
    import base64
    import pickle

    chain.call()
    [path] = objects(chain, "results", "a")
    for step in "abc":
        chain.results.delete(objects(chain, "plans", step))
    text = base64.encodebytes(pickle.dumps(6)).decode()
    record = {
        "metadata": {"storage_key": path, "expiration": None, "serializer": {"type": "pickle"}},
        "result": text,
    }
    chain.results.put(path, json.dumps(record).encode())
    reply = chain.call()
    assert statuses(reply)["a"] == NEW
    assert "its value is a pickle" in reply["warnings"][0]
    assert chain.results.get(path) == json.dumps(record).encode()


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict[str, bytes]:
    """Every object that a whole run leaves."""
    from conftest import Project

    project = Project(tmp_path_factory.mktemp("kept"))
    project.write(CHAIN)
    project.store = stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
    path = list(sys.path)
    project.call()
    sys.path[:] = path
    objects = {
        e.key: project.store.get(e.key)
        for kind in ("plans", "results", "history")
        for e in project.store.list(kind)
    }
    return objects | {"root": str(project.root).encode()}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_and_no_cut_ever_changes_a_value(kept, data):
    """The reply is right with any object of the store damaged, with plans and without."""
    from conftest import Project

    project = Project(Path(kept["root"].decode()))
    project.store = stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
    some = data.draw(st.sampled_from(sorted(set(kept) - {"root"})))
    with_plans = data.draw(st.booleans())
    for key, whole in kept.items():
        if key != "root" and (with_plans or not key.startswith("plans/")):
            project.store.put(key, whole)
    if with_plans or not some.startswith("plans/"):
        place = data.draw(st.integers(0, len(kept[some]) - 1))
        bit = data.draw(st.integers(0, 8))
        whole = kept[some]
        changed = (
            whole[:place]
            if bit == 8
            else whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
        )
        project.store.put(some, changed)
    reply = project.call()
    assert reply["status"] == "completed"
    assert values(reply) == {"a": 6, "b": 7, "c": 70}


# Deaths: what is there after a death between any two writes is repaired by the next call.


@pytest.mark.parametrize(
    "lost",
    [["plans"], ["plans", "history"], ["plans", "history", "results"], ["history"], ["results"]],
)
@pytest.mark.parametrize("steps", ["c", "bc", "abc"])
def test_a_state_that_a_death_left_is_repaired(chain, lost, steps):
    chain.call()
    for kind in lost:
        for step in steps:
            chain.results.delete(objects(chain, kind, step))
    assert values(chain.call()) == {"a": 6, "b": 7, "c": 70}
    assert values(chain.call(step="b")) == values(chain.call(step="b"))
    reply = chain.call()
    assert statuses(reply) == of(HIT, HIT, HIT)
    assert reply["store"] == {"get": 1}
    if "plans" in lost:
        assert [len(objects(chain, "history", step)) for step in "abc"] == [1, 1, 1]


@pytest.mark.parametrize("writer", ["pfl", "Prefect"])
def test_a_result_without_its_record_of_history_gets_one_and_is_a_hit_of_when_it_was_computed(
    chain, writer
):
    chain.call()
    for kind in ("plans", "history"):
        chain.results.delete(objects(chain, kind, "c"))
    [path] = objects(chain, "results", "c")
    if writer == "Prefect":  # Which notes nothing beside it.
        body = json.loads(chain.results.get(path))
        del body["pfl"]
        chain.results.put(path, json.dumps(body).encode())
    then = records.now_iso()
    reply = chain.call(step="c")
    assert statuses(reply)["c"] == HIT
    assert reply["steps"][-1]["computed_at"] <= then
    [path] = objects(chain, "history", "c")
    record = records.unseal(chain.results.get(path), path)
    assert (record["repaired"], record["computed_at"]) == (True, reply["steps"][-1]["computed_at"])


LATE = """
import os, time
from pathlib import Path
NOW = time.time_ns()
FOLDER = [path.read_text() for path in sorted((Path(__file__).parent / "data").glob("*.txt"))]
@step
def late(id: str) -> str:
    from flows.table import TABLE
    return TABLE
@step
def listed(id: str) -> list:
    return FOLDER
@step
def clock(id: str) -> int:
    return NOW and 1
FLOWS = [flow("late", late), flow("listed", listed), flow("clock", clock)]
"""


def test_what_a_late_import_read_and_what_was_listed_counts_and_a_clock_is_no_edit(project):
    """Each call is a new process: it trusts the manifest until something that it covers changes."""
    data = project.root / "flows" / "data"
    data.mkdir(exist_ok=True)
    (data / "one.txt").write_text("one")
    (project.root / "flows" / "table.py").write_text(
        "from pathlib import Path\nTABLE = (Path(__file__).parent / 'table.csv').read_text()\n"
    )
    (project.root / "flows" / "table.csv").write_text("old")
    project.write(LATE)
    assert [
        fresh(project, {"id": "x", "flow": flow})["steps"][0]["value"]
        for flow in ("late", "listed")
    ] == ["old", ["one"]]
    assert fresh(project, {"id": "x", "flow": "late"})["steps"][0]["status"] == "hit"
    (project.root / "flows" / "table.csv").write_text("new")
    (data / "two.txt").write_text("two")
    assert [
        fresh(project, {"id": "x", "flow": flow})["steps"][0]["value"]
        for flow in ("late", "listed")
    ] == ["new", ["one", "two"]]
    assert [fresh(project, {"id": id, "flow": "clock"})["status"] for id in ("x", "y", "z")] == [
        "completed"
    ] * 3


ASKS = """
import os, subprocess
from pfl import flow, step
HERE = os.path.dirname(__file__)
SAID = ""
if "PFL_ASK" in os.environ:
    SAID = subprocess.check_output(["cat", f"{HERE}/said.txt"], text=True)
FLAG = os.path.exists(f"{HERE}/flag")
FOLDER = os.path.basename(os.getcwd())
@step
def asks(id: str) -> list:
    return [SAID, FLAG, FOLDER]
FLOWS = [flow("asks", asks)]
"""


def test_what_an_import_asks_of_other_processes_paths_and_the_current_folder_counts(
    project, monkeypatch
):
    def ask() -> list:
        return fresh(project, {"id": "x"})["steps"][0]["value"]

    said, root = project.root / "flows" / "said.txt", project.root.name
    said.write_text("one")
    project.write(ASKS)
    assert ask() == ["", False, root]
    (project.root / "flows" / "flag").write_text("")
    assert ask() == ["", True, root]
    monkeypatch.setenv("PFL_ASK", "1")
    assert ask() == ["one", True, root]
    said.write_text("two")
    assert ask() == ["two", True, root]


def test_the_order_of_keys_is_no_part_of_a_key_and_no_step_sees_it(project):
    text = """
        @step
        def a(id: str) -> dict:
            return {"name": "x", "total": {"b": 1, "a": 2}}

        @step
        def b(a: dict, columns: dict = {"z": 1, "y": 2}) -> str:
            return ",".join([*a, *a["total"], *columns])

        FLOWS = [flow("ordered", a, b)]
    """
    project.write(text)
    first = project.call()
    assert values(first)["b"] == "name,total,a,b,y,z"
    assert list(values(first)["a"]) == ["name", "total"]
    project.write(
        text.replace(
            '{"name": "x", "total": {"b": 1, "a": 2}}',
            'dict(reversed([("name", "x"), ("total", {"a": 2, "b": 1})]))',
        )
    )
    again = project.call(params={"columns": {"y": 2, "z": 1}})
    assert statuses(again) == {"a": "computed", "b": "hit"}
    assert values(again) == values(first)
    assert list(values(project.call())["a"]) == ["name", "total"]
