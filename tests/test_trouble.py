"""A store that fails while steps run side by side, and whatever steps raise: each call replies."""

from __future__ import annotations

import sys
import threading
from uuid import uuid4

import pytest
from conftest import Project, statuses, values
from test_lease import later, left

from pfl.handler.core.cache import history
from pfl.handler.core.errors import UnavailableError
from pfl.handler.core.store import objects as stores

TWO = """
import os, threading
both = threading.Barrier(2)
@step
def a(id: str) -> int:
    if not os.path.exists("one-at-a-time"):
        both.wait()
    return 1
@step
def b(id: str) -> int:
    if not os.path.exists("one-at-a-time"):
        both.wait()
    return 2
@step
def c(id: str, a: int, b: int) -> int:
    return a + b
FLOWS = [flow("two", a, b, c)]
"""


@pytest.fixture(params=["directory", "memory"])
def two(project: Project, request: pytest.FixtureRequest) -> Project:
    """Two steps that run at the same time, and one that needs both; threads may not die."""
    project.write(TWO)
    # Not id(project): a later project may have that of an earlier one, and its store.
    name = f"memory://{uuid4().hex}" if request.param == "memory" else str(project.root / "store")
    project.store = stores.open_store(name, environ={}, create=True)
    return project


@pytest.fixture(autouse=True)
def no_thread_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that ends a thread fails the test."""
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    yield
    assert died == []


def failing(monkeypatch, *, puts: tuple[str, ...] = (), deletes: bool = False, times: int = 10**9):
    """
    Let the store refuse to write objects with these prefixes, and to delete leases.

    The first *times* such requests are refused.
    """
    refused: list[str] = []
    put, delete = stores.Store.put, stores.Store.delete

    def refuse(key: str) -> None:
        if len(refused) < times:
            refused.append(key)
            raise UnavailableError("the store blinked")

    def failing_put(store, key, data, **more):
        if key.startswith(puts):
            refuse(key)
        put(store, key, data, **more)

    def failing_delete(store, keys):
        keys = list(keys)
        if deletes and any(key.startswith("leases/") for key in keys):
            refuse(keys[0])
        return delete(store, keys)

    monkeypatch.setattr(stores.Store, "put", failing_put)
    monkeypatch.setattr(stores.Store, "delete", failing_delete)
    return refused


@pytest.mark.parametrize("step", ["a", "b"])
def test_a_store_that_fails_twice_in_a_row_ends_the_call_with_an_error(two, monkeypatch, step):
    """It refuses the result of one of two steps, and then the deletion of its lease."""
    with monkeypatch.context() as patch:
        refused = failing(patch, puts=(f"results/abc/{step}/",), deletes=True, times=2)
        reply = two.call()
    assert len(refused) == 2
    assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
    other = "b" if step == "a" else "a"
    assert statuses(reply) == {step: "failed", other: "computed"}
    assert left(two.store) in ([], [f"leases/abc={step}=first.json"])
    again = recalled(two, monkeypatch)
    assert statuses(again)[other] == "hit"
    assert values(again) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    "puts",
    [
        ("results/",),
        ("plans/",),
        ("history/",),
        ("recent/",),
        ("code/",),
        ("results/", "plans/", "history/", "recent/", "code/", "calls/"),
    ],
    ids=" ".join,
)
def test_a_store_that_refuses_all_writes_ends_the_call_with_an_error(two, monkeypatch, puts):
    with monkeypatch.context() as patch:
        failing(patch, puts=puts, deletes=True)
        reply = two.call()
    assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
    # Those of steps that failed before the end are released one by one.
    assert "not released" in "".join(reply["warnings"])
    assert left(two.store) != []
    assert values(recalled(two, monkeypatch)) == {"a": 1, "b": 2, "c": 3}


def recalled(project: Project, monkeypatch) -> dict:
    """The reply to another call, once the leases of the first have expired."""
    later(monkeypatch, 3_600)
    (project.root / "one-at-a-time").touch()
    return project.call()


@pytest.mark.parametrize("count", range(1, 16))
def test_a_store_that_fails_from_any_write_on_ends_the_call(two, monkeypatch, count):
    put, seen = stores.Store.put, []

    def failing_put(store, key, data, **more):
        seen.append(key)
        if len(seen) >= count:
            raise UnavailableError("No space left")
        put(store, key, data, **more)

    (two.root / "one-at-a-time").touch()
    with monkeypatch.context() as patch:
        patch.setattr(stores.Store, "put", failing_put)
        reply = two.call()
    if len(seen) >= count:
        assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
    assert values(recalled(two, monkeypatch)) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("step", "abc")
def test_a_record_that_could_not_be_written_beside_a_plan_is_written_by_a_reaper(
    two, monkeypatch, step
):
    """The plan of c holds all values, so later calls are hits, and write nothing."""
    put, planned = stores.Store.put, threading.Event()

    def failing_put(store, key, data, **more):
        if key.startswith(f"history/abc/{step}/"):
            # In a directory, records and plans are written one after another.
            assert step == "c" or store.is_local or planned.wait(60)
            raise UnavailableError("the store blinked")
        put(store, key, data, **more)
        if key.startswith("plans/abc/c/"):
            planned.set()

    with monkeypatch.context() as patch:
        patch.setattr(stores.Store, "put", failing_put)
        reply = two.call()
    assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
    again = recalled(two, monkeypatch)
    assert (again["status"], values(again)) == ("completed", {"a": 1, "b": 2, "c": 3})
    assert set(statuses(again).values()) == {"hit"} or not planned.is_set()
    assert two.handle({"action": "reap"})["status"] == "completed"
    warn = pytest.fail
    records = {
        name: len(list(history.list_computed(two.store, "abc", name, warn))) for name in "abc"
    }
    assert records == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("put", ["results/", "history/", "plans/", "recent/", "code/"])
def test_an_error_that_nobody_expected_ends_the_call_with_it(two, monkeypatch, put):
    real = stores.Store.put

    def failing_put(store, key, data, **more):
        if key.startswith(put):
            raise MemoryError("no room")
        real(store, key, data, **more)

    with monkeypatch.context() as patch:
        patch.setattr(stores.Store, "put", failing_put)
        reply = two.call()
    assert reply["status"] == "failed"
    assert reply["error"]["why"] == "MemoryError: no room"
    # A plan is written beside a record, and a reaper has to write that.
    assert put == "history/" or left(two.store) == []
    assert values(recalled(two, monkeypatch)) == {"a": 1, "b": 2, "c": 3}


# What a step may raise.

RAISED = {
    "SystemExit": ("raise SystemExit(3)", "SystemExit"),
    "GeneratorExit": ("raise GeneratorExit", "GeneratorExit"),
    "CancelledError": ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    "StopIteration": ("raise StopIteration(5)", "StopIteration"),
    "BaseException": ("raise BaseException('odd')", "odd"),
    "ExceptionGroup": (
        "raise ExceptionGroup('two', [ValueError('first'), KeyError('second')])",
        "two (2 sub-exceptions): ValueError: first; KeyError: 'second'",
    ),
    "BaseExceptionGroup": (
        "raise BaseExceptionGroup('two', [KeyboardInterrupt(), ValueError('inner')])",
        "ValueError('inner')",
    ),
    "str raises": (
        "class E(Exception):\n        def __str__(self): raise AttributeError\n    raise E",
        "its text cannot be shown",
    ),
    "str raises itself": (
        "class E(Exception):\n        def __str__(self): raise E()\n    raise E",
        "its text cannot be shown",
    ),
    "str raises a BaseException": (
        "class E(BaseException):\n        def __str__(self): raise E()\n    raise E",
        "the step raised E()",
    ),
    "str returns no text": (
        "class E(Exception):\n        def __str__(self): return 5\n    raise E",
        "its text cannot be shown",
    ),
    "str exits": (
        "class E(Exception):\n        def __str__(self): raise SystemExit(3)\n    raise E",
        "its text cannot be shown",
    ),
    "a group in groups": (
        """e = ValueError('deepest')
    for _ in range(3_000): e = ExceptionGroup('g', [e])
    raise e""",
        "g (1 sub-exception)",
    ),
    "repr and str raise": (
        """class E(BaseException):
        def __repr__(self): raise E()
        __str__ = __repr__
    raise E""",
        "its text cannot be shown",
    ),
    "a cause that is itself": ("e = ValueError('loop'); e.__cause__ = e; raise e", "loop"),
}


@pytest.mark.parametrize("how", ["alone", "beside", "async"])
@pytest.mark.parametrize(("body", "shown"), RAISED.values(), ids=RAISED)
def test_whatever_a_step_raises_the_call_replies_with_it_and_releases_its_lease(
    project, how, body, shown
):
    beside = "@step\ndef b(id: str) -> int:\n    return 2\n" if how == "beside" else ""
    start = "async def" if how == "async" else "def"
    names = "a, b" if beside else "a"
    text = f"@step\n{start} a(id: str) -> int:\n    {body}\n{beside}"
    project.write(f'{text}FLOWS = [flow("raising", {names})]')
    limit = sys.getrecursionlimit()
    reply = project.call()
    assert sys.getrecursionlimit() == limit
    assert (reply["status"], reply["error"]["type"]) == ("failed", "StepFailedError")
    assert shown in reply["error"]["why"]
    assert reply["error"]["hint"].startswith("see flows/pipeline.py:")
    assert statuses(reply) == {"a": "failed", **({"b": "computed"} if beside else {})}
    assert left(project.results) == []
