"""
A digest of a function and of all code and values it reaches.

It changes when what the function computes can change. Print it with
``python -m pfl.handler.core.fingerprint MODULE:FUNCTION``.
"""

from __future__ import annotations

from pfl.handler.core.fingerprint.crawl import fingerprint
from pfl.handler.core.fingerprint.import_recorder import Reads, record_reads
from pfl.handler.core.fingerprint.model import Fingerprint, Part
from pfl.handler.core.fingerprint.target import find, unstable

__all__ = ["Fingerprint", "Part", "Reads", "find", "fingerprint", "record_reads", "unstable"]
