"""Names and digests: how an ID, a value, a result and a plan are written so that equal things have equal keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_quoted = json.encoder.encode_basestring_ascii
LONGEST = 120  # A directory store's file names end at 255 bytes, and three of ours share a path with an ID.


def canonical(value: object) -> str:
    """
    The one text of a JSON value: keys sorted, no spaces, ASCII.

    ``1``, ``1.0`` and ``true`` stay apart, since JSON writes them apart. *value* has passed :func:`pfl.handler.core.store.values.encode`.
    """
    return _CANONICAL(value)


def digest(text: str | bytes) -> str:
    """The SHA-256 of *text* in 64 hex digits."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def value_digest(value: object) -> str:
    """The identity of a value: 64 hex digits over its canonical text."""
    return digest(canonical(value))


def result_key(
    step: str, fingerprint: str, id: str, params: Mapping[str, object], inputs: Mapping[str, str]
) -> str:
    """
    The address of a result, and Prefect's cache key: 64 hex digits.

    Args:
        step: The step's name.
        fingerprint: Digest of the code the step reaches.
        id: The ID, as given.
        params: The step's parameters, defaults filled in.
        inputs: Value digest of each upstream step.
    """
    return digest(canonical(["result", 1, step, fingerprint, id, params, inputs]))


def plan_base(
    step: str, fingerprint: str, params: Mapping[str, object], upstream: Mapping[str, str]
) -> str:
    """What a plan key rests on beside the ID, which is the same for every call with these parameters: 64 hex digits over the bases of the upstream steps."""
    return digest(canonical(["plan", 3, step, fingerprint, params, upstream]))


def plan_key(base: str, id: str) -> str:
    """The address of a plan, known before anything is read: 64 hex digits; *base* as of :func:`plan_base`."""
    return hashlib.sha256(f'["{base}",{_quoted(id)}]'.encode()).hexdigest()


def encode_id(id: str) -> str:
    """
    The folder name of an ID: no slash, never ``.`` or ``..``, at most 120 characters.

    Bytes outside letters, digits, ``-``, ``_`` and ``.`` are written ``%XX``, as in a URL. A name that would be too long
    keeps its start and ends in ``~`` and a digest; the ID itself stands inside every object of the folder.
    """
    text = coded(id)
    return text if len(text) <= LONGEST else f"{text[:40]}~{digest(id)}"


def coded(id: str) -> str:
    """An ID, or how IDs begin, in the characters of a folder name; however long."""
    data = id.encode()
    text = (
        id
        if not data.translate(None, _PLAIN)
        else "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in data)
    )
    return "%2E" + text[1:] if text.startswith(".") else text


def decoded(folder: str) -> str | None:
    """The ID of a folder; None for one that is kept by its digest."""
    from urllib.parse import unquote

    return None if "~" in folder else unquote(folder)
