"""
A process that answers calls, as a Lambda sandbox does: ``main``, with a kind and its first order.

Orders are JSON, the first an argument and the others a line each on stdin; answers are lines on
stdout. The kinds are ``functions`` (nothing is stored), ``pfl`` (the handler, with the engine that
the environment names) and ``flow`` (the Prefect flow that a user would write). An order is one of

- ``{"flow": …, "id": …}``: one call;
- ``{"flow": …, "fork": [ids]}``: one call in a process each, all at once;
- ``{"flow": …, "loop": [ids]}``: one call after the other, answered with the total time.

This module imports only what a hit needs. A kind imports the rest itself.
"""

from __future__ import annotations

import json
import os
import sys
import time

# Files of the store that plain Prefect read and wrote.
_touched = {"get": 0, "put": 0}


def main() -> None:
    """Answer orders until stdin ends."""
    kind, first = sys.argv[1:3]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a step prints is not an answer.
    call = _KINDS[kind]()
    order = json.loads(first)
    while order:
        if "fork" in order:
            answer = _at_once(call, order)
        elif "loop" in order:
            answer = _in_turn(call, order)
        else:
            answer = _timed(call, order["flow"], order["id"])
        answer["modules"] = len(sys.modules)
        out.write(json.dumps(answer) + "\n")
        out.flush()
        _settle()
        out.write("settled\n")
        out.flush()
        order = json.loads(sys.stdin.readline() or "null")


def _timed(call, flow: str, id: str) -> dict:
    before = dict(_touched)
    cpu_s = time.process_time()
    started = time.perf_counter()
    answer = call(flow, id)
    answer["began"] = started
    answer["ms"] = (time.perf_counter() - started) * 1e3
    answer["cpu_ms"] = (time.process_time() - cpu_s) * 1e3
    answer["cpu_all_ms"] = time.process_time() * 1e3
    answer.setdefault("store", {verb: count - before[verb] for verb, count in _touched.items()})
    return answer


def _in_turn(call, order: dict) -> dict:
    call(order["flow"], order["loop"][0])  # The first opens the store.
    started = time.perf_counter()
    for id in order["loop"]:
        call(order["flow"], id)
    return {"began": started, "ended": time.perf_counter()}


def _at_once(call, order: dict) -> dict:
    """
    Make all calls at once.

    Each caller is forked from this process, which has imported everything; they start together
    when the pipe that they read from closes.
    """
    gate, go = os.pipe()
    answers, answer = os.pipe()
    children = []
    for id in order["fork"]:
        if (pid := os.fork()) == 0:
            os.close(go)
            os.read(gate, 1)
            try:
                done = _timed(call, order["flow"], id)
                row = {
                    "ended": time.perf_counter(),
                    "status": done.get("status", "completed"),
                    "store": done["store"],
                    "value": done["value"],
                }
            except Exception as exc:
                row = {
                    "ended": time.perf_counter(),
                    "status": f"{type(exc).__name__}: {exc}"[:200],
                    "store": {},
                    "value": None,
                }
            # Short enough to be written to the pipe in one piece.
            os.write(answer, json.dumps(row).encode() + b"\n")
            _settle()
            os._exit(0)
        children.append(pid)
    os.close(answer)
    started = time.perf_counter()
    os.close(go)
    with open(answers, "rb") as pipe:
        calls = [json.loads(line) for line in pipe]
    for pid in children:
        os.waitpid(pid, 0)
    os.close(gate)
    return {"calls": [each | {"ms": (each["ended"] - started) * 1e3} for each in calls]}


def _functions(run=lambda step, id, given: (step(**given), True)):
    import inspect

    from plain.pipeline import FLOWS

    takes = {
        step: tuple(inspect.signature(step).parameters)
        for steps in FLOWS.values()
        for step in steps
    }

    def call(flow: str, id: str) -> dict:
        values = {"id": id, "previous": None, "top": 10}
        computed = 0
        for step in FLOWS[flow]:
            given = {name: values[name] for name in takes[step]}
            values[step.__name__], is_computed = run(step, id, given)
            computed += is_computed
        return {"value": values[step.__name__], "computed": computed}

    return call


def _pfl():
    from pfl.handler.entry import lambda_handler

    # The callers that are forked from here start as sandboxes that have computed before.
    if os.environ.get("BENCH_WARM"):
        from pfl.handler.core.settings import of_process
        from pfl.handler.engine import compute  # noqa: F401
        from pfl.handler.engine.prefect import environment

        environment.prepare(of_process())
        if of_process().engine == "prefect":
            from pfl.handler.engine.prefect import builder, session  # noqa: F401

    def call(flow: str, id: str) -> dict:
        reply = lambda_handler({"flow": flow, "id": id})
        if reply["status"] != "completed":
            error = reply["error"]
            return {
                "value": None,
                "computed": 0,
                "store": reply.get("store", {}),
                "status": f"{error['what']}: {error['why']}"[:200],
            }
        rows = reply["steps"]
        return {
            "value": rows[-1]["value"],
            "computed": sum(row["status"] == "computed" for row in rows),
            "store": reply["store"],
        }

    return call


def _flow():
    import functools

    from prefect import flow, task
    from prefect.cache_policies import INPUTS, TASK_SOURCE

    storage = os.environ["BENCH_BLOCK"]
    folder = os.environ.get("BENCH_FOLDER", "")
    cached = functools.cache(
        lambda step: task(
            step, cache_policy=INPUTS + TASK_SOURCE, persist_result=True, result_storage=storage
        )
    )

    def run(step, id: str, given: dict) -> tuple:
        one_at_a_time = cached(step).with_options(tags=[f"bench-{id}"])
        state = one_at_a_time(**given, return_state=True)
        return state.result(), state.name != "Cached"

    if folder:

        def touched(event: str, details: tuple) -> None:
            if event == "open" and str(details[0]).startswith(folder):
                _touched["get" if details[1] and "r" in details[1] else "put"] += 1

        sys.addaudithook(touched)
    return flow(_functions(run), name="pipeline")


def _settle() -> None:
    """Let Prefect send its remaining logs, since Lambda freezes a sandbox after its reply."""
    if worker := sys.modules.get("prefect.logging.handlers"):
        worker.APILogWorker.drain_all(timeout=20)


def operate() -> None:
    """Time the commands of a user, by name: ``main`` of a process that measures them."""
    from itertools import islice

    from pfl.handler.core.cache import history, inspection
    from pfl.handler.core.settings import Settings
    from pfl.handler.core.store import objects
    from pfl.handler.engine import reap

    settings = Settings.from_env(os.environ)
    opened = objects.of(settings)
    id = sys.argv[1]
    works = {
        "cache ls --id": lambda: len(
            list(inspection.entries(opened, id=id, flow=None, step=None, warn=print))
        ),
        "history ls": lambda: len(list(islice(history.list_records(opened, warn=print), 20))),
        "history ls --id": lambda: len(
            list(islice(history.list_records(opened, id=id, warn=print), 20))
        ),
        "runs reap": lambda: len(list(reap.reap(opened, settings))),
    }
    times: dict[str, list] = {name: [] for name in works}
    for _ in range(int(sys.argv[2])):
        for name, work in works.items():
            before = opened.counts.total()
            started = time.perf_counter()
            found = work()
            ms = (time.perf_counter() - started) * 1e3
            times[name].append((ms, opened.counts.total() - before, found))
    print(json.dumps(times))


def save_block() -> None:
    """Save the storage block that a plain Prefect flow names: ``main`` of a process."""
    import warnings

    warnings.simplefilter("ignore")
    kind, url = sys.argv[1:3]
    if kind == "directory":
        from prefect.filesystems import LocalFileSystem

        block = LocalFileSystem(basepath=url)
    else:
        from prefect_aws import AwsCredentials, S3Bucket

        # Its endpoint is AWS_ENDPOINT_URL of the process that uses it.
        credentials = AwsCredentials(region_name=os.environ.get("AWS_REGION"))
        bucket, _, folder = url.removeprefix("s3://").partition("/")
        block = S3Bucket(bucket_name=bucket, bucket_folder=folder, credentials=credentials)
    block.save("bench", overwrite=True)


_KINDS = {"functions": _functions, "pfl": _pfl, "flow": _flow}
