"""
The same cached three-step chain in other tools: two tables more for a run of ``pfl bench``, which publish.py asks for.

How long a hit takes, cold (a fresh process) and warm, beside pfl and plain Prefect; and how many of the fingerprint suite's changes
each tool answers with an old value. The tools are the extra ``rivals``; they may be those of another interpreter, since
redun's pins and ours may not go together. One that is not installed there is left out, and the run says so.

joblib, redun and Hamilton keep their results in a directory (redun in SQLite), Powertools' idempotency in DynamoDB, which is moto.
Powertools keeps the reply of a whole handler, the others each step.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fingerprint")]

FLOW, TABLE = "meaning", "bench"
PACKAGES = {"joblib": "joblib", "redun": "redun", "hamilton": "sf-hamilton", "powertools": "aws-lambda-powertools"}
NAMES = {"joblib": "joblib", "redun": "redun", "hamilton": "Hamilton", "powertools": "Powertools idempotency"}
STORES = {"joblib": "directory", "redun": "SQLite", "hamilton": "directory", "powertools": "DynamoDB (moto)"}
S3 = "pfl, on S3"
# What compare.py calls the tools.
JUDGED = {"pfl": "ours", "plain Prefect": "prefect_task_source", "joblib": "joblib", "redun": "redun", "Hamilton": "hamilton", "Powertools idempotency": "powertools"}


def measure(python: str, rounds: int, calls: int) -> tuple[list[dict], list[dict]]:
    """Rows of hits, one a tool, fastest cold first; and what was left out."""
    from cli.benchmark import rig as rigs

    rows, left_out = [], []
    with rigs.Rig(lambda text: print(text, file=sys.stderr)) as rig:
        for path in (rig.project / "plain").glob("[abc].py"):  # Each step says that it ran.
            code = path.read_text()
            path.write_text("import sys\n" + code.replace("    return ", f'    getattr(sys.modules["__main__"], "_ran", []).append("{path.stem}")\n    return '))
        rig.bake()
        rig.limit(["id0"])
        s3 = rig.s3()
        makers = {"pfl": lambda first: rig.sandbox("pfl-direct", "directory", 0, first), "plain Prefect": lambda first: rig.sandbox("prefect", "directory", 0, first)}
        versions, where = {"pfl": "this", "plain Prefect": importlib.metadata.version("prefect")}, {"pfl": "directory", "plain Prefect": "directory"}
        if s3 is not None:
            makers[S3], versions[S3], where[S3] = (lambda first: rig.sandbox("pfl-direct", "s3", 0, first)), "this", "S3 (moto)"
            _table(rig.s3_env)
        for tool, name in NAMES.items():
            found = _installed(python, PACKAGES[tool])
            if not found or (tool == "powertools" and s3 is None):
                left_out.append({"what": name, "why": f"{PACKAGES[tool] if not found else 'moto'} is not installed: pip install -e '.[rivals]'"})
                continue
            versions[name], where[name] = found, STORES[tool]
            makers[name] = _maker(rig, python, tool)
        order, found = {"flow": FLOW, "id": "id0"}, {name: {"cold": [], "warm": [], "modules": 0} for name in makers}
        for name, make in makers.items():
            with make(order) as box:  # Computes, and makes each tool's bytecode.
                assert box.first()["computed"] == 3 or name == "plain Prefect", name
        for _ in range(rounds):
            boxes = {}
            with ExitStack() as stack:
                for name, make in makers.items():
                    boxes[name] = stack.enter_context(make(order))
                    _note(found[name]["cold"], name, told := boxes[name].first())
                    found[name]["modules"] = told["modules"]
                for _ in range(calls):
                    for name, box in boxes.items():
                        _note(found[name]["warm"], name, box.call(order))
            print(f"rivals: {len(found['pfl']['cold'])} of {rounds} rounds", file=sys.stderr)
    for name, each in found.items():
        middle = {start: round(statistics.median(each[start]), 3) for start in ("cold", "warm")}
        about = {"tool": "pfl" if name == S3 else name, "version": versions[name], "store": where[name]}
        rows.append(about | {"cold_ms": middle["cold"], "warm_ms": middle["warm"], "modules": each["modules"]})
    return sorted(rows, key=lambda row: row["cold_ms"]), left_out


def _note(times: list[float], name: str, told: dict) -> None:
    assert told["computed"] == 0, f"{name}: that was no hit"
    times.append(told["ms"])


def _maker(rig, python: str, tool: str):
    from cli.benchmark.rig import Sandbox

    place = rig.place / "rivals" / tool
    place.mkdir(parents=True)
    environ = rig.bare_environ() | (rig.s3_env or {}) | {"BENCH_PLACE": str(place), "BENCH_TABLE": TABLE, "HOME": str(rig.place), "POWERTOOLS_DEV": "false"}
    command = [python, str(ROOT / "tests" / "benchmarks" / "rival.py"), tool]
    return lambda first: Sandbox([*command, json.dumps(first)], environ, rig.project)


def _table(environ: dict[str, str]) -> None:
    import boto3

    given = {"endpoint_url": environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
    key = {"AttributeName": "id"}
    boto3.client("dynamodb", **given).create_table(
        TableName=TABLE, BillingMode="PAY_PER_REQUEST", KeySchema=[key | {"KeyType": "HASH"}], AttributeDefinitions=[key | {"AttributeType": "S"}]
    )


def _installed(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def judge(python: str, every: int) -> tuple[list[dict], list[dict]]:
    """How many changes of the fingerprint suite each tool noticed, one in *every* case; and what was left out."""
    import compare
    from corpus import copy_all, load_cases

    cases = [case for case in load_cases() if case.can_run() and not case.needs and not case.name.startswith("huge_")][::every]
    rows, left_out = [], []
    with tempfile.TemporaryDirectory() as place:
        copy_all(cases, Path(place))
        for tool, name in JUDGED.items():
            chosen = sys.executable if tool in ("pfl", "plain Prefect") else python
            sides = [compare.keys(name, side, seed, cases, Path(place), chosen) for side, seed in (("before", 1), ("after", 4_000))]
            if not all(len(side) == len(cases) for side in sides):
                left_out.append({"what": f"{tool} on the fingerprint suite", "why": "it is not installed, or does not work here"})
                continue
            noticed, quiet, errors = compare.score(cases, *sides)
            bust = sum(case.expect == "bust" for case in cases)
            rows.append({"tool": tool, "changes": bust, "noticed": noticed, "harmless": len(cases) - bust, "quiet": quiet, "errors": errors})
            print(f"fingerprint suite: {tool}", file=sys.stderr)
    return rows, left_out


def add(run: dict, python: str, *, rounds: int, calls: int, every: int) -> None:
    """Both tables, put into *run*."""
    run["rivals"], absent = measure(python, rounds, calls)
    run["stale"], unjudged = judge(python, every)
    known = {each["what"] for each in run["left_out"]}
    run["left_out"] = [each for each in absent + unjudged if each["what"] not in known] + run["left_out"]
