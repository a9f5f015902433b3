"""Sends several requests to the store at the same time, so that their round trips overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import TypeVar

from .objects import Store

T = TypeVar("T")
_MAX_THREADS = 16


def at_once(store: Store, requests: Sequence[Callable[[], T]]) -> list[T]:
    """
    The results of *requests*, in order.

    Args:
        store: The store that they go to. In a directory they are made one after another, which is
            faster there than threads, and the first failure ends them; elsewhere all are made.
        requests: The requests, as functions.

    Raises:
        Exception: What the first request raised that failed.
    """
    if len(requests) < 2 or store.is_local:
        return [request() for request in requests]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(_MAX_THREADS, len(requests))) as pool:
        futures = [pool.submit(copy_context().run, request) for request in requests]
    return [future.result() for future in futures]
