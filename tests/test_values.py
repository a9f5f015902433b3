"""What a step may return: JSON comes back as it was, and an error has the path to the rest."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import sys

import pytest
from conftest import statuses
from conftest import values as values_of
from hypothesis import given
from test_keys import json_values

from pfl.handler.core.errors import StepFailedError
from pfl.handler.core.store.values import UnstorableValueError, encode, round_trip


@given(json_values)
def test_a_value_comes_back_as_it_was(value):
    assert round_trip(value) == (value, encode(value))
    assert json.loads(encode(value)) == value


@given(json_values)
def test_types_come_back_as_they_were(value):
    """``1 == 1.0 == True`` in Python, so equality alone would not notice."""
    got = round_trip(value)[0]
    assert json.dumps(got, sort_keys=True) == json.dumps(value, sort_keys=True)


@given(json_values)
def test_equal_values_have_one_text_whatever_the_order_of_their_keys(value):
    def backwards(part):
        if isinstance(part, dict):
            return {key: backwards(part[key]) for key in reversed(part)}
        return [backwards(item) for item in part] if isinstance(part, list) else part

    assert encode(backwards(value)) == encode(value)


def test_a_tuple_becomes_the_list_that_every_later_reader_gets():
    assert round_trip({"t": (1, (2,))})[0] == {"t": [1, [2]]}


def test_an_int_or_text_of_a_subclass_becomes_a_plain_one():
    class Colour(enum.IntEnum):
        RED = 3

    class Name(str):
        pass

    value, _ = round_trip([Colour.RED, Name("n")])
    assert [type(each) for each in value] == [int, str]


class Row:
    pass


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Row(), "result: "),
        (
            {"rows": [0, 1, 2, {"when": datetime.datetime(2026, 1, 1)}]},
            "result.rows[3].when: datetime.datetime",
        ),
        ({"a b": {1, 2}}, "result['a b']: set"),
        ([b"x"], "result[0]: bytes"),
        ({"x": decimal.Decimal(1)}, "result.x: decimal.Decimal"),
        ((1, (2, 1j)), "result[1][1]: complex"),
        (float("nan"), "result: nan"),
        ({"x": [float("inf")]}, "result.x[0]: inf"),
        ({"x": -float("inf")}, "result.x: -inf"),
        ({"x": {1: "one"}}, "result.x[1]: the key is int"),
        ({True: 1}, "result[True]: the key is bool"),
        ({None: 1}, "result[None]: the key is NoneType"),
        ({("a", 1): 1}, "result[('a', 1)]: the key is tuple"),
    ],
)
def test_what_json_cannot_hold_is_told_by_its_path(value, path):
    with pytest.raises(UnstorableValueError) as caught:
        encode(value, step="b")
    assert caught.value.why.startswith(path)
    assert "step b" in caught.value.what
    assert caught.value.hint


def test_an_unstorable_value_is_a_failure_of_the_step():
    assert issubclass(UnstorableValueError, StepFailedError)


def test_a_value_that_contains_itself_is_told_where():
    inner: dict = {}
    inner["rows"] = [inner]
    with pytest.raises(UnstorableValueError, match=r"result\.x\.rows\[0\]: it contains itself"):
        encode({"x": inner})


def test_the_same_list_twice_is_no_cycle():
    shared = [1]
    assert round_trip({"a": shared, "b": [shared, shared]})[0] == {"a": [1], "b": [[1], [1]]}


def test_a_value_nested_beyond_what_python_can_write_is_told():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UnstorableValueError, match="nested too deeply"):
        encode(deep)


def test_a_value_nested_a_few_hundred_deep_is_stored():
    deep: object = "bottom"
    for _ in range(200):
        deep = {"in": [deep]}
    assert round_trip(deep)[0] == deep


def test_a_value_nested_as_deep_as_may_be_stored_is_a_hit(project):
    project.write(
        """
        @step
        def a(id: str):
            value = []
            for _ in range(499):
                value = [value]
            return value

        FLOWS = [flow("deep", a)]
        """
    )
    assert values_of(project.call(bust=["a"])) == values_of(project.call())
    reply = project.call()
    assert statuses(reply) == {"a": "hit"}
    assert reply["warnings"] == []


def test_an_integer_past_the_digits_python_writes_is_told():
    with pytest.raises(UnstorableValueError, match="digits"):
        encode({"n": 10 ** (sys.get_int_max_str_digits() + 1)})


def test_a_large_integer_is_stored_whole():
    assert round_trip(2**4_000)[0] == 2**4_000


def test_a_lone_surrogate_is_stored_as_an_escape_and_comes_back():
    assert encode("\ud800").isascii()
    assert round_trip({"\udfff": "a\ud800"})[0] == {"\udfff": "a\ud800"}
