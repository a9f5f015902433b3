"""
Values as people read them: short, and without secrets.
"""

from __future__ import annotations

import re
import types
from typing import Any

_LENGTH = 400
_SECRET_NAME = re.compile(
    r"(?:^|_|\b)(?:api_?|access_?|private_?|secret_?|auth_?|signing_?)?(?:key|token|passw(?:or)?d|passwd|pwd|secrets?|credentials?)(?:$|_|\b)",
    re.IGNORECASE,
)
_SECRET_SHAPE = re.compile(
    r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|gh[pousr]_\w{16,}|github_pat_\w+|sk-[\w-]{16,}|sk_(?:live|test)_\w+|xox[abprs]-[\w-]+"
    r"|eyJ[\w-]{8,}\.[\w-]+|AIza[\w-]{20,}|glpat-[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s:@]+:[^/\s@]+@"
)
_RANDOM_LOOK = re.compile(r"(?=\S*[a-z])(?=\S*[A-Z])(?=\S*\d)[\w+/=-]{32,}")
MASK = "***"


def render(name: str, value: Any) -> str:
    """A short repr that runs no code of the project; MASK where *name* or the value looks like a secret."""
    return (
        MASK
        if looks_secret(name) and not isinstance(value, bool | type(None))
        else _short(_render(value, 4))
    )


def looks_secret(name: str) -> bool:
    """Whether a name says that its value is a secret: ``API_KEY``, ``db_password``."""
    return bool(_SECRET_NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)))


def _short(text: str) -> str:
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 90]} … {text[-80:]}"


def _render(value: Any, depth: int) -> str:
    kind = type(value)
    if kind in (str, bytes):
        return _text(value)
    if kind in (int, float, complex, bool, type(None), type(...), range, slice):
        return repr(value) if kind is not int or value.bit_length() < 4000 else hex(value)[:_LENGTH]
    if depth == 0:
        return "…"
    if kind in (list, tuple, set, frozenset):
        return _items(value, kind, depth)
    if kind is dict:
        rows = [
            f"{_render(key, depth - 1)}: {_pair(key, item, depth)}"
            for key, item in list(value.items())[:40]
        ]
        return "{" + ", ".join(rows + ["…"] * (len(value) > 40)) + "}"
    if issubclass(kind, types.FunctionType | types.BuiltinFunctionType | type):
        return value.__qualname__
    if kind is re.Pattern:
        return f"re.compile({_text(value.pattern)})"
    if kind.__module__ in ("datetime", "decimal", "fractions", "uuid", "pathlib", "zoneinfo"):
        return _short(repr(value))
    return _instance(value, kind, depth)


def _text(value: str | bytes) -> str:
    short = value if len(value) <= _LENGTH else value[: _LENGTH - 90] + type(value)() + value[-80:]
    text = _SECRET_SHAPE.sub(MASK, short) if isinstance(short, str) else short
    if isinstance(text, str) and _RANDOM_LOOK.fullmatch(text):
        return repr(MASK)
    return repr(text)


def _pair(key: Any, value: Any, depth: int) -> str:
    return repr(MASK) if isinstance(key, str) and looks_secret(key) else _render(value, depth - 1)


def _items(value: Any, kind: type, depth: int) -> str:
    head = list(value)[:40]
    rows = [_render(item, depth - 1) for item in head]
    if kind in (set, frozenset):
        rows = (
            sorted(_render(item, depth - 1) for item in value)[:40] if len(value) < 1000 else rows
        )
    rows += ["…"] * (len(value) > 40)
    inner = ", ".join(rows)
    if kind is list:
        return f"[{inner}]"
    if kind is tuple:
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return f"{kind.__name__}({{{inner}}})" if kind is frozenset or not value else f"{{{inner}}}"


def _instance(value: Any, kind: type, depth: int) -> str:
    from pfl.handler.core.fingerprint.values import state_of

    try:
        rows = [
            f"{name}={_pair(name, item, depth)}"
            for name, item in state_of(value)[:20]
            if not name.startswith("__")
        ]
    except Exception:  # an object that cannot be looked at is shown by its class
        rows = []
    return f"{kind.__qualname__}({', '.join(rows)})"
