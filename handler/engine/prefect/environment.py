"""Which Prefect a computation reports to, and how Prefect is configured before its first import."""

from __future__ import annotations

import gc
import importlib
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ...core import links
from ...core.errors import InvalidRequestError, UnavailableError
from ...core.event import Notify
from ...core.settings import Settings
from .. import aws

_NEEDED_BY_A_RUN = (
    "pfl.handler.engine.prefect.builder",
    "prefect.events.worker",
    "prefect.logging.handlers",
)


class Api(NamedTuple):
    """
    A Prefect API.

    Attributes:
        url: Its URL, without a slash at the end.
        key: The key; empty for none.
        source: Where it was configured, for people.
        auth: ``user:password``, for a server that asks for it.
    """

    url: str
    key: str
    source: str
    auth: str = ""

    @property
    def url_with_password(self) -> str:
        """Its URL for another process, which has no other way to learn user and password."""
        if not self.auth:
            return self.url
        scheme, _, rest = self.url.partition("://")
        user, _, password = self.auth.partition(":")
        return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}"


def api_at(url: str, key: str, source: str, auth: str = "") -> Api:
    """
    The API at *url*.

    A user and a password in the URL go to *auth*, so that no error, link or record shows them.
    """
    parts = urlsplit(url.rstrip("/"))
    user, _, host = parts.netloc.rpartition("@")
    return Api(urlunsplit(parts._replace(netloc=host)), key, source, auth or unquote(user))


def configured(settings: Settings) -> Api | None:
    """
    Return the API that the user chose in the settings, or else in the active Prefect profile; None
    if neither names one.

    Raises:
        InvalidRequestError: PREFECT_API_URL is not a URL.
    """
    settings = aws.with_secret(settings)
    url = settings.prefect_api_url
    if not url:
        return _profile()
    if not url.startswith(("http://", "https://")):
        raise InvalidRequestError(
            f"PREFECT_API_URL is not a URL: {url.rpartition('@')[2]!r}",
            hint="PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    auth = os.environ.get("PREFECT_API_AUTH_STRING", "")
    return api_at(url, settings.prefect_api_key, "PREFECT_API_URL", auth)


def choose(settings: Settings, notify: Notify) -> Api:
    """
    Return the API to report to: the user's, or else the project's embedded server, which is started
    if necessary.

    Raises:
        UnavailableError: The user chose none, and the embedded server does not start.
    """
    if (api := configured(settings)) is not None:
        return api
    if os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        raise UnavailableError(
            "no Prefect API is configured",
            why="PREFECT_API_URL is not set",
            hint='set it, or send "engine": "direct" in the event',
        )
    from . import server

    running = server.ensure(
        settings.home, idle_s=settings.server_idle_s, progress=lambda text: notify("", text)
    )
    return Api(running.url, "", "embedded server")


def prepare(settings: Settings) -> None:
    """
    Set the variables that Prefect reads once; what the user set stays.

    Call it before anything imports Prefect, the user's flows included.
    """
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        # Retries also apply to a server that is gone: Prefect's own 5 would take over two minutes.
        "PREFECT_CLIENT_MAX_RETRIES": "2",
        # pfl reports a failed step, once; the whole traceback is in the run's log in Prefect.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    }
    if os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        defaults["PREFECT_HOME"] = "/tmp/prefect"
    elif not settings.prefect_api_url and _profile() is None:
        home = settings.home / "prefect"
        defaults["PREFECT_HOME"] = str(home)
        defaults["PREFECT_PROFILES_PATH"] = str(home / "profiles.toml")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def load() -> None:
    """
    Import what a run needs of Prefect, with the garbage collector switched off.

    It would scan the objects of 1,300 modules again and again, and free none of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for name in _NEEDED_BY_A_RUN:
            importlib.import_module(name)
    finally:
        # Later collections skip these objects too.
        gc.freeze()
        if was_enabled:
            gc.enable()


def flow_run_url(api_url: str, flow_run_id: str) -> str:
    """The page of a flow run, on Prefect Cloud or on the server of an API."""
    return links.flow_run(links.base_of(api_url, os.environ), flow_run_id)


def _profile() -> Api | None:
    """The API of the active Prefect profile, read without importing Prefect."""
    environ = os.environ
    try:
        home = Path(environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
        path = Path(environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
        text = path.read_text()
        import tomllib

        profiles = tomllib.loads(text)
        name = environ.get("PREFECT_PROFILE") or profiles["active"]
        profile = profiles["profiles"][name]
        url = str(profile["PREFECT_API_URL"])
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        # It lacks something. RuntimeError: the user has no home directory.
        return None
    auth = environ.get("PREFECT_API_AUTH_STRING") or str(profile.get("PREFECT_API_AUTH_STRING", ""))
    return api_at(url, str(profile.get("PREFECT_API_KEY", "")), f"Prefect profile {name!r}", auth)
