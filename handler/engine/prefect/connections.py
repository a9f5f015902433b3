"""
HTTP connections that stay open between requests: a new one costs one round trip, or three with TLS.
"""

from __future__ import annotations

import http.client
import os
import select
import ssl
import time
import urllib.error
import urllib.request
from collections import defaultdict
from functools import cache
from urllib.parse import urlsplit

TIMEOUT_S = 20
# A frozen process does not see that its server, or a router in between, has dropped a connection.
_IDLE_S = 20
# What waits for its next request, by scheme and host, and since when by the wall clock.
_idle: defaultdict[tuple[str, str], list[tuple[float, http.client.HTTPConnection]]]
_idle = defaultdict(list)
# A child process would share them with its parent.
os.register_at_fork(after_in_child=_idle.clear)


def exchange(
    method: str, url: str, data: bytes | None, headers: dict[str, str]
) -> tuple[int, bytes]:
    """
    Send a request, and return status and body of the answer; a redirection is not followed.

    Raises:
        OSError, http.client.HTTPException: No answer came.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return _exchange_through_proxy(method, url, data, headers)
    where = (parts.scheme, parts.netloc)
    while True:
        connection = _take(where)
        is_new = connection is None
        connection = connection or _connection(*where)
        try:
            connection.request(method, url.partition(parts.netloc)[2], data, headers)
            response = connection.getresponse()
            body = response.read()
        except BaseException as exc:
            connection.close()
            if is_new or not isinstance(exc, ConnectionError | http.client.HTTPException):
                raise
            continue  # The server closed it just now.
        if response.will_close:
            connection.close()
        else:
            _idle[where].append((time.time(), connection))
        return response.status, body


def _take(where: tuple[str, str]) -> http.client.HTTPConnection | None:
    """An open connection that nothing has happened on, or None."""
    try:
        while True:
            since, connection = _idle[where].pop()
            is_fresh = 0 <= time.time() - since < _IDLE_S
            if is_fresh and not _has_input(connection):
                return connection
            connection.close()
    except IndexError:
        return None


def _has_input(connection: http.client.HTTPConnection) -> bool:
    """Whether the server has closed the connection: it sends nothing else unasked."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _connection(scheme: str, netloc: str) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(netloc, timeout=TIMEOUT_S, context=_trusted())
    return http.client.HTTPConnection(netloc, timeout=TIMEOUT_S)


def _exchange_through_proxy(
    method: str, url: str, data: bytes | None, headers: dict[str, str]
) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, headers, method=method)
    context = _trusted() if url.startswith("https://") else None
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()


@cache
def _trusted() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        # This Python does not find the machine's certificates; certifi comes with Prefect.
        import certifi

        context.load_verify_locations(certifi.where())
    return context
