"""
The embedded Prefect server: one background process per project directory, started when it is first needed.

Client side (`ensure`, `find`, `stop`) is standard library only. The server process is this module run as
``python -m handler.engine.server``; it alone imports Prefect. Everything lives in the project's ``.pfl``:

    server.lock     flock held by the server for its life; holds its pid
    server.json     where it answers; written once it does, removed when it ends
    server.log      what it had to say
    prefect/        Prefect's home: prefect.db and the rest

The lock is the truth. A client that wants a server takes it, starts the process with the locked descriptor, and closes
its own copy, so from then on the lock is held exactly as long as the process lives:

    client   lock ── spawn ── close ── wait ........ find it ── use it
    server            └─ has the lock ── imports ── serves ── server.json ...... ends: lock is free
    others   lock? no ── wait ...................... find it ── use it

Whoever dies, at whatever point, there is no second server, and a free lock says that one must be started.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import importlib.metadata
import importlib.util
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handler.core.errors import UnavailableError

if TYPE_CHECKING:
    import asyncio

START_TIMEOUT_S = 180
STOP_GRACE_S = 10
ANSWER_TIMEOUT_S = 10
LOG_MAX_BYTES = 1_000_000
QUIET_S = 2.0  # No request for so long: time for work that nobody waits for.

SCHEMA = Path(__file__).with_name("schema.sql")
INSTANCE_PATH = "/pfl/instance"  # Answers with the token of server.json, so a stranger on our old port is not taken for us.
CLAIM_PATH = "/pfl/claim"  # The same, and counts as use: the server will not idle out before its client's first call.
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


def _quiet(_line: str) -> None:
    pass


def ensure(home: Path, *, idle_s: float = 1800, progress: Callable[[str], None] = _quiet) -> Server:
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
        if (server := _answering(home, CLAIM_PATH)) is not None:
            return server
        if (lock := _take_lock(home)) is None:
            waited = True
        else:
            # The lock is free, so no server is running; if one was, it is gone, and may have said why.
            why = _failure(home / "server.log", log_start)
            if spawned or (waited and why):
                os.close(lock)
                raise _not_started(home, why or "it ended without a word, as if it had been killed")
            word = "starting an embedded Prefect server"
            if not (home / "prefect" / "prefect.db").exists():
                word += " (the first start creates its database, about 10 s)"
            progress(word)
            next_word_s = 1.0
            _spawn(home, lock, idle_s)
            spawned = True
        elapsed_s = time.monotonic() - began
        if elapsed_s > START_TIMEOUT_S:
            if pid := _holder(home):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            raise _not_started(home, f"no answer within {START_TIMEOUT_S} s")
        if elapsed_s >= next_word_s:
            progress(f"waiting for the embedded Prefect server ({elapsed_s:.0f} s)")
            next_word_s = int(elapsed_s) + 1.0
        time.sleep(0.05)


def find(home: Path) -> Server | None:
    """Say which server of this project is running and answers; never start one."""
    return _answering(Path(home).resolve(), INSTANCE_PATH)


def stop(home: Path) -> Server | None:
    """
    Stop the server of a project, also one that is starting or does not answer.

    Returns:
        What was stopped; None when nothing ran.

    Raises:
        UnavailableError: It cannot be signalled, or did not end.
    """
    home = Path(home).resolve()
    pid = _holder(home)
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while pid == 0 and time.monotonic() < deadline:  # Between the spawn and the child's first line.
        time.sleep(0.02)
        pid = _holder(home)
    server, _ = _state(home)
    if pid and (server is None or server.pid != pid):
        server = Server("", "", pid, 0, "", "", home / "server.log", 0)
    for number, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, ANSWER_TIMEOUT_S)):
        if not pid or _holder(home) != pid:
            break
        try:
            os.kill(pid, number)
        except OSError as exc:
            raise UnavailableError(f"cannot stop the Prefect server, process {pid}", why=str(exc)) from exc
        deadline = time.monotonic() + grace_s
        while _holder(home) == pid and time.monotonic() < deadline:
            time.sleep(0.02)
    else:
        if _holder(home) == pid:
            raise UnavailableError(f"the Prefect server, process {pid}, does not end", hint=f"kill -9 {pid}")
    if (home / "server.json").exists() and (lock := _take_lock(home)) is not None:  # No lock: a new one is there.
        (home / "server.json").unlink(missing_ok=True)
        os.close(lock)
    return server if pid else None


# The client's side: who holds the lock, who answers, how to start.


def _take_lock(home: Path) -> int | None:
    """The descriptor of the lock, now ours; None while a server has it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise _not_started(home, f"{exc.strerror}: {exc.filename}") from exc
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


def _state(home: Path) -> tuple[Server | None, str]:
    """What server.json says, which may be about a server that is no more, and the token in it."""
    try:
        fields = json.loads((home / "server.json").read_bytes())
        token = fields.pop("token")
        return Server(**fields | {"log": home / "server.log"}), token
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None, ""


def _answering(home: Path, path: str) -> Server | None:
    server, token = _state(home)
    if server is None or _holder(home) != server.pid:
        return None
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_TIMEOUT_S)
    try:
        for ask, wanted in ((path, token.encode()), ("/api/health", b"true")):
            connection.request("GET", ask)
            response = connection.getresponse()
            if response.read() != wanted or response.status != 200:
                return None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return server


def _spawn(home: Path, lock: int, idle_s: float) -> None:
    """Start the server process and give it the lock. It detaches itself, so there is no child of ours to wait for."""
    command = [sys.executable, "-P", "-m", "handler.engine.server", "--home", str(home), "--lock", str(lock)]
    log = home / "server.log"
    try:
        (home / "prefect").mkdir(exist_ok=True)
        if _size(log) > LOG_MAX_BYTES:
            log.replace(log.with_suffix(".log.old"))
        with log.open("ab") as out:
            subprocess.run(
                [*command, "--idle", str(idle_s)],
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
    except (OSError, subprocess.CalledProcessError) as exc:
        raise _not_started(home, str(exc)) from exc
    finally:
        os.close(lock)


def _environment(home: Path) -> dict[str, str]:
    """The server's environment: nothing of the user's Prefect, and nothing that slows Python or prints."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPROFILEIMPORTTIME"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") and k not in dropped}
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):  # A checkout; -P leaves it out, and it may not be installed.
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    prefect = home / "prefect"
    return kept | {
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "PREFECT_HOME": str(prefect),
        "PREFECT_PROFILES_PATH": str(prefect / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false",
        # Leases in memory would be lost with the process, and their slots taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # We do it ourselves once the server is up: see _register_blocks.
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
    }


def _not_started(home: Path, why: str) -> UnavailableError:
    log = home / "server.log"
    if "malformed" in why or "not a database" in why:
        return UnavailableError(
            "the embedded Prefect server's database is damaged",
            why=why,
            hint=f"delete {home / 'prefect'} (Prefect's list of runs is lost, results are not) or use --engine direct",
        )
    return UnavailableError(
        "the embedded Prefect server did not start",
        why=why,
        hint=f"see {log}; `pfl server stop` clears what is left; --engine direct computes without Prefect",
    )


def _failure(log: Path, start: int) -> str:
    """What a server that could not start wrote last, looking no further back than *start*; else empty."""
    with suppress(OSError):
        text = log.read_bytes()
        for line in reversed(text[start if start <= len(text) else 0 :].decode(errors="replace").splitlines()):
            if line.startswith(FAILED):
                return line.removeprefix(FAILED)
    return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# The server's side.

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Watched:
    """
    An ASGI app that knows when it was last used, and by whom it is in use.

    A flow at work may be silent for an hour, but it keeps a websocket open for its events: that is use. A browser tab
    keeps one open too, for days, so a websocket with an ``Origin`` counts only when it says something.
    """

    def __init__(self, app: Any, token: str) -> None:
        self.app, self.token = app, token
        self.seen = time.monotonic()
        self.in_use = 0
        self.is_leaving = False
        self.failure = ""

    def idle_s(self) -> float:
        return 0.0 if self.in_use else time.monotonic() - self.seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._noting_failure(send))
        elif scope["path"] == INSTANCE_PATH:
            await self._answer(send)
        elif scope["path"] == CLAIM_PATH:
            self.seen = time.monotonic()
            await self._answer(send)
        else:
            holds = int(scope["type"] == "http" or all(name != b"origin" for name, _ in scope["headers"]))
            self.in_use += holds
            try:
                await self.app(scope, self._noting_use(receive), send)
            finally:
                self.in_use -= holds
                self.seen = time.monotonic()

    async def _answer(self, send: Send) -> None:
        status = 503 if self.is_leaving else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": self.token.encode()})

    def _noting_use(self, receive: Receive) -> Receive:
        async def noting() -> MutableMapping[str, Any]:
            message = await receive()
            self.seen = time.monotonic()
            return message

        return noting

    def _noting_failure(self, send: Send) -> Send:
        async def noting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.failed":
                # A traceback; SQLAlchemy adds lines in brackets below the one that says what happened.
                lines = [line for line in message.get("message", "").splitlines() if line[:1].isalpha()]
                self.failure = lines[-1] if lines else "its startup failed"
            await send(message)

        return noting


def _serve(home: Path, lock: int, idle_s: float) -> None:
    """Be the server: hold the lock, serve until told to stop or idle, leave no server.json behind."""
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    (home / "server.json").unlink(missing_ok=True)
    listener = _bind(home)
    port = listener.getsockname()[1]
    os.environ["PREFECT_UI_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_UI_URL"] = f"http://127.0.0.1:{port}"
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    _create_database(home / "prefect" / "prefect.db")
    _place_ui(home)

    import gc

    gc.disable()  # 1.3 million objects are made while importing, and hardly any is garbage.
    import prefect
    import uvicorn
    from prefect.server.api.server import create_app

    token = secrets.token_hex(16)
    app = Watched(create_app(), token)
    gc.freeze()
    gc.enable()

    class OneServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.started:
                return
            app.seen = time.monotonic()
            server = Server(
                url=f"http://127.0.0.1:{port}/api",
                ui_url=f"http://127.0.0.1:{port}",
                pid=os.getpid(),
                port=port,
                started_at=datetime.now(UTC).isoformat(timespec="seconds"),
                version=prefect.__version__,
                log=home / "server.log",
                idle_s=idle_s,
            )
            _replace(home / "server.json", json.dumps(asdict(server) | {"token": token}, default=str, indent=1))
            (home / "prefect" / "port").write_text(str(port))
            import asyncio

            self.tasks = [
                asyncio.create_task(_leave_when_idle(self, app, home, lock, idle_s)),
                asyncio.create_task(_register_blocks(app, home)),
            ]

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.is_leaving = True
            for task in self.tasks:
                task.cancel()
            _drop_state(home, token)  # Here, since a signal is raised again, and ends the process, when we are through.
            await super().shutdown(sockets)

    server = OneServer(
        uvicorn.Config(
            app, lifespan="on", log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=3
        )
    )
    with suppress(SystemExit):  # uvicorn's way to say that the app did not start.
        server.run(sockets=[listener])
    if not server.started:
        raise RuntimeError(app.failure or "uvicorn did not start")


def _bind(home: Path) -> socket.socket:
    """A loopback socket, on the port of last time when it is free: links to runs that were printed then stay good."""
    try:
        wanted = int((home / "prefect" / "port").read_text())
    except (OSError, ValueError):
        wanted = 0
    for port in (wanted, 0):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            return listener
        except (OSError, OverflowError):
            listener.close()
    raise OSError("no free port on 127.0.0.1")


def _create_database(path: Path) -> None:
    """
    Give a new database the schema that Prefect's migrations would take 10 seconds to arrive at.

    It is stamped with the revision it has, so Prefect runs the migrations that came later, as it would on any
    database: a newer Prefect needs no newer file. A database that is there is only looked at.
    """
    if _size(path):
        with sqlite3.connect(path) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # Damaged? Say so before the imports.
        connection.close()
        return
    if not SCHEMA.exists():
        return
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    connection = sqlite3.connect(draft)
    connection.executescript(f"BEGIN;\n{SCHEMA.read_text(encoding='utf-8')}\nCOMMIT;")
    connection.close()
    draft.replace(path)


def _place_ui(home: Path) -> None:
    """Prefect unpacks its UI beside its own code; where that is read-only, unpack it in the project."""
    spec = importlib.util.find_spec("prefect")
    if spec is not None and spec.origin and not os.access(Path(spec.origin).parent / "server", os.W_OK):
        os.environ["PREFECT_UI_STATIC_DIRECTORY"] = str(home / "prefect" / "ui")


async def _leave_when_idle(server: Any, app: Watched, home: Path, lock: int, idle_s: float) -> None:
    """End the server when nobody used it for *idle_s*, or when its directory was deleted under it."""
    import asyncio

    while not server.should_exit:
        try:
            is_ours = os.path.samestat(os.fstat(lock), (home / "server.lock").stat())
        except FileNotFoundError:
            is_ours = False
        if app.idle_s() >= idle_s or not is_ours:
            app.is_leaving = server.should_exit = True
        await asyncio.sleep(min(5.0, max(0.05, idle_s - app.idle_s())))


async def _register_blocks(app: Watched, home: Path) -> None:
    """
    Fill the catalogue of block types, which only the UI and ``prefect block`` ask for, once nobody is waiting.

    Prefect does it before it serves: 4 of the 20 seconds of a first start. A client that saves a block registers
    that block's type itself, so nothing a flow does depends on this.
    """
    import asyncio
    import logging

    collections = (f"{p.name}={p.dist.version if p.dist else ''}" for p in _entry_points("prefect.collections"))
    wanted = "\n".join([importlib.metadata.version("prefect"), *sorted(collections)])
    mark = home / "prefect" / "blocks"
    if mark.exists() and mark.read_text() == wanted:
        return
    patience = time.monotonic() + 15 * QUIET_S
    while app.idle_s() < QUIET_S and time.monotonic() < patience:
        await asyncio.sleep(QUIET_S / 4)
    try:
        from prefect.plugins import load_prefect_collections
        from prefect.server.database import provide_database_interface
        from prefect.server.models.block_registration import run_block_auto_registration

        await asyncio.to_thread(load_prefect_collections)
        async with provide_database_interface().session_context() as session:
            await run_block_auto_registration(session=session)
        mark.write_text(wanted)
    except Exception:
        logging.getLogger("prefect.server").warning("block types were not registered", exc_info=True)


def _entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=group))


def _replace(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.replace(path)


def _drop_state(home: Path, token: str) -> None:
    if _state(home)[1] == token:
        (home / "server.json").unlink(missing_ok=True)


def main() -> None:
    """
    The entry of the server process; not for people.

    Exit codes: 0 it served and ended, 1 it could not start (the last line of the log says why), 3 another runs.
    """
    parser = argparse.ArgumentParser(prog="python -m handler.engine.server")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--lock", type=int, default=-1)
    parser.add_argument("--idle", type=float, default=1800)
    args = parser.parse_args()
    lock = args.lock if args.lock >= 0 else os.open(args.home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, False)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(3)
    if os.fork():  # The client waits for this process only; the server belongs to nobody.
        os._exit(0)
    try:
        _serve(args.home, lock, args.idle)
    except Exception as exc:
        import traceback

        traceback.print_exc()
        reason = str(exc) if isinstance(exc, RuntimeError) else f"{type(exc).__name__}: {exc}"
        print(FAILED + (reason.splitlines() or ["?"])[0], file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
