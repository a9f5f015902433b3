"""What a run needs, made in a temporary directory and gone after it: project, servers, relays, sandboxes."""

from __future__ import annotations

import compileall
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pfl.cli.benchmark import workloads
from pfl.cli.benchmark.relay import Relay
from pfl.handler.core.declare import catalog
from pfl.handler.core.errors import UnavailableError
from pfl.handler.core.store import objects
from pfl.handler.engine.prefect import client, server
from pfl.handler.engine.prefect.environment import Api

PATIENCE_S = 300
ENGINES = ("functions", "pfl-direct", "pfl-prefect", "prefect")
_OURS = ("PFL_", "PREFECT_", "BENCH_")
_DROPPED = ("PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS", "PYTHONPROFILEIMPORTTIME")
_MOTO = """
import os, sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
os._exit(0)
"""


class Rig(ExitStack):
    """
    A run's surroundings, which end with the ``with`` that it is used in.

    Args:
        tell: Told what is being waited for.
        s3: ``s3://bucket/prefix`` of the user's own; empty: moto, where it is installed.
        api: A Prefect API on loopback; empty: one is started.

    Attributes:
        place: The temporary directory.
        s3_env: The variables that name the S3; None until it is asked for.
    """

    def __init__(self, tell: Callable[[str], None], s3: str = "", api: str = "") -> None:
        self.tell, self._own_s3, self.s3_env, self._s3 = tell, s3, None, None
        self._relays, self._prepared, self._limited, self._api = {}, set(), set(), api
        super().__init__()

    def __enter__(self) -> Rig:
        self.place = Path(
            self.enter_context(
                tempfile.TemporaryDirectory(prefix="pfl-bench-", ignore_cleanup_errors=True)
            )
        )
        self.project = self.place / "project"
        workloads.write(self.project)
        return self

    def api(self, rtt_ms: float) -> Relay:
        """The Prefect server of the run, as far away as that."""
        if not self._api:
            home = self.place / "server"
            self.callback(server.stop, home)
            self._api = server.ensure(home, idle_s=900, progress=self.tell).url
        return self._relay(urlsplit(self._api).port, rtt_ms)

    def s3(self) -> Relay | None:
        """The relay before moto, which is started when it is first asked for; None where the S3 is the user's or there is none."""
        if self._own_s3:
            if self.s3_env is None:
                self.s3_env = {
                    name: value for name, value in os.environ.items() if name.startswith("AWS_")
                }
                self.callback(self.wipe, "s3")
        elif self._s3 is None and has_moto():
            self.tell("starting an S3 (moto)")
            url = self.enter_context(moto())
            self._s3 = self._relay(urlsplit(url).port, 0)
            self.s3_env = {
                "AWS_ENDPOINT_URL": self._s3.url,
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
            }
            self.s3_env |= {
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            import boto3

            given = {
                "endpoint_url": url,
                "region_name": "us-east-1",
                "aws_access_key_id": "bench",
                "aws_secret_access_key": "bench",
            }
            boto3.client("s3", **given).create_bucket(Bucket="bench")
        return self._s3

    def store_url(self, kind: str, engine: str) -> str:
        """Where *engine* keeps its results."""
        if kind == "directory":
            path = self.place / "stores" / engine
            path.mkdir(parents=True, exist_ok=True)
            return str(path)
        self.s3()
        base = self._own_s3.rstrip("/") or "s3://bench"
        return f"{base}/{self.place.name}/{engine}"

    def wipe(self, kind: str) -> None:
        """Empty the stores of that kind."""
        if kind == "directory":
            shutil.rmtree(self.place / "stores", ignore_errors=True)
            return
        for engine in ENGINES[1:]:
            opened = objects.open_store(self.store_url(kind, engine), environ=self.s3_env)
            opened.delete(list(entry.key for entry in opened.list("")))

    def bake(self) -> None:
        """Make the manifest of the code as it is, as building an image does."""
        baked = self.project / "baked.json"
        for folder in self.project.rglob(
            "__pycache__"
        ):  # An edit within one second that keeps a file's size would go unseen.
            shutil.rmtree(folder)
        compileall.compile_dir(self.project, quiet=2)
        environ = self.bare_environ() | {"PFL_PROJECT": str(self.project)}
        subprocess.run(
            [sys.executable, "-m", "pfl.handler.bake", baked],
            env=environ,
            cwd=self.project,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        catalog.baked.cache_clear()

    def environ(self, engine: str, kind: str, rtt_ms: float) -> dict[str, str]:
        """The variables of a sandbox of *engine*."""
        environ = self.bare_environ() | {
            "PFL_PROJECT": str(self.project),
            "PFL_MANIFEST": str(self.project / "baked.json"),
        }
        environ |= {
            "BENCH_RAN": str(self.place / "ran"),
            "PREFECT_HOME": str(self.place / "home"),
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"}
        url = self.store_url(kind, engine)
        if engine.startswith("pfl"):
            environ |= {"PFL_STORE": url, "PFL_ENGINE": engine.removeprefix("pfl-")}
        if engine.endswith("prefect"):
            environ["PREFECT_API_URL"] = f"{self.api(rtt_ms).url}/api"
        if kind == "s3":
            environ |= self.s3_env
        if engine == "prefect":
            environ |= self._block(kind, url)
        return environ

    def sandbox(self, engine: str, kind: str, rtt_ms: float, first: dict, **more: str) -> Sandbox:
        """A new process of *engine*; its first order is told with its start."""
        words = [
            {"functions": "functions", "prefect": "flow"}.get(engine, "pfl"),
            json.dumps(first),
        ]
        command = [
            sys.executable,
            "-c",
            "from pfl.cli.benchmark.sandbox import main; main()",
            *words,
        ]
        return Sandbox(command, self.environ(engine, kind, rtt_ms) | more, self.project)

    def limit(self, ids: list[str]) -> None:
        """Give plain Prefect's tag of each ID a limit of 1."""
        self.api(0)
        for id in set(ids) - self._limited:
            client.ask(
                Api(self._api, "", "bench"),
                "/concurrency_limits/",
                {"tag": f"bench-{id}", "concurrency_limit": 1},
            )
            self._limited.add(id)

    def asked(self, kind: str, rtt_ms: float) -> Counter[str]:
        """How often Prefect was asked so far (``api``), how often it was busy (``refused``), and how often the S3 was, by verb."""
        found: Counter[str] = Counter()
        if (port := urlsplit(self._api).port) and (port, rtt_ms) in self._relays:
            relay = self._relays[port, rtt_ms]
            found["api"], found["refused"] = relay.asked.total(), relay.refused
        if kind == "s3" and (relay := self.s3()) is not None:
            for request, count in relay.asked.items():
                found["get" if request.startswith(("GET", "HEAD")) else "put"] += count
        return found

    def _relay(self, port: int, rtt_ms: float) -> Relay:
        if (port, rtt_ms) not in self._relays:
            self._relays[port, rtt_ms] = self.enter_context(Relay(port, rtt_ms))
        return self._relays[port, rtt_ms]

    def _block(self, kind: str, url: str) -> dict[str, str]:
        """The variables that name Prefect's storage block, which is saved when it is first asked for."""
        if kind not in self._prepared:
            environ = (
                self.bare_environ()
                | (self.s3_env if kind == "s3" else {})
                | {"PREFECT_HOME": str(self.place / "home")}
            )
            self.tell("saving Prefect's storage block")
            self.api(0)
            command = [
                sys.executable,
                "-c",
                "from pfl.cli.benchmark.sandbox import save_block; save_block()",
                kind,
                url,
            ]
            done = subprocess.run(
                command,
                env=environ | {"PREFECT_API_URL": self._api},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            if done.returncode:
                raise UnavailableError(
                    "Prefect took no storage block",
                    why=done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "",
                )
            self._prepared.add(kind)
        return (
            {"BENCH_BLOCK": "local-file-system/bench", "BENCH_FOLDER": url}
            if kind == "directory"
            else {"BENCH_BLOCK": "s3-bucket/bench"}
        )

    def bare_environ(self) -> dict[str, str]:
        """The variables of whoever runs this, without those that change what is measured."""
        left_out = _OURS if self._own_s3 else (*_OURS, "AWS_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(left_out) and name not in _DROPPED
        }
        return kept | {"PYTHONPATH": os.pathsep.join([str(workloads.ROOT), str(self.project)])}


class Sandbox:
    """
    A process that answers calls; see :mod:`pfl.cli.benchmark.sandbox`.

    It ends where the ``with`` that it is used in ends.

    Args:
        command: What to run; its last word is the first order.
        environ: Its variables.
        cwd: Where it runs.
    """

    def __init__(self, command: list[str], environ: dict[str, str], cwd: Path) -> None:
        self._said, started = tempfile.TemporaryFile(), time.perf_counter()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
        # A session of its own, so that its children can be ended with it, and Ctrl-C comes to us alone.
        self._process = subprocess.Popen(
            command, env=environ, cwd=cwd, bufsize=0, start_new_session=True, **pipes
        )
        self._rest, self._started = b"", started

    def first(self, patience_s: float = PATIENCE_S) -> dict:
        """The answer to the order it was started with, timed from the start of the process."""
        told = self.answer(patience_s)
        return told | {
            "ms": (self._answered - self._started) * 1e3,
            "cpu_ms": told.get("cpu_all_ms"),
        }

    def call(self, order: dict, patience_s: float = PATIENCE_S) -> dict:
        """
        The answer to another order.

        Raises:
            UnavailableError: It ended, or did not answer in time.
        """
        self.send(order)
        return self.answer(patience_s)

    def send(self, order: dict) -> None:
        """Give an order, whose answer is asked for later."""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def answer(self, patience_s: float = PATIENCE_S) -> dict:
        """The answer to what was sent."""
        told = json.loads(self._line(patience_s))
        self._answered = self._read_at
        self._line(
            patience_s
        )  # It has settled: what it asks for from now on belongs to another call.
        return told

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._said):
            file.close()

    def _line(self, patience_s: float) -> bytes:
        until, out = time.monotonic() + patience_s, self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise UnavailableError(
                    f"a sandbox did not answer within {patience_s:g} s", why=self._last_words()
                )
            if not (data := os.read(out, 65536)):
                raise UnavailableError("a sandbox ended without an answer", why=self._last_words())
            self._rest, self._read_at = self._rest + data, time.perf_counter()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        end = os.pread(
            self._said.fileno(), 4_000, max(0, os.fstat(self._said.fileno()).st_size - 4_000)
        )
        lines = [line for line in end.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:500] if lines else "it said nothing"


def has_moto() -> bool:
    """Whether there is an S3 to measure with where nobody names one."""
    return find_spec("moto") is not None and find_spec("flask") is not None


@contextmanager
def moto(page_objects: int = 1_000) -> Iterator[str]:
    """
    The URL of AWS as moto plays it, in a process of its own; it ends with its standard input, so also when this process is killed.

    Args:
        page_objects: How many objects a page of a listing holds.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environ = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(page_objects)}
    with subprocess.Popen(
        [sys.executable, "-c", _MOTO], text=True, env=environ, start_new_session=True, **pipes
    ) as process:
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise UnavailableError("moto did not start")
            yield url
        finally:
            process.kill()
