"""
How long a cold start takes: run in the image, with its Python, on a store given by a URL.

``python cold_start.py [rounds]`` prints one JSON object per measurement: the medians in
milliseconds of ``rounds`` new processes, which take turns, so that a busy machine slows all of
them. Each process is timed from its start to its reply: ``ms`` by the clock, ``cpu_ms`` of the
processor, which other work on the machine changes little. All of them import awslambdaric first, as
Lambda does. Each process is also reported on stderr when it has ended. Sizes follow, in MB.

What the image leaves out is measured where ``/bench/boto3`` is a folder with boto3.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

RIC = "import awslambdaric.bootstrap, awslambdaric.lambda_runtime_client\n"
HANDLER = (
    RIC
    + """
import json, sys, time
started = time.perf_counter()
from pfl.handler.entry import lambda_handler
ready = time.perf_counter()
reply = lambda_handler(json.loads(sys.argv[1]))
assert reply["status"] == sys.argv[2], reply
print(json.dumps({"init": (ready - started) * 1e3, "call": (time.perf_counter() - ready) * 1e3}))
"""
)
# The least for a hit: Python, Lambda's runtime client, and one object read.
GET = (
    RIC
    + """
import os, obstore
from obstore.store import S3Store
options = {
    "endpoint": os.environ["AWS_ENDPOINT_URL"],
    "region": "us-east-1",
    "client_options": {"allow_http": True},
}
bucket, _, prefix = os.environ["PFL_STORE"].removeprefix("s3://").partition("/")
store = S3Store(bucket, prefix=prefix, **options)
bytes(obstore.get(store, os.environ["ONE_PLAN"]).bytes())
"""
)
# What boto3 would cost; the image does not contain it.
BOTO3 = (
    RIC
    + """
import os, boto3
bucket, _, prefix = os.environ["PFL_STORE"].removeprefix("s3://").partition("/")
key = f"{prefix}/{os.environ['ONE_PLAN']}"
boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
"""
)
# A miss without one of the measures that are only for misses.
BUSY_COLLECTOR = "import gc\ngc.disable = gc.freeze = lambda: None\n" + HANDLER
FASTAPI = HANDLER.replace("ready =", "import fastapi.encoders\nready =")
# A hit with all at the top of the module.
EAGER = HANDLER.replace(
    "ready =",
    "from pfl.handler.engine.prefect import environment, session\nenvironment.load()\nready =",
)
# The least for a miss: Prefect, and the same steps as a plain Prefect flow.
PLAIN = (
    RIC
    + """
from prefect import flow, task
@task
def a(id): return 1234 if id == "abc" else 420
@task
def b(id, a): return a / 3
@task
def c(id, b): return b * 10
@flow
def plain(id): return c(id, b(id, a(id)))
plain("x")
"""
)
LEFT_OUT = "/bench/boto3"
PREFECT = RIC + "from prefect import flow, task\n"


def main(rounds: int) -> None:
    """Measure, and print a line for each measurement."""
    stdlib, ours, theirs = sysconfig.get_path("stdlib"), "/var/task", "/opt/python/site-packages"
    with tempfile.TemporaryDirectory() as folder:
        bare = {}
        for name, path in (("stdlib", stdlib), ("ours", ours), ("theirs", theirs)):
            bare[name] = (
                f"{folder}/{name}/site-packages" if name == "theirs" else f"{folder}/{name}"
            )
            shutil.copytree(
                path,
                bare[name],
                ignore=shutil.ignore_patterns(
                    "__pycache__", "*.pyc", "site-packages", "dist-packages", "test"
                ),
            )
        dynload = f"{stdlib}/lib-dynload"
        paths = {
            "as built": f"{ours}:{theirs}",
            "no bytecode of ours": f"{bare['ours']}:{theirs}",
            "no bytecode of dependencies": f"{ours}:{bare['theirs']}",
            "no bytecode of the standard library": f"{bare['stdlib']}:{dynload}:{ours}:{theirs}",
            "no bytecode at all": f"{bare['stdlib']}:{dynload}:{bare['ours']}:{bare['theirs']}",
        }
        hit, store = json.dumps({"id": "abc"}), os.environ["PFL_STORE"]
        subprocess.run(
            [sys.executable, "-c", HANDLER, hit, "completed"], check=True, stdout=subprocess.DEVNULL
        )
        one = {"PYTHONPATH": paths["as built"], "ONE_PLAN": _plan(hit)}
        unbaked = shutil.copy(os.environ["PFL_MANIFEST"], folder)
        miss = ["MISS", "completed"]
        todo: list[tuple[str, list[str], dict[str, str]]] = [
            ("floor: python -S, awslambdaric, one GET", ["-S", "-c", GET], one),
            ("floor: from prefect import flow, task", ["-c", PREFECT], {}),
            ("floor: the same steps as a plain Prefect flow", ["-c", PLAIN], {}),
        ]
        if os.path.isdir(LEFT_OUT):
            todo.append(
                (
                    "one GET with boto3",
                    ["-S", "-c", BOTO3],
                    one | {"PYTHONPATH": f"{paths['as built']}:{LEFT_OUT}"},
                )
            )
        todo += [
            (f"hit, {label}", ["-c", HANDLER, hit, "completed"], {"PYTHONPATH": path})
            for label, path in paths.items()
        ]
        todo.append(("hit, with all imports at the top", ["-c", EAGER, hit, "completed"], {}))
        todo += [
            (f"miss, {label}", ["-c", HANDLER, *miss], {"PYTHONPATH": path})
            for label, path in paths.items()
        ]
        todo.append(("miss, with the garbage collector at work", ["-c", BUSY_COLLECTOR, *miss], {}))
        todo.append(("miss, with FastAPI", ["-c", FASTAPI, *miss], {}))
        todo.append(
            (
                "miss, with fingerprints found out again",
                ["-c", HANDLER, *miss],
                {"PFL_MANIFEST": unbaked},
            )
        )
        todo.append(("miss, preloaded", ["-c", HANDLER, *miss], {"PFL_PRELOAD": "1"}))
        todo.append(("miss without Prefect", ["-c", HANDLER, *miss], {"PFL_ENGINE": "direct"}))
        took: dict[str, list[dict[str, float]]] = {label: [] for label, _, _ in todo}
        for turn in range(rounds):
            for number, (label, arguments, environ) in enumerate(todo):
                event = json.dumps({"id": f"cold-{os.getpid()}-{turn}-{number}"})
                command = [
                    sys.executable,
                    *(event if each == "MISS" else each for each in arguments),
                ]
                before, started = os.times(), time.perf_counter()
                done = subprocess.run(
                    command,
                    env=os.environ | environ | {"PFL_STORE": store},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                row, after = {"ms": (time.perf_counter() - started) * 1e3}, os.times()
                row["cpu_ms"] = (
                    after.children_user
                    + after.children_system
                    - before.children_user
                    - before.children_system
                ) * 1e3
                took[label].append(
                    row
                    | (json.loads(done.stdout.splitlines()[-1]) if "init" in done.stdout else {})
                )
                print(json.dumps({"what": label} | took[label][-1]), file=sys.stderr, flush=True)
    for label, rows in took.items():
        print(
            json.dumps(
                {"what": label}
                | {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
            ),
            flush=True,
        )
    for label, path in (
        ("the standard library", stdlib),
        ("ours", ours),
        ("dependencies", theirs),
        ("boto3, left out", LEFT_OUT),
    ):
        for name in ("boto3", "botocore") if path == LEFT_OUT and os.path.isdir(path) else ("",):
            sizes = [
                (file.suffix, file.stat().st_size)
                for file in Path(path, name).rglob("*")
                if file.is_file()
            ]
            bytecode = sum(size for suffix, size in sizes if suffix == ".pyc")
            row = {"mb": sum(size for _, size in sizes) / 1e6, "bytecode_mb": bytecode / 1e6}
            print(
                json.dumps(
                    {"what": f"{label} {name}".strip()}
                    | {key: round(value, 1) for key, value in row.items()}
                ),
                flush=True,
            )


def _plan(hit: str) -> str:
    """The key of the one object that this hit reads."""
    code = """
import json, sys
from pfl.handler.core.store.objects import Store
read = []
get = Store.get
Store.get = lambda self, key: read.append(key) or get(self, key)
from pfl.handler.entry import lambda_handler
lambda_handler(json.loads(sys.argv[1]))
print(read[0])
"""
    return subprocess.run(
        [sys.executable, "-c", code, hit], check=True, capture_output=True, text=True
    ).stdout.splitlines()[-1]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
