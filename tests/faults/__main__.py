"""
The long form of the fault suite; it starts its own Prefect server and S3.

    python -m tests.faults [KILLS]      all parts; so many kills at random (1,000)
    python -m tests.faults --points     killed at every point, and paused at every point
    python -m tests.faults --outages    the store fails at each request, at two, and at random
    python -m tests.faults --load       killed at random under load
    python -m tests.faults --bench      leases beside Prefect's own tag limits; no part of "all"

``--part N`` makes the first two smaller: every Nth point and outage. The exit code is 1 if a count
that has to be 0 is not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import servers  # noqa: E402

from pfl.handler.core.settings import Settings  # noqa: E402
from pfl.handler.engine.prefect import environment, server  # noqa: E402

from . import bench, outages, suite  # noqa: E402

# Engine, store, share of the kills.
LOADS = (
    ("direct", "directory", 0.55),
    ("direct", "s3", 0.2),
    ("prefect", "directory", 0.15),
    ("prefect", "s3", 0.1),
)
ROUNDS = {
    "directory": 150,
    "s3": 50,
}  # A new bucket after this many kills: moto scans a whole bucket to list a few objects.
# Engine, fault, whether the calls bust what is stored, and how many cases one is taken from: a call
# with a bust has thousands, and a client waits seconds for an S3 that fails.
OUTAGES = (
    ("direct", "disk full", False, 1),
    ("direct", "permissions", False, 1),
    ("direct", "file size", False, 1),
    ("direct", "open files", False, 1),
    ("direct", "403", False, 2),
    ("direct", "500", False, 40),
    ("direct", "reset", False, 40),
    ("direct", "disk full", True, 20),
    ("direct", "permissions", True, 20),
    ("direct", "open files", True, 20),
    ("direct", "403", True, 60),
    ("prefect", "disk full", False, 10),
    ("prefect", "permissions", False, 10),
    ("prefect", "403", False, 20),
)
# Engine, fault, and how often the store fails.
AT_RANDOM = (
    ("direct", "disk full", 400),
    ("direct", "permissions", 400),
    ("direct", "403", 150),
    ("prefect", "disk full", 100),
)


def main() -> int:
    """Run the parts that were asked for; return 1 if one of them went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("kills", type=int, nargs="?", default=1_000)
    parser.add_argument("--part", type=int, default=1)
    for name in ("points", "outages", "load", "bench"):
        parser.add_argument(f"--{name}", action="append_const", dest="parts", const=name)
    asked = parser.parse_args()
    parts: dict[str, Callable[[Path], bool]] = {
        "points": lambda root: points(root, asked.part),
        "outages": lambda root: outages_of_all_kinds(root, asked.part),
        "load": lambda root: load(root, asked.kills),
        "bench": lambda root: bench.main(root, os.environ["PREFECT_API_URL"]) is None,
    }
    with tempfile.TemporaryDirectory() as place, servers.s3() as s3:
        root = Path(place)
        found = server.ensure(root / "prefect-home" / ".pfl", idle_s=36_000)
        environment.prepare(Settings(project=str(root / "prefect-home")))
        os.environ |= {
            "PREFECT_API_URL": found.url,
            "AWS_ENDPOINT_URL": s3,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "PFL_TAG_LIMITS": "per-id",
        }
        try:
            results = {name: parts[name](root) for name in asked.parts or list(parts)[:-1]}
            return 0 if all(results.values()) else 1
        finally:
            server.stop(root / "prefect-home" / ".pfl")


def points(root: Path, stride: int) -> bool:
    """Kill at every point, and pause at every point; return whether all is well."""
    is_well = True
    for engine, kind, _ in LOADS:
        where = root / f"points-{kind}-{engine}"
        _store(kind, f"points-{engine}")
        settings = suite.project(where)
        tried = {"killed": suite.every_point(where, settings, engine, stride=stride)}
        if engine == "direct":
            tried["paused"] = suite.every_pause(where, settings, engine, stride=stride)
        for how, (count, wrong) in tried.items():
            print(f"{engine}, {kind}: {how} at {count} points, {len(wrong)} wrong", flush=True)
            for point, told in wrong.items():
                print(f"    {point}: {told}", flush=True)
                is_well = False
    return is_well


def outages_of_all_kinds(root: Path, stride: int) -> bool:
    """Let the store fail in each way, as two tables; return whether all is well."""
    titles: list[str] = []
    tables: list[Counter[str]] = []

    def count(title: str, engine: str, kind: str, run: Callable[[outages.Place], Counter]) -> None:
        started = time.monotonic()
        try:
            with outages.place(root / f"outage-{len(titles)}", kind, engine) as at:
                tables.append(run(at))
        except PermissionError as exc:
            print(f"{title}: left out, a disk needs root ({exc})", flush=True)
            return
        titles.append(title)
        took_s = time.monotonic() - started
        print(f"{title}: {dict(tables[-1])} in {took_s:.0f} s", file=sys.stderr, flush=True)

    for engine, kind, busts, every in OUTAGES:
        title = f"{engine}, {kind}{', bust' if busts else ''}"

        def run(at: outages.Place, busts: bool = busts, every: int = every) -> Counter:
            return outages.every_request(at, stride=every * stride, busts=busts)

        count(title, engine, kind, run)
    for engine, kind, times in AT_RANDOM:

        def run_at_random(at: outages.Place, times: int = times) -> Counter:
            return outages.at_random(at, outages=max(10, times // stride))

        count(f"{engine}, {kind}, at random", engine, kind, run_at_random)
    _print_table("a failing store", titles, tables)
    return _is_well(tables, outages.COUNTS)


def load(root: Path, kills: int) -> bool:
    """Kill at random under load, as one table; return whether all is well."""
    tables = []
    for number, (engine, kind, share) in enumerate(LOADS):
        counted, left, started = Counter(), round(kills * share), time.monotonic()
        while left > 0:
            where = root / f"load-{kind}-{engine}-{left}"
            _store(kind, f"load-{engine}-{left}")
            found = suite.under_load(
                where,
                suite.project(where),
                engine,
                kills=min(ROUNDS[kind], left),
                seed=number * 10_000 + left,
            )
            # Not +=, which drops what is 0.
            counted.update(found)
            left -= found["killed"]
            print(
                f"{engine}, {kind}: {counted['killed']} killed "
                f"in {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        tables.append(counted)
        print(f"{engine}, {kind}: {dict(counted)}", file=sys.stderr, flush=True)
    _print_table("at random", [f"{engine}, {kind}" for engine, kind, _ in LOADS], tables)
    return _is_well(tables, suite.COUNTS)


def _print_table(title: str, columns: Sequence[str], tables: Sequence[Counter[str]]) -> None:
    """Print a row for each count."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    for cells in ([title, *columns], *([name, *(str(t[name]) for t in tables)] for name in names)):
        print("| " + " | ".join(cells) + " |", flush=True)


def _is_well(tables: Sequence[Counter[str]], names: Sequence[str]) -> bool:
    return not any(table[name] for table in tables for name in names)


def _store(kind: str, bucket: str) -> None:
    os.environ["PFL_STORE"] = f"s3://{bucket}/pfl" if kind == "s3" else ""
    if kind == "s3":
        import boto3

        boto3.client("s3").create_bucket(Bucket=bucket)


if __name__ == "__main__":
    sys.exit(main())
