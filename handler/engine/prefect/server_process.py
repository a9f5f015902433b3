"""
The process of the embedded Prefect server, which `server.ensure` starts.

It holds the project's lock while it lives, serves Prefect on loopback, and ends when nobody used it for a while.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib.metadata
import importlib.util
import json
import logging
import os
import socket
import sqlite3
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pfl.handler.engine.prefect.server import FAILED, Server

QUIET_S = 10.0  # No request for so long, which is more than a client needs to import Prefect: nobody is waiting.
PATIENCE_S = 120.0
# `.dump` of SQLite, packed: what the migrations (Apache-2.0) of Prefect 3.8.0 leave, the oldest that pfl works with.
SCHEMA = Path(__file__).with_name("schema.sql.gz")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Watched:
    """
    An ASGI app that knows when it was last used, and by whom it is in use.

    A flow at work may be silent for an hour, but it keeps a websocket open for its events: that is use. A browser
    tab keeps one open too, for days, so a websocket with an ``Origin`` counts only when it says something.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen = time.monotonic()
        self.in_use = 0
        self.is_leaving = False
        self.failure = ""

    def idle_s(self) -> float:
        return 0.0 if self.in_use else time.monotonic() - self.seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._noting_failure(send))
        elif scope["type"] == "http" and self.is_leaving:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body"})
        else:

            async def noting() -> MutableMapping[str, Any]:
                message = await receive()
                self.seen = time.monotonic()
                return message

            holds = int(
                scope["type"] == "http" or all(name != b"origin" for name, _ in scope["headers"])
            )
            self.in_use += holds
            try:
                await self.app(scope, noting, send)
            finally:
                self.in_use -= holds
                self.seen = time.monotonic()

    def _noting_failure(self, send: Send) -> Send:
        async def noting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.failed":
                # A traceback; SQLAlchemy adds lines in brackets below the one that says what happened.
                lines = [
                    line for line in message.get("message", "").splitlines() if line[:1].isalpha()
                ]
                self.failure = lines[-1] if lines else "its startup failed"
            await send(message)

        return noting


def _serve(home: Path, lock: int, idle_s: float) -> None:
    """Be the server: hold the lock, serve until told to stop or idle, leave no server.json behind."""
    (home / "server.json").unlink(
        missing_ok=True
    )  # Before the lock is signed: what stands there is never another's.
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    listener = _bind(home)
    port = listener.getsockname()[1]
    ui_url = f"http://127.0.0.1:{port}"
    os.environ["PREFECT_UI_URL"] = ui_url
    os.environ["PREFECT_UI_API_URL"] = f"{ui_url}/api"
    # By default every web page may call the API, which here has no password. Its own pages are enough.
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = f"{ui_url},http://localhost:{port}"
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    _create_database(home / "prefect" / "prefect.db")
    _place_ui(home)

    gc.disable()  # 1.3 million objects are made while importing, and hardly any is garbage.
    import prefect
    import uvicorn
    from prefect.server.api.server import create_app

    app = Watched(create_app())
    gc.freeze()
    gc.enable()

    class OneServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.started:
                return
            app.seen = time.monotonic()
            server = Server(
                url=f"{ui_url}/api",
                ui_url=ui_url,
                pid=os.getpid(),
                port=port,
                started_at=datetime.now(UTC).isoformat(timespec="seconds"),
                version=prefect.__version__,
                log=home / "server.log",
                idle_s=idle_s,
            )
            draft = home / "server.json.new"
            draft.write_text(json.dumps(asdict(server), default=str, indent=1))
            draft.replace(home / "server.json")
            (home / "prefect" / "port").write_text(str(port))
            self.tasks = [
                asyncio.create_task(_leave_when_idle(self, app, home, lock, idle_s)),
                asyncio.create_task(_register_blocks(app, home)),
            ]

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.is_leaving = True
            for task in self.tasks:
                task.cancel()
            # Here, for uvicorn raises a signal again when it is through, and that ends the process.
            (home / "server.json").unlink(missing_ok=True)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, lifespan="on", log_config=None, log_level="warning", access_log=False
    )
    config.timeout_graceful_shutdown = 3
    server = OneServer(config)
    with suppress(SystemExit):  # uvicorn's way to say that the app did not start.
        server.run(sockets=[listener])
    if not server.started:
        raise RuntimeError(app.failure or "uvicorn did not start")


def _bind(home: Path) -> socket.socket:
    """A loopback socket, on the port of last time when it is free: links that were printed then stay good."""
    try:
        wanted = int((home / "prefect" / "port").read_text())
    except (OSError, ValueError):
        wanted = 0
    for port in (wanted, 0):
        # The protocol is named since asyncio looks at it: else it leaves Nagle's algorithm on, at 40 ms an answer.
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
    Give a new database the schema that Prefect's migrations would take 10 seconds to arrive at.

    It is stamped with the revision it has, so Prefect runs the migrations that came later, as it would on any
    database: a newer Prefect needs no newer file. A database that is there is only looked at.
    """
    if path.exists() and path.stat().st_size:
        with closing(sqlite3.connect(path)) as db:
            db.execute(
                "SELECT count(*) FROM sqlite_master"
            ).fetchone()  # Damaged? Say so before the imports.
        return
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(draft)) as db:
            db.executescript(gzip.decompress(SCHEMA.read_bytes()).decode())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _place_ui(home: Path) -> None:
    """Prefect unpacks its UI beside its own code; where that is read-only, unpack it in the project."""
    spec = importlib.util.find_spec("prefect")
    if (
        spec is not None
        and spec.origin
        and not os.access(Path(spec.origin).parent / "server", os.W_OK)
    ):
        os.environ["PREFECT_UI_STATIC_DIRECTORY"] = str(home / "prefect" / "ui")


async def _leave_when_idle(server: Any, app: Watched, home: Path, lock: int, idle_s: float) -> None:
    """End the server when nobody used it for *idle_s*, or when its directory was deleted under it."""
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
    that block's type itself, so nothing a flow does depends on this, but beside it a flow would be half as fast.
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
    The entry of the server process, with a project's ``.pfl``, the descriptor of its lock, locked, and the idle seconds.

    Exit codes: 0 it served and ended, 1 it could not start (the last line of the log says why).
    """
    home, lock, idle_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    os.set_inheritable(lock, False)
    if os.fork():  # The client waits for this process only; the server belongs to nobody.
        os._exit(0)
    try:
        _serve(home, lock, idle_s)
    except Exception as exc:
        traceback.print_exc()
        reason = str(exc) if isinstance(exc, RuntimeError) else f"{type(exc).__name__}: {exc}"
        print(FAILED + (reason.splitlines() or ["?"])[0], file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
