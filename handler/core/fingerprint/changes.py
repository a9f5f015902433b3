"""
Why two fingerprints differ, in sentences, from stored parts alone: the old code need not be there any more.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from pfl.handler.core.fingerprint.model import Part

_SHOWN = 60
_VALUES = ("constant", "default", "closure")


def explain(old: Sequence[Part], new: Sequence[Part], *, diff: bool = False) -> list[str]:
    """
    One sentence for each part that changed, was added or was removed.

    Args:
        old: The parts of the stored fingerprint.
        new: The parts of the present one.
        diff: Follow a sentence about source with a unified diff.

    Returns:
        For instance "`RATE` in flows/helpers.py:12: 3 → 4"; empty when nothing changed. Causes come first: parts
        that differ only in what they lead to are left out where something else changed.
    """
    before, after = _by_place(old), _by_place(new)
    pairs = [(before.get(key), part) for key, part in after.items()]
    pairs += [(part, None) for key, part in before.items() if key not in after]
    changed = _join_moved(
        [
            pair
            for pair in pairs
            if pair[0] is None or pair[1] is None or pair[0].digest != pair[1].digest
        ]
    )
    causes = [pair for pair in changed if not _is_consequence(*pair)]
    return [_sentence(*pair, diff=diff) for pair in causes or changed]


def _by_place(parts: Iterable[Part]) -> dict[tuple[str, str, str | None, int], Part]:
    """Parts by name and file, so that two of one name stay apart however they are numbered."""
    found: dict[tuple[str, str, str | None, int], Part] = {}
    for part in parts:
        count = 0
        name = re.sub(r"#\d+", "", part.name)
        while (key := (part.kind, name, part.file, count)) in found:
            count += 1
        found[key] = part
    return found


def _join_moved(
    pairs: list[tuple[Part | None, Part | None]],
) -> list[tuple[Part | None, Part | None]]:
    """A part that went from one file to another and is the only one of its name is one part that moved."""
    gone = {
        (part.kind, _name(part)): part
        for part, other in pairs
        if part is not None and other is None
    }
    joined: list[tuple[Part | None, Part | None]] = []
    moved = set()
    for old, new in pairs:
        if (
            old is None
            and new is not None
            and (match := gone.pop((new.kind, _name(new)), None)) is not None
        ):
            moved.add(id(match))
            if match.digest != new.digest:
                joined.append((match, new))
        else:
            joined.append((old, new))
    return [pair for pair in joined if pair[1] is not None or id(pair[0]) not in moved]


def _is_consequence(old: Part | None, new: Part | None) -> bool:
    """Whether only what a part leads to changed; a masked or shortened value may hide a change of its own."""
    if old is None or new is None or old.text != new.text:
        return False
    return new.kind not in _VALUES or not ("***" in new.text or "…" in new.text)


def _sentence(old: Part | None, new: Part | None, *, diff: bool) -> str:
    part = new or old
    assert part is not None
    if part.kind in ("package", "python"):
        return f"{_name(part)} {_versions(old, new)}"
    where = (
        f" in {part.file}:{part.line}"
        if part.file and part.line
        else f" in {part.file}"
        if part.file
        else ""
    )
    if part.kind == "declared" and part.file == part.name:
        where = ""
    said = f"`{_called(part)}`{where}"
    if new is None:
        return f"{said} is no longer reached"
    if old is None:
        return f"{said} is reached now"
    if part.kind in _VALUES or part.kind == "declared" and old.text != new.text:
        if _clip(old.text) != _clip(new.text):
            return f"{said}: {_clip(old.text)} → {_clip(new.text)}"
        said = f"{said} changed"
    elif old.text == new.text and part.kind not in _VALUES:
        said = f"{said} leads to other code or values"
    else:
        said = f"{said} changed"
    return said + (_diff(old, new) if diff and old.text != new.text else "")


def _versions(old: Part | None, new: Part | None) -> str:
    if old is None or new is None:
        return f"{(new or old).text} is {'reached now' if old is None else 'no longer reached'}"  # type: ignore[union-attr]
    return f"{old.text} → {new.text}"


def _called(part: Part) -> str:
    name = _name(part)
    if part.kind == "function":
        return f"{name}()"
    return "module-level code" if name.startswith("(module)") else name


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
