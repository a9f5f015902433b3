"""
HTTP connections that stay open between requests: a new one costs one round trip, or three with TLS.

httpx comes with Prefect, finds proxies and certificates as Prefect's own client does, and takes a
tenth of the time of Prefect to import.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 20
# A frozen process does not see that its server, or a router in between, has dropped a connection.
_IDLE_S = 20
_lock = threading.Lock()
_client: httpx.Client | None = None
# By the wall clock, which goes on while a process is frozen.
_used_at = 0.0


def exchange(
    method: str, url: str, data: bytes | None, headers: dict[str, str]
) -> tuple[int, bytes]:
    """
    Send a request, and return status and body of the answer; a redirection is not followed.

    Raises:
        OSError: No answer came.
    """
    import httpx

    try:
        answer = _connected().request(method, url, content=data, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise OSError(f"{type(exc).__name__}: {exc}") from exc
    return answer.status_code, answer.content


def _connected() -> httpx.Client:
    global _client, _used_at
    import httpx

    with _lock:
        now = time.time()
        # No request takes that long, so nothing is under way.
        if _client is not None and not 0 <= now - _used_at < _IDLE_S + TIMEOUT_S:
            _client.close()
            _client = None
        if _client is None:
            limits = httpx.Limits(keepalive_expiry=_IDLE_S)
            plain = {"accept-encoding": "identity"}
            _client = httpx.Client(timeout=TIMEOUT_S, limits=limits, headers=plain)
        _used_at = now
        return _client


def _forget() -> None:
    """A child process would share the connections with its parent."""
    global _client, _lock
    _client = None
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
