"""
The embedded Prefect server: one background process per project directory, started when it is first needed.

This module is the client's side and imports only the standard library; `server_process` is the server, and
imports Prefect. Everything lives in the project's ``.pfl``:

    server.lock     flock held by the server for its life; holds its pid
    server.json     where it answers; written once it does, removed when it ends
    server.log      what it had to say
    prefect/        Prefect's home: prefect.db and the rest

The lock is the truth. A client that wants a server takes it, starts the process with the locked descriptor, and
closes its own copy, so from then on the lock is held exactly as long as the process lives:

    client   lock ── spawn ── close ── wait .......... find it ── use it
    server            └─ has the lock ── import ── serve ── server.json ...... end: lock is free
    others   lock? no ── wait ........................ find it ── use it

Whoever dies, at whatever point, there is no second server, and a free lock says that one must be started.
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
from dataclasses import dataclass
from pathlib import Path

from pfl.handler.core.errors import UnavailableError

START_TIMEOUT_S = 180
STOP_GRACE_S = 10
ANSWER_TIMEOUT_S = 10
POLL_S = 0.1
LOG_MAX_BYTES = 1_000_000
FAILED = "pfl: the server did not start: "


@dataclass(frozen=True)
class Server:
    """
    A running server.

    Attributes:
        url: Prefect's API, ``http://127.0.0.1:PORT/api``; empty for one that was stopped while it was starting.
        ui_url: What a person opens.
        started_at: ISO 8601, UTC.
        version: Prefect's.
        idle_s: It ends by itself when nothing was asked of it for so long.
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
    Find the server of a project, or start it, and return when it answers.

    Args:
        home: The project's ``.pfl`` directory; it is made when it is not there.
        idle_s: How long a server that is started here outlives its last request.
        progress: Called with a line for people, at once and every second, while there is something to wait for.

    Raises:
        UnavailableError: It could not be started, or did not answer within `START_TIMEOUT_S`.
    """
    home = Path(home).resolve()
    began = time.monotonic()
    next_word_s = 0.0
    spawned = waited = False
    log_start = _size(home / "server.log")
    while True:
        if (server := find(home, timeout_s=1)) is not None:
            return server
        if (lock := _take_lock(home)) is None:
            waited = True
        else:
            try:
                # The lock is free, so no server is running; if one was, it is gone, and may have said why.
                why = _reason(home / "server.log", log_start)
                if spawned or (waited and why):
                    raise _not_started(
                        home, why or "it ended without a word, as if it had been killed"
                    )
                word = "starting an embedded Prefect server"
                if not (home / "prefect" / "prefect.db").exists():
                    word += " (the first start creates its database, about 10 s)"
                progress(word)
                next_word_s = 1.0
                _spawn(home, lock, idle_s)
                spawned = True
            finally:
                os.close(lock)  # Else whoever interrupts us here could not stop what we began.
        elapsed_s = time.monotonic() - began
        if elapsed_s > START_TIMEOUT_S:
            if pid := _holder(home):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            raise _not_started(home, f"no answer within {START_TIMEOUT_S} s")
        if elapsed_s >= next_word_s:
            progress(f"waiting for the embedded Prefect server ({elapsed_s:.0f} s)")
            next_word_s = int(elapsed_s) + 1.0
        time.sleep(POLL_S)


def find(home: Path, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Server | None:
    """
    Say which server of this project is running and answers; never start one.

    It is that of server.json, and no stranger on our old port, for it holds the lock. One that is about to leave says so; for any
    other this was use, and it does not idle out before its client's first call.
    """
    home = Path(home).resolve()
    server = _state(home)
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
    Stop the server of a project, also one that is starting or does not answer.

    Returns:
        What was stopped; None when nothing ran.

    Raises:
        UnavailableError: It cannot be signalled, or did not end.
    """
    home = Path(home).resolve()
    # The holder is 0 between the spawn and the child's first line.
    if not _until(lambda: _holder(home) != 0, ANSWER_TIMEOUT_S) or (pid := _holder(home)) == 0:
        raise UnavailableError(
            "the Prefect server is being started by another command", hint="try again"
        )
    server = _state(home)
    if pid and (server is None or server.pid != pid):
        server = Server("", "", pid, 0, "", "", home / "server.log", 0)
    for number, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, ANSWER_TIMEOUT_S)):
        if not pid or _holder(home) != pid:
            break
        try:
            os.kill(pid, number)
        except OSError as exc:
            raise UnavailableError(
                f"cannot stop the Prefect server, process {pid}", why=str(exc)
            ) from exc
        if _until(lambda: _holder(home) != pid, grace_s):
            break
    else:
        raise UnavailableError(
            f"the Prefect server, process {pid}, does not end", hint=f"kill -9 {pid}"
        )
    if (home / "server.json").exists() and (
        lock := _take_lock(home)
    ) is not None:  # Else a new one is there.
        (home / "server.json").unlink(missing_ok=True)
        os.close(lock)
    return server if pid else None


def _until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    """Whether something came to be so in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _take_lock(home: Path) -> int | None:
    """The descriptor of the lock, now ours; None while a server has it."""
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
    """The process that has the lock; 0 while it has not signed yet, None when the lock is free."""
    try:
        lock = os.open(home / "server.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return int(os.read(lock, 20) or 0)
    else:
        return None
    finally:
        os.close(lock)


def _state(home: Path) -> Server | None:
    """What server.json says, which may be about a server that is no more."""
    try:
        said = json.loads((home / "server.json").read_bytes())
        said.pop("token", None)  # As earlier versions wrote it.
        return Server(**said | {"log": home / "server.log"})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _spawn(home: Path, lock: int, idle_s: float) -> None:
    """Start the server process and give it the lock. It detaches itself, so it is no child of ours."""
    command = [sys.executable, "-P", "-m", "pfl.handler.engine.prefect.server_process"]
    log = home / "server.log"
    try:
        (home / "prefect").mkdir(exist_ok=True)
        if _size(log) > LOG_MAX_BYTES:
            log.replace(log.with_suffix(".log.old"))
        with log.open("ab") as out:
            subprocess.run(
                [*command, str(home), str(lock), str(idle_s)],
                env=_environment(home),
                # Prefect reads .env, prefect.toml and pyproject.toml where it stands: not the user's, then.
                cwd=home / "prefect",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[lock],
                start_new_session=True,  # The terminal's Ctrl-C and hangup are not for it.
                check=True,
            )
    except OSError as exc:
        raise _not_started(home, exc) from exc
    except subprocess.CalledProcessError as exc:
        raise _not_started(home, f"exit code {exc.returncode} of its process") from exc


def _environment(home: Path) -> dict[str, str]:
    """The server's environment: nothing of the user's Prefect, and nothing that slows Python or prints."""
    dropped = {
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONWARNINGS",
        "PYTHONINSPECT",
        "PYTHONPROFILEIMPORTTIME",
    }
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") and k not in dropped
    }
    prefect = home / "prefect"
    return (
        kept
        | {
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
            "PREFECT_HOME": str(prefect),
            "PREFECT_PROFILES_PATH": str(prefect / "profiles.toml"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false",
            # Leases in memory would be lost with the process, and their slots taken for ever.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            # Where it stands: as a URL, a path with "?" in it would be cut short.
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
            "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # It does so once it is up: see server_process.
            "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_COLORS": "false",
        }
    )


def _not_started(home: Path, why: str | OSError) -> UnavailableError:
    if isinstance(why, OSError):
        why = f"{why.strerror}: {why.filename}" if why.filename else str(why)
    if "malformed" in why or "not a database" in why:
        return UnavailableError(
            "the embedded Prefect server's database is damaged",
            why=why,
            hint=f"delete {home / 'prefect'}: the list of runs is lost, results are not; or use --engine direct",
        )
    if "locate revision" in why:
        return UnavailableError(
            "the embedded Prefect server's database was made by another version of Prefect",
            why=why,
            hint=f"install that version, or delete {home / 'prefect'}: the list of runs is lost, results are not",
        )
    see = f"see {home / 'server.log'}; " if _size(home / "server.log") else ""
    return UnavailableError(
        "the embedded Prefect server did not start",
        why=why,
        hint=f"{see}`pfl server stop` clears what is left; --engine direct computes without Prefect",
    )


def _reason(log: Path, start: int) -> str:
    """What a server that could not start wrote last, looking no further back than *start*; else empty."""
    with suppress(OSError):
        text = log.read_bytes()
        for line in reversed(
            text[start if start <= len(text) else 0 :].decode(errors="replace").splitlines()
        ):
            if line.startswith(FAILED):
                return line.removeprefix(FAILED)
    return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
