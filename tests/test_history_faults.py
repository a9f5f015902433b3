"""History has each reply once: under 32 writers, and with ``kill -9`` at each write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from faults import suite

from pfl.handler import entry
from pfl.handler.core.cache import history
from pfl.handler.core.store import objects as stores

WRITERS, IDS = 32, ("x", "y", "z")
TURNS = """
@step
def turn(id: str, previous, again: int = 0) -> list:
    return [*(previous or []), len(previous or [])]

FLOWS = [flow("turns", turn)]
"""
# A clean parent forks the writers: none of them starts Python anew.
_CALL = """
import json, os, sys
from pfl.handler import entry
from pfl.handler.core.store import objects as store
from pfl.handler.core.settings import Settings
import pfl.handler.engine.compute

settings, ids = Settings(**json.loads(sys.argv[1])), sys.argv[5:]
writers, calls, busting = map(int, sys.argv[2:5])


def work(writer):
    opened = store.of(settings)
    for number in range(calls):
        id = ids[(writer + number) % len(ids)]
        event = {"id": id, "bust": "all"} if (writer + number) % busting == 0 else {"id": id}
        reply = entry.handle(event, settings, request_id=f"{writer}-{number}", results=opened)
        step = reply["steps"][0] if reply["steps"] else {"status": None, "value": None}
        line = json.dumps([id, reply["status"], step["status"], step["value"]]) + "\\n"
        os.write(1, line.encode())


children = []
for writer in range(writers):
    if not (child := os.fork()):
        try:
            work(writer)
        finally:
            os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""


def values_of(store: stores.Store, id: str) -> list[dict]:
    """The records of an ID that have a value, oldest first."""
    found = history.list_records(store, id=id, status="computed", warn=pytest.fail)
    return [body for _, body in found][::-1]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_thirty_two_writers_leave_each_turn_once_and_in_order(project, request, tmp_path, kind):
    project.write(TURNS)
    environ = {**os.environ}
    knobs = {"project": str(project.root), "engine": "direct", "store": str(tmp_path)}
    if kind == "s3":
        knobs["store"] = f"s3://{request.getfixturevalue('bucket')}/pfl"
        environ |= request.getfixturevalue("s3_env")
    project.call("made")  # The manifest is there.
    calls, busting, writers = (
        (2 if kind == "local" else 1),
        4,
        WRITERS,
    )  # One call in so many takes a turn of its own.
    command = [
        sys.executable,
        "-c",
        _CALL,
        json.dumps(knobs),
        str(writers),
        str(calls),
        str(busting),
        *IDS,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(replies) == writers * calls and {status for _, status, _, _ in replies} == {
        "completed"
    }
    store = stores.open_store(knobs["store"], environ=environ)
    for id in IDS:
        found = [body["value"] for body in values_of(store, id)]
        # Each turn holds the one before: none is missing, doubled, or out of order.
        assert found == [list(range(length)) for length in range(1, len(found) + 1)]
        computed = Counter(
            len(value) for each, _, status, value in replies if each == id and status == "computed"
        )
        assert set(computed.values()) == {1} and set(computed) == set(range(1, len(found) + 1))
    everything = [name.path for name in history.list_names(store)]
    assert len(everything) == len(set(everything)) == len(list(store.list("history")))


def test_a_death_at_any_write_loses_nothing_that_was_replied_and_repeats_nothing(tmp_path):
    """The next call after a death has the same previous value, and each turn one record."""
    root = tmp_path / "project"
    settings = suite.project(root)
    (root / "flows" / "pipeline.py").write_text("from pfl import flow, step\n" + TURNS)
    results = stores.of(settings)
    with suite.Nursery(root) as nursery:
        nursery.call({"id": "first", "engine": "direct"})
        points = nursery.call({"id": "all", "engine": "direct", "bust": "all"})["points"]
        for number in range(len(points)):
            id = f"id-{number}"
            killed = nursery.order({"id": id, "engine": "direct", "bust": "all"}, number)
            assert "killed" in killed, points[number]
            reply = nursery.call({"id": id, "engine": "direct"})["reply"]
            assert (reply["status"], reply["steps"][0]["value"]) == ("completed", [0]), points[
                number
            ]
            assert [body["value"] for body in values_of(results, id)] == [[0]], points[number]
            assert nursery.call({"id": id, "engine": "direct", "params": {"again": 1}})["reply"][
                "steps"
            ][0]["value"] == [0, 1]
            entry.handle({"action": "reap"}, settings, results=results)
            assert (
                len(list(history.list_names(results, folder=id)))
                - sum(name.status == "crashed" for name in history.list_names(results, folder=id))
                == 2
            )
    assert len(points) > 12
