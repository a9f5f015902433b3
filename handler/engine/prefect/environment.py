"""Which Prefect a computation reports to, and how Prefect is set up before it is first imported."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import NamedTuple

from pfl.handler.core import links
from pfl.handler.core.errors import InvalidRequestError, UnavailableError
from pfl.handler.core.settings import Settings
from pfl.handler.engine import aws

_NEEDED_BY_A_RUN = (
    "pfl.handler.engine.prefect.builder",
    "prefect.flow_engine",
    "prefect.logging.handlers",
)


class Api(NamedTuple):
    """A Prefect API: its URL, its key ("" for none), where both came from, and ``user:password`` where it asks for that."""

    url: str
    key: str
    source: str
    auth: str = ""


def configured(settings: Settings) -> Api | None:
    """
    The API that the user named: in the settings, else in the active Prefect profile; None where there is none.

    Raises:
        InvalidRequestError: The URL is no URL.
    """
    settings = aws.with_secret(settings)
    if settings.prefect_api_url:
        if not settings.prefect_api_url.startswith(("http://", "https://")):
            raise InvalidRequestError(
                f"PREFECT_API_URL is no URL: {settings.prefect_api_url!r}",
                hint="PREFECT_API_URL=http://127.0.0.1:4200/api",
            )
        auth = os.environ.get("PREFECT_API_AUTH_STRING", "")
        return Api(
            settings.prefect_api_url.rstrip("/"), settings.prefect_api_key, "PREFECT_API_URL", auth
        )
    return _profile(os.environ)


def choose(settings: Settings, progress: Callable[[str], None]) -> Api:
    """
    The API to report to: the user's, else the project's embedded server, which is started when it does not run.

    Raises:
        UnavailableError: None is named and none can be started.
    """
    if (api := configured(settings)) is not None:
        return api
    if os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        raise UnavailableError(
            "there is no Prefect to report to",
            why="PREFECT_API_URL is not set",
            hint='set it, or send "engine": "direct"',
        )
    from pfl.handler.engine.prefect import server

    running = server.ensure(settings.home, idle_s=settings.server_idle_s, progress=progress)
    return Api(running.url, "", "embedded server")


def prepare(settings: Settings, environ: MutableMapping[str, str] = os.environ) -> None:
    """
    Set Prefect's own variables, those that it reads once; what the user set stays.

    Call it before anything imports Prefect, the user's flows included.
    """
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "2",  # It counts for a server that is gone, too: with Prefect's own 5 that would take over two minutes to be told.
        # A step's failure is told once, by us; Prefect keeps the whole traceback in the run's log.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    }
    if environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        defaults |= {"PREFECT_HOME": "/tmp/prefect"}
    elif not settings.prefect_api_url and _profile(environ) is None:
        home = settings.home / "prefect"
        defaults |= {
            "PREFECT_HOME": str(home),
            "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        }
    for name, value in defaults.items():
        environ.setdefault(name, value)


def load() -> None:
    """
    Import what a run needs of Prefect, with the garbage collector at rest.

    It would go through the objects of 1,300 modules again and again, and find that all are needed.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        for name in _NEEDED_BY_A_RUN:
            importlib.import_module(name)
    finally:
        gc.freeze()  # Nor shall later collections look at them.
        if was_on:
            gc.enable()


def flow_run_url(api_url: str, flow_run_id: str) -> str:
    """The page of a flow run, on Prefect Cloud or beside a server's API."""
    return links.flow_run(links.base_of(api_url, os.environ), flow_run_id)


def _profile(environ) -> Api | None:
    try:
        home = Path(environ.get("PREFECT_HOME") or Path("~/.prefect").expanduser())
        path = Path(environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
        if not path.is_file():
            return None
        import tomllib

        profiles = tomllib.loads(path.read_text())
        name = environ.get("PREFECT_PROFILE") or profiles.get("active", "")
        profile = profiles.get("profiles", {}).get(name, {})
    except (
        OSError,
        ValueError,
        AttributeError,
        RuntimeError,
    ):  # RuntimeError: a user without a home.
        return None
    url = str(profile.get("PREFECT_API_URL", "")).rstrip("/")
    if not url:
        return None
    auth = environ.get("PREFECT_API_AUTH_STRING") or str(profile.get("PREFECT_API_AUTH_STRING", ""))
    return Api(url, str(profile.get("PREFECT_API_KEY", "")), f"Prefect profile {name!r}", auth)
