"""The settings of a command: flags beat the environment, then come ``.env`` and the defaults."""

import os
from pathlib import Path
from typing import Any

from ..handler.core.errors import InvalidRequestError
from ..handler.core.settings import Settings
from ..handler.engine.prefect import environment
from . import output

_from_dotenv: set[str] = set()


def load(**flags: Any) -> Settings:
    """
    The settings; the variables of the project's ``.env`` are added to the environment first.

    Args:
        flags: The values of flags by the name of their setting; None if it was not given.

    Raises:
        InvalidRequestError: ``.env`` cannot be read, or a setting is invalid.
    """
    found = Settings.from_env(os.environ)
    if found.project and not found.root.is_dir():
        raise InvalidRequestError(
            f"invalid PFL_PROJECT {found.project!r}",
            why="this directory does not exist",
            hint="set it to the directory that holds flows/",
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
            variables = dotenv_values(path)
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidRequestError(f"{path} cannot be read", why=str(exc)) from exc
        for name, value in variables.items():
            if value and name not in os.environ:
                os.environ[name] = value
                _from_dotenv.add(name)
    settings = Settings.from_env(os.environ).with_absolute_paths()
    # Before the user's flows are imported, which may import Prefect.
    environment.prepare(settings)
    given = {name: value for name, value in flags.items() if value is not None}
    return settings._replace(**given)


def source(env: str) -> str:
    """Where the value of a variable comes from: ``environment``, ``.env`` or ``default``."""
    if env in _from_dotenv:
        return ".env"
    return "environment" if os.environ.get(env) else "default"
