"""A relay of bytes before a server: passed on, counted, and broken when told."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable

_REQUEST = re.compile(rb"^(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP/1")


class Gate:
    """
    Everything is passed on, web sockets too, unless *fault* is ``down``, ``500`` or ``slow``.

    Attributes:
        url: Prefect's API through it.
        port: Where the server is; it may move.
        asked: How often each method and path was asked for.
    """

    def __init__(self, port: int, fault: Callable[[], str] = lambda: "") -> None:
        self.port, self._fault, self.asked = port, fault, Counter()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/api"

    def __enter__(self) -> Gate:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, socket.create_connection(("127.0.0.1", self.port)) as behind:
                threading.Thread(target=self._back, args=(behind, client), daemon=True).start()
                while data := client.recv(65536):
                    fault = self._fault()
                    if fault == "down":
                        return
                    if fault == "500":
                        client.sendall(
                            b"HTTP/1.1 500 Internal Server Error\r\n"
                            b"content-length: 2\r\nconnection: close\r\n\r\n{}"
                        )
                        return
                    if fault == "slow":
                        threading.Event().wait(0.3)
                    if found := _REQUEST.match(data):
                        self.asked[f"{found[1].decode()} {found[2].decode()}"] += 1
                    behind.sendall(data)
        except OSError:
            pass  # One side has gone.

    def _back(self, behind: socket.socket, client: socket.socket) -> None:
        try:
            while data := behind.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass
