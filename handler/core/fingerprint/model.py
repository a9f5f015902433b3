"""
What a fingerprint is made of, and how everything in it is hashed.

A digest is SHA-256 over a tag and items, written as Python writes a tuple, so ``("ab", "c")`` and
``("a", "bc")`` differ, and so do a function and a constant of the same text. A new tag or order
changes every stored fingerprint; ``tests/fingerprint`` pins some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from ..files import Seen


def tagged(tag: str, *items: str) -> str:
    """The digest of *tag* and *items*, in this order: 64 hex digits."""
    return hashlib.sha256(ascii((tag, *items)).encode()).hexdigest()


class Part(NamedTuple):
    """
    One thing that a function depends on.

    Args:
        name: As the code calls it: ``clean``, ``Cleaner.clean``, ``RATE``; a second ``RATE`` is
            ``RATE#2``.
        kind: ``function``, ``class``, ``constant``, ``closure``, ``default``, ``module``,
            ``package``, ``python``, ``declared`` or ``opaque``.
        file: Relative to the project's root, with ``/``, or None. Not part of any digest.
        line: Where it is defined. Not part of any digest.
        digest: 64 hex digits; for an opaque part, of its name and reason.
        text: Source without comments and docstrings, a short repr with secrets masked, or the
            reason why a part is opaque: enough to explain a difference when the old code is gone.
    """

    name: str
    kind: str
    file: str | None
    line: int | None
    digest: str
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values, read back by `from_json`."""
        return self._asdict()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Part:
        """The part that `to_json` wrote; fields of a newer version are ignored."""
        return cls(**{name: data[name] for name in cls._fields if name in data})


@dataclass(frozen=True)
class Fingerprint:
    """
    What a function depends on, as one digest and as parts.

    Args:
        digest: 64 hex digits over the names and digests of *parts*.
        parts: In the order in which they were reached; the first is the function.
        opaque: What cannot be known, with the reason as text. Not part of the digest.
        files: Absolute paths of the project's source files it depends on.
        declared: Files and folders whose content counts, with their state; see
            :func:`pfl.handler.core.files.state`.
        late: The project's modules that are imported when the function runs, by name.
    """

    digest: str
    parts: tuple[Part, ...]
    opaque: tuple[Part, ...]
    files: frozenset[str]
    declared: Seen
    late: Mapping[str, ModuleType]

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values, read back by `from_json`, without the paths of this machine."""
        return {
            "digest": self.digest,
            "parts": [part.to_json() for part in self.parts],
            "opaque": [part.to_json() for part in self.opaque],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint that `to_json` wrote."""
        parts = tuple(map(Part.from_json, data["parts"]))
        opaque = tuple(map(Part.from_json, data["opaque"]))
        return cls(data["digest"], parts, opaque, frozenset(), {}, {})
