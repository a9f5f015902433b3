"""A run that someone cancels in Prefect: noticed while it computes, and ended as if Ctrl-C had been pressed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from handler.core.errors import PflError
from handler.engine import prefect_api
from handler.engine.call import raise_in_thread
from handler.engine.execute import Invocation

POLL_S = 5  # A run that is shorter costs Prefect no request for this.


@contextmanager
def watch(invocation: Invocation, api: prefect_api.Api, *, poll_s: float = POLL_S) -> Iterator[threading.Event]:
    """
    Interrupt this thread once the flow run of *invocation* is cancelled.

    Yields:
        Set when that happened.
    """
    thread, over, lock, cancelled = threading.get_ident(), threading.Event(), threading.Lock(), threading.Event()
    is_main = threading.current_thread() is threading.main_thread()

    def look() -> None:
        while not over.wait(poll_s):
            try:
                run = prefect_api.ask(api, f"/flow_runs/{invocation.flow_run_id}") if invocation.flow_run_id else None
            except PflError:
                continue  # Prefect does not answer now.
            if run is None or run["state_type"] not in ("CANCELLED", "CANCELLING"):
                continue
            with lock:
                if not over.is_set():
                    cancelled.set()
                    if is_main:
                        signal.pthread_kill(thread, signal.SIGUSR2)
                    else:
                        raise_in_thread(thread, KeyboardInterrupt)
            return

    # Not SIGINT, which a shell lets its background jobs ignore.
    before = signal.signal(signal.SIGUSR2, signal.default_int_handler) if is_main else None
    threading.Thread(target=look, name="cancel", daemon=True).start()
    try:
        yield cancelled
    finally:
        with lock:
            over.set()
        if is_main:
            signal.signal(signal.SIGUSR2, before)
