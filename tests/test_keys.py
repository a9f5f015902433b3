"""Names and digests: equal things have equal keys, and no ID leaves its folder."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pfl.handler.core.store import keys

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)
LONG = "é" * 200
PINNED = {
    "value": "c899aefc067218382737bd452f688dae363570160e03deec19dae38564df9782",
    "result": "eb694141f323393a8fe72404c704793349487f367ce91ec09285cf4863a77cbe",
    "plan": "80fd7d853edc76dfcad7ee88e9037ca4b33ef778f425f9dc9e45d5aaab93b3a1",
    "long id": "%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%"
    "~df20b2aa6262e99e133aa7f3614be707d35c4155d17e2aa7cbb49da555a454c3",
}


def backwards(value: object) -> object:
    """The same value, its objects written in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(each) for each in value] if isinstance(value, list) else value


@given(json_values)
def test_the_order_of_an_objects_fields_does_not_change_the_digest(value):
    assert keys.value_digest(backwards(value)) == keys.value_digest(value)


@given(json_values)
def test_canonical_text_is_ascii_json_of_the_same_value(value):
    text = keys.canonical(value)
    assert text.isascii()
    assert json.loads(text) == value


@given(json_values)
def test_a_value_that_was_stored_and_read_has_the_same_digest(value):
    assert keys.value_digest(json.loads(json.dumps(value))) == keys.value_digest(value)


@given(json_values, json_values)
def test_only_equal_texts_share_a_digest(one, other):
    assert (keys.value_digest(one) == keys.value_digest(other)) == (
        keys.canonical(one) == keys.canonical(other)
    )


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"k": v}])
def test_one_and_one_point_zero_and_true_stay_apart(wrap):
    alike = [1, 1.0, True, "1", None, 0, False, 0.0, -0.0, "", [], {}]
    assert len({keys.value_digest(wrap(value)) for value in alike}) == len(alike)


def test_nan_has_no_digest():
    with pytest.raises(ValueError):
        keys.value_digest([float("nan")])


BASE = {"step": "b", "fingerprint": "f" * 64, "params": {"rate": 2}, "upstream": {"a": "0" * 64}}
RESULT = {
    "step": "b",
    "fingerprint": "f" * 64,
    "id": "abc",
    "params": {"rate": 2},
    "inputs": {"a": "0" * 64},
}


def test_known_keys_stay_what_they_are():
    """A release that changes one of these makes every store out there compute everything anew."""
    assert keys.value_digest({"b": [1, 1.0, True, None], "a": "é"}) == PINNED["value"]
    assert keys.result_key(**RESULT) == PINNED["result"]
    assert keys.plan_key(keys.plan_base(**BASE), "abc") == PINNED["plan"]
    assert keys.encode_id(LONG) == PINNED["long id"]


@pytest.mark.parametrize(
    "change",
    [
        {"step": "c"},
        {"fingerprint": "e" * 64},
        {"id": "abd"},
        {"params": {"rate": 3}},
        {"params": {"rate": 2.0}},
        {"params": {}},
        {"params": {"rate": 2, "more": None}},
        {"inputs": {"a": "1" * 64}},
        {"inputs": {}},
        {"inputs": {"b": "0" * 64}},
    ],
)
def test_each_part_of_a_result_key_counts(change):
    assert keys.result_key(**RESULT | change) != keys.result_key(**RESULT)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "c"},
        {"fingerprint": "e" * 64},
        {"params": {"rate": 3}},
        {"params": {"rate": 2.0}},
        {"params": {}},
        {"upstream": {"a": "1" * 64}},
        {"upstream": {}},
        {"upstream": {"b": "0" * 64}},
    ],
)
def test_each_part_of_a_plan_key_counts(change):
    base, other = keys.plan_base(**BASE), keys.plan_base(**BASE | change)
    assert (
        len(
            {
                base,
                other,
                *(keys.plan_key(each, id) for each in (base, other) for id in ("abc", "abd")),
            }
        )
        == 6
    )


def test_a_plan_key_is_never_a_result_key():
    assert keys.plan_key(keys.plan_base(**BASE), "abc") != keys.result_key(**RESULT)


@given(st.dictionaries(st.text(), json_values))
def test_the_order_of_parameters_does_not_change_a_key(params):
    assert keys.result_key(**RESULT | {"params": params}) == keys.result_key(
        **RESULT | {"params": backwards(params)}
    )


@given(ids)
@example(".")
@example("..")
@example("...")
@example("../../x")
@example("a/b")
@example("%2e%2e")
@example("a\\b")
@example("~")
@example("👩‍👩‍👧‍👦")
@example("مرحبا")
@example("A" * 121)
@example("👾" * 128)
def test_an_encoded_id_is_one_short_plain_file_name(id):
    name = keys.encode_id(id)
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.%~")
    assert len(name) <= 120


@given(ids, ids)
@example("%2F", "/")
@example("a%", "a%25")
@example(".", "%2E")
@example("A", "a")
@example("e\u0301", "\u00e9")
@example("x" * 200, "x" * 201)
@example("x" * 120, "x" * 121)
def test_two_ids_never_share_a_folder(one, other):
    assert (keys.encode_id(one) == keys.encode_id(other)) == (one == other)


def test_a_long_id_cannot_be_forged_by_a_short_one():
    """A ``~`` in an ID is written ``%7E``, so no ID has the long name of another."""
    long_name = keys.encode_id(LONG)
    assert keys.encode_id(long_name) != long_name


def test_an_ordinary_id_is_its_own_folder_name():
    assert keys.encode_id("abc-DEF_1.2") == "abc-DEF_1.2"


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        ("../../x", "%2E.%2F..%2Fx"),
        ("%2e%2e", "%252e%252e"),
        ("a b", "a%20b"),
        ("👾", "%F0%9F%91%BE"),
        ("مر", "%D9%85%D8%B1"),
    ],
)
def test_an_unusual_id_is_written_as_in_a_url(id, name):
    assert keys.encode_id(id) == name
