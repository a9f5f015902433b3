"""``python -m tests.faults [KILLS]``: the long part, and its table; ``--load`` leaves out the single points, ``--bench`` sets leases
beside Prefect's own limits. It starts its own Prefect server and S3."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import servers  # noqa: E402

from handler.core.settings import Settings  # noqa: E402
from handler.engine import prefect_env, server  # noqa: E402

from . import suite  # noqa: E402


def main() -> None:
    kills = int(next((word for word in sys.argv[1:] if word.isdigit()), 1_000))
    with tempfile.TemporaryDirectory() as place, servers.s3() as s3:
        root = Path(place)
        found = server.ensure(root / "prefect-home" / ".pfl", idle_s=3_600)
        prefect_env.prepare(Settings(project=str(root / "prefect-home")))
        os.environ |= {"PREFECT_API_URL": found.url, "AWS_ENDPOINT_URL": s3, "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "PFL_TAG_LIMITS": "per-id"}
        import boto3

        boto3.client("s3").create_bucket(Bucket="faults")
        try:
            if "--bench" in sys.argv:
                from . import bench

                bench.main(root, found.url)
                return
            for kind in () if "--load" in sys.argv else ("directory", "s3"):
                os.environ["PFL_STORE"] = "s3://faults/pfl" if kind == "s3" else ""
                for engine in ("direct", "prefect"):
                    where = root / f"{kind}-{engine}"
                    wrong = suite.every_point(where, suite.project(where), engine)
                    print(f"{kind}, {engine}: killed at every point, {len(wrong)} wrong", flush=True)
                    for point, told in wrong.items():
                        print(f"    {point}: {told}", flush=True)
            for kind, engine, share, points in (("directory", "direct", 0.6, 40), ("s3", "direct", 0.2, 40), ("directory", "prefect", 0.2, 150)):
                os.environ["PFL_STORE"] = "s3://faults/pfl" if kind == "s3" else ""
                where = root / f"load-{kind}-{engine}"
                settings = suite.project(where)
                started = time.monotonic()
                table = suite.under_load(where, settings, engine, kills=int(kills * share), points=points)
                print(f"\n{kind}, {engine}: 8 processes over 20 IDs, {time.monotonic() - started:.0f} s")
                for what, number in table.items():
                    print(f"    {what:<42}{number:>8}", flush=True)
        finally:
            server.stop(root / "prefect-home" / ".pfl")


if __name__ == "__main__":
    main()
