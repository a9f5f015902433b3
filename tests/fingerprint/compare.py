"""
The same cases for other tools: ``python tests/fingerprint/compare.py [EVERY]``.

Prints how many changes that must bust each tool notices, and how many that must not bust leave its
key alone. The tools are not dependencies of this project; those not installed are listed. Prefect,
redun, Hamilton and joblib report what they hash of a function; charmonium.cache its frozen form,
with and without the assumption of purity.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from corpus import HERE, REPOSITORY, Case, copy_all, folder_of, load_cases

SECONDS = 4  # per case; a tool that takes longer counts as an error


def ours() -> Callable[[Any], Any]:
    """This project."""
    sys.path.append(str(REPOSITORY))
    from pfl.handler.core.fingerprint import fingerprint

    return lambda function: fingerprint(function).digest


def prefect_task_source() -> Callable[[Any], Any]:
    """Prefect's TASK_SOURCE policy."""
    from prefect import task
    from prefect.cache_policies import TASK_SOURCE

    return lambda function: TASK_SOURCE.compute_key(SimpleNamespace(task=task(function)), {}, {})


def redun() -> Callable[[Any], Any]:
    """The hash of a redun task."""
    from redun import task

    return lambda function: task(function, name="step", namespace="case").hash


def hamilton() -> Callable[[Any], Any]:
    """Hamilton's hash of a node's source."""
    from hamilton.graph_types import hash_source_code

    return lambda function: hash_source_code(function, strip=True)


def joblib() -> Callable[[Any], Any]:
    """The source that joblib.Memory compares."""
    from joblib.func_inspect import get_func_code

    return lambda function: get_func_code(function)[0]


def powertools() -> Callable[[Any], Any]:
    """The key of Lambda Powertools' idempotency: the function's name and the event."""
    from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig
    from aws_lambda_powertools.utilities.idempotency.persistence.dynamodb import (
        DynamoDBPersistenceLayer,
    )

    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

    def key(function: Any) -> str:
        layer = DynamoDBPersistenceLayer(table_name="any")
        layer.configure(IdempotencyConfig(), f"{function.__module__}.{function.__qualname__}")
        return layer._get_hashed_idempotency_key({"id": "abc"})

    return key


def charmonium() -> Callable[[Any], Any]:
    """charmonium.cache as it is."""
    from charmonium.freeze import freeze

    return lambda function: freeze(function)


def charmonium_impure() -> Callable[[Any], Any]:
    """charmonium.cache, without the assumption that functions are pure."""
    from charmonium.freeze import Config, freeze

    return lambda function: freeze(function, Config(assume_purity=False))


TOOLS = (
    ours,
    prefect_task_source,
    redun,
    hamilton,
    joblib,
    powertools,
    charmonium,
    charmonium_impure,
)


def serve(name: str) -> None:
    """Read folders from stdin and print keys, each from a forked process without a project."""
    make = globals()[name]
    key = make()
    for line in sys.stdin:
        folder, target, path = json.loads(line)
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read)
            signal.alarm(SECONDS)
            os.chdir(folder)
            sys.path[:1] = [folder, *path]
            with open(write, "w") as pipe, open(os.devnull, "w") as nowhere:
                sys.stdout = sys.stderr = nowhere
                try:
                    module, _, function = target.partition(":")
                    said = repr(key(getattr(importlib.import_module(module), function)))
                    json.dump(hashlib.sha256(said.encode("utf-8", "replace")).hexdigest(), pipe)
                except BaseException:
                    json.dump({"error": traceback.format_exc()[-300:]}, pipe)
            os._exit(0)
        os.close(write)
        with open(read) as pipe:
            print(pipe.read() or '{"error": "it ended"}', flush=True)
        os.waitpid(pid, 0)


def keys(
    tool: str, side: str, seed: int, cases: list[Case], place: Path, python: str = sys.executable
) -> list[Any]:
    """The keys of one side of all *cases* under *python*; none if the tool is not installed."""
    environ = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    jobs = []
    for case in cases:
        folder = folder_of(case, side, place)
        jobs.append(json.dumps([str(folder), case.target, [str(folder / "site-packages")]]))
    command = [python, str(HERE / "compare.py"), "--serve", tool]
    done = subprocess.run(
        command,
        input="\n".join(jobs) + "\n",
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        [json.loads(line) for line in done.stdout.splitlines() if line[:1] in '"{']
        if done.returncode == 0
        else []
    )


def main(every: int) -> None:
    """Print the table, over one in *every* cases."""
    cases = [case for case in load_cases() if case.can_run() and not case.name.startswith("huge_")][
        ::every
    ]
    rows, absent = [], []
    with tempfile.TemporaryDirectory() as name:
        copy_all(cases, Path(name))
        for tool in TOOLS:
            print(f"{tool.__name__} …", file=sys.stderr)
            sides = [
                keys(tool.__name__, side, seed, cases, Path(name))
                for side, seed in (("before", 1), ("after", 4_000))
            ]
            if not all(len(side) == len(cases) for side in sides):
                absent.append(tool.__name__)
                continue
            rows.append((tool, score(cases, *sides)))
    print(f"{'':<22}{'noticed of':>12}{'quiet of':>12}{'errors':>10}")
    bust, keep = (sum(case.expect == expect for case in cases) for expect in ("bust", "keep"))
    print(f"{'':<22}{bust:>12}{keep:>12}{len(cases):>10}")
    for tool, (noticed, quiet, errors) in rows:
        print(f"{tool.__name__:<22}{noticed:>12}{quiet:>12}{errors:>10}")
    if absent:
        print(f"not installed, or not working here: {', '.join(absent)}")


def score(cases: list[Case], before: list[Any], after: list[Any]) -> tuple[int, int, int]:
    """How many changes were noticed, how many rightly not, and how many cases failed."""
    noticed = quiet = errors = 0
    for case, old, new in zip(cases, before, after, strict=True):
        if isinstance(old, dict) or isinstance(new, dict):
            errors += 1
        elif case.expect == "bust":
            noticed += old != new
        else:
            quiet += old == new
    return noticed, quiet, errors


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
