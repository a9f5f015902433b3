"""The function that ``MODULE:FUNCTION`` names."""

from __future__ import annotations

import importlib
import operator
import os
from typing import Any

from ..errors import InvalidRequestError
from . import ownership


def find(target: str) -> Any:
    """
    The function that *target* names.

    Args:
        target: ``MODULE:FUNCTION``, importable from ``sys.path``; FUNCTION may have dots.

    Raises:
        InvalidRequestError: It does not exist, or its module cannot be imported.
    """
    name, _, path = target.partition(":")
    if not name or not path or name.startswith("."):
        raise InvalidRequestError(
            f"invalid function {target!r}", why="it must be MODULE:FUNCTION", hint="flows.b:b"
        )
    folder = os.getcwd()
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as exc:
        raise InvalidRequestError(
            f"module {name} cannot be imported in {folder}", why=ownership.describe(exc, folder)
        ) from exc
    try:
        return operator.attrgetter(path)(module)
    except Exception as exc:
        raise InvalidRequestError(
            f"{name} has no {path}", why=ownership.describe(exc, folder)
        ) from exc
