"""
HTTP connections that stay open between requests: a new one costs one round trip, or three with TLS.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections import defaultdict
from contextlib import suppress
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
    path = url.partition(parts.netloc)[2]

    def send(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            body = response.read()
        except BaseException:
            connection.close()
            raise
        if not response.will_close:
            _idle[where].append((time.time(), connection))
        return response.status, body

    with suppress(IndexError):
        while True:
            since, connection = _idle[where].pop()
            if 0 <= time.time() - since < _IDLE_S:
                # The server may have closed it meanwhile.
                with suppress(OSError, http.client.HTTPException):
                    return send(connection)
            connection.close()
    return send(_connection(*where))


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
