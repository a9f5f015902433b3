"""
``MODULE:FUNCTION``: the function it names, and whether its fingerprint is the same in every process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from handler.core.errors import InvalidRequestError
from handler.core.fingerprint import place
from handler.core.fingerprint.model import Part
from handler.core.fingerprint.reading import plain


def find(target: str) -> Any:
    """
    The function that *target* names.

    Args:
        target: ``MODULE:FUNCTION``, importable from ``sys.path``; FUNCTION may have dots.

    Raises:
        InvalidRequestError: There is none, or its module cannot be imported; names file and line.
    """
    name, colon, path = target.partition(":")
    if not (name and colon and path):
        raise InvalidRequestError(f"{target!r} names no function", why="MODULE:FUNCTION is expected", hint="flows.b:b")
    try:
        value = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        where = os.getcwd() if exc.name and name.startswith(exc.name) else place.describe(exc, _relative)
        raise InvalidRequestError(f"there is no module {exc.name}", why=f"looked from {where}") from exc
    except Exception as exc:
        raise InvalidRequestError(f"module {name} cannot be imported", why=place.describe(exc, _relative)) from exc
    for attr in path.split("."):
        try:
            value = getattr(value, attr)
        except AttributeError as exc:
            raise InvalidRequestError(f"{name} has no {path}", why=f"`{attr}` is not there") from exc
    return value


def unstable(target: Any) -> list[Part]:
    """
    The parts that differ between two fresh processes: a clock, a random number, a connection made at import.

    Args:
        target: A function, a step, or ``MODULE:FUNCTION``.

    Returns:
        Each with file and line; empty where the fingerprint is the same each time.

    Raises:
        InvalidRequestError: It cannot be found or imported in a fresh process.
    """
    if not isinstance(target, str):
        inner = plain(target)
        target = f"{getattr(inner, '__module__', None)}:{getattr(inner, '__qualname__', None)}"
    first, second = _parts(target, "1"), _parts(target, "2")
    changed = [part for name, part in second.items() if name not in first or first[name].digest != part.digest]
    changed += [part for name, part in first.items() if name not in second]
    # A function is no cause when only what it reads differs; its own source cannot.
    return [part for part in changed if part.kind not in ("function", "class")] or changed


def _parts(target: str, seed: str) -> dict[str, Part]:
    import subprocess  # only here: it takes a tenth of the time that this module takes to load

    framework = os.path.dirname(place._FRAMEWORK_DIR.rstrip(os.sep))
    path = os.pathsep.join([*(entry or os.getcwd() for entry in sys.path), framework])
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-m", "handler.core.fingerprint", target, "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InvalidRequestError(f"{target} has no fingerprint in a fresh process", why=done.stderr.strip()[-500:])
    return {row["name"]: Part.from_json(row) for row in json.loads(done.stdout)["parts"]}


def _relative(file: str | None) -> str:
    return os.path.relpath(file) if file and not file.startswith("<") else file or ""
