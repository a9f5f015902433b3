"""The project, servers, relays and sandboxes of a run, in a temporary directory."""

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
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import servers

from benchmarks import workloads
from benchmarks.relay import Relay
from pfl.handler.core.declare import catalog
from pfl.handler.core.errors import UnavailableError
from pfl.handler.core.store import objects
from pfl.handler.engine.prefect import client, server
from pfl.handler.engine.prefect.environment import Api

PATIENCE_S = 300
ENGINES = ("functions", "pfl-direct", "pfl-prefect", "prefect")
_OURS = ("PFL_", "PREFECT_", "BENCH_")
_DROPPED = ("PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS", "PYTHONPROFILEIMPORTTIME")


class Rig(ExitStack):
    """
    The surroundings of a run; they end with the ``with`` block.

    Args:
        report: Called with what the run is waiting for.
        s3: The user's own ``s3://bucket/prefix``; empty: moto, where it is installed.
        api: A Prefect API on loopback; empty: one is started.

    Attributes:
        place: The temporary directory.
        s3_env: The variables that name the S3; None until it is first used.
    """

    def __init__(self, report: Callable[[str], None], s3: str = "", api: str = "") -> None:
        self.report = report
        self.s3_env: dict[str, str] | None = None
        self._own_s3 = s3
        self._api = api
        self._s3: Relay | None = None
        self._s3_url = ""
        self._relays: dict[tuple[int, float], Relay] = {}
        self._kinds_with_block: set[str] = set()
        self._limited: set[str] = set()
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
        """A relay to the Prefect server of the run, with this round-trip time."""
        if not self._api:
            home = self.place / "server"
            self.callback(server.stop, home)
            self._api = server.ensure(home, idle_s=900, progress=self.report).url
        return self._relay(urlsplit(self._api).port, rtt_ms)

    def s3(self) -> Relay | None:
        """The relay to moto, started on first use; None for the user's own S3 and without moto."""
        if self._own_s3:
            if self.s3_env is None:
                self.s3_env = {
                    name: value for name, value in os.environ.items() if name.startswith("AWS_")
                }
                self.callback(self.wipe, "s3")
        elif self._s3 is None and has_moto():
            self.report("starting an S3 (moto)")
            url = self._s3_url = self.enter_context(servers.s3(1_000))
            self._s3 = self._relay(urlsplit(url).port, 0)
            self.s3_env = {
                "AWS_ENDPOINT_URL": self._s3.url,
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            import boto3

            client_of_moto = boto3.client(
                "s3",
                endpoint_url=url,
                region_name="us-east-1",
                aws_access_key_id="bench",
                aws_secret_access_key="bench",
            )
            client_of_moto.create_bucket(Bucket="bench")
        return self._s3

    def slow_s3(self, ms: float) -> Relay:
        """Another relay to moto, which delays each request by *ms*."""
        self.s3()
        return self.enter_context(Relay(urlsplit(self._s3_url).port, ms, connect_ms=0))

    def slow_api(self, ms: float) -> Relay:
        """Another relay to the Prefect server, which delays each request by *ms*."""
        self.api(0)
        return self.enter_context(Relay(urlsplit(self._api).port, ms, connect_ms=0))

    def store_url(self, kind: str, engine: str) -> str:
        """The store of *engine*."""
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
            opened.delete([entry.key for entry in opened.list("")])

    def bake(self) -> None:
        """Make the manifest of the code as it is, as building an image does."""
        baked = self.project / "baked.json"
        # Python would miss an edit that keeps a file's size and happens within the same second.
        for folder in self.project.rglob("__pycache__"):
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
        """The environment of a sandbox of *engine*."""
        environ = self.bare_environ() | {
            "PFL_PROJECT": str(self.project),
            "PFL_MANIFEST": str(self.project / "baked.json"),
            "BENCH_RAN": str(self.place / "ran"),
            "PREFECT_HOME": str(self.place / "home"),
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        }
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

    def sandbox(self, engine: str, kind: str, rtt_ms: float, first: dict, **extra: str) -> Sandbox:
        """A new process of *engine*, started with its first order and *extra* variables."""
        answers_as = {"functions": "functions", "prefect": "flow"}.get(engine, "pfl")
        code = "from benchmarks.sandbox import main; main()"
        command = [sys.executable, "-c", code, answers_as, json.dumps(first)]
        return Sandbox(command, self.environ(engine, kind, rtt_ms) | extra, self.project)

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

    def requests(self, kind: str, rtt_ms: float) -> Counter[str]:
        """
        How many requests there were so far.

        ``api`` counts Prefect's, ``refused`` those that it was too busy for; those to S3 are
        counted by verb.
        """
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
        """The variables that name Prefect's storage block, which is saved on first use."""
        if kind not in self._kinds_with_block:
            environ = (
                self.bare_environ()
                | (self.s3_env if kind == "s3" else {})
                | {"PREFECT_HOME": str(self.place / "home")}
            )
            self.report("saving Prefect's storage block")
            self.api(0)
            code = "from benchmarks.sandbox import save_block; save_block()"
            done = subprocess.run(
                [sys.executable, "-c", code, kind, url],
                env=environ | {"PREFECT_API_URL": self._api},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            if done.returncode:
                raise UnavailableError(
                    "Prefect refused the storage block",
                    why=done.stderr.strip().rpartition("\n")[2],
                )
            self._kinds_with_block.add(kind)
        if kind == "directory":
            return {"BENCH_BLOCK": "local-file-system/bench", "BENCH_FOLDER": url}
        return {"BENCH_BLOCK": "s3-bucket/bench"}

    def bare_environ(self) -> dict[str, str]:
        """The variables of this process, without those that change what is measured."""
        left_out = _OURS if self._own_s3 else (*_OURS, "AWS_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(left_out) and name not in _DROPPED
        }
        path = [str(workloads.ROOT / "tests"), str(self.project)]
        return kept | {"PYTHONPATH": os.pathsep.join(path)}


class Sandbox:
    """
    A process that answers calls; see :mod:`benchmarks.sandbox`.

    It ends with the ``with`` block.

    Args:
        command: The command; its last word is the first order.
        environ: Its environment.
        cwd: Its working directory.
    """

    def __init__(self, command: list[str], environ: dict[str, str], cwd: Path) -> None:
        self._stderr = tempfile.TemporaryFile()
        self._rest = b""
        self._started = time.perf_counter()
        # In a session of its own its children can be ended with it, and Ctrl-C reaches only us.
        self._process = subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            bufsize=0,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )

    def first(self, patience_s: float = PATIENCE_S) -> dict:
        """The answer to the order it was started with, timed from the start of the process."""
        answer = self.answer(patience_s)
        answer["ms"] = (self._answered - self._started) * 1e3
        answer["cpu_ms"] = answer.get("cpu_all_ms")
        return answer

    def call(self, order: dict, patience_s: float = PATIENCE_S) -> dict:
        """
        The answer to another order.

        Raises:
            UnavailableError: The process ended, or did not answer in time.
        """
        self.send(order)
        return self.answer(patience_s)

    def send(self, order: dict) -> None:
        """Send an order; :meth:`answer` waits for its answer."""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def answer(self, patience_s: float = PATIENCE_S) -> dict:
        """The answer to the order that was sent."""
        answer = json.loads(self._line(patience_s))
        self._answered = self._read_at
        # Once it has settled, its further requests belong to another call.
        self._line(patience_s)
        return answer

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._stderr):
            file.close()

    def _line(self, patience_s: float) -> bytes:
        until = time.monotonic() + patience_s
        out = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise UnavailableError(
                    f"a sandbox did not answer within {patience_s:g} s", why=self._last_line()
                )
            if not (data := os.read(out, 65536)):
                raise UnavailableError("a sandbox ended without an answer", why=self._last_line())
            self._read_at = time.perf_counter()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_line(self) -> str:
        end = os.pread(
            self._stderr.fileno(), 4_000, max(0, os.fstat(self._stderr.fileno()).st_size - 4_000)
        )
        lines = [line for line in end.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:500] if lines else "it printed nothing on stderr"


def has_moto() -> bool:
    """Whether moto is installed: an S3 to measure with when the user names none."""
    return find_spec("moto") is not None and find_spec("flask") is not None
