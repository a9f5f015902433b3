"""
``MODULE:FUNCTION``: the function it names, and whether its fingerprint is the same in every process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.fingerprint.collector import unwrap
from pfl.handler.core.fingerprint.model import Part

if TYPE_CHECKING:
    import subprocess


def find(target: str) -> Any:
    """
    The function that *target* names.

    Args:
        target: ``MODULE:FUNCTION``, importable from ``sys.path``; FUNCTION may have dots.

    Raises:
        InvalidRequestError: There is none, or its module cannot be imported; names file and line.
    """
    name, colon, path = target.partition(":")
    if not (name and colon and path) or name.startswith("."):
        raise InvalidRequestError(
            f"{target!r} names no function", why="MODULE:FUNCTION is expected", hint="flows.b:b"
        )
    try:
        value = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        where = (
            os.getcwd()
            if exc.name and name.startswith(exc.name)
            else ownership.describe(exc, os.getcwd())
        )
        raise InvalidRequestError(
            f"there is no module {exc.name}", why=f"looked from {where}"
        ) from exc
    except (Exception, SystemExit) as exc:
        raise InvalidRequestError(
            f"module {name} cannot be imported", why=ownership.describe(exc, os.getcwd())
        ) from exc
    for attr in path.split("."):
        try:
            value = getattr(value, attr)
        except AttributeError as exc:
            raise InvalidRequestError(
                f"{name} has no {path}", why=f"`{attr}` is not there"
            ) from exc
        except Exception as exc:
            raise InvalidRequestError(
                f"{name} gives no {path}", why=ownership.describe(exc, os.getcwd())
            ) from exc
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
        inner = unwrap(target)
        target = f"{getattr(inner, '__module__', None)}:{getattr(inner, '__qualname__', None)}"
    first, second = (_parts(target, child) for child in [_start(target, "1"), _start(target, "2")])
    changed = [
        part
        for name, part in second.items()
        if name not in first or first[name].digest != part.digest
    ]
    changed += [part for name, part in first.items() if name not in second]
    # A function is no cause when only what it reads differs; its own source cannot.
    return [part for part in changed if part.kind not in ("function", "class")] or changed


def _start(target: str, seed: str) -> subprocess.Popen[str]:
    import subprocess  # only here: it takes a tenth of the time that this module takes to load

    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-m", "pfl.handler.core.fingerprint", target, "--json"]
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _parts(target: str, child: subprocess.Popen[str]) -> dict[str, Part]:
    out, err = child.communicate()
    if child.returncode:
        raise InvalidRequestError(
            f"{target} has no fingerprint in a fresh process", why=err.strip()[-500:]
        )
    return {row["name"]: Part.from_json(row) for row in json.loads(out.splitlines()[-1])["parts"]}
