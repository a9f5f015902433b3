"""
Prints how long it takes from *Run* in Prefect's UI to the first line of user code.

    python tests/bench_run.py [RUNS [PART]...]

It measures Prefect's process worker, ours before a warm and a cold sandbox (AWS's emulator), one
poll, and an automation that calls the function's URL; all with one real server on loopback. Both
workers look for runs every two seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import servers
from conftest import ROOT, Project
from lambda_service import LambdaService
from test_engine import ask
from test_lambda import Deployed, _role

from pfl.handler.core.settings import Settings
from pfl.handler.engine.prefect import environment, server, session

EVERY_S = "2"
STAMP = """
    import os, time
    from prefect import flow

    @flow
    def stamp(name: str) -> None:
        with open(os.path.join(os.environ["MEET"], name), "w") as file:
            file.write(str(time.time()))
"""


def press(url: str, deployment: str, meet: Path, name: str) -> float:
    """Press *Run*; seconds until user code ran."""
    id = ask(url, f"/deployments/name/stamp/{deployment}")["id"]
    began = time.time()
    ask(
        url,
        f"/deployments/{id}/create_flow_run",
        {"parameters": {"name": name}, "state": {"type": "SCHEDULED"}},
    )
    path = meet / name
    while not path.exists() or not path.read_text():
        assert time.time() < began + 300, f"{name} did not run"
        time.sleep(0.005)
    return float(path.read_text()) - began


@contextlib.contextmanager
def worker(*command: str):
    environ = os.environ | {"PREFECT_WORKER_QUERY_SECONDS": EVERY_S}
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert any("started!" in line for line in process.stdout)
    threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def row(name: str, seconds: list[float]) -> None:
    print(
        f"{name:<44} median {statistics.median(seconds):6.2f} s   least {min(seconds):6.2f} s   "
        f"n={len(seconds)}",
        flush=True,
    )


def main(runs: int, parts: set[str]) -> None:
    root = Path(tempfile.mkdtemp())
    project, meet = Project(root), root / "meet"
    meet.mkdir()
    project.ship()
    project.write(STAMP, "stamp")
    os.environ |= {
        "PFL_PROJECT": str(root),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "MEET": str(meet)}
    environment.prepare(Settings(project=str(root)))
    found = server.ensure(root / ".pfl", idle_s=900)
    os.environ["PREFECT_API_URL"] = url = found.url
    try:
        with servers.s3() as s3_url, LambdaService(s3_url, root) as service:
            os.environ["AWS_ENDPOINT_URL"] = service.url
            import boto3

            from pfl.serverless import prefect_setup

            deployed = Deployed(
                service, root, boto3.client("lambda", endpoint_url=service.url), _role(), meet
            )
            (root / ".pfl" / "store").mkdir(parents=True, exist_ok=True)
            more = {
                "PFL_ENGINE": "prefect",
                "PFL_MANIFEST": "",
                "PREFECT_API_URL": url,
                "PFL_STORE": str(root / ".pfl" / "store"),
            }
            function = deployed.function(timeout=120, memory=1024, **more)
            settings = Settings(project=str(root), prefect_api_url=url)
            with session.session(settings, lambda step, doing: None) as api:
                for change in prefect_setup.deployments(
                    api, settings, pool="pfl", function=function
                ):
                    change.make()
                flow_id = ask(url, "/flows/", {"name": "stamp"})["id"]
                from prefect.workers.process import ProcessWorker

                template = ProcessWorker.get_default_base_job_template()
                ask(
                    url,
                    "/work_pools/",
                    {"name": "local", "type": "process", "base_job_template": template},
                )
                body = {
                    "flow_id": flow_id,
                    "name": "process",
                    "work_pool_name": "local",
                    "path": str(root),
                    "entrypoint": "flows/stamp.py:stamp",
                }
                ask(url, "/deployments/", body)
            if "process" in parts:
                with worker("prefect", "worker", "start", "--type", "process", "--pool", "local"):
                    press(url, "process", meet, "process-first")
                    row(
                        "Prefect's process worker",
                        [press(url, "process", meet, f"process-{n}") for n in range(runs)],
                    )
            if "worker" in parts:
                with worker("pfl.cli.main", "worker", "start", "--every", EVERY_S):
                    row("pfl worker, cold sandbox", [press(url, "lambda", meet, "lambda-first")])
                    service.drain()
                    took = []
                    for n in range(runs):
                        took.append(press(url, "lambda", meet, f"lambda-{n}"))
                        service.drain()
                    row("pfl worker, warm sandbox", took)
            if "poll" in parts:
                took = []
                for n in range(runs):
                    id = ask(url, "/deployments/name/stamp/lambda")["id"]
                    ask(
                        url,
                        f"/deployments/{id}/create_flow_run",
                        {"parameters": {"name": f"poll-{n}"}, "state": {"type": "SCHEDULED"}},
                    )
                    began = time.time()
                    assert deployed.raw(function, {"action": "poll"})["runs"][0]["invoked"] is True
                    service.drain()
                    took.append(float((meet / f"poll-{n}").read_text()) - began)
                row("one poll, from its event on", took)
                idle = [deployed.raw(function, {"action": "poll"})["ms"] / 1e3 for _ in range(10)]
                row("a poll that finds nothing, warm, inside", idle)
            if "webhook" in parts:
                with session.session(settings, lambda step, doing: None):
                    webhook(url, deployed, function, meet, runs)
    finally:
        server.stop(root / ".pfl")


def webhook(url: str, deployed: Deployed, function: str, meet: Path, runs: int) -> None:
    """The automation of docs/prefect.md; the function's URL is a small server here."""
    from prefect.blocks.webhook import Webhook

    with servers.function_url(lambda request: deployed.raw(function, request)) as address:
        recipe = json.loads(
            re.search(r"```json\n(.*?)```", (ROOT / "docs" / "prefect.md").read_text(), flags=re.S)[
                1
            ]
        )
        block = Webhook(method="POST", url=address, allow_private_urls=True).save("function-url")
        recipe["actions"][0]["block_document_id"] = str(block)
        ask(url, "/automations/", recipe)
        time.sleep(5)  # Prefect loads new triggers in the background.
        row(
            "an automation that calls the function's URL",
            [press(url, "lambda", meet, f"hook-{n}") for n in range(runs)],
        )


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 5,
        set(sys.argv[2:]) or {"process", "worker", "poll", "webhook"},
    )
