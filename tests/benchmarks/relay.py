"""A loopback proxy that delays what passes and counts the requests among it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from dataclasses import dataclass

_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1")


@dataclass
class Exchange:
    """
    A request and its answer, as the client sees them.

    Attributes:
        request: Method and path.
        began_s: When it was sent, as a ``time.monotonic()`` reading.
        ended_s: When the last byte of the answer arrived.
    """

    request: str
    began_s: float
    ended_s: float


class Relay:
    """
    Passes bytes on to a port, WebSockets too, each after half of *rtt_ms*.

    Args:
        port: The port on loopback.
        rtt_ms: The round-trip time that it adds.
        connect_ms: What a new connection costs in addition; None: one round trip.

    Attributes:
        url: Its address.
        connections: How many connections were opened.
        exchanges: All requests, in the order in which they were sent.
        asked: How many requests with each method and path were answered.
        refused: How many answers were 503. Prefect on SQLite sends it when it is busy, and its
            clients try again.
    """

    def __init__(self, port: int, rtt_ms: float = 0, connect_ms: float | None = None) -> None:
        self.rtt_s = rtt_ms / 1e3
        self.connect_s = self.rtt_s if connect_ms is None else connect_ms / 1e3
        self.connections = 0
        self.exchanges: list[Exchange] = []
        self.asked: Counter[str] = Counter()
        self.refused = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task | None] = set()  # A loop holds its tasks weakly.

    def __enter__(self) -> Relay:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # Transports close in the next turn of the loop.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        self.connections += 1
        last: Exchange | None = None
        task = asyncio.current_task()
        self._serving.add(task)

        def asks(data: bytes, due_s: float) -> None:
            nonlocal last
            # Clients wait for an answer before they send again, so a request starts a piece.
            if found := _REQUEST.match(data):
                now_s = self._loop.time()
                last = Exchange(f"{found[1].decode()} {found[2].decode()}", now_s, now_s)
                self.exchanges.append(last)
                self.asked[last.request] += 1

        def answers(data: bytes, due_s: float) -> None:
            nonlocal last
            if last is None:
                return  # A message of a WebSocket, or the end of the connection.
            if data.startswith(b"HTTP/1.1 503"):
                self.asked[last.request] -= 1
                self.refused += 1
            if data:
                last.ended_s = due_s
            if data.startswith(b"HTTP/1.1 101"):
                last = None

        try:
            there = self._pass_on(reader, behind[1], asks, self.connect_s)
            await asyncio.gather(there, self._pass_on(behind[0], writer, answers, 0))
            await asyncio.sleep(self.rtt_s)  # Bytes on their way still arrive.
        except asyncio.CancelledError:
            pass  # The relay ends. asyncio would print a traceback for a task that was cancelled.
        finally:
            writer.close()
            behind[1].close()
            self._serving.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note, first_s: float
    ) -> None:
        """Read without waiting and write when it is due, so that no piece waits for another."""
        data = b"-"
        due_s = self._loop.time() + self.rtt_s / 2 + first_s
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            # Timers that are due at the same moment would run in any order.
            due_s = max(due_s + 1e-6, self._loop.time() + self.rtt_s / 2)
            note(data, due_s)
            self._loop.call_at(due_s, *((writer.write, data) if data else (writer.close,)))
