"""Sixteen processes call, bust and verify the same few IDs; a model checks every reply."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import forked
import pytest

PROCESSES, ROUNDS, IDS = 16, 12, ("x", "yy", "zzz")
CHAIN = """
from pathlib import Path

@step
def a(id: str) -> int:
    return len(id)

@step
def b(id: str, a: int) -> int:
    return a * 1_000_000 + int(Path(id + '.txt').read_text())

@step
def c(b: int) -> int:
    return b * 10

FLOWS = [flow("chain", a, b, c)]
"""
# The input of b only grows, so a call after a bust must receive at least the value from its start.
_WORK = """
import fcntl, json, random, sys, time
from pfl.handler import entry
from pfl.handler.core.cache import bust, verify
from pfl.handler.core.store import objects as store
from pfl.handler.core.settings import Settings

settings = Settings(**json.loads(sys.argv[1]))
seed, rounds, ids = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
opened, chance = store.of(settings), random.Random(seed)
sys.stdin.readline()


def grow(id):
    with open("lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(f"{id}.txt", "r+") as file:
            number = int(file.read()) + 1
            file.seek(0)
            file.write(str(number))
    return number


for _ in range(rounds):
    id = chance.choice(ids)
    act = chance.choice(["call", "call", "call", "step", "bust", "bust by call", "verify"])
    row = {"id": id, "act": act, "began": time.monotonic()}
    if act == "verify":
        walked = verify.walk(opened, repair=True, retention_s=3600)
        row["problems"] = [each for each in walked if each]
    elif act == "bust":
        row["least"] = grow(id)
        steps = {"b", "c"}
        scope, known = bust.Scope(id, "", ("b",)), {"a", *steps}
        name = bust.new_name()
        bust.bust(opened, scope, name, dependents=steps, known=known, retention_s=3600)
    else:
        more = {"step": {"step": "b"}, "bust by call": {"bust": ["b"]}}.get(act, {})
        event = {"id": id, **more}
        reply = entry.handle(event, settings, results=opened)
        row["status"] = reply["status"]
        row |= {name: reply.get(name) for name in ("error", "warnings")}
        row["values"] = {each["step"]: each["value"] for each in reply["steps"]}
    print(json.dumps(row | {"ended": time.monotonic()}), flush=True)
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_no_reply_of_many_processes_is_older_than_a_bust_that_ended_before_it(
    project, request, tmp_path, kind
):
    project.write(CHAIN)
    for id in IDS:
        (project.root / f"{id}.txt").write_text("1")
    knobs = {"project": str(project.root), "engine": "direct", "store": str(tmp_path)}
    environ = {**os.environ}
    if kind == "s3":
        knobs["store"] = f"s3://{request.getfixturevalue('bucket')}/pfl"
        environ |= request.getfixturevalue("s3_env")
    project.call("x")  # The manifest is made.
    rounds = ROUNDS if kind == "local" else ROUNDS // 3
    workers = [
        forked.Popen(
            [sys.executable, "-c", _WORK, json.dumps(knobs), str(seed), str(rounds), *IDS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=project.root,
        )
        for seed in range(PROCESSES)
    ]
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    rows = []
    for worker in workers:
        out, err = worker.communicate()
        assert worker.returncode == 0, err
        rows += [json.loads(line) for line in out.splitlines()]
    assert len(rows) == PROCESSES * rounds
    busts = [row for row in rows if "least" in row]
    calls = [row for row in rows if "values" in row]
    busts += [
        row | {"least": row["values"]["b"] % 1_000_000}
        for row in calls
        if row["act"] == "bust by call"
    ]
    assert len(busts) > 5 and len(calls) > 20
    for row in calls:
        assert row["status"] == "completed", row
        found, a = row["values"], len(row["id"])
        assert found["b"] // 1_000_000 == a == found.get("a", a)
        assert found.get("c", found["b"] * 10) == found["b"] * 10
        least = max(
            (
                each["least"]
                for each in busts
                if each["id"] == row["id"] and each["ended"] < row["began"]
            ),
            default=1,
        )
        assert found["b"] % 1_000_000 >= least, (row, least)
    for row in rows:
        assert [p for p in row.get("problems", ()) if p[1] == "damaged"] == []
