"""
A digest of a function and of all code and values it reaches.

It changes when what the function computes can change. Print it with
``python -m pfl.handler.core.fingerprint MODULE:FUNCTION``.
"""

from __future__ import annotations

from .crawl import fingerprint
from .import_recorder import Reads, record_reads
from .model import Fingerprint, Part
from .target import find

__all__ = ["Fingerprint", "Part", "Reads", "find", "fingerprint", "record_reads"]
