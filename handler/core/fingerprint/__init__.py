"""
A digest of a function and of all code and values it reaches.

It changes when what the function computes can change.
"""

from __future__ import annotations

from .crawl import fingerprint
from .import_recorder import Reads, record_reads
from .model import Fingerprint, Part

__all__ = ["Fingerprint", "Part", "Reads", "fingerprint", "record_reads"]
