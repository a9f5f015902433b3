"""A run that someone cancels in Prefect: noticed while it computes, and ended as if Ctrl-C had been pressed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context

from handler.core.errors import PflError
from handler.engine import prefect_run
from handler.engine.call import raise_in_thread
from handler.engine.execute import Invocation

POLL_S = 5  # A run that is shorter costs Prefect no request for this.


@contextmanager
def watch(invocation: Invocation, *, poll_s: float = POLL_S) -> Iterator[threading.Event]:
    """
    Interrupt this thread once the flow run of *invocation* is cancelled, inside a session of Prefect's.

    Yields:
        Set when that happened.
    """
    thread, over, lock, cancelled = threading.get_ident(), threading.Event(), threading.Lock(), threading.Event()
    is_main = threading.current_thread() is threading.main_thread()

    def look() -> None:
        while not over.wait(poll_s):
            try:
                if invocation.flow_run_id is None or not _is_cancelled(invocation.flow_run_id):
                    continue
            except (PflError, ValueError):
                continue  # Prefect does not answer now.
            with lock:
                if not over.is_set():
                    cancelled.set()
                    if is_main:
                        signal.pthread_kill(thread, signal.SIGINT)
                    else:
                        raise_in_thread(thread, KeyboardInterrupt)
            return

    context = copy_context()
    threading.Thread(target=lambda: context.run(look), name="cancel", daemon=True).start()
    try:
        yield cancelled
    finally:
        with lock:
            over.set()


def _is_cancelled(flow_run_id: str) -> bool:
    from uuid import UUID

    with prefect_run.asking() as client:
        state = client.read_flow_run(UUID(flow_run_id)).state
    return state is not None and (state.is_cancelled() or state.is_cancelling())
