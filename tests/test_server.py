"""The embedded Prefect server with real processes: started, shared, killed, replaced, stopped."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pfl.handler.core.errors import UnavailableError
from pfl.handler.engine.prefect import server, server_process

ROOT = Path(__file__).resolve().parents[1]
LONG_S = 120  # Reached only if something is broken.

CLIENT = """
import sys
from pathlib import Path
from pfl.handler.engine.prefect import server

found = server.ensure(
    Path(sys.argv[1]),
    idle_s=float(sys.argv[2]),
    progress=lambda line: print(line, file=sys.stderr, flush=True),
)
print(found.pid)
"""

FLOW = """
from prefect import flow, task
from prefect.runtime import flow_run

@task
def third(number: int) -> float:
    return number / 3

@flow
def meaning() -> str:
    third(1234)
    return flow_run.id

print(meaning())
"""

MIGRATE = """
import asyncio, os, sys
from prefect.server.database.alembic_commands import alembic_upgrade
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
from prefect.utilities.asyncutils import run_sync_in_worker_thread

async def main():
    await run_sync_in_worker_thread(alembic_upgrade)

for path in sys.argv[1:]:
    if os.fork() == 0:  # Side by side, and imported once.
        url = "sqlite+aiosqlite:///" + path
        with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}):
            asyncio.run(main())
        os._exit(0)
sys.exit(any(os.wait()[1] for _ in sys.argv[1:]))
"""


def start_client(home: Path, idle_s: float = 600, **env: str) -> subprocess.Popen[str]:
    """A process that calls ensure(): progress on stderr, the server's pid on stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(home), str(idle_s)],
        cwd=ROOT,
        env=os.environ | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def eventually(ask: Callable[[], Any], timeout_s: float = LONG_S) -> Any:
    """Wait for a true answer and return it."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, "timed out"
        threading.Event().wait(0.05)
    return answer


def wait_for_end(home: Path, pid: int) -> None:
    """Wait until a process has ended: only then the system frees its lock."""
    eventually(lambda: server._holder(home) != pid)


@pytest.fixture(scope="module")
def user_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user whose own Prefect settings would break any server that read them."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PREFECT", "XDG_"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        patch.setenv(
            "PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/prefect.db"
        )
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        yield folder


@pytest.fixture(scope="module")
def pids(user_home: Path, project: Path) -> list[int]:
    """The server's pid as three simultaneous clients report it; other tests use the server too."""
    clients = [start_client(project) for _ in range(3)]
    answers = [client.communicate(timeout=LONG_S) for client in clients]
    assert [client.returncode for client in clients] == [0, 0, 0], answers
    return [int(out) for out, _ in answers]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("my projéct 値") / ".pfl"
    yield home
    server.stop(home)


@pytest.fixture
def running(project: Path, pids: list[int]) -> server.Server:
    found = server.find(project)
    assert found is not None
    return found


@pytest.fixture
def new_home(user_home: Path, tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / ".pfl"
    yield home
    server.stop(home)


# One server, and its clients


def test_clients_that_start_at_once_share_one_server(
    pids: list[int], running: server.Server
) -> None:
    """They also end, with their pipes closed: the server keeps no file of its client open."""
    assert set(pids) == {running.pid}


def test_a_server_answers_at_its_url(running: server.Server, project: Path) -> None:
    assert call(f"{running.url}/health") is True
    assert running.url == f"http://127.0.0.1:{running.port}/api"
    assert running.log == project / "server.log"
    assert (running.idle_s, running.started_at[:2]) == (600, "20")


def test_a_project_is_one_however_its_path_is_written(
    running: server.Server, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(project.parent)
    monkeypatch.chdir(project.parent)
    assert server.find(tmp_path / "link" / ".pfl") == running
    assert server.ensure(Path(".pfl")) == running


def test_links_to_runs_are_served(running: server.Server) -> None:
    headers = {"accept": "text/html"}
    link = urllib.request.Request(f"{running.ui_url}/runs/flow-run/abc", headers=headers)
    with urllib.request.urlopen(link, timeout=30) as page:
        assert b"<html" in page.read()
    assert call(f"{running.ui_url}/ui-settings")["api_url"] == running.url


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:{port}", None, 200),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}", 200),
        ("127.0.0.1:{port}", "http://localhost:{port}", 200),
        ("localhost:1234", "http://localhost:1234", 200),
        ("[::1]:{port}", None, 200),
        ("LocalHost", None, 200),
        ("evil.example", None, 403),
        ("evil.example:{port}", "http://evil.example:{port}", 403),
        ("localhost.evil.example:{port}", None, 403),
        ("127.0.0.1:{port}", "https://evil.example", 403),
        ("127.0.0.1:{port}", "http://localhost:3000", 403),
        ("127.0.0.1:{port}", "null", 403),
    ],
)
def test_only_this_machine_and_the_own_pages_are_answered(
    running: server.Server, host: str, origin: str | None, status: int
) -> None:
    headers = {"host": host.format(port=running.port), "content-type": "application/json"}
    if origin is not None:
        headers["origin"] = origin.format(port=running.port)
    body = b'{"name": "made-by-a-page"}' if status == 403 else b"{}"
    path = "/api/flows/" if status == 403 else "/api/flows/filter"
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("POST", path, body, headers)
    assert connection.getresponse().status == status
    connection.close()


def test_a_web_socket_of_a_foreign_page_is_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*args: Any) -> None:
        sent.append("passed on")

    guarded = server_process.guarded(app, 4200)
    for origin in (b"http://evil.example", b"http://127.0.0.1:4200"):
        headers = [(b"host", b"127.0.0.1:4200"), (b"origin", origin)]
        asyncio.run(guarded({"type": "websocket", "headers": headers}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}, "passed on"]


def test_others_on_this_machine_cannot_read_the_database(
    running: server.Server, project: Path
) -> None:
    assert (project / "prefect").stat().st_mode & 0o077 == 0
    for path in (project / "server.log", *(project / "prefect").glob("*.db*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_client_side_imports_the_standard_library_only() -> None:
    script = """
import pfl.handler.engine.prefect.server, sys
print({"prefect", "httpx", "pydantic", "asyncio"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


# What it keeps


def test_a_run_of_another_process_is_recorded_with_its_task(
    running: server.Server, tmp_path: Path
) -> None:
    env = os.environ | {"PREFECT_API_URL": running.url, "PREFECT_HOME": str(tmp_path)}
    del env["PREFECT_API_DATABASE_CONNECTION_URL"]
    done = subprocess.run(
        [sys.executable, "-c", FLOW], env=env, capture_output=True, text=True, timeout=LONG_S
    )
    run_id = done.stdout.strip()
    assert call(f"{running.url}/flow_runs/{run_id}")["state_name"] == "Completed", done.stderr
    is_completed = {"state": {"type": {"any_": ["COMPLETED"]}}}
    wanted = {"flow_runs": {"id": {"any_": [run_id]}}, "task_runs": is_completed}
    (task_run,) = eventually(lambda: call(f"{running.url}/task_runs/filter", wanted))
    assert task_run["name"].startswith("third")


def test_a_server_killed_is_replaced_and_has_its_data_and_port(
    running: server.Server, project: Path
) -> None:
    runs = call(f"{running.url}/flow_runs/count", {})
    os.kill(running.pid, signal.SIGKILL)
    wait_for_end(project, running.pid)
    assert server.find(project) is None

    lines: list[str] = []
    new = server.ensure(project, idle_s=600, progress=lines.append)
    assert new.pid != running.pid
    assert new.url == running.url
    assert call(f"{new.url}/flow_runs/count", {}) == runs
    assert lines[0] == "starting an embedded Prefect server"
    assert "(1 s)" in lines[1]


# The schema


def objects(path: Path) -> dict[tuple[str, str], list[str]]:
    """
    Every table and index with the parts of its SQL, without what SQL ignores: space, the quotes of
    plain names, and the order of a table's constraints, which differs in each run of the
    migrations.
    """
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {(kind, name): parts(re.sub(r'\s+|"', "", sql or "")) for kind, name, sql in found}


def parts(sql: str) -> list[str]:
    """The parts between the commas of the outermost brackets, sorted, and what is around them."""
    depth, cut = 0, [""]
    for letter in sql:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 1:
            cut.append("")
        else:
            cut[-1] += letter
    is_table = sql.startswith("CREATETABLE")
    return (
        sorted([cut[0], *(cut[1:-1] + [cut[-1].removesuffix(")")])])
        if is_table and len(cut) > 1
        else cut
    )


def columns(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(path)) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {
            table: [row[1] for row in db.execute(f'PRAGMA table_xinfo("{table}")')]
            for table in tables
        }


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        content = {table: db.execute(f'SELECT * FROM "{table}"').fetchall() for table in tables}
    return {table: found for table, found in content.items() if found}


def test_a_new_database_is_what_the_migrations_would_have_made(
    user_home: Path, tmp_path: Path
) -> None:
    """
    One database starts from schema.sql.gz, one from nothing; both then go through Prefect's own
    migrations.

    To make the file again, with the oldest Prefect that pfl works with:
    ``PREFECT_HOME=new prefect server database upgrade -y``, then
    ``sqlite3 new/prefect.db .dump | gzip -9n > handler/engine/prefect/schema.sql.gz``.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ours, migrated = tmp_path / "ours" / "prefect.db", tmp_path / "migrated" / "prefect.db"
    for database in (ours, migrated):
        database.parent.mkdir()
    server_process._create_database(ours)
    assert len(rows(ours)) == 1
    command = [sys.executable, "-c", MIGRATE, str(ours), str(migrated)]
    subprocess.run(command, env=env | {"PREFECT_HOME": str(tmp_path)}, check=True, timeout=LONG_S)
    assert objects(ours) == objects(migrated)
    assert columns(ours) == columns(migrated)
    assert rows(ours) == rows(migrated)


# What it leaves behind, after the tests above


def test_block_types_come_after_the_start(running: server.Server, project: Path) -> None:
    eventually((project / "prefect" / "blocks").exists)
    slugs = {block["slug"] for block in call(f"{running.url}/block_types/filter", {})}
    assert {"secret", "local-file-system", "s3-bucket"} <= slugs


def test_the_users_own_prefect_is_left_alone(running: server.Server, user_home: Path) -> None:
    assert list(user_home.iterdir()) == []


def test_the_log_is_empty_while_all_is_well(running: server.Server) -> None:
    assert running.log.read_text() == ""


# Deaths and ends


def test_a_server_whose_client_was_killed_comes_up_and_ends_when_idle(new_home: Path) -> None:
    client = start_client(new_home, idle_s=3)
    with client:
        assert client.stderr is not None
        eventually(lambda: "waiting" in client.stderr.readline())  # It has started the server.
        client.kill()
    pid = eventually(lambda: server._holder(new_home))
    found = server.ensure(new_home)
    assert (found.pid, found.idle_s) == (pid, 3)
    wait_for_end(new_home, pid)
    assert server.find(new_home) is None


def test_a_client_killed_before_it_starts_a_server_leaves_the_lock_free(new_home: Path) -> None:
    script = CLIENT.replace("flush=True)", "flush=True) or sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(new_home), "1"],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        assert client.stderr is not None
        assert "starting" in client.stderr.readline()
        assert server._holder(new_home) == 0
        client.kill()
    assert server._holder(new_home) is None


def test_stop_ends_a_server_that_is_starting_and_its_client_reports_it(new_home: Path) -> None:
    with start_client(new_home) as client:
        assert client.stderr is not None
        eventually(lambda: "waiting" in client.stderr.readline())
        stopped = server.stop(new_home)
        assert stopped is not None
        assert "UnavailableError" in client.stderr.read()
    assert server.stop(new_home) is None


def test_state_of_a_dead_server_is_not_believed(new_home: Path) -> None:
    """Its pid and its port may belong to others by now."""
    new_home.mkdir()
    fields = {"url": "", "ui_url": "", "started_at": "", "version": "", "idle_s": 1}
    for text in (json.dumps(fields | {"pid": os.getpid(), "port": 9}), "{", "[]", ""):
        (new_home / "server.json").write_text(text)
        assert server.find(new_home) is None
        assert server.stop(new_home) is None


# Why it did not start


def test_a_damaged_database_is_named(new_home: Path) -> None:
    (new_home / "prefect").mkdir(parents=True)
    (new_home / "prefect" / "prefect.db").write_bytes(b"not SQLite" * 1000)
    with pytest.raises(UnavailableError, match="did not start") as caught:
        server.ensure(new_home)
    assert "damaged" in caught.value.hint
    assert "not a database" in caught.value.why
    assert str(new_home / "prefect") in caught.value.hint
    assert (new_home / "prefect" / "prefect.db").read_bytes().startswith(b"not SQLite")


def test_a_database_of_another_prefect_is_named(new_home: Path) -> None:
    (new_home / "prefect").mkdir(parents=True)
    with closing(sqlite3.connect(new_home / "prefect" / "prefect.db")) as db:
        db.executescript(
            "CREATE TABLE alembic_version (version_num); INSERT INTO alembic_version VALUES ('f1')"
        )
    with pytest.raises(UnavailableError, match="did not start") as caught:
        server.ensure(new_home)
    assert "another version of Prefect" in caught.value.hint
    assert "'f1'" in caught.value.why


def test_a_server_that_cannot_import_reports_the_reason(
    new_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fastapi.py").write_text("raise TypeError('unexpected keyword argument min_items')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        server.ensure(new_home)
    assert caught.value.why == "TypeError: unexpected keyword argument min_items"
    assert str(new_home / "server.log") in caught.value.hint
    assert "--engine direct" in caught.value.hint


def test_a_start_that_takes_too_long_is_abandoned_and_its_process_killed(
    new_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fastapi.py").write_text(f"open({str(tmp_path / 'fifo')!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(server, "START_TIMEOUT_S", 1)
    with pytest.raises(UnavailableError, match="no answer within 1 s"):
        server.ensure(new_home)
    eventually(lambda: server._holder(new_home) is None)


def test_a_home_that_cannot_be_created_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert server.find(tmp_path / "file" / ".pfl") is None
    assert server.stop(tmp_path / "file" / ".pfl") is None
    with pytest.raises(UnavailableError, match="did not start"):
        server.ensure(tmp_path / "file" / ".pfl")


# What counts as use


def test_an_open_connection_and_a_request_are_use() -> None:
    one = server_process.IdleServer(uvicorn.Config("unused"), idle_s=1000)

    def ends() -> bool:
        one.used_at -= 3600
        return asyncio.run(one.on_tick(1))

    one.server_state.connections.add(None)
    assert not ends()
    one.server_state.connections.clear()
    one.server_state.total_requests += 1
    assert not ends()
    assert ends()


def test_an_interrupt_before_the_server_starts_leaves_nothing_to_stop(tmp_path):
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.ensure(tmp_path, progress=interrupted)
    assert server.stop(tmp_path) is None
