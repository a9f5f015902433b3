"""The settings of a command: flags beat the environment, which beats ``.env``, which beats the defaults."""

from __future__ import annotations

import os
from pathlib import Path

from pfl.cli import output
from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.settings import Settings

_from_dotenv: set[str] = set()


def load(**flags: object) -> Settings:
    """
    Read ``.env`` of the project into the environment, where it does not stand yet, and the settings from there.

    Args:
        flags: Settings given on the command line; None for those that were not.

    Raises:
        InvalidRequestError: ``.env`` cannot be read, or a setting does not parse.
    """
    found = Settings.from_env(os.environ)
    if found.project and not found.root.is_dir():
        raise InvalidRequestError(
            f"PFL_PROJECT is {found.project!r}",
            why="there is no such directory",
            hint="the directory that holds flows/",
        )
    if not found.project and not Path.cwd().is_relative_to(found.root):
        output.say(
            f"no flows/pipeline.py in {Path.cwd()} or above it: using the flows of {found.root}"
            " (set PFL_PROJECT, or run pfl in your project)"
        )
    path = found.root / ".env"
    if path.is_file():
        from dotenv import dotenv_values

        try:
            given = dotenv_values(path)
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidRequestError(f"{path} cannot be read", why=str(exc)) from exc
        for name, value in given.items():
            if value and name not in os.environ:
                os.environ[name] = value
                _from_dotenv.add(name)
    settings = Settings.from_env(os.environ)
    from pfl.handler.engine.prefect import environment

    environment.prepare(settings)  # Before the user's flows are imported, which may import Prefect.
    return settings._replace(**{name: value for name, value in flags.items() if value is not None})


def source(env: str) -> str:
    """Where a variable's value came from: ``environment``, ``.env`` or ``default``."""
    if env in _from_dotenv:
        return ".env"
    return "environment" if os.environ.get(env) else "default"
