"""Declaring steps and flows: what is right works, and each mistake has its file and line."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Annotated, Literal, Optional

import pytest

from pfl import Flow, flow, step
from pfl.handler.core.declare.params import Param
from pfl.handler.core.declare.step import Step
from pfl.handler.core.errors import DeclarationError, InvalidRequestError

HERE = Path(__file__).name


@step
def a(id: str) -> int:
    """What is known."""
    return len(id)


@step
def b(id: str, a: int, rate: float = 2) -> float:
    return a * rate


def line_of(function) -> int:
    return function.__code__.co_firstlineno


def test_a_step_stays_a_function_that_can_be_called():
    assert b("abc", 3) == 6
    assert b(id="abc", a=3, rate=0.5) == 1.5
    assert (b.__name__, a.__doc__, b.__module__) == ("b", "What is known.", __name__)


def test_an_async_step_stays_a_coroutine_function():
    @step
    async def later(id: str) -> str:
        return id

    assert later.is_async
    assert asyncio.run(later("abc")) == "abc"


def test_steps_are_joined_by_the_names_of_their_parameters():
    @step
    def c(b: float, a: int, previous=None):
        return b + a

    joined = flow("f", c, b, a)
    assert list(joined.steps) == ["a", "b", "c"]
    assert joined.upstream == {"a": (), "b": ("a",), "c": ("b", "a")}
    assert list(joined.params) == ["rate"]
    assert isinstance(joined, Flow)


def test_a_step_needs_no_parameters_at_all():
    @step
    def alone():
        return 1

    assert flow("f", alone).upstream == {"alone": ()}


def test_a_recursive_step_calls_itself_as_a_plain_function():
    @step
    def down(n: int = 3):
        return 0 if n == 0 else down(n - 1)

    assert down() == 0


def test_options_are_kept():
    @step(retries=2, retry_delay_s=0.5, timeout_s=60, limit=5, cache_for="1h", version="2")
    def s():
        return 1

    assert (s.retries, s.retry_delay_s, s.timeout_s, s.limit, s.cache_for_s, s.version) == (
        2,
        0.5,
        60,
        5,
        3_600,
        "2",
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("2m", 120), ("1h", 3_600), ("3d", 259_200), ("1w", 604_800), (90, 90)],
)
def test_cache_for_is_seconds_or_a_number_with_a_unit(text, seconds):
    assert step(cache_for=text)(lambda_free).cache_for_s == seconds


def lambda_free(id: str):
    return id


# Mistakes in one step.

BAD_OPTIONS = [
    {"retries": -1},
    {"retries": 1.5},
    {"retries": True},
    {"retries": "2"},
    {"retry_delay_s": -1},
    {"retry_delay_s": float("nan")},
    {"retry_delay_s": None},
    {"timeout_s": 0},
    {"timeout_s": float("inf")},
    {"timeout_s": "60"},
    {"limit": 0},
    {"limit": True},
    {"version": 2},
    {"cache_for": "1 hour"},
    {"cache_for": "h"},
    {"cache_for": 0},
    {"cache_for": -5},
    {"cache_for": 1.5},
    {"cache_for": True},
    {"cache_for": ""},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_an_option_that_makes_no_sense_is_refused_by_name(options):
    [(name, value)] = options.items()
    with pytest.raises(DeclarationError) as caught:
        step(**options)(lambda_free)
    assert name in caught.value.what
    assert repr(value) in caught.value.what
    assert f"{HERE}:{line_of(lambda_free)}" in caught.value.what


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(DeclarationError, match="unknown option 'retry'") as caught:
        step(retry=2)(lambda_free)
    assert "retries" in caught.value.hint
    assert f"{HERE}:{line_of(lambda_free)}" in caught.value.what


def positional_only(id, /):
    return id


def var_positional(*args):
    return args


def var_keyword(**kwargs):
    return kwargs


@pytest.mark.parametrize("function", [positional_only, var_positional, var_keyword])
def test_a_parameter_that_cannot_be_filled_by_name_is_refused(function):
    with pytest.raises(DeclarationError, match="cannot be passed by name") as caught:
        step(function)
    assert f"{HERE}:{line_of(function)}" in caught.value.what


def test_a_lambda_is_no_step():
    with pytest.raises(DeclarationError, match="the name cannot be used") as caught:
        step(lambda id: id)
    assert HERE in caught.value.what


@pytest.mark.parametrize(
    "thing",
    [len, functools.partial(len), Path, "a", staticmethod(lambda_free)],
    ids=lambda v: type(v).__name__,
)
def test_only_a_function_can_be_a_step(thing):
    with pytest.raises(DeclarationError, match="plain function"):
        step(thing)


def test_a_step_of_a_step_is_refused():
    with pytest.raises(DeclarationError, match="plain function"):
        step(a)


@pytest.mark.parametrize("name", ["id", "previous", "step", "bust", "skip", "flow"])
def test_a_step_cannot_have_a_name_of_pfls_own(name):
    space: dict = {}
    exec(f"def {name}(): pass", space)
    with pytest.raises(DeclarationError, match="the name cannot be used") as caught:
        step(space[name])
    assert name in caught.value.why


@pytest.mark.parametrize("name", ["é", "x" * 81])
def test_a_steps_name_is_short_and_ascii(name):
    space: dict = {}
    exec(f"def {name}(): pass", space)
    with pytest.raises(DeclarationError, match="the name cannot be used"):
        step(space[name])


def test_a_step_that_takes_its_own_result_is_pointed_to_previous():
    def loop(loop):
        return loop

    with pytest.raises(DeclarationError, match="cycle: loop → loop") as caught:
        flow("f", step(loop))
    assert "previous" in caught.value.hint
    assert f"{HERE}:{line_of(loop)}" in caught.value.why


# Mistakes in a flow.


def test_an_unknown_parameter_is_told_with_the_line_of_its_step():
    @step
    def c(id, bb):
        return bb

    with pytest.raises(DeclarationError, match="unknown parameter 'bb'") as caught:
        flow("f", a, b, c)
    assert f"step c ({HERE}:" in caught.value.what.replace("tests/", "")
    assert str(line_of(c.function)) in caught.value.what


def test_a_cycle_is_told_with_its_path():
    @step
    def one(three):
        return three

    @step
    def two(one):
        return one

    @step
    def three(two):
        return two

    with pytest.raises(DeclarationError, match="cycle") as caught:
        flow("f", one, two, three)
    assert "one → three → two → one" in caught.value.what
    assert HERE in caught.value.what
    assert HERE in caught.value.why


def test_two_steps_of_one_name_are_told_with_both_lines():
    def other():
        @step
        def a(id: str):
            return 0

        return a

    again = other()
    with pytest.raises(DeclarationError, match="two steps are named 'a'") as caught:
        flow("f", a, again)
    assert f":{line_of(a.function)}" in caught.value.why
    assert f":{line_of(again.function)}" in caught.value.why


@pytest.mark.parametrize("name", ["", "Meaning", "1st", "a b", "é", "x" * 65, "a/b", None, 3])
def test_a_flows_name_is_plain(name):
    with pytest.raises(DeclarationError, match="the name cannot be used") as caught:
        flow(name, a)
    assert HERE in caught.value.what


def test_a_flow_without_steps_is_refused():
    with pytest.raises(DeclarationError, match="it has no steps"):
        flow("f")


def test_a_plain_function_in_a_flow_is_refused():
    with pytest.raises(DeclarationError, match="is not a step") as caught:
        flow("f", lambda_free)
    assert "@step" in caught.value.hint


@pytest.mark.parametrize("name", ["step", "bust", "skip", "flow"])
def test_a_parameter_cannot_have_a_name_of_pfls_own(name):
    space: dict = {}
    exec(f"def s({name}=1): pass", space)
    with pytest.raises(DeclarationError, match=f"the parameter '{name}' has the name of a field"):
        flow("f", step(space["s"]))


def test_a_parameter_that_two_steps_declare_alike_is_one():
    @step
    def x(rate: float = 2):
        return rate

    @step
    def y(x, rate: float = 2):
        return rate

    assert list(flow("f", x, y).params) == ["rate"]


def test_a_parameter_that_two_steps_declare_unlike_is_told_with_both_lines():
    @step
    def x(rate: int = 2):
        return rate

    @step
    def y(x, rate: float = 2):
        return rate

    with pytest.raises(DeclarationError, match="differently") as caught:
        flow("f", x, y)
    assert caught.value.why.count(HERE) == 2


@pytest.mark.parametrize(
    "default",
    [{1}, Path("x"), float("nan"), [float("inf")], {1: 2}, b"x", object()],
    ids=lambda v: type(v).__name__,
)
def test_a_default_that_cannot_be_stored_is_refused_with_the_parameters_name(default):
    def s(wrong=default):
        return wrong

    with pytest.raises(DeclarationError, match="default of 'wrong' cannot be stored") as caught:
        flow("f", step(s))
    assert caught.value.why.startswith("wrong")
    assert str(line_of(s)) in caught.value.what


def wrong_str(rate: int = "2"):
    return rate


def wrong_choice(mode: Literal["x", "y"] = "z"):
    return mode


def wrong_none(rate: int = None):
    return rate


def wrong_bool(rate: int = True):
    return rate


@pytest.mark.parametrize("function", [wrong_str, wrong_choice, wrong_none, wrong_bool])
def test_a_default_that_does_not_fit_its_own_type_is_refused(function):
    with pytest.raises(DeclarationError, match="does not fit its type") as caught:
        flow("f", step(function))
    assert f":{line_of(function)}" in caught.value.what


# What parameters accept.


def declared(annotation: object, default: object) -> Param:
    def s(p=default):
        return p

    s.__annotations__["p"] = annotation
    return flow("f", step(s)).params["p"]


ACCEPTS = [
    (int, 1, [1, -5, 2**70], ["1", 1.0, True, None, [1]]),
    (float, 1.5, [1.5, 2], ["1.5", True, None, 2**60]),
    (str, "x", ["", "y"], [1, None, ["y"]]),
    (bool, False, [True, False], [1, 0, "true", None]),
    (list, [], [[], [1]], [{}, "x", None]),
    (list[int], [], [[], [1]], [{}, "x"]),
    (dict, {}, [{}, {"a": 1}], [[], None]),
    (dict[str, int], {}, [{"a": 1}], [[]]),
    (int | None, None, [None, 3], ["3", 3.0, False]),
    (Optional[str], None, [None, "x"], [3]),  # noqa: UP045
    (int | str, 1, [1, "x"], [None, 1.5]),
    (Literal["x", "y"], "x", ["x", "y"], ["z", None, 1]),
    (Literal[1, 2], 1, [1, 2], [3, 1.0, True, "1"]),
    (Literal["x"] | None, None, ["x", None], ["y"]),
    (Annotated[int, "how many"], 1, [2], ["2"]),
    (Annotated[Literal["x", "y"], "which"], "x", ["y"], ["z"]),
    (list | None, None, [None, []], [{}]),
    (object, 1, [1, "x", None, [1]], []),
    ("NoSuchName", 1, [2], ["x"]),  # Only type checkers see it, so the default says.
    (Literal["x"] | str, "x", ["x", "y"], [1]),
    (float, 1.0, [1e300], [float("nan"), float("inf")]),
    (list, [], [[{}]], [[float("nan")], [{1: 2}], [{2}]]),
    (object, None, [{}], [{2}, b"x", float("nan")]),
]


@pytest.mark.parametrize(
    ("annotation", "default", "good", "bad"), ACCEPTS, ids=lambda v: str(v)[:40]
)
def test_a_parameter_accepts_what_its_annotation_says(annotation, default, good, bad):
    param = declared(annotation, default)
    for value in good:
        assert param.check("p", value) == value
    for value in bad:
        with pytest.raises(InvalidRequestError, match="parameter p cannot be"):
            param.check("p", value)


def test_a_parameter_without_annotation_accepts_the_kind_of_its_default():
    def s(p=1):
        return p

    param = flow("f", step(s)).params["p"]
    assert param.check("p", 2) == 2
    with pytest.raises(InvalidRequestError):
        param.check("p", "2")


def test_an_int_for_a_float_becomes_one_so_that_both_have_one_key():
    assert repr(declared(float, 1).default) == "1.0"
    assert repr(declared(float, 1.5).check("p", 2)) == "2.0"


def test_an_optional_choice_may_be_absent_or_one_of_them():
    param = declared(Optional[Literal["x", "y"]], None)  # noqa: UP045
    assert [param.check("p", value) for value in (None, "x", "y")] == [None, "x", "y"]
    with pytest.raises(InvalidRequestError, match="cannot be 'z'"):
        param.check("p", "z")


def test_a_choice_beside_another_type_does_not_shut_that_type_out():
    param = declared(Literal["auto"] | int, "auto")
    assert param.check("p", "auto") == "auto"
    assert param.check("p", 7) == 7
    with pytest.raises(InvalidRequestError):
        param.check("p", "other")


@pytest.mark.parametrize(
    ("annotation", "default", "text", "value"),
    [
        (int, 1, "3", 3),
        (float, 1.0, "3", 3.0),
        (float, 1.0, "1e3", 1000.0),
        (str, "", "3", "3"),
        (str, "", "null", "null"),
        (bool, False, "true", True),
        (list, [], "[1, 2]", [1, 2]),
        (dict, {}, '{"a": 1}', {"a": 1}),
        (int | None, None, "null", None),
        (int | str, 1, "3", 3),
        (int | str, 1, "three", "three"),
        (Literal["x", "y"], "x", "y", "y"),
        (Literal[1, 2], 1, "2", 2),
        (object, 1, "abc", "abc"),
    ],
    ids=str,
)
def test_text_from_a_terminal_becomes_the_value_it_spells(annotation, default, text, value):
    parsed = declared(annotation, default).parse("p", text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("annotation", "default", "text"),
    [
        (int, 1, "three"),
        (int, 1, "1.5"),
        (int, 1, ""),
        (float, 1.0, "NaN"),
        (float, 1.0, "Infinity"),
        (float, 1.0, "1e999"),
        (bool, False, "yes"),
        (list, [], "1,2"),
        (list, [], "[" * 100_000),
        (dict, {}, "{"),
        (Literal["x", "y"], "x", "z"),
        (int, 1, "9" * 5_000),
    ],
    ids=lambda v: str(v)[:20],
)
def test_text_that_does_not_parse_is_refused_with_what_would(annotation, default, text):
    with pytest.raises(InvalidRequestError, match="parameter p cannot be") as caught:
        declared(annotation, default).parse("p", text)
    assert caught.value.why.startswith("it must be")
    assert "--param p=" in caught.value.hint
    assert len(caught.value.what) < 200


# Mistakes that only the whole image shows.


def declared_in(project, text: str) -> dict:
    project.write(text)
    reply = project.call()
    assert reply["status"] == "invalid"
    return reply["error"]


def test_two_steps_of_one_name_in_two_flows_are_told_with_both_lines(project):
    project.write("from pfl import step\n@step\ndef a(id):\n    return 1\n", "one")
    project.write("from pfl import step\n\n\n@step\ndef a(id):\n    return 2\n", "two")
    error = declared_in(
        project, "from flows import one, two\nFLOWS = [flow('x', one.a), flow('y', two.a)]\n"
    )
    assert error["type"] == "DeclarationError"
    assert "two steps of the project are named 'a'" in error["what"]
    assert "flows/one.py:2" in error["why"]
    assert "flows/two.py:4" in error["why"]


def test_one_step_may_be_part_of_two_flows(project):
    project.write(
        """
        @step
        def a(id):
            return 1
        @step
        def b(a):
            return a + 1
        FLOWS = [flow("x", a), flow("y", a, b)]
        """
    )
    assert project.call(flow="x")["status"] == "completed"
    assert [row["status"] for row in project.call(flow="y")["steps"]] == ["hit", "computed"]


def test_two_flows_of_one_name_are_told(project):
    error = declared_in(
        project, "@step\ndef a(id):\n    return 1\nFLOWS = [flow('x', a),\n    flow('x', a)]\n"
    )
    assert "two flows have this name" in error["what"]
    assert "flows/pipeline.py:" in error["what"]


@pytest.mark.parametrize("listing", ["", "FLOWS = []", "FLOWS = [1]", "FLOWS = 3", "FLOWS = {}"])
def test_a_pipeline_that_lists_no_flows_is_told(project, listing):
    error = declared_in(project, f"{listing}\n")
    assert error["type"] == "DeclarationError"
    assert "FLOWS" in error["hint"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "import no_such_module_here\n",
            "ModuleNotFoundError: No module named 'no_such_module_here' at flows/pipeline.py:2",
        ),
        ("def f(:\n", "SyntaxError: invalid syntax at flows/pipeline.py:2"),
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero at flows/pipeline.py:3"),
        ("raise SystemExit(3)\n", "SystemExit: 3 at flows/pipeline.py:2"),
    ],
)
def test_a_pipeline_that_cannot_be_imported_is_told_with_file_and_line(project, text, why):
    error = declared_in(project, text)
    assert error["what"] == "the flows cannot be imported"
    assert error["why"] == why


def test_a_mistake_is_told_with_a_path_inside_the_project(project):
    error = declared_in(project, "@step\ndef a(id, nope):\n    return 1\nFLOWS = [flow('x', a)]\n")
    assert error["what"].startswith("step a (flows/pipeline.py:2): unknown parameter 'nope'")


def test_a_mistake_that_is_put_right_is_forgotten(project):
    declared_in(project, "def f(:\n")
    project.write("@step\ndef a(id):\n    return 1\nFLOWS = [flow('x', a)]\n")
    assert project.call()["status"] == "completed"


def test_a_directory_without_flows_is_told(project, tmp_path):
    project.root = tmp_path
    reply = project.call()
    assert reply["status"] == "invalid"
    assert "pipeline.py does not exist" in reply["error"]["why"]


def test_the_faces_names_are_all_there_is():
    import pfl

    assert sorted(pfl.__all__) == ["Flow", "flow", "history", "step"]
    assert isinstance(a, Step)
    with pytest.raises(AttributeError, match="no attribute 'task'"):
        pfl.task  # noqa: B018
