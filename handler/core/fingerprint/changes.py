"""
Why two fingerprints differ, in sentences, from their stored parts: the old code may be gone.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence

from .model import Part
from .rendering import VARIABLE

_SHOWN = 60
_VALUES = ("constant", "default", "closure")

_Pair = tuple[Part | None, Part | None]


def explain(old: Sequence[Part], new: Sequence[Part], *, diff: bool = False) -> list[str]:
    """
    One sentence for each part that changed, was added or was removed.

    Args:
        old: The parts of the stored fingerprint.
        new: The parts of the current one.
        diff: Add a unified diff to a sentence about source.

    Returns:
        For instance "`RATE` in flows/helpers.py:12: 3 → 4"; empty if nothing changed. Parts that
        only use what changed are left out, unless no cause is known.
    """
    changed = [*_pairs(old, new)]
    causes = [pair for pair in changed if not _is_consequence(*pair)]
    return [_sentence(*pair, diff=diff) for pair in causes or changed]


def _pairs(old: Sequence[Part], new: Sequence[Part]) -> Iterator[_Pair]:
    """Both versions of each part that changed; one that moved to another file is still one part."""
    same = set(map(_identity, old)) & set(map(_identity, new))
    groups: dict[tuple[str, str], tuple[list[Part], list[Part]]] = {}
    for side, parts in enumerate((new, old)):
        for part in parts:
            if _identity(part) not in same:
                groups.setdefault((part.kind, _name(part)), ([], []))[side].append(part)
    for group in groups.values():
        for after, before in itertools.zip_longest(
            *(sorted(each, key=_identity) for each in group)
        ):
            if before is None or after is None or before.digest != after.digest:
                yield before, after


def _identity(part: Part) -> tuple[str, ...]:
    return (part.kind, _name(part), part.file or "", part.digest)


def _is_consequence(old: Part | None, new: Part | None) -> bool:
    """Whether only what a part uses changed; a masked or cut value may hide a change of its own."""
    if old is None or new is None or old.text != new.text:
        return False
    return new.kind not in _VALUES or not ("***" in new.text or "…" in new.text)


def _sentence(old: Part | None, new: Part | None, *, diff: bool) -> str:
    if new is None:
        assert old is not None
        return f"{_subject(old)} is no longer used"
    subject = _subject(new)
    if old is None:
        return f"{subject} is used now"
    before = _clip(old.text)
    after = _clip(new.text)
    if new.kind in ("package", "python"):
        return f"{_name(new)} {before} → {after}"
    if new.kind in (*_VALUES, "declared"):
        if before != after:
            return f"{subject}: {before} → {after}"
        if variables := VARIABLE.findall(new.text):
            named = " or ".join(dict.fromkeys(variables))
            return f"{subject}: the value of {named} (from the environment) changed"
    if new.kind not in _VALUES and old.text == new.text:
        return f"{subject} uses different code or values"
    return f"{subject} changed{_diff(old, new) if diff else ''}"


def _subject(part: Part) -> str:
    name = _name(part)
    if part.kind in ("package", "python"):
        return f"{name} {part.text}"
    place = f" in {part.file}" if part.file not in (None, part.name) else ""
    if place and part.line:
        place += f":{part.line}"
    if part.kind == "function":
        name += "()"
    elif name.startswith("(module)"):
        name = "module-level code"
    return f"`{name}`{place}"


def _name(part: Part) -> str:
    return re.sub(r"#\d+", "", part.name)


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}…{text[-18:]}"


def _diff(old: Part, new: Part) -> str:
    file = new.file or new.name
    lines = difflib.unified_diff(
        old.text.splitlines(),
        new.text.splitlines(),
        f"a/{old.file or file}",
        f"b/{file}",
        lineterm="",
        n=2,
    )
    return "".join(f"\n{line}" for line in lines)
