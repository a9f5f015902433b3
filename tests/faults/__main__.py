"""``python -m tests.faults [KILLS]``: the long part, and its table. It starts its own Prefect server and S3."""

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
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    with tempfile.TemporaryDirectory() as place, servers.s3() as s3:
        root = Path(place)
        found = server.ensure(root / "prefect-home" / ".pfl", idle_s=3_600)
        prefect_env.prepare(Settings(project=str(root / "prefect-home")))
        os.environ |= {"PREFECT_API_URL": found.url, "AWS_ENDPOINT_URL": s3, "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        import boto3

        boto3.client("s3").create_bucket(Bucket="faults")
        try:
            for kind in ("directory", "s3"):
                os.environ["PFL_STORE"] = "s3://faults/pfl" if kind == "s3" else ""
                for engine in ("direct", "prefect"):
                    where = root / f"{kind}-{engine}"
                    settings = suite.project(where)
                    name = f"{kind}-{engine}"
                    wrong = suite.every_point(where, settings, engine, name=name)
                    print(f"{name}: killed at every point, {len(wrong)} wrong")
                    for point, told in wrong.items():
                        print(f"    {point}: {told}")
            where = root / "load"
            os.environ["PFL_STORE"] = ""
            settings = suite.project(where)
            for engine, share in (("direct", 0.8), ("prefect", 0.2)):
                started = time.monotonic()
                table = suite.under_load(where, settings, engine, kills=int(kills * share))
                print(f"\n{engine}, 8 processes over 20 IDs, {time.monotonic() - started:.0f} s")
                for what, number in table.items():
                    print(f"    {what:<36}{number:>8}")
        finally:
            server.stop(root / "prefect-home" / ".pfl")


if __name__ == "__main__":
    main()
