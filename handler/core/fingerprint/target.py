"""
``MODULE:FUNCTION``: the function, and whether its fingerprint is the same in every process.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequestError
from . import ownership
from .collector import unwrap
from .model import Part

if TYPE_CHECKING:
    import subprocess


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


def unstable(target: Any) -> list[Part]:
    """
    The parts that differ between two fresh processes: a clock, a random number, a connection.

    Args:
        target: A function, a step, or ``MODULE:FUNCTION``.

    Returns:
        Each with file and line; empty if the fingerprint is the same each time.

    Raises:
        InvalidRequestError: It cannot be found or imported in a fresh process.
    """
    if not isinstance(target, str):
        inner = unwrap(target)
        target = f"{getattr(inner, '__module__', None)}:{getattr(inner, '__qualname__', None)}"
    children = [_start(target, seed) for seed in ("1", "2")]
    first, second = (_parts(target, child) for child in children)
    stable = first.keys() & second.keys()
    changed = {row[0]: part for row, part in (first | second).items() if row not in stable}
    # The source of a function cannot differ: if only what it reads does, it is not the cause.
    causes = [part for part in changed.values() if part.kind not in ("function", "class")]
    return causes or list(changed.values())


def _start(target: str, seed: str) -> subprocess.Popen[str]:
    # Importing it takes a tenth of the time that this module takes to load.
    import subprocess

    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "pfl.handler.core.fingerprint", target, "--json"],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _parts(target: str, child: subprocess.Popen[str]) -> dict[tuple[str, str], Part]:
    """The parts of a fresh process, by name and digest."""
    out, err = child.communicate()
    if child.returncode:
        raise InvalidRequestError(
            f"{target} cannot be fingerprinted in a fresh process", why=err.strip()[-500:]
        )
    parts = map(Part.from_json, json.loads(out.splitlines()[-1])["parts"])
    return {(part.name, part.digest): part for part in parts}
