"""
The process of the embedded Prefect server, which `server.ensure` starts.

It holds the project's lock while it lives, serves Prefect on 127.0.0.1, and ends after a while
without use.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib.metadata
import json
import logging
import os
import socket
import sqlite3
import sys
import time
import traceback
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .server import FAILED, Server

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The names of this machine in a URL.
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# If no request came for this long, which is enough for a client to import Prefect, none waits.
QUIET_S = 10.0
PATIENCE_S = 120.0
# SQLite's `.dump`, packed, of what the migrations (Apache-2.0) of Prefect 3.8.0 leave, the oldest
# that pfl works with.
SCHEMA = Path(__file__).with_name("schema.sql.gz")


class Watched:
    """
    An ASGI app that knows when it was last used, and whether it is in use.

    A flow may be silent for an hour while it works, but it keeps a websocket open for its events,
    and that is use. A browser tab keeps one open too, for days, so a websocket with an ``Origin``
    counts only when it sends something.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.used_at = time.monotonic()
        self.in_use = 0
        self.is_ending = False
        self.failure = ""

    def idle_s(self) -> float:
        return 0.0 if self.in_use else time.monotonic() - self.used_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_use() -> Message:
            message = await receive()
            self.used_at = time.monotonic()
            return message

        async def send_startup(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                # A traceback. SQLAlchemy adds lines in brackets below the one with the reason.
                lines = message.get("message", "").splitlines()
                reasons = [line for line in lines if line[:1].isalpha()]
                self.failure = reasons[-1] if reasons else "its startup failed"
            await send(message)

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send_startup)
            return
        is_http = scope["type"] == "http"
        if is_http and self.is_ending:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body"})
            return
        is_use = is_http or all(name != b"origin" for name, _ in scope["headers"])
        self.in_use += is_use
        try:
            await self.app(scope, receive_use, send)
        finally:
            self.in_use -= is_use
            self.used_at = time.monotonic()


class Guarded:
    """
    An ASGI app for this machine and its own pages alone.

    The API has no password. A web page may send requests to it from the browser, and a host name
    that a page's owner points to 127.0.0.1 makes them look like requests of the UI itself.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.own = {f"{host}:{port}" for host in _LOOPBACK}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.is_ours(dict(scope["headers"])):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            body = b"This server answers this machine and its own pages only."
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def is_ours(self, headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        if host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK:
            return False
        # A tunnel has another port, and then the page was loaded through it.
        own = {f"http://{each}" for each in (*self.own, host)}
        return origin is None or origin.decode("latin-1").lower() in own


def _serve(home: Path, lock: int, idle_s: float) -> None:
    """Serve until a signal comes or the server is idle, and remove server.json at the end."""
    # Before the pid is in the lock, so that server.json is never another server's.
    (home / "server.json").unlink(missing_ok=True)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    listener = _bind(home)
    port = listener.getsockname()[1]
    app = _create_app(home, port)
    import prefect
    import uvicorn

    class OneServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.started:
                return
            app.used_at = time.monotonic()
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
            draft = home / "server.json.new"
            draft.write_text(json.dumps(server._asdict(), default=str, indent=1))
            draft.replace(home / "server.json")
            (home / "prefect" / "port").write_text(str(port))
            self.tasks = [
                asyncio.create_task(_end_when_idle(self, app, home, lock, idle_s)),
                asyncio.create_task(_register_blocks(app, home)),
            ]

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.is_ending = True
            for task in self.tasks:
                task.cancel()
            # Not after run(): uvicorn raises the signal again at its end, and that ends the
            # process.
            (home / "server.json").unlink(missing_ok=True)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )
    server = OneServer(config)
    # uvicorn exits if the app does not start.
    with suppress(SystemExit):
        server.run(sockets=[listener])
    if not server.started:
        raise RuntimeError(app.failure or "uvicorn did not start")


def _create_app(home: Path, port: int) -> Watched:
    """Configure and import Prefect's server, which takes seconds."""
    ui_url = f"http://127.0.0.1:{port}"
    os.environ["PREFECT_UI_URL"] = ui_url
    os.environ["PREFECT_UI_API_URL"] = f"{ui_url}/api"
    # By default every web page may call the API, which has no password here.
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = f"{ui_url},http://localhost:{port}"
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    _create_database(home / "prefect" / "prefect.db")
    # Prefect unpacks its UI next to its own code; if that is read-only, unpack it in the project.
    code = importlib.metadata.distribution("prefect").locate_file("prefect/server")
    if not os.access(str(code), os.W_OK):
        os.environ["PREFECT_UI_STATIC_DIRECTORY"] = str(home / "prefect" / "ui")
    # The imports create 1.3 million objects, and hardly any of them is garbage.
    gc.disable()
    from prefect.server.api.server import create_app

    app = Watched(Guarded(create_app(), port))
    gc.freeze()
    gc.enable()
    return app


def _bind(home: Path) -> socket.socket:
    """
    A socket on 127.0.0.1, on the previous port if it is free, so that old links still work.
    """
    try:
        wanted = int((home / "prefect" / "port").read_text())
    except (OSError, ValueError):
        wanted = 0
    for port in (wanted, 0):
        # Without the protocol, asyncio leaves Nagle's algorithm on, which costs 40 ms an answer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            return listener
        except (OSError, OverflowError):
            listener.close()
    raise OSError("no free port on 127.0.0.1")


def _create_database(path: Path) -> None:
    """
    Create a new database, with the schema that Prefect's migrations take 10 seconds to create.

    The schema includes its revision, so Prefect runs later migrations, as on any database. A newer
    version of Prefect therefore works with the same
    file.
    """
    if path.exists() and path.stat().st_size:
        with closing(sqlite3.connect(path)) as db:
            # If the database is damaged, fail before the imports.
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(draft)) as db:
        db.executescript(gzip.decompress(SCHEMA.read_bytes()).decode())
    draft.replace(path)


async def _end_when_idle(
    server: uvicorn.Server, app: Watched, home: Path, lock: int, idle_s: float
) -> None:
    """End the server after *idle_s* without use, or when its directory was deleted."""
    while not server.should_exit:
        try:
            is_ours = os.path.samestat(os.fstat(lock), (home / "server.lock").stat())
        except FileNotFoundError:
            is_ours = False
        if app.idle_s() >= idle_s or not is_ours:
            app.is_ending = server.should_exit = True
        await asyncio.sleep(min(5.0, max(0.05, idle_s - app.idle_s())))


async def _register_blocks(app: Watched, home: Path) -> None:
    """
    Register the block types, which only the UI and ``prefect block`` read, once no client waits.

    Prefect does this before it serves, which takes 4 of the 20 seconds of a first start. A client
    that saves a block registers the type of that block itself, so no flow depends on this. But a
    flow that runs meanwhile would be half as fast, so the server waits until no client needs
    it.
    """
    points = importlib.metadata.entry_points(group="prefect.collections")
    collections = (f"{point.name} {point.dist.version if point.dist else ''}" for point in points)
    wanted = "\n".join([importlib.metadata.version("prefect"), *sorted(collections)])
    mark = home / "prefect" / "blocks"
    if mark.exists() and mark.read_text() == wanted:
        return
    deadline = time.monotonic() + PATIENCE_S
    while app.idle_s() < QUIET_S and time.monotonic() < deadline:
        await asyncio.sleep(QUIET_S / 10)
    try:
        from prefect.plugins import load_prefect_collections
        from prefect.server.database import provide_database_interface
        from prefect.server.models.block_registration import run_block_auto_registration

        await asyncio.to_thread(load_prefect_collections)
        async with provide_database_interface().session_context() as session:
            await run_block_auto_registration(session=session)
        mark.write_text(wanted)
    except Exception:
        logging.getLogger("prefect.server").warning(
            "block types were not registered", exc_info=True
        )


def main() -> None:
    """
    Run the server process. Its arguments: a project's ``.pfl``, the descriptor of its lock, and the
    idle seconds.

    Exit codes: 0 it served and ended, 1 it could not start (the last line of the log has the
    reason).
    """
    home, lock, idle_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    os.set_inheritable(lock, False)
    # The database, its backups and the log may hold secrets of blocks.
    os.umask(0o077)
    # The client waits for this process only; the server is a child of neither.
    if os.fork():
        os._exit(0)
    try:
        _serve(home, lock, idle_s)
    except Exception as exc:
        traceback.print_exc()
        reason = str(exc) if isinstance(exc, RuntimeError) else f"{type(exc).__name__}: {exc}"
        sys.exit(FAILED + (reason.splitlines() or ["?"])[0])


if __name__ == "__main__":
    main()
