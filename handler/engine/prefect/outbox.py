"""
What Prefect's engine reports during a call: logs and events, sent in bulk beside the steps.

A task run's states are events. Prefect sends them through a websocket, which takes four round trips
to open and one to close, and each artifact waits for the one before. Here they are collected:

    steps      a ──────────── b ──────────── c ── end
    requests         (0.5 s) events, logs           └ events, logs, artifacts, state: at once

Prefect Cloud receives its events from Prefect's own websocket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any

from ...core import links
from ...core.errors import PflError
from ...core.store.values import JsonObject
from . import client
from .environment import Api

if TYPE_CHECKING:
    from prefect.events import Event

# The longest wait for what Prefect still has to receive.
FLUSH_S = 10
# How long a report waits for others to go with it; a reaper waits for what a killed process has not
# sent.
_PAUSE_S = 0.5
_PATHS = {"events": "/events", "lines of log": "/logs/"}
# How many lines and events are kept for a Prefect that does not answer, and sent at once.
_KEPT = 20_000
_BATCH = 500
# The outbox of this call, for a call that one of its steps makes in this process.
_current: ContextVar[Outbox | None] = ContextVar("_current", default=None)


class Outbox:
    """
    Collects what one call reports to a Prefect API.

    Attributes:
        api: The API.
    """

    def __init__(self, api: Api) -> None:
        self.api = api
        self._problems: dict[str, list[PflError]] = {}
        self._collected: dict[str, deque[JsonObject]] = {
            what: deque(maxlen=_KEPT) for what in _PATHS
        }
        self._sending: list[threading.Thread] = []
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()

    def put(self, item: tuple[str, Event]) -> None:
        """Take an event from Prefect's worker, as the queue of its forwarding client."""
        self._collect("events", item[1].model_dump(mode="json"))

    def log(self, line: dict[str, Any]) -> None:
        """Take a line of a run's log."""
        # The page shows this state anyway, and a log of nothing else is not worth a request.
        if not line["message"].startswith("Finished in state Completed("):
            line.pop("__payload_size__", None)
            self._collect("lines of log", line)

    def artifact(self, body: JsonObject) -> None:
        """Send an artifact, beside the steps that follow."""
        self._send("artifacts", "/artifacts/", body)

    def flush(self, deadline: float | None, beside: Callable[[], object] = lambda: None) -> object:
        """
        Send all that is left, while this thread does *beside*, and wait until Prefect has it.

        Args:
            deadline: When the process will be killed, as a ``time.monotonic()`` reading.
            beside: Another request.

        Returns:
            What *beside* returned.
        """
        from prefect.logging.handlers import APILogWorker

        remaining_s = (deadline or inf) - time.monotonic() - 0.5
        longest_s = min(FLUSH_S, max(0.1, remaining_s))

        def send_last() -> None:
            # Prefect's worker attaches to each event what the event is about.
            APILogWorker.drain_all(timeout=longest_s)
            self._send_collected()

        if self._timer is not None:
            self._timer.cancel()
        self._sending.append(_start(send_last))
        try:
            return beside()
        finally:
            self.wait(longest_s)

    def wait(self, longest_s: float) -> None:
        """Wait for the requests that are under way, and those that they lead to."""
        until = time.monotonic() + longest_s
        for thread in self._sending:
            thread.join(max(0.0, until - time.monotonic()))

    def warnings(self) -> Iterator[str]:
        """Yield what was not sent, and why, once."""
        while self._problems:
            what, problems = self._problems.popitem()
            yield f"{len(problems)} {what} were not written ({problems[0]})"
        if any(thread.is_alive() for thread in self._sending):
            yield "Prefect has not received all logs and states yet"

    def _collect(self, what: str, item: JsonObject) -> None:
        self._collected[what].append(item)
        with self._lock:
            if self._timer is None or not self._timer.is_alive():
                self._timer = threading.Timer(_PAUSE_S, self._send_collected)
                self._timer.daemon = True
                self._timer.start()

    def _send_collected(self) -> None:
        with self._lock:
            for what, items in self._collected.items():
                while items:
                    size = min(_BATCH, len(items))
                    self._send(what, _PATHS[what], [items.popleft() for _ in range(size)])

    def _send(self, what: str, path: str, body: object) -> None:
        def post() -> None:
            try:
                client.ask(self.api, path, body, longest_s=client.AWAY_S)
            except PflError as exc:
                self._problems.setdefault(what, []).append(exc)

        self._sending.append(_start(post))


@contextmanager
def collecting(api: Api) -> Iterator[Outbox]:
    """Collect what Prefect's engine reports in this process, until the end of the block."""
    outer = _current.get()
    outbox = Outbox(api)
    token = _current.set(outbox)
    _connect(outbox)
    try:
        yield outbox
    finally:
        _connect(outer)
        _current.reset(token)


def _connect(outbox: Outbox | None) -> None:
    """Connect Prefect's engine with an outbox, or with Prefect itself."""
    from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient
    from prefect.logging.handlers import set_api_log_sink

    set_api_log_sink(None if outbox is None else outbox.log)
    if outbox is None or links.is_cloud(outbox.api.url):
        EventsWorker.set_client_override(None)
    else:
        EventsWorker.set_client_override(ProcessPoolForwardingEventsClient, event_queue=outbox)


def _start(act: Callable[[], None]) -> threading.Thread:
    # A daemon: a Prefect that does not answer does not keep the process alive.
    thread = threading.Thread(target=act, name="to Prefect", daemon=True)
    thread.start()
    return thread
