"""Servers on loopback: AWS (moto) in a process of its own, scripted answers, and proxies."""

from __future__ import annotations

import http.client
import io
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, bytes] | str

_MOTO = """
import os, sys, threading
from moto import backends
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

# moto looks through its folders for each request, which is 40 % of the time of a PUT.
services = frozenset(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: services
# S3 creates an object once; moto looks for it and then writes, in a thread for each request.
put_object, one_at_a_time = S3Response.put_object, threading.Lock()


def put_once(self):
    with one_at_a_time:
        return put_object(self)


S3Response.put_object = put_once
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def s3(page_objects: int = 100) -> Iterator[str]:
    """
    The URL of AWS as moto plays it, in a process of its own.

    That process ends with its standard input, so it also ends when this process is killed.

    Args:
        page_objects: How many objects a page of a listing holds.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        env=os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(page_objects)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert url, "moto did not start"
            yield url
        finally:
            process.kill()


class Loopback:
    """
    An HTTP server that answers each request with ``answer(method, path)``.

    Where that returns None, the request is passed on to *behind*. An answer can also be a fault:
    ``reset`` (the connection breaks), ``lost`` (it breaks after the server behind has done its
    work), ``cut`` (half the body arrives) or ``slow`` (the answer comes late).

    Attributes:
        url: Its address.
        asked: Method and path of each request, in order.
        answer: May be replaced at any time.
        drops: Request headers that are not passed on, in lower case.
    """

    def __init__(self, answer: Callable[[str, str], Answer | None], behind: str = "") -> None:
        self.answer, self.asked, self.drops = answer, [], set()
        outer, host = self, behind.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer.asked.append((self.command, self.path))
                headers: list[tuple[str, str]] = [("content-type", "application/xml")]
                given = outer.answer(self.command, self.path)
                if given == "reset":
                    return self._break()
                if isinstance(given, tuple):
                    status, data = given
                else:
                    connection = http.client.HTTPConnection(host, timeout=30)
                    connection.request(
                        self.command,
                        self.path,
                        body,
                        {k: v for k, v in self.headers.items() if k.lower() not in outer.drops},
                    )
                    response = connection.getresponse()
                    status, data = response.status, response.read()
                    headers = [(k, v) for k, v in response.getheaders() if k.lower() in _KEPT]
                    connection.close()
                if given == "lost":
                    return self._break()
                if given == "slow":
                    threading.Event().wait(0.2)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if "content-length" not in {name.lower() for name, _ in headers}:
                    self.send_header("content-length", str(len(data)))
                self.end_headers()
                if given == "cut" and data and self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2])
                    return self._break()
                self.wfile.write(data)

            def _break(self) -> None:
                self.close_connection = True
                # Unsent data is dropped, and the other side sees a reset.
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
                self.rfile, self.wfile = io.BytesIO(), io.BytesIO()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Loopback:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def function_url(call: Callable[[dict], object]) -> Iterator[str]:
    """
    The address of a function URL, which passes each request to *call* as Lambda does.

    The client does not wait for the answer.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            self.send_response(200)
            self.end_headers()
            http = {"method": "POST", "path": self.path}
            call(
                {
                    "version": "2.0",
                    "requestContext": {"http": http},
                    "headers": dict(self.headers),
                    "body": body,
                    "isBase64Encoded": False,
                }
            )

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = False  # Calls that have begun end first.
        threading.Thread(
            target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        yield f"http://127.0.0.1:{listening.server_port}/"
        listening.shutdown()


_KEPT = {
    "content-type",
    "content-length",
    "etag",
    "last-modified",
    "x-amz-request-id",
    "content-range",
    "accept-ranges",
}


def s3_error(status: int, code: str) -> Answer:
    """An error as S3 sends it."""
    error = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return status, f'<?xml version="1.0"?>{error}'.encode()
