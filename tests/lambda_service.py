"""
A Lambda service on 127.0.0.1 with real sandboxes (AWS's emulator and runtime client), next to moto.

client ─ endpoint ─┬─ /2015-03-31/functions/NAME/invocations ─┬─ sandbox: emulator ─ runtime
                   └─ anything else ─ moto                     └─ …

moto has the functions, with their variables, timeout, memory and reserved concurrency. The emulator
answers one call at a time, and has no FunctionError, log tails, queues, limits or freezing: they
are implemented here.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import rie
from botocore.exceptions import ClientError
from conftest import ROOT

SYNC_BYTES, ASYNC_BYTES = 6 * 1024 * 1024, 1024 * 1024
ATTEMPTS = 3  # Of an asynchronous call: the first, and two more.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_SESSION_TOKEN": "test",
}
THROTTLED = 429, "TooManyRequestsException", "Rate Exceeded."
DENIED = (
    403,
    "AccessDeniedException",
    (
        "User is not authorized to perform: lambda:InvokeFunction"
        " because no identity-based policy allows it"
    ),
)
HANDLER = "pfl.handler.entry.lambda_handler"  # Of an image, which names its own.
_END = re.compile(
    r"^REPORT |Waiting for runtime domain processes termination"
)  # Of a call that was answered; of one that died.
_INVOKE = re.compile(r"/2015-03-31/functions/([^/?]+)/invocations")


class Sandbox:
    """
    One execution environment: an emulator and the runtime it starts.

    Args:
        config: The function, as ``get_function_configuration`` returns it.
        environ: More variables of the runtime.
        task: The folder with the code, as ``/var/task``.
        extension: An executable for ``/opt/extensions``, if any.
    """

    def __init__(
        self, config: dict, environ: dict[str, str], task: Path, extension: Path | None = None
    ) -> None:
        self.memory_bytes, self.most_bytes = config["MemorySize"] * 1024 * 1024, 0
        self._lines: list[str] = []
        self._told = threading.Condition()
        ports = _free_ports(2)
        self._port = ports[0]
        env = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        } | CREDENTIALS
        env |= {
            "PYTHONPATH": f"{task}{os.pathsep}{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "DO_NOT_TRACK": "1",
        } | environ
        env |= config.get("Environment", {}).get("Variables", {})
        env |= {
            "AWS_LAMBDA_FUNCTION_NAME": config["FunctionName"],
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(config["Timeout"]),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(config["MemorySize"]),
            # Without it an idle awslambdaric waits in C, and Python's signal handlers do not run.
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
        }
        command = [
            str(rie.binary()),
            "--runtime-interface-emulator-address",
            f"127.0.0.1:{ports[0]}",
        ]
        command += [
            "--runtime-api-address",
            f"127.0.0.1:{ports[1]}",
            sys.executable,
            "-m",
            "awslambdaric",
            config.get("Handler") or HANDLER,
        ]
        if extension is not None:
            # Its own view of the file system, in which /opt contains only the extension.
            script = (
                "mount -t tmpfs tmpfs /opt && mkdir /opt/extensions "
                '&& cp "$0" /opt/extensions/ && exec "$@"'
            )
            unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
            command = [
                *unshare,
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                str(extension),
                *command,
            ]
        self._process = subprocess.Popen(
            command,
            cwd=task,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        _wait_for_port(self._port, self._process)

    def invoke(self, body: bytes) -> tuple[dict | None, bytes, list[str]]:
        """Return Lambda's error, or None; the answer; and the lines of the log."""
        start = len(self._lines)
        self._signal(signal.SIGCONT)
        over = threading.Event()
        watcher = threading.Thread(target=self._watch_memory, args=(over,))
        watcher.start()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=900)
            connection.request("POST", "/2015-03-31/functions/function/invocations", body)
            response = connection.getresponse()
            status, data = response.status, response.read()
            connection.close()
        finally:
            over.set()
            watcher.join()
        with self._told:
            self._told.wait_for(
                lambda: any(_END.search(line) for line in self._lines[start:]), timeout=2
            )
        self._signal(signal.SIGSTOP)  # Lambda freezes what is idle.
        lines = self._as_lambda_logs(self._lines[start:])
        return *_as_lambda_answers(status, data, lines), lines

    def _as_lambda_logs(self, lines: list[str]) -> list[str]:
        """The lines without the emulator's own, and with Lambda's last line, also after a death."""
        lines = [
            line
            for line in lines
            if "(rapid)" not in line and not line.startswith(("END ", "REPORT "))
        ]
        if not (request_id := _request_id(lines)):
            return lines
        used = min(self.most_bytes, self.memory_bytes) >> 20
        memory = f"Memory Size: {self.memory_bytes >> 20} MB\tMax Memory Used: {used} MB"
        return [
            *lines,
            f"END RequestId: {request_id}",
            f"REPORT RequestId: {request_id}\tDuration: 1.00 ms\tBilled Duration: 1 ms\t{memory}\t",
        ]

    @property
    def log(self) -> list[str]:
        """Everything that the sandbox has printed."""
        return list(self._lines)

    def close(self) -> None:
        """End the sandbox as Lambda does: notify extensions, and kill what is left."""
        self._signal(signal.SIGCONT)
        left = self.processes()
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            with self._told:
                self._lines.append(line.rstrip("\n"))
                self._told.notify_all()

    def _watch_memory(self, over: threading.Event) -> None:
        while True:
            for pid in self.processes():
                try:
                    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
                        "SC_PAGESIZE"
                    )
                    self.most_bytes = max(self.most_bytes, resident)
                    if resident > self.memory_bytes:
                        os.kill(pid, signal.SIGKILL)
                except (OSError, IndexError):
                    continue
            if over.wait(0.02):
                return

    def _signal(self, number: int) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def processes(self) -> list[int]:
        """The processes that the emulator has started, and their children."""
        found, todo = [], [self._process.pid]
        while todo:
            try:
                texts = [
                    task.joinpath("children").read_text()
                    for task in Path(f"/proc/{todo.pop()}/task").iterdir()
                ]
            except OSError:
                continue
            children = [int(pid) for text in texts for pid in text.split()]
            found += children
            todo += children
        return found


def _as_lambda_answers(status: int, data: bytes, lines: list[str]) -> tuple[dict | None, bytes]:
    """The emulator's answer as Lambda would give it: ``(error, body)``."""
    request_id = _request_id(lines)
    try:
        body = json.loads(data)
    except ValueError:
        if data.startswith(b"Task timed out"):
            error = {
                "errorType": "Sandbox.Timedout",
                "errorMessage": f"RequestId: {request_id} Error: {data.decode()}",
            }
            return error, json.dumps(error).encode()
        body = None
    if status == 413 or any("ResponseSizeTooLarge" in line for line in lines):
        body = {
            "errorType": "Function.ResponseSizeTooLarge",
            "errorMessage": "Response payload size exceeded maximum allowed payload size "
            f"({SYNC_BYTES} bytes).",
        }
    elif status == 200 and not (
        isinstance(body, dict) and "errorMessage" in body and body.get("requestId") == request_id
    ):
        return None, data
    error = (
        body
        if isinstance(body, dict)
        else {"errorType": "Runtime.Unknown", "errorMessage": data.decode(errors="replace")}
    )
    return error, json.dumps(error).encode()


def _request_id(lines: list[str]) -> str:
    return next((line.split()[2] for line in lines if line.startswith("START RequestId:")), "")


class LambdaService:
    """
    The service, as clients see it.

    Args:
        behind: The URL of the moto server.
        task: The folder with the code of every function.
        environ: More variables of every sandbox.
        extension: An executable that every sandbox gets as extension.

    Attributes:
        url: The one endpoint.
        dead: Asynchronous calls that failed each time: ``(function, payload, error)``.
        throttle: How many calls to refuse before the next is taken.
        refusals: How calls of a function are refused, :data:`THROTTLED` or :data:`DENIED`.
        asked: Invocations that arrived, refused ones too, as ``(function, type)``.
    """

    def __init__(
        self,
        behind: str,
        task: Path,
        environ: dict[str, str] | None = None,
        extension: Path | None = None,
    ) -> None:
        self.task, self.extension, self.throttle = task, extension, 0
        self.refusals: dict[str, tuple[int, str, str]] = {}
        self.dead: list[tuple[str, bytes, dict]] = []
        self.asked: list[tuple[str, str]] = []
        self._behind, self._lock = behind.removeprefix("http://"), threading.Lock()
        self._pool: dict[str, list[Sandbox]] = {}
        self._all: list[Sandbox] = []
        self._running: dict[str, int] = {}
        self._queued: list[threading.Thread] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._environ = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        } | (environ or {})

    def __enter__(self) -> LambdaService:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.drain()
        self._server.shutdown()
        self._server.server_close()
        self.reset()

    def drain(self) -> None:
        """Wait for the asynchronous calls."""
        while self._queued:
            self._queued.pop().join()

    def reset(self) -> None:
        """End all sandboxes; the next call is a cold start."""
        with self._lock:
            ending, self._all, self._pool = self._all, [], {}
        for sandbox in ending:
            sandbox.close()

    @property
    def sandboxes(self) -> list[Sandbox]:
        """The live sandboxes."""
        return list(self._all)

    def pass_on(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return moto's answer."""
        connection = http.client.HTTPConnection(self._behind, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.status, response.getheaders(), response.read()
        connection.close()
        return answer

    def invoke(
        self, name: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the service's answer."""
        kind = headers.get("x-amz-invocation-type", "RequestResponse")
        self.asked.append((name, kind))
        if name in self.refusals:
            return _refusal(*self.refusals[name])
        asking = {k: v for k, v in headers.items() if k in ("authorization", "host", "x-amz-date")}
        status, _, data = self.pass_on(
            "GET", f"/2015-03-31/functions/{name}/configuration", b"", asking
        )
        if status != 200:
            return _refusal(status, "ResourceNotFoundException", f"Function not found: {name}")
        config = json.loads(data)
        limit = ASYNC_BYTES if kind == "Event" else SYNC_BYTES
        if len(body) > limit:
            why = (
                f"{len(body)} byte payload is too large for the {kind} invocation type "
                f"(limit {limit} bytes)"
            )
            return _refusal(413, "RequestTooLargeException", why)
        if kind == "DryRun":
            return 204, {}, b""
        _, _, said = self.pass_on("GET", f"/2019-09-30/functions/{name}/concurrency", b"", asking)
        most = json.loads(said or b"{}").get("ReservedConcurrentExecutions")
        most = 1000 if most is None else most
        if kind == "Event":
            thread = threading.Thread(target=self._later, args=(name, config, body))
            self._queued.append(thread)
            thread.start()
            return 202, {}, b""
        with self._lock:
            if self.throttle or self._running.get(name, 0) >= most:
                self.throttle = max(0, self.throttle - 1)
                return _refusal(*THROTTLED)
            self._running[name] = self._running.get(name, 0) + 1
        try:
            error, data, lines = self._run(config, body)
        finally:
            with self._lock:
                self._running[name] -= 1
        ids = [line.split()[2] for line in lines if line.startswith("START RequestId:")]
        more = (
            {"X-Amz-Executed-Version": "$LATEST"}
            | ({"x-amzn-requestid": ids[-1]} if ids else {})
            | ({"X-Amz-Function-Error": "Unhandled"} if error else {})
        )
        if headers.get("x-amz-log-type") == "Tail":
            more["X-Amz-Log-Result"] = base64.b64encode("\n".join(lines).encode()[-4096:]).decode()
        return 200, more, data

    def _run(self, config: dict, body: bytes) -> tuple[dict | None, bytes, list[str]]:
        key = json.dumps(
            [config[name] for name in ("FunctionName", "Timeout", "MemorySize")]
            + [config.get("Handler"), config.get("Environment")]
        )
        with self._lock:
            idle = self._pool.setdefault(key, [])
            sandbox = idle.pop() if idle else None
        if sandbox is None:
            sandbox = Sandbox(config, self._environ, self.task, self.extension)
            with self._lock:
                self._all.append(sandbox)
        answer = sandbox.invoke(body)
        with self._lock:
            self._pool.setdefault(key, []).append(sandbox)
        self._to_cloudwatch(config["FunctionName"], answer[2])
        return answer

    def _later(self, name: str, config: dict, body: bytes) -> None:
        for _ in range(ATTEMPTS):
            error, _, _ = self._run(config, body)
            if error is None:
                return
        self.dead.append((name, body, error))

    def _to_cloudwatch(self, name: str, lines: list[str]) -> None:
        logs = boto3.client(
            "logs",
            endpoint_url=f"http://{self._behind}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        group, stream = (
            f"/aws/lambda/{name}",
            f"{time.strftime('%Y/%m/%d')}/[$LATEST]{uuid.uuid4().hex}",
        )
        try:
            logs.create_log_group(logGroupName=group)
        except ClientError:
            pass  # It is there.
        now = time.time_ns() // 1_000_000
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        events = [{"timestamp": now, "message": line} for line in lines if line]
        if events:
            logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def _refusal(status: int, kind: str, message: str) -> tuple[int, dict[str, str], bytes]:
    return (
        status,
        {"x-amzn-ErrorType": kind},
        json.dumps({"Type": "User", "Message": message, "message": message}).encode(),
    )


def _handler(service: LambdaService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = (
            True  # Else each answer would wait 40 ms for the client's acknowledgement.
        )
        wbufsize = -1

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            if self.command == "POST" and (found := _INVOKE.match(self.path)):
                name = found[1].replace("%3A", ":").split(":")[-1]
                status, more, data = service.invoke(name, body, headers)
                pairs = list(
                    (
                        {"content-type": "application/json", "x-amzn-requestid": str(uuid.uuid4())}
                        | more
                    ).items()
                )
            else:
                status, pairs, data = service.pass_on(self.command, self.path, body, headers)
                hop = {"connection", "transfer-encoding", "date", "server"} | (
                    set() if self.command == "HEAD" else {"content-length"}
                )
                pairs = [(k, v) for k, v in pairs if k.lower() not in hop]
            self.send_response(status)
            for name, value in pairs:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do  # noqa: N815 (the names that the base class looks up)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for_port(port: int, process: subprocess.Popen) -> None:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        assert process.poll() is None, f"the emulator ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            threading.Event().wait(0.01)
    raise AssertionError("the emulator did not start")
