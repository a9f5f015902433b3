"""
The long part of the fault suite, and its tables; it starts its own Prefect server and S3.

    python -m tests.faults [KILLS]      at every point, then so many at random under load (1,000)
    python -m tests.faults --points     at every point alone
    python -m tests.faults --load       at random alone
    python -m tests.faults --bench      leases beside Prefect's own tag limits
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import servers  # noqa: E402

from pfl.handler.core.settings import Settings  # noqa: E402
from pfl.handler.engine.prefect import environment, server  # noqa: E402

from . import bench, suite  # noqa: E402

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


def main() -> None:
    kills = int(next((word for word in sys.argv[1:] if word.isdigit()), 1_000))
    with tempfile.TemporaryDirectory() as place, servers.s3() as s3:
        root = Path(place)
        found = server.ensure(root / "prefect-home" / ".pfl", idle_s=36_000)
        environment.prepare(Settings(project=str(root / "prefect-home")))
        os.environ |= {
            "PREFECT_API_URL": found.url,
            "AWS_ENDPOINT_URL": s3,
            "AWS_REGION": "us-east-1",
        }
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "PFL_TAG_LIMITS": "per-id",
        }
        try:
            if "--bench" in sys.argv:
                bench.main(root, found.url)
                return
            if "--load" not in sys.argv:
                points(root)
            if "--points" not in sys.argv:
                load(root, kills)
        finally:
            server.stop(root / "prefect-home" / ".pfl")


def points(root: Path) -> None:
    """Kill at every point, and pause at every point."""
    for engine, kind, _ in LOADS:
        where = root / f"points-{kind}-{engine}"
        _store(kind, f"points-{engine}")
        wrong = suite.every_point(where, suite.project(where), engine)
        print(f"{engine}, {kind}: killed at every point, {len(wrong)} wrong", flush=True)
        for point, told in wrong.items():
            print(f"    {point}: {told}", flush=True)
        if engine == "direct":
            paused = suite.every_pause(where, suite.settings_of(where), engine)
            print(f"{engine}, {kind}: paused at every point, {len(paused)} wrong", flush=True)
            for point, told in paused.items():
                print(f"    {point}: {told}", flush=True)


def load(root: Path, kills: int) -> None:
    """Kill at random under load, as one table."""
    tables = []
    for number, (engine, kind, share) in enumerate(LOADS):
        counted, left, started = Counter(), round(kills * share), time.monotonic()
        while left > 0:
            where = root / f"load-{kind}-{engine}-{left}"
            _store(kind, f"load-{engine}-{left}")
            counted += (
                found := suite.under_load(
                    where,
                    suite.project(where),
                    engine,
                    kills=min(ROUNDS[kind], left),
                    seed=number * 10_000 + left,
                )
            )
            left -= found["killed"]
            print(
                f"{engine}, {kind}: {counted['killed']} killed "
                f"in {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        tables.append(counted)
        names = list(found)
        print(f"{engine}, {kind}: {dict(counted)}", file=sys.stderr, flush=True)
    for what in ("at random", *names):
        cells = (
            [f"{engine}, {kind}" for engine, kind, _ in LOADS]
            if what == "at random"
            else [str(table[what]) for table in tables]
        )
        print("| " + " | ".join((what, *cells)) + " |", flush=True)


def _store(kind: str, bucket: str) -> None:
    os.environ["PFL_STORE"] = f"s3://{bucket}/pfl" if kind == "s3" else ""
    if kind == "s3":
        import boto3

        boto3.client("s3").create_bucket(Bucket=bucket)


if __name__ == "__main__":
    main()
