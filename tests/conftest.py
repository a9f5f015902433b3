"""Wiring: a clean environment, a project in a temporary directory, and real servers on loopback."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import pytest
import servers

from pfl.handler import entry
from pfl.handler.core.settings import Settings, of_process
from pfl.handler.core.store import objects as stores

ROOT = Path(__file__).resolve().parents[1]
OURS = ("PFL_", "PREFECT_", "AWS_")

hypothesis.settings.register_profile(
    "pfl", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("pfl")


@pytest.fixture(scope="session", autouse=True)
def clean_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the settings of the person who runs the tests; write to temporary directories alone."""
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # As a shell starts its background jobs; children would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The checkout is a package, so pytest puts the folder above it on the path. What lies there,
    # such as a checkout of Prefect, would be imported in place of what is installed.
    sys.path[:] = [place for place in sys.path if place != str(ROOT.parent)]
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(OURS)]:
        del os.environ[name]
    home = tmp_path_factory.mktemp("home")
    os.environ |= {"HOME": str(home), "PREFECT_HOME": str(home / ".prefect"), "DO_NOT_TRACK": "1"}
    os.environ |= {
        "AWS_CONFIG_FILE": str(home / "aws"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "aws"),
    }
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def clean_environ() -> Iterator[None]:
    """Undo what a test does to the environment and to the import path."""
    environ, path = dict(os.environ), list(sys.path)
    yield
    os.environ.clear()
    os.environ.update(environ)
    of_process.cache_clear()
    sys.path[:] = path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more worker than processors: much of the time, tests wait for servers and processes."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Escape half characters in what a test printed: a worker cannot send them."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]
    return report


class Project:
    """
    A directory with flows, and the handler called on it.

    Attributes:
        root: The directory.
        store: Its store; where the settings name it, a directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store: stores.Store | None = None
        self.knobs: dict[str, object] = {"engine": "direct"}
        self._requests = itertools.count(1)

    def ship(self) -> None:
        """Put the flows that come with pfl into it."""
        shutil.copytree(
            ROOT / "flows", self.root / "flows", ignore=shutil.ignore_patterns("__pycache__")
        )

    def write(self, text: str, name: str = "pipeline") -> Path:
        """Write ``flows/<name>.py``; a pipeline gets the import that every one needs."""
        path = self.root / "flows" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        head = "from pfl import flow, step\n" if name == "pipeline" else ""
        path.write_text(head + textwrap.dedent(text))
        return path

    @property
    def settings(self) -> Settings:
        return Settings(project=str(self.root), **self.knobs)

    def handle(self, raw: object) -> dict:
        """The reply to an event as it stands."""
        return entry.handle(
            raw, self.settings, request_id=f"req-{next(self._requests)}", results=self.store
        )

    def call(self, id: str = "abc", **event: object) -> dict:
        """The reply to an event made of these fields."""
        return self.handle({"id": id, **event})

    @property
    def results(self) -> stores.Store:
        """The store, as another process would open it."""
        return self.store or stores.of(self.settings)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the shipped flows in its own directory; it computes without Prefect."""
    root = tmp_path / "project"
    root.mkdir()
    made = Project(root)
    made.ship()
    monkeypatch.chdir(root)
    monkeypatch.setenv("PFL_PROJECT", str(root))
    return made


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 on loopback, in a process of its own."""
    with servers.s3() as url:
        yield url


@pytest.fixture
def s3_env(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that names it."""
    environ = {
        "AWS_ENDPOINT_URL": s3_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return environ


@pytest.fixture
def s3_client(s3_env: dict[str, str]):
    """boto3's client of it: the other side's view of the same bytes."""
    import boto3

    return boto3.client("s3")


@pytest.fixture
def bucket(s3_client) -> str:
    """A new bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> stores.Store:
    """An empty store of each kind."""
    if request.param == "local":
        return stores.open_store(str(tmp_path / "store"), environ={}, create=True)
    if request.param == "memory":
        return stores.open_store(f"memory://{uuid.uuid4().hex}", environ={})
    name = request.getfixturevalue("bucket")
    return stores.open_store(f"s3://{name}/pre/fix", environ=request.getfixturevalue("s3_env"))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory):
    """A real Prefect server; the tests' own Prefect is set up for it before anything imports it."""
    from pfl.handler.engine.prefect import environment, server

    home = tmp_path_factory.mktemp("prefect-server") / ".pfl"
    found = server.ensure(home, idle_s=900)
    environment.prepare(Settings(project=str(home.parent)))
    yield found
    server.stop(home)


@pytest.fixture
def on_prefect(project: Project, prefect_server) -> Project:
    """The project, computing through the Prefect server."""
    project.knobs |= {"engine": "prefect", "prefect_api_url": prefect_server.url}
    return project


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The API paths that are asked for, by whichever client; not those of a busy server."""
    import httpx

    from pfl.handler.engine.prefect import connections

    paths: list[str] = []
    exchange = connections.exchange

    def noted(method, url, *args):
        status, body = exchange(method, url, *args)
        if status != 503:
            paths.append(urlsplit(url).path)
        return status, body

    monkeypatch.setattr(connections, "exchange", noted)
    for kind in (httpx.Client, httpx.AsyncClient):

        def send(self, request, *args, real=kind.send, **more):
            paths.append(request.url.path)
            return real(self, request, *args, **more)

        monkeypatch.setattr(kind, "send", send)
    return paths


def statuses(reply: dict) -> dict[str, str]:
    """What became of each step of a reply."""
    return {row["step"]: row["status"] for row in reply["steps"]}


def values(reply: dict) -> dict[str, object]:
    """The value of each step of a reply."""
    return {row["step"]: row["value"] for row in reply["steps"]}
