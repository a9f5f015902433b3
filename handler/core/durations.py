"""Durations as people write them: ``90s``, ``2m``, ``1h``, ``7d``, ``1w``."""

from __future__ import annotations

import re

_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_s(text: str) -> int | None:
    """A duration such as ``1h`` in seconds; None if *text* is not a duration."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    return int(match[1]) * _UNIT_S[match[2]] if match else None
