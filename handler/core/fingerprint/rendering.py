"""
Values as people read them: short, and without secrets.
"""

from __future__ import annotations

import re
import types
from typing import Any

from .values import state_of
from .variables import Variables

_LENGTH = 400
_ITEMS = 40
_SECRET_NAME = re.compile(
    r"(?:^|_|\b)(?:api_?|access_?|private_?|secret_?|auth_?|signing_?)?"
    r"(?:key|token|passw(?:or)?d|passwd|pwd|secrets?|credentials?)(?:$|_|\b)",
    re.IGNORECASE,
)
_SECRET_SHAPE = re.compile(
    r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|gh[pousr]_\w{16,}|github_pat_\w+|sk-[\w-]{16,}"
    r"|sk_(?:live|test)_\w+|xox[abprs]-[\w-]+|eyJ[\w-]{8,}\.[\w-]+|AIza[\w-]{20,}|glpat-[\w-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s:@]+:[^/\s@]+@"
)
_RANDOM_LOOK = re.compile(r"(?=\S*[a-z])(?=\S*[A-Z])(?=\S*\d)[\w+/=-]{32,}")
_PLAIN_MODULES = ("datetime", "decimal", "fractions", "uuid", "pathlib", "zoneinfo")
_LITERALS = {int, float, complex, bool, type(None), type(...), range, slice}
_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
MASK = "***"
# In place of the value of a variable.
VARIABLE = re.compile(r"\*\*\*(\w+)\*\*\*")


def looks_secret(name: str) -> bool:
    """Whether a name says that its value is a secret: ``API_KEY``, ``db_password``."""
    return bool(_SECRET_NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)))


class Renderer:
    """
    Writes values without running code of the project.

    Args:
        variables: The variables whose values are not shown.
    """

    def __init__(self, variables: Variables) -> None:
        self.variables = variables

    def render(self, name: str, value: Any) -> str:
        """A short repr; MASK if *name* or the value looks secret."""
        text = self._named(name, value, 4)
        return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 90]} … {text[-80:]}"

    def _render(self, value: Any, depth: int) -> str:
        kind = type(value)
        if kind in (str, bytes):
            return self._text(value)
        if kind is int and value.bit_length() >= 4000:
            # Python refuses to write a large number in decimal digits.
            return hex(value)
        if kind is int and self.variables.include(value):
            return self.variables.with_names(str(value))
        if kind in _LITERALS:
            return repr(value)
        if depth == 0:
            return "…"
        if kind in _BRACKETS:
            return self._items(value, kind, depth - 1)
        if issubclass(kind, types.FunctionType | types.BuiltinFunctionType | type):
            return str(value.__qualname__)
        if kind is re.Pattern:
            return f"re.compile({self._text(value.pattern)})"
        if kind.__module__ in _PLAIN_MODULES:
            return self.variables.with_names(repr(value))
        try:
            rows = [
                f"{name}={self._named(name, item, depth - 1)}"
                for name, item in state_of(value)[:20]
                if not name.startswith("__")
            ]
        except Exception:
            # An object that cannot be read is shown by its class.
            rows = []
        return f"{kind.__qualname__}({', '.join(rows)})"

    def _text(self, value: Any) -> str:
        value = self.variables.with_names(value)
        if len(value) > _LENGTH:
            value = value[: _LENGTH - 90] + value[-80:]
        if isinstance(value, str):
            value = _SECRET_SHAPE.sub(MASK, value)
            if _RANDOM_LOOK.fullmatch(value):
                value = MASK
        return repr(value)

    def _items(self, value: Any, kind: type, depth: int) -> str:
        items = list(value)[:_ITEMS]
        rows = [self._render(item, depth) for item in items]
        if kind is dict:
            values = (self._named(key, value[key], depth) for key in items)
            rows = [": ".join(row) for row in zip(rows, values, strict=True)]
        if kind in (set, frozenset):
            rows.sort()
        if len(value) > _ITEMS:
            rows.append("…")
        return f"{', '.join(rows)}".join(_BRACKETS[kind])

    def _named(self, name: object, value: Any, depth: int) -> str:
        text = self._render(value, depth)
        if isinstance(value, bool | type(None)) or VARIABLE.fullmatch(text.strip("b'")):
            return text
        return MASK if isinstance(name, str) and looks_secret(name) else text
