"""
The embedded Prefect server: one background process per project directory, started when it is first
needed.

This module is the client's side and imports only the standard library; `server_process` is the
server, and imports Prefect. Everything is in the project's ``.pfl``:

    server.lock     flock that the server holds while it lives; contains its pid
    server.json     its address; written once it answers, removed when it ends
    server.log      its output
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

START_TIMEOUT_S = 180
STOP_GRACE_S = 10
ANSWER_TIMEOUT_S = 10
POLL_S = 0.1
LOG_MAX_BYTES = 1_000_000
FAILED = "pfl: the server did not start: "
# They slow Python down, or make it print.
_DROPPED = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONINSPECT",
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONWARNINGS",
)


class Server(NamedTuple):
    """
    A running server.

    Attributes:
        url: Prefect's API, ``http://127.0.0.1:PORT/api``; empty if it was stopped before it
            answered.
        ui_url: The address of its UI.
        pid: Its process ID.
        port: Its port on 127.0.0.1.
        started_at: ISO 8601, UTC.
        version: The version of Prefect.
        log: The file with its output.
        idle_s: It ends after this many seconds without a request.
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
        idle_s: How long a server that is started here runs without a request.
        progress: Called with a line for people, at once and every second, while there is something
            to wait for.

    Raises:
        UnavailableError: It could not be started, or did not answer within `START_TIMEOUT_S`.
    """
    home = home.resolve()
    began = time.monotonic()
    report_at_s = 0.0
    has_spawned = False
    has_waited = False
    log_start = _size(home / "server.log")
    while True:
        if (server := find(home, timeout_s=1)) is not None:
            return server
        if (lock := _take_lock(home)) is None:
            has_waited = True
        else:
            try:
                # The lock is free, so no server runs; one that ended may have logged the reason.
                why = _failure(home / "server.log", log_start)
                if has_spawned or (has_waited and why):
                    raise _not_started(home, why or "it ended without a message, perhaps killed")
                doing = "starting an embedded Prefect server"
                if not (home / "prefect" / "prefect.db").exists():
                    doing += " (the first start creates its database, about 10 s)"
                progress(doing)
                report_at_s = 1.0
                _spawn(home, lock, idle_s)
                has_spawned = True
            finally:
                # Else `pfl server stop` could not stop the server if we are interrupted here.
                os.close(lock)
        elapsed_s = time.monotonic() - began
        if elapsed_s > START_TIMEOUT_S:
            if pid := _holder(home):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            raise _not_started(home, f"no answer within {START_TIMEOUT_S} s")
        if elapsed_s >= report_at_s:
            progress(f"waiting for the embedded Prefect server ({elapsed_s:.0f} s)")
            report_at_s = int(elapsed_s) + 1.0
        time.sleep(POLL_S)


def find(home: Path, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Server | None:
    """
    Return the server of this project if it runs and answers; never start one.

    A server that is about to end refuses this request. Any other counts it as use, so it does not
    end before the client's first call.
    """
    home = home.resolve()
    server = _state(home)
    # The port may belong to another program by now; the lock shows that it does not.
    if server is None or _holder(home) != server.pid:
        return None
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
    try:
        connection.request("GET", "/api/health")
        return server if connection.getresponse().status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def stop(home: Path) -> Server | None:
    """
    Stop the server of a project, even if it is starting or does not answer.

    Returns:
        The stopped server; None if none ran.

    Raises:
        UnavailableError: It cannot be signalled, or did not end.
    """
    home = home.resolve()
    # The holder is 0 between the spawn and the child's first line.
    _until(lambda: _holder(home) != 0, ANSWER_TIMEOUT_S)
    pid = _holder(home)
    if pid == 0:
        raise UnavailableError("another command is starting the Prefect server", hint="try again")
    server = None
    if pid is not None:
        server = _state(home)
        if server is None or server.pid != pid:
            server = Server("", "", pid, 0, "", "", home / "server.log", 0)
        _kill(home, pid)
    if (home / "server.json").exists() and (lock := _take_lock(home)) is not None:
        # With the lock, this is not the file of a new server.
        (home / "server.json").unlink(missing_ok=True)
        os.close(lock)
    return server


def _kill(home: Path, pid: int) -> None:
    """End the server process: politely, then by force."""
    for number, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, ANSWER_TIMEOUT_S)):
        try:
            os.kill(pid, number)
        except OSError as exc:
            if _holder(home) != pid:
                return
            raise UnavailableError(
                f"cannot stop the Prefect server (process {pid})", why=str(exc)
            ) from exc
        if _until(lambda: _holder(home) != pid, grace_s):
            return
    raise UnavailableError(
        f"the Prefect server (process {pid}) does not stop", hint=f"kill -9 {pid}"
    )


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


def _state(home: Path) -> Server | None:
    """The content of server.json, whose server may have ended."""
    try:
        fields = json.loads((home / "server.json").read_bytes())
        return Server(**fields | {"log": home / "server.log"})
    except (OSError, ValueError, TypeError):
        return None


def _spawn(home: Path, lock: int, idle_s: float) -> None:
    """
    Start the server process and give it the lock. It detaches itself, so it is not a child of this
    process.
    """
    log = home / "server.log"
    try:
        # What is in it may hold secrets.
        (home / "prefect").mkdir(mode=0o700, exist_ok=True)
        (home / "prefect").chmod(0o700)
        if _size(log) > LOG_MAX_BYTES:
            log.replace(log.with_suffix(".log.old"))
        with open(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as out:
            subprocess.run(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "pfl.handler.engine.prefect.server_process",
                    str(home),
                    str(lock),
                    str(idle_s),
                ],
                env=_environment(home / "prefect"),
                # Prefect reads .env, prefect.toml and pyproject.toml of its working directory: not
                # the user's.
                cwd=home / "prefect",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[lock],
                # Ctrl-C and a hangup of the terminal must not reach the server.
                start_new_session=True,
                check=True,
            )
    except OSError as exc:
        raise _not_started(home, exc) from exc
    except subprocess.CalledProcessError as exc:
        raise _not_started(home, f"its process ended with exit code {exc.returncode}") from exc


def _environment(prefect: Path) -> dict[str, str]:
    """The server's environment, without the user's own Prefect settings."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and name not in _DROPPED
    }
    return environ | {
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "PREFECT_HOME": str(prefect),
        "PREFECT_PROFILES_PATH": str(prefect / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false",
        # Leases in memory would be lost with the process, and their slots never freed.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        # In the working directory: a URL with an absolute path would be cut at a "?" in it.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
        # server_process registers them later.
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
    }


def _not_started(home: Path, cause: str | OSError) -> UnavailableError:
    """The error for a server that did not start, with the hint that fits the cause."""
    why = str(cause)
    if isinstance(cause, OSError) and cause.filename:
        why = f"{cause.strerror}: {cause.filename}"
    delete = f"delete {home / 'prefect'} (you lose the list of runs, but no results)"
    if "malformed" in why or "not a database" in why:
        what = "the embedded Prefect server's database is damaged"
        hint = f"{delete}; or use --engine direct"
    elif "locate revision" in why:
        what = "the embedded Prefect server's database was made by another version of Prefect"
        hint = f"install that version, or {delete}"
    else:
        what = "the embedded Prefect server did not start"
        log = home / "server.log"
        hint = f"see {log}; " if _size(log) else ""
        hint += "run `pfl server stop` and try again, or use --engine direct"
    return UnavailableError(what, why=why, hint=hint)


def _failure(log: Path, start: int) -> str:
    """Why a server could not start, as logged after the byte *start*; empty if not logged."""
    with suppress(OSError):
        text = log.read_bytes()
        # A log that became shorter is a new one.
        lines = text[start if start <= len(text) else 0 :].decode(errors="replace").splitlines()
        for line in reversed(lines):
            if line.startswith(FAILED):
                return line.removeprefix(FAILED)
    return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
