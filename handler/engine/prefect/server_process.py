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
import os
import signal
import socket
import sqlite3
import sys
import time
import traceback
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from . import server

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

# The names of this machine in a URL.
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Until then, what the server was started for is over, or has all that it needs of it.
BLOCKS_AFTER_S = 30
# SQLite's `.dump`, packed, of what the migrations (Apache-2.0) of Prefect 3.8.0 leave, the oldest
# that pfl works with.
SCHEMA = Path(__file__).with_name("schema.sql.gz")


def guarded(app: ASGIApp, port: int) -> ASGIApp:
    """
    *app* for this machine and its own pages alone.

    The API has no password. A web page may send requests to it from the browser, and a host name
    that a page's owner points to 127.0.0.1 makes them look like requests of the UI itself.
    """

    def is_ours(headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        if host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK:
            return False
        # A tunnel has another port, and then the page was loaded through it.
        own = {f"http://{host}", *(f"http://{name}:{port}" for name in _LOOPBACK)}
        return origin is None or origin.decode("latin-1").lower() in own

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if is_ours(dict(scope["headers"])):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            body = b"This server answers this machine and its own pages only."
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return guard


class IdleServer(uvicorn.Server):
    """
    Ends after *idle_s* seconds without use.

    Use is a request or an open connection: a flow may be silent for an hour while it works, but it
    keeps a websocket open for its events, as does a page in a browser.
    """

    def __init__(self, config: uvicorn.Config, idle_s: float) -> None:
        super().__init__(config)
        self.idle_s = idle_s
        self.requests = 0
        self.used_at = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; uvicorn then closes its socket at once, so that no client finds it."""
        state = self.server_state
        if state.connections or state.total_requests != self.requests:
            self.requests = state.total_requests
            self.used_at = time.monotonic()
        is_idle = time.monotonic() - self.used_at >= self.idle_s
        return is_idle or await super().on_tick(counter)


async def _serve(home: Path, idle_s: float, listener: socket.socket) -> None:
    """Serve until a signal comes or the server is idle."""
    port = listener.getsockname()[1]
    app = _create_app(home, port)
    import prefect

    config = uvicorn.Config(
        guarded(app, port),
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )
    # Not uvicorn's lifespan, which would only log why Prefect does not start.
    async with app.router.lifespan_context(app):
        listener.listen()
        running = server.Server(
            url=f"http://127.0.0.1:{port}/api",
            ui_url=f"http://127.0.0.1:{port}",
            pid=os.getpid(),
            port=port,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            version=prefect.__version__,
            log=home / "server.log",
            idle_s=idle_s,
        )
        _write(home, running._asdict())
        idle_server = IdleServer(config, idle_s)
        registering = asyncio.create_task(_register_blocks(home))
        await idle_server.serve(sockets=[listener])
        registering.cancel()


async def _register_blocks(home: Path) -> None:
    """
    Register the block types, which only the UI and ``prefect block`` read, after a while.

    Prefect does this before it serves, which takes 5 of the 20 seconds of a first start. A client
    that saves a block registers its type itself, so no flow depends on this.
    """
    version = importlib.metadata.version("prefect")
    mark = home / "prefect" / "blocks"
    if mark.exists() and mark.read_text() == version:
        return
    await asyncio.sleep(BLOCKS_AFTER_S)
    from prefect.plugins import load_prefect_collections
    from prefect.server.database import provide_database_interface
    from prefect.server.models.block_registration import run_block_auto_registration

    await asyncio.to_thread(load_prefect_collections)
    async with provide_database_interface().session_context() as session:
        await run_block_auto_registration(session=session)
    mark.write_text(version)


def _write(home: Path, state: dict[str, object]) -> None:
    draft = home / "server.json.new"
    draft.write_text(json.dumps(state, default=str, indent=1))
    draft.replace(home / "server.json")


def _create_app(home: Path, port: int) -> FastAPI:
    """Configure and import Prefect's server, which takes seconds."""
    os.environ["PREFECT_UI_URL"] = f"http://127.0.0.1:{port}"
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    _create_database(home / "prefect" / "prefect.db")
    # Prefect unpacks its UI next to its own code; if that is read-only, unpack it in the project.
    code = importlib.metadata.distribution("prefect").locate_file("prefect/server")
    if not os.access(str(code), os.W_OK):
        os.environ["PREFECT_UI_STATIC_DIRECTORY"] = str(home / "prefect" / "ui")
    # The imports create 1.3 million objects, and hardly any of them is garbage.
    gc.disable()
    from prefect.server.api.server import create_app

    app = create_app()
    gc.freeze()
    gc.enable()
    return app


def _bind(wanted: int) -> socket.socket:
    """
    A socket on 127.0.0.1, on the previous port if it is free, so that old links still work.
    """
    for port in (wanted, 0):
        # Without the protocol, asyncio leaves Nagle's algorithm on, which costs 40 ms an answer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            return listener
        except OSError:
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
        return
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(draft)) as db:
        db.executescript(gzip.decompress(SCHEMA.read_bytes()).decode())
    draft.replace(path)


def main() -> None:
    """
    Run the server process. Its arguments: a project's ``.pfl``, the descriptor of its lock, and the
    idle seconds.

    Exit codes: 0 it served and ended, 1 it could not start (server.json has the reason).
    """
    home, lock, idle_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    os.set_inheritable(lock, False)
    # The database, its backups and the log may hold secrets of blocks.
    os.umask(0o077)
    # The client waits for this process only; the server is a child of neither.
    if os.fork():
        os._exit(0)
    # uvicorn raises the signal again at its end, and Prefect still has to save what it received.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    port = server.read(home).get("port", 0)
    # Before the pid is in the lock, so that server.json is never another server's.
    (home / "server.json").unlink(missing_ok=True)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    try:
        asyncio.run(_serve(home, idle_s, _bind(port)))
    except Exception as exc:
        traceback.print_exc()
        _write(home, {"error": f"{type(exc).__name__}: {exc}".splitlines()[0]})
        sys.exit(1)


if __name__ == "__main__":
    main()
