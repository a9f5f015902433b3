"""
The same cached chain of three steps in other tools: two more tables for publish.py.

The tables show how long a hit takes, cold (a fresh process) and warm, next to pfl and plain
Prefect; and how many changes of the fingerprint suite each tool answers with an old value. The
tools are the extra ``rivals``; they may be installed for another interpreter, because redun's pins
and ours may conflict. A tool that is not installed there is left out, and the run reports it.

joblib, redun and Hamilton keep their results in a directory (redun in SQLite), Powertools'
idempotency in DynamoDB, which is moto. Powertools stores the reply of a whole handler, the others
store each step; it is measured with and without its local cache.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fingerprint")]

from pfl.handler.core.errors import UnavailableError  # noqa: E402

FLOW = "meaning"
# By function of rival.py: what to install, its name, where it keeps results.
TOOLS = {
    "joblib": ("joblib", "joblib", "directory"),
    "redun": ("redun", "redun", "SQLite"),
    "hamilton": ("sf-hamilton", "Hamilton", "directory"),
    "powertools": ("aws-lambda-powertools", "Powertools idempotency", "DynamoDB (moto)"),
    "powertools_local": (
        "aws-lambda-powertools",
        "Powertools idempotency, local cache",
        "DynamoDB (moto)",
    ),
}
S3 = "pfl, on S3"
# The names of the tools in compare.py.
JUDGED = {
    "pfl": "ours",
    "plain Prefect": "prefect_task_source",
    "joblib": "joblib",
    "redun": "redun",
    "Hamilton": "hamilton",
    "Powertools idempotency": "powertools",
}


def measure(python: str, rounds: int, calls: int) -> tuple[list[dict], list[dict]]:
    """Rows of hits, one per tool, fastest cold hit first; and what was left out."""
    from benchmarks import rig as rigs

    rows, left_out = [], []
    with rigs.Rig(lambda text: print(text, file=sys.stderr)) as rig:
        record_runs(rig.project)
        rig.bake()
        rig.limit(["id0"])
        s3 = rig.s3()
        makers = {
            "pfl": lambda first: rig.sandbox("pfl-direct", "directory", 0, first),
            "plain Prefect": lambda first: rig.sandbox("prefect", "directory", 0, first),
        }
        versions = {"pfl": "this", "plain Prefect": importlib.metadata.version("prefect")}
        where = {"pfl": "directory", "plain Prefect": "directory"}
        if s3 is not None:
            makers[S3] = lambda first: rig.sandbox("pfl-direct", "s3", 0, first)
            versions[S3] = "this"
            where[S3] = "S3 (moto)"
            make_tables(rig.s3_env, "powertools", "powertools_local")
        for tool, (package, name, store) in TOOLS.items():
            found = installed(python, package)
            if not found or (tool.startswith("powertools") and s3 is None):
                missing = "moto" if found else package
                why = f"{missing} is not installed: pip install -e '.[rivals]'"
                left_out.append(_left_out(name, why))
                continue
            versions[name] = found
            where[name] = store
            makers[name] = maker(rig, python, tool)
        order = {"flow": FLOW, "id": "id0"}
        found = {name: {"cold": [], "warm": [], "modules": 0} for name in makers}

        def drop(name: str, exc: Exception) -> None:
            del makers[name], found[name]
            left_out.append(_left_out(name, f"it failed: {exc}"))

        for name, make in list(makers.items()):
            try:
                with make(order) as box:  # Computes, and compiles each tool's bytecode.
                    if (computed := box.first()["computed"]) != 3:
                        raise UnavailableError(f"it computed {computed} of 3 steps at first")
            except (OSError, UnavailableError) as exc:
                drop(name, exc)
        for number in range(rounds):
            boxes = {}
            with ExitStack() as stack:
                # A later tool runs next to the processes of the others, so the order alternates.
                for name in list(makers)[:: 1 if number % 2 == 0 else -1]:
                    try:
                        boxes[name] = stack.enter_context(makers[name](order))
                        answer = boxes[name].first()
                        _note(found[name]["cold"], answer)
                        found[name]["modules"] = answer["modules"]
                    except UnavailableError as exc:
                        drop(name, exc)
                for _ in range(calls):
                    for name in [each for each in boxes if each in makers]:
                        try:
                            _note(found[name]["warm"], boxes[name].call(order))
                        except UnavailableError as exc:
                            drop(name, exc)
            print(f"rivals: {number + 1} of {rounds} rounds", file=sys.stderr)
    for name, each in found.items():
        middle = {start: round(statistics.median(each[start]), 3) for start in ("cold", "warm")}
        rows.append(
            {
                "tool": "pfl" if name == S3 else name,
                "version": versions[name],
                "store": where[name],
                "cold_ms": middle["cold"],
                "warm_ms": middle["warm"],
                "modules": each["modules"],
            }
        )
    return sorted(rows, key=lambda row: row["cold_ms"]), left_out


def record_runs(project: Path) -> None:
    """Let each plain step record that it ran."""
    for path in (project / "plain").glob("[abc].py"):
        code = path.read_text()
        record = f'getattr(sys.modules["__main__"], "_ran", []).append("{path.stem}")'
        code = code.replace("    return ", f"    {record}\n    return ")
        path.write_text("import sys\n" + code)


def _note(times: list[float], answer: dict) -> None:
    if answer["computed"]:
        raise UnavailableError("it computed where a hit was expected")
    times.append(answer["ms"])


def _left_out(what: str, why: str) -> dict:
    return {"what": what, "why": why, "section": "rivals"}


def maker(rig, python: str, tool: str, **extra: str):
    """A function that starts a process of *tool* with its first order and *extra* variables."""
    from benchmarks.rig import Sandbox

    place = rig.place / "rivals" / tool
    place.mkdir(parents=True)
    environ = (
        rig.bare_environ()
        | (rig.s3_env or {})
        | {
            "BENCH_PLACE": str(place),
            "BENCH_TABLE": tool,
            "HOME": str(rig.place),
            "HAMILTON_TELEMETRY_ENABLED": "false",
        }
        | extra
    )
    command = [python, str(ROOT / "tests" / "benchmarks" / "rival.py"), tool]
    return lambda first: Sandbox([*command, json.dumps(first)], environ, rig.project)


def make_tables(environ: dict[str, str], *names: str) -> None:
    """Make tables of that name in DynamoDB."""
    import boto3

    given = {
        "endpoint_url": environ["AWS_ENDPOINT_URL"],
        "region_name": "us-east-1",
        "aws_access_key_id": "x",
        "aws_secret_access_key": "x",
    }
    key = {"AttributeName": "id"}
    options = {
        "BillingMode": "PAY_PER_REQUEST",
        "KeySchema": [key | {"KeyType": "HASH"}],
        "AttributeDefinitions": [key | {"AttributeType": "S"}],
    }
    for table in names:
        boto3.client("dynamodb", **given).create_table(TableName=table, **options)


def installed(python: str, package: str) -> str:
    """The version of *package* there; empty if it is not installed."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def judge(python: str, every: int) -> tuple[list[dict], list[dict]]:
    """
    How many changes of the fingerprint suite each tool noticed; and what was left out.

    Args:
        python: The interpreter that has the tools.
        every: Take one case in this many.
    """
    import compare
    from corpus import copy_all, load_cases

    cases = [
        case
        for case in load_cases()
        if case.can_run() and not case.needs and not case.name.startswith("huge_")
    ][::every]
    rows, left_out = [], []
    with tempfile.TemporaryDirectory() as place:
        copy_all(cases, Path(place))
        for tool, name in JUDGED.items():
            chosen = sys.executable if tool in ("pfl", "plain Prefect") else python
            sides = [
                compare.keys(name, side, seed, cases, Path(place), chosen)
                for side, seed in (("before", 1), ("after", 4_000))
            ]
            if not all(len(side) == len(cases) for side in sides):
                left_out.append(
                    _left_out(
                        f"{tool} on the fingerprint suite",
                        "it is not installed or does not work here",
                    )
                )
                continue
            noticed, quiet, errors = compare.score(cases, *sides)
            bust = sum(case.expect == "bust" for case in cases)
            # A tool that raised gave no answer, so no stale one either.
            failed = sum(
                case.expect == "bust" and any(isinstance(key, dict) for key in both)
                for case, *both in zip(cases, *sides, strict=True)
            )
            row = {
                "tool": tool,
                "changes": bust,
                "noticed": noticed,
                "failed": failed,
                "harmless": len(cases) - bust,
                "quiet": quiet,
                "errors": errors,
            }
            rows.append(row)
            print(f"fingerprint suite: {tool}", file=sys.stderr)
    return rows, left_out


def add(
    run: dict, python: str, save: Callable[[], None], *, rounds: int, calls: int, every: int
) -> None:
    """Add both tables to *run*, which is saved after each."""
    run["rivals"], absent = measure(python, rounds, calls)
    # A tool that an earlier try left out may be installed now.
    run["left_out"] = absent + [each for each in run["left_out"] if each.get("section") != "rivals"]
    save()
    run["stale"], absent = judge(python, every)
    run["left_out"] = absent + run["left_out"]
    save()
