"""A loopback proxy that delays what passes and counts the requests among it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter

_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1")


class Relay:
    """
    Passes bytes on to a port, WebSockets too, each after half of *rtt_ms*; a new connection costs one round trip more.

    Attributes:
        url: Where it listens.
        asked: How often each method and path was asked for, and answered.
        refused: How often the answer was 503, as a Prefect on SQLite gives it when it is busy, and clients ask again.
    """

    def __init__(self, port: int, rtt_ms: float = 0) -> None:
        self._port, self.rtt_s, self.asked, self.refused = port, rtt_ms / 1e3, Counter(), 0
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
        await asyncio.sleep(0)  # What was closed is closed in the next turn.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        last = [""]
        self._serving.add(task := asyncio.current_task())

        def asks(data: bytes) -> None:
            # Clients wait for an answer before they ask again, so a request is the start of a piece.
            if found := _REQUEST.match(data):
                last[0] = f"{found[1].decode()} {found[2].decode()}"
                self.asked[last[0]] += 1

        def answers(data: bytes) -> None:
            if data.startswith(b"HTTP/1.1 503"):
                self.asked[last[0]] -= 1
                self.refused += 1

        try:
            there = self._pass_on(reader, behind[1], asks, self.rtt_s)
            await asyncio.gather(there, self._pass_on(behind[0], writer, answers, 0))
            await asyncio.sleep(self.rtt_s)  # What is on its way still arrives.
        finally:
            writer.close()
            behind[1].close()
            self._serving.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note, first_s: float
    ) -> None:
        """Read without waiting, write when it is time: a delay of each piece, and no limit to how many are on their way."""
        data, due_s = b"-", self._loop.time() + self.rtt_s / 2 + first_s
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            note(data)
            due_s = max(
                due_s + 1e-6, self._loop.time() + self.rtt_s / 2
            )  # Timers of one moment would go in any order.
            self._loop.call_at(due_s, *((writer.write, data) if data else (writer.close,)))
