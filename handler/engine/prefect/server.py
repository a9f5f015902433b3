"""
The embedded Prefect server: one background process per project directory, started when it is first
needed.

This module is the client's side and imports only the standard library; `server_process` is the
server, and imports Prefect. Everything is in the project's ``.pfl``:

    server.lock     flock that the server holds while it lives; contains its pid
    server.json     its address, written once it answers; or the error that kept it from starting
    server.log      its output; that of the server before is in server.log.old
    prefect/        Prefect's home: prefect.db and the rest

The lock alone decides. A client that wants a server takes it, starts the process with the locked
descriptor, and closes its own copy. From then on the lock is held exactly as long as the process
lives:

    client   lock ── spawn ── close ── wait .......... find it ── use it
    server            └─ has the lock ── import ── serve ── server.json ...... end: lock is free
    others   lock? no ── wait ........................ find it ── use it

So there is never a second server, whichever process dies when, and a free lock means that one must
be started.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...core.errors import UnavailableError
from ...core.store.values import JsonObject

START_TIMEOUT_S = 180
STOP_GRACE_S = 10
ANSWER_TIMEOUT_S = 10
POLL_S = 0.1
# Prefect's variables are the user's own; the others slow Python down, or make it print.
_DROPPED = (
    "PREFECT_",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONINSPECT",
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONWARNINGS",
)


class Server(NamedTuple):
    """
    A running server.

    Attributes:
        url: Prefect's API, ``http://127.0.0.1:PORT/api``.
        ui_url: The address of its UI.
        pid: Its process ID.
        port: Its port on 127.0.0.1.
        started_at: ISO 8601, UTC.
        version: The version of Prefect.
        log: The file with its output.
        idle_s: It ends after this many seconds without a request or an open connection.
    """

    url: str
    ui_url: str
    pid: int
    port: int
    started_at: str
    version: str
    log: Path
    idle_s: float


def ensure(
    home: Path, *, idle_s: float = 1800, progress: Callable[[str], None] = lambda line: None
) -> Server:
    """
    Return the server of a project once it answers; start it if necessary.

    Args:
        home: The project's ``.pfl`` directory, which is created if necessary.
        idle_s: How long a server that is started here runs without use.
        progress: Called with a line for people when it is started, and every second after that.

    Raises:
        UnavailableError: It could not be started, or did not answer within `START_TIMEOUT_S`.
    """
    home = home.resolve()
    began = time.monotonic()
    reported_s = 0
    has_spawned = False
    has_waited = False
    while (server := find(home, timeout_s=1)) is None:
        if (lock := _take_lock(home)) is None:
            has_waited = True
        else:
            try:
                # The lock is free, so no server runs; one that ended may have left the reason.
                why = read(home).get("error")
                if has_spawned or (has_waited and why):
                    raise _not_started(home, why or "it ended without a message, perhaps killed")
                doing = "starting an embedded Prefect server"
                if not (home / "prefect" / "prefect.db").exists():
                    doing += " (the first start creates its database, about 15 s)"
                progress(doing)
                _spawn(home, lock, idle_s)
                has_spawned = True
            finally:
                # Else `pfl server stop` could not stop the server if we are interrupted here.
                os.close(lock)
        elapsed_s = int(time.monotonic() - began)
        if elapsed_s > START_TIMEOUT_S:
            if pid := _holder(home):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            raise _not_started(home, f"no answer within {START_TIMEOUT_S} s")
        if elapsed_s > reported_s:
            progress(f"waiting for the embedded Prefect server ({elapsed_s} s)")
            reported_s = elapsed_s
        time.sleep(POLL_S)
    return server


def find(home: Path, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Server | None:
    """
    Return the server of this project if it runs and answers; never start one.

    The request counts as use, so the server does not end before the client's first call.
    """
    home = home.resolve()
    state = read(home)
    # The port may belong to another program by now; the lock shows that it does not.
    if "port" not in state or _holder(home) != state["pid"]:
        return None
    connection = http.client.HTTPConnection("127.0.0.1", state["port"], timeout=timeout_s)
    try:
        connection.request("GET", "/api/health")
        if connection.getresponse().status == 200:
            return Server(**state | {"log": home / "server.log"})
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return None


def stop(home: Path) -> int | None:
    """
    Stop the server of a project, even if it is starting or does not answer.

    Returns:
        The ID of its process; None if none ran.

    Raises:
        UnavailableError: It did not end.
    """
    home = home.resolve()
    # The holder is 0 between the spawn and the child's first line.
    _until(lambda: _holder(home) != 0, ANSWER_TIMEOUT_S)
    pid = _holder(home)
    if pid == 0:
        raise UnavailableError("another command is starting the Prefect server", hint="try again")
    if pid is None:
        return None
    # Politely, then by force.
    for number, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, ANSWER_TIMEOUT_S)):
        with suppress(OSError):  # It has just ended, or belongs to another user.
            os.kill(pid, number)
        if _until(lambda: _holder(home) != pid, grace_s):
            return pid
    raise UnavailableError(
        f"the Prefect server (process {pid}) does not stop", hint=f"kill -9 {pid}"
    )


def read(home: Path) -> JsonObject:
    """The content of server.json, whose server may have ended; empty if there is none."""
    try:
        return dict(json.loads((home / "server.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def _until(is_true: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until something is true; returns False if it took too long."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _take_lock(home: Path) -> int | None:
    """Lock the project and return the lock's descriptor; None if a server holds it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise _not_started(home, exc) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    return lock


def _holder(home: Path) -> int | None:
    """
    The process that holds the lock; 0 if it has not written its pid yet, None if the lock is free.
    """
    try:
        lock = os.open(home / "server.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        return int(os.read(lock, 20) or 0)
    finally:
        os.close(lock)


def _spawn(home: Path, lock: int, idle_s: float) -> None:
    """
    Start the server process and give it the lock. It detaches itself, so it is not a child of this
    process.
    """
    log = home / "server.log"
    prefect = home / "prefect"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    environ |= {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(prefect),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # The server process does it after a while.
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        # Leases in memory would be lost with the process, and their slots never freed.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        # In the working directory: a URL with an absolute path would be cut at a "?" in it.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    module = "pfl.handler.engine.prefect.server_process"
    try:
        # What is in it may hold secrets.
        prefect.mkdir(mode=0o700, exist_ok=True)
        prefect.chmod(0o700)
        if log.exists():
            log.replace(log.with_suffix(".log.old"))
        with open(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), "ab") as out:
            subprocess.run(
                [sys.executable, "-P", "-m", module, str(home), str(lock), str(idle_s)],
                env=environ,
                # Prefect reads .env, prefect.toml and pyproject.toml of its working directory: not
                # the user's.
                cwd=prefect,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[lock],
                # Ctrl-C and a hangup of the terminal must not reach the server.
                start_new_session=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError) as exc:
        raise _not_started(home, exc) from exc


def _not_started(home: Path, cause: object) -> UnavailableError:
    """The error for a server that did not start, with the hint that fits the cause."""
    why = str(cause)
    hint = f"see {home / 'server.log'}; run `pfl server stop` and try again, or use --engine direct"
    if "malformed" in why or "not a database" in why or "locate revision" in why:
        hint = (
            "its database is damaged, or was made by another version of Prefect: install that "
            f"version, or delete {home / 'prefect'} (you lose the list of runs, but no results)"
        )
    return UnavailableError("the embedded Prefect server did not start", why=why, hint=hint)
