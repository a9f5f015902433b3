"""
A digest of a function and of all code and values it reaches: it changes when what the function computes can change.

``python -m pfl.handler.core.fingerprint MODULE:FUNCTION`` prints it.
"""

from __future__ import annotations

from typing import Any

from pfl.handler.core.fingerprint.crawl import crawl
from pfl.handler.core.fingerprint.import_recorder import Reads, record_reads
from pfl.handler.core.fingerprint.model import Fingerprint, Part
from pfl.handler.core.fingerprint.target import find, unstable


def fingerprint(function: Any) -> Fingerprint:
    """
    What a function rests on.

    Values count as they are when first seen in this process, so call it after importing and before running.

    Args:
        function: A function, a step, or anything callable that is written in Python.

    Raises:
        InvalidRequestError: It has no Python source, or a file that a step declares is not there.
    """
    return crawl(function)


__all__ = ["Fingerprint", "Part", "Reads", "find", "fingerprint", "record_reads", "unstable"]
