"""
Values of environment variables, which may be secrets, inside the values that a fingerprint covers.

The parts of a fingerprint are stored, so they show ``***NAME***`` where a value contains that of a
variable which the project names, and a digest of it takes part in the fingerprint. The digest is
the same in each process and on each machine, so no secret key can protect it. It is slow instead:
guessing a value takes 50,000 times as long as with a plain digest, which protects keys and good
passwords, but not a value that is one of a few thousand.

Not hidden are values of fewer than four characters, values that a literal in the same package
equals, pieces of fewer than eight characters, what code computes from a value (its length, its
Base64 form), and variables of the system and of pfl, such as ``PATH``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from ..settings import SETTINGS
from .import_recorder import recorded_variables
from .ownership import PROJECT, Codebase, file_of
from .source import text_of_file

_SHORTEST = 4
_SHORTEST_PIECE = 8
# In longer texts a search takes too long.
_LONGEST = 1_000_000
_ROUNDS = 50_000
_LITERAL = re.compile(r""""([^"\n]*)"|'([^'\n]*)'|\b(\d{4,})\b""")
_Text = TypeVar("_Text", str, bytes)
_SYSTEM = re.compile(
    r"(?:_|PATH|HOME|PWD|OLDPWD|SHELL|USER|USERNAME|LOGNAME|HOSTNAME|LANG|LANGUAGE|LC_\w+|TERM|TZ"
    r"|TMPDIR|TEMP|TMP|EDITOR|DISPLAY|XDG_\w+|PYTHON\w+|VIRTUAL_ENV|CONDA_\w+|AWS_(?:DEFAULT_)?REGION"
    r"|AWS_EXECUTION_ENV|AWS_LAMBDA_\w+|LAMBDA_\w+)$"
)
_PUBLIC = {setting.env for setting in SETTINGS.values() if not setting.secret}


class Variables:
    """
    The variables that a project reads.

    Args:
        codebase: The project.
    """

    def __init__(self, codebase: Codebase) -> None:
        self._codebase = codebase
        # The variable of the project by its value, or a piece of it; empty if there is none.
        self._names: dict[str, str] = {}

    def with_digests(self, text: _Text) -> _Text:
        """*text* with digests in place of the values of variables."""
        return self._replace(text, lambda value: f"<{_slow_digest(self._codebase.shorten(value))}>")

    def with_names(self, text: _Text) -> _Text:
        """*text* with the names of variables in place of their values."""
        return self._replace(text, lambda value: f"***{self._names[value]}***")

    def include(self, number: int) -> bool:
        """Whether a variable has this value."""
        text = str(number) if number.bit_length() < 64 else ""
        return text in self._values and self._is_secret(text, text)

    def _replace(self, text: _Text, replacement: Callable[[str], str]) -> _Text:
        if not _SHORTEST <= len(text) < _LONGEST:
            return text
        if isinstance(text, bytes):
            decoded = text.decode(errors="surrogateescape")
            return self._replace(decoded, replacement).encode(errors="surrogateescape")
        inside = [
            value for value in self._values if value in text and self._is_secret(value, value)
        ]
        if inside:
            pattern = "|".join(map(re.escape, inside))
            return re.sub(pattern, lambda match: replacement(match[0]), text)
        if len(text) < _SHORTEST_PIECE:
            return text
        is_piece = any(text in value and self._is_secret(text, value) for value in self._values)
        return replacement(text) if is_piece else text

    @functools.cached_property
    def _values(self) -> dict[str, list[str]]:
        """The names of variables by their value, the longest first."""
        found: dict[str, list[str]] = {}
        for name, value in sorted({**recorded_variables, **os.environ}.items()):
            if len(value) >= _SHORTEST and not _SYSTEM.match(name) and name not in _PUBLIC:
                found.setdefault(value, []).append(name)
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    @functools.cached_property
    def _texts(self) -> dict[str, str]:
        """The sources of the project's modules, by file."""
        modules = [each for each in list(sys.modules.values()) if isinstance(each, ModuleType)]
        files = {file_of(module) or "": vars(module) for module in modules}
        return {
            file: text_of_file(file, names)
            for file, names in files.items()
            if self._codebase.kind_of_file(file) == PROJECT
        }

    @functools.cached_property
    def _words(self) -> set[str]:
        """The words of the project, in capitals."""
        return set().union(*map(_words_in, self._texts.values()))

    @functools.cached_property
    def _literals(self) -> set[str]:
        """The literals of the package."""
        texts = self._texts.items()
        package = [text for file, text in texts if self._codebase.is_in_package(file)]
        return set().union(*map(_literals_in, package))

    def _is_secret(self, text: str, value: str) -> bool:
        """Whether *text*, which is part of *value*, is that of a variable and of no literal."""
        if text not in self._names:
            name = next(filter(self._is_read, self._values[value]), "")
            if text in self._literals or self._codebase.shorten(text) == "<root>":
                name = ""
            self._names[text] = name
        return self._names[text] != ""

    def _is_read(self, name: str) -> bool:
        """Whether the project names a variable, or its prefix and its field as for pydantic."""
        prefixes = ["", *(word for word in self._words if word.endswith("_"))]
        rests = [name.upper().removeprefix(prefix) for prefix in prefixes]
        is_named = any(self._words.issuperset(rest.split("__")) for rest in rests)
        return is_named or name in recorded_variables


@functools.lru_cache(maxsize=4096)
def _words_in(text: str) -> list[str]:
    return re.findall(r"\w+", text.upper())


@functools.lru_cache(maxsize=4096)
def _literals_in(text: str) -> list[str]:
    return ["".join(groups) for groups in _LITERAL.findall(text)]


@functools.cache
def _slow_digest(value: str) -> str:
    data = value.encode(errors="surrogateescape")
    return hashlib.pbkdf2_hmac("sha256", data, b"pfl", _ROUNDS).hex()
