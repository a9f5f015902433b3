"""An event in, a reply out: every bad input has what, why and hint, and the shapes are exact."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl.handler import entry
from pfl.handler.core import errors

REPLY = {
    "version",
    "id",
    "flow",
    "status",
    "steps",
    "engine",
    "cold_start",
    "ms",
    "request_id",
    "code",
}
ROW = {
    "step",
    "status",
    "value",
    "key",
    "why",
    "ms",
    "computed_at",
    "flow_run_id",
    "task_run_id",
    "url",
}

FLOWS = """
from typing import Literal

@step
def a(id, rate: float = 2, mode: Literal["x", "y"] = "x"):
    return rate
@step
def b(a, deep: dict = {}):
    return a
@step
def c(b):
    return b
@step
def side(id):
    return 1
FLOWS = [flow("first", a, b, c, side), flow("second", side)]
"""


@pytest.fixture
def flows(project):
    project.write(FLOWS)
    return project


def refused(reply: dict) -> dict:
    """The error of a reply that says no: a whole reply, that JSON can hold, with nothing in it."""
    assert reply["status"] == "invalid", reply
    assert set(reply) == (REPLY | {"error"})
    assert reply["steps"] == []
    assert reply["engine"] is None
    assert set(reply["error"]) == {"type", "what", "why", "hint"}
    assert reply["error"]["type"] == "InvalidRequestError"
    assert reply["error"]["what"]
    json.dumps(reply)
    return reply["error"]


BAD_IDS = {
    "missing": ({}, "the ID is missing"),
    "null": ({"id": None}, "the ID is missing"),
    "empty": ({"id": ""}, "the ID is empty"),
    "huge": ({"id": "x" * 513}, "the ID has 513 bytes"),
    "huge in bytes": ({"id": "é" * 257}, "the ID has 514 bytes"),
    "a number": ({"id": 3}, "the ID is a number"),
    "a list": ({"id": ["abc"]}, "the ID is a list"),
    "a newline": ({"id": "a\nb"}, "the ID has U+000A at position 1"),
    "a zero": ({"id": "a\0"}, "the ID has U+0000 at position 1"),
    "an escape": ({"id": "\x1b[31m"}, "the ID has U+001B at position 0"),
    "delete": ({"id": "\x7f"}, "the ID has U+007F at position 0"),
    "a C1 control": ({"id": "\x85"}, "the ID has U+0085 at position 0"),
    "half a character": ({"id": "\ud800"}, "the ID has U+D800 at position 0"),
}


@pytest.mark.parametrize(("raw", "what"), BAD_IDS.values(), ids=BAD_IDS)
def test_an_id_that_cannot_be_one_is_refused(flows, raw, what):
    error = refused(flows.handle(raw))
    assert what in error["what"]
    assert error["hint"]


def test_a_long_id_is_refused_with_both_numbers(flows):
    error = refused(flows.call("é" * 300))
    assert (error["what"], "1 to 512 bytes" in error["hint"]) == ("the ID has 600 bytes", True)


ODD_IDS = [
    "../../x",
    "a/b",
    "%2e%2e",
    "..",
    ".",
    "~",
    "👩‍👩‍👧‍👦",
    "مرحبا بالعالم",
    "\u202eabc",
    " ",
    "a b",
    "x" * 512,
    "👾" * 128,
    "C:\\x",
]


@pytest.mark.parametrize("id", ODD_IDS, ids=lambda v: ascii(v)[:20])
def test_an_odd_id_is_valid_comes_back_unchanged_and_stays_in_its_folder(flows, id):
    reply = flows.call(id, step="side")
    assert (reply["status"], reply["id"]) == ("completed", id)
    assert flows.call(id, step="side")["steps"][0]["status"] == "hit"
    kept = [entry.key for entry in flows.results.list("results")]
    assert len(kept) == 1
    assert len(kept[0].split("/")) == 4
    assert [path.name for path in flows.root.parent.iterdir()] == ["project"]
    folders = {
        "calls",
        "code",
        "format.json",
        "history",
        "ids",
        "leases",
        "plans",
        "recent",
        "results",
    }
    assert {path.name for path in (flows.root / ".pfl" / "store").iterdir()} <= folders


BAD_EVENTS = {
    "no JSON": ("{", "the event is not JSON"),
    "no JSON bytes": (b"\xff", "the event is not JSON"),
    "empty": ("", "the event is not JSON"),
    "too deep": ("[" * 100_000, "the event is not JSON"),
    "too many digits": (
        '{"id": "abc", "params": {"rate": ' + "9" * 5_000 + "}}",
        "the event is not JSON",
    ),
    "a list": ([], "the event is a list, not an object"),
    "null": (None, "the event is null, not an object"),
    "text in JSON": ('"abc"', "the event is text, not an object"),
    "a number in JSON": ("3", "the event is a number, not an object"),
    "unknown field": ({"id": "abc", "stp": "b"}, "unknown field 'stp'"),
    "field of another type": ({"id": "abc", 3: "b"}, "unknown field 3"),
    "unknown flow": ({"id": "abc", "flow": "third"}, "unknown flow 'third'"),
    "flow not text": ({"id": "abc", "flow": 3}, "flow is a number"),
    "flow a list": ({"id": "abc", "flow": ["first"]}, "flow is a list"),
    "unknown step": ({"id": "abc", "step": "z"}, "unknown step 'z'"),
    "step of another flow": ({"id": "abc", "flow": "second", "step": "a"}, "unknown step 'a'"),
    "step not text": ({"id": "abc", "step": ["a"]}, "step is a list"),
    "empty step": ({"id": "abc", "step": ""}, "unknown step ''"),
    "unknown bust": ({"id": "abc", "bust": "both"}, "bust is 'both'"),
    "bust of an unknown step": ({"id": "abc", "bust": ["z"]}, "unknown step 'z'"),
    "bust not a list": ({"id": "abc", "bust": {"a": 1}}, "bust is an object"),
    "bust true": ({"id": "abc", "bust": True}, "bust is true or false"),
    "bust of numbers": ({"id": "abc", "bust": [1]}, "bust is a list"),
    "bust of what is not needed": (
        {"id": "abc", "step": "b", "bust": ["c"]},
        "bust: step c is not needed for b",
    ),
    "skip not a list": ({"id": "abc", "skip": "a"}, "skip is 'a'"),
    "skip of an unknown step": ({"id": "abc", "skip": ["z"]}, "unknown step 'z'"),
    "skip of what is not needed": (
        {"id": "abc", "step": "b", "skip": ["side"]},
        "skip: step side is not needed for b",
    ),
    "bust and skip": (
        {"id": "abc", "bust": ["a"], "skip": ["a"]},
        "step a is both busted and skipped",
    ),
    "bust all and skip": (
        {"id": "abc", "bust": "all", "skip": ["a"]},
        "step a is both busted and skipped",
    ),
    "params a list": ({"id": "abc", "params": []}, "params is a list"),
    "unknown parameter": ({"id": "abc", "params": {"rat": 1}}, "unknown parameter 'rat'"),
    "parameter of another type": (
        {"id": "abc", "params": {"rate": "2"}},
        "parameter rate cannot be '2'",
    ),
    "parameter not a choice": (
        {"id": "abc", "params": {"mode": "z"}},
        "parameter mode cannot be 'z'",
    ),
    "parameter null": ({"id": "abc", "params": {"rate": None}}, "parameter rate cannot be None"),
    "parameter NaN": ('{"id": "abc", "params": {"rate": NaN}}', "parameter rate cannot be nan"),
    "parameter infinite": (
        {"id": "abc", "params": {"rate": float("inf")}},
        "parameter rate cannot be inf",
    ),
    "NaN inside": (
        {"id": "abc", "params": {"deep": {"x": [float("nan")]}}},
        "parameter deep cannot be",
    ),
    "parameter no JSON": (
        {"id": "abc", "params": {"deep": {"x": b""}}},
        "parameter deep cannot be",
    ),
    "unknown engine": ({"id": "abc", "engine": "dask"}, "unknown engine 'dask'"),
    "engine not text": ({"id": "abc", "engine": 1}, "engine is a number"),
    "cached_only not a bool": ({"id": "abc", "cached_only": 1}, "cached_only is a number"),
    "cached_only text": ({"id": "abc", "cached_only": "yes"}, "cached_only is text"),
}


@pytest.mark.parametrize(("raw", "what"), BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_an_event_that_is_wrong_is_refused_by_the_name_of_its_field(flows, raw, what):
    error = refused(flows.handle(raw))
    assert error["what"].startswith(what)
    assert error["why"] or error["hint"]


FIELDS = ["id", "flow", "step", "bust", "skip", "params", "engine", "cached_only", "x"]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["abc", "a", "all", "direct", "", "\ud800"]),
    st.lists(st.sampled_from(["a", "b", "c", "z"]) | st.integers(), max_size=3),
    st.dictionaries(
        st.sampled_from(["rate", "mode", "deep"]), st.none() | st.floats() | st.text(max_size=3)
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_no_event_whatever_makes_the_handler_raise(flows, raw):
    reply = flows.handle(raw)
    assert reply["status"] in ("completed", "miss", "invalid")
    json.dumps(reply)


def _nested(depth: int) -> object:
    value: object = "abc"
    for _ in range(depth):
        value = [value]
    return value


def _http(raw: object) -> dict:
    return {"requestContext": {"http": {}}, "body": json.dumps(raw)}


NOT_IN_JSON = {
    "NaN": float("nan"),
    "infinite": float("inf"),
    "half a surrogate pair": "abc\ud800",
    "NaN inside": {"x": [float("nan")]},
    "deep": _nested(900),
    "too deep": _nested(100_000),
    "bytes": b"abc",
    "too many digits": 10**5_000,
}


class Sandbox:
    """Lambda's context object."""

    aws_request_id = "lambda-7"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


@pytest.mark.parametrize("field", ["id", "flow", "step", "action", "flow_run_id", "params", "bust"])
@pytest.mark.parametrize("value", NOT_IN_JSON.values(), ids=NOT_IN_JSON)
def test_the_reply_to_any_event_is_json_in_utf_8(flows, monkeypatch, capfd, field, value):
    monkeypatch.setenv("PFL_ENGINE", "direct")
    raw = {"id": "abc", field: value}
    replies = [entry.lambda_handler(raw, Sandbox())]
    with suppress(TypeError, ValueError, RecursionError):
        replies += [entry.lambda_handler(_http(raw), Sandbox())]
        replies += [json.loads(replies[1]["body"], parse_constant=pytest.fail)]
    for reply in replies:
        assert json.dumps(reply, allow_nan=False, ensure_ascii=False).encode()
    for line in capfd.readouterr().out.splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["status"] == "invalid"


def test_the_reply_to_a_step_whose_error_is_not_unicode_is_json_in_utf_8(project):
    project.write(r"""
        @step
        def a(id: str):
            raise ValueError("half \ud800")

        FLOWS = [flow("f", a)]
    """)
    reply = project.call()
    assert reply["error"]["why"] == r"ValueError: half \ud800"
    assert json.dumps(reply, ensure_ascii=False).encode()


def test_an_unknown_name_is_told_with_the_known_ones(flows):
    assert refused(flows.call(step="z"))["hint"] == "the steps are a, b, c, side"
    assert refused(flows.call(flow="z"))["hint"] == "the flows are first, second"
    assert refused(flows.call(params={"z": 1}))["hint"] == "the parameters are rate, mode, deep"
    assert refused(flows.call(flow="second", params={"z": 1}))["hint"] == "it has no parameters"
    assert (
        "id, flow, step, bust, skip, params, engine, cached_only"
        in refused(flows.call(z=1))["hint"]
    )


def test_a_refused_event_stores_nothing(flows):
    refused(flows.call(params={"rate": "2"}))
    refused(flows.call(""))
    assert not (flows.root / ".pfl" / "store").exists()


def test_text_and_bytes_are_read_as_json(flows):
    assert flows.handle('{"id": "abc", "step": "side"}')["status"] == "completed"
    assert flows.handle(b'{"id": "abc", "step": "side"}')["status"] == "completed"


def test_null_fields_count_as_absent(flows):
    raw = dict.fromkeys(["flow", "step", "bust", "skip", "params", "engine", "cached_only"])
    reply = flows.handle(raw | {"id": "abc"})
    assert (reply["status"], reply["flow"], len(reply["steps"])) == ("completed", "first", 4)


def test_an_int_for_a_float_parameter_is_the_same_call(flows):
    flows.call(params={"rate": 3})
    assert {row["status"] for row in flows.call(params={"rate": 3.0})["steps"]} == {"hit"}


def test_a_computed_reply_has_exactly_the_promised_shape(project):
    reply = project.call()
    assert set(reply) == REPLY | {"warnings", "store", "url"}
    assert (reply["version"], reply["id"], reply["flow"], reply["status"]) == (
        1,
        "abc",
        "meaning",
        "completed",
    )
    assert (reply["engine"], reply["request_id"], reply["warnings"]) == ("direct", "req-1", [])
    for row in reply["steps"]:
        assert set(row) == ROW | {"expires_at"}
        assert (row["status"], row["why"], row["expires_at"]) == (
            "computed",
            "never computed",
            None,
        )
        assert len(row["key"]) == 64
        assert row["computed_at"].endswith("Z")
        assert (row["flow_run_id"], row["task_run_id"], row["url"]) == (None, None, None)
    assert [(row["step"], row["value"]) for row in reply["steps"]] == [
        ("a", 1234),
        ("b", 1234 / 3),
        ("c", 1234 / 3 * 10),
    ]
    json.dumps(reply, allow_nan=False)


def test_a_hit_has_the_same_shape_and_says_when_it_was_computed(project):
    first, second = project.call(), project.call()
    assert set(second) == set(first)
    assert second["engine"] is None
    for was, now in zip(first["steps"], second["steps"], strict=True):
        assert set(now) == set(was)
        assert now["status"] == "hit"
        assert now["why"] is None
        same = ("step", "value", "key", "computed_at")
        assert [now[field] for field in same] == [was[field] for field in same]


def test_a_miss_that_may_not_be_computed_says_why_and_what_to_do(project):
    reply = project.call(step="b", cached_only=True)
    assert set(reply) == REPLY | {"warnings", "store", "url", "error"}
    assert (reply["status"], reply["error"]["type"], reply["engine"]) == (
        "miss",
        "NotFoundError",
        None,
    )
    assert [(row["step"], row["status"], row["value"]) for row in reply["steps"]] == [
        ("a", "miss", None)
    ]
    assert (reply["error"]["why"], reply["error"]["hint"]) == (
        "never computed",
        "call again without cached_only",
    )


def test_a_failed_step_leaves_a_whole_reply(project):
    project.write(
        """
        @step
        def a(id):
            raise ValueError("no " + id)
        @step
        def b(a):
            return a
        FLOWS = [flow("x", a, b)]
        """
    )
    reply = project.call()
    assert set(reply) == REPLY | {"warnings", "store", "url", "error"}
    assert (reply["status"], reply["engine"]) == ("failed", "direct")
    assert [(row["step"], row["status"], row["value"]) for row in reply["steps"]] == [
        ("a", "failed", None)
    ]
    assert reply["error"] == {
        "type": "StepFailedError",
        "what": "step a failed",
        "why": "ValueError: no abc",
        "hint": "see flows/pipeline.py:5",
    }


def test_one_asked_step_gets_one_row_when_it_hits(project):
    project.call()
    assert [row["step"] for row in project.call(step="b")["steps"]] == ["b"]


def test_the_handler_reads_its_settings_from_the_environment(project, monkeypatch):
    monkeypatch.setenv("PFL_ENGINE", "direct")
    reply = entry.lambda_handler({"id": "xyz"}, Sandbox())
    assert (reply["status"], reply["engine"], reply["request_id"]) == (
        "completed",
        "direct",
        "lambda-7",
    )
    assert reply["steps"][0]["value"] == 420


def test_the_handler_answers_a_bad_setting_with_a_reply(project, monkeypatch):
    monkeypatch.setenv("PFL_ENGINE", "dask")
    reply = entry.lambda_handler({"id": "xyz"}, None)
    assert refused(reply)["what"].startswith("PFL_ENGINE")


def test_only_the_first_call_of_a_process_is_a_cold_start(project):
    project.call()
    assert project.call()["cold_start"] is False


def test_every_error_of_the_tree_has_its_own_exit_code():
    codes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PflError)
    }
    assert codes == {
        "PflError": 1,
        "InvalidRequestError": 2,
        "DeclarationError": 2,
        "UnstorableValueError": 4,
        "NotFoundError": 3,
        "StepFailedError": 4,
        "UnavailableError": 5,
        "BusyError": 5,
        "OutOfTimeError": 5,
        "CorruptRecordError": 6,
        "RunCancelledError": 130,
    }
