"""Keys and digests: equal IDs, values, results and plans have equal keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
# The canonical text of a JSON value: keys sorted, no spaces, ASCII. 1, 1.0 and true stay apart,
# since JSON writes them differently.
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_quoted = json.encoder.encode_basestring_ascii
# A directory's file names have at most 255 bytes, and up to three of ours share one with an ID.
LONGEST = 120


def digest(text: str | bytes) -> str:
    """The SHA-256 of *text* in 64 hex digits."""
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")
    return hashlib.sha256(text).hexdigest()


def is_key(text: str) -> bool:
    """
    Whether *text* can be a key, or one part of it, that leaves no folder: it is printable, and no
    part is empty or starts with a dot. pfl writes no other keys, and none with a ``#``, which is
    in the names of obstore's drafts.
    """
    text = f"/{text}/"
    return text.isprintable() and "//" not in text and "/." not in text and "#" not in text


def value_digest(value: object) -> str:
    """The identity of a value: 64 hex digits, computed from its canonical text."""
    return digest(canonical(value))


def result_key(
    step: str, fingerprint: str, id: str, params: Mapping[str, object], inputs: Mapping[str, str]
) -> str:
    """
    The key of a result, which is also Prefect's cache key: 64 hex digits.

    Args:
        step: The step's name.
        fingerprint: Digest of the code the step reaches.
        id: The ID.
        params: The step's parameters, with defaults filled in.
        inputs: Value digest of each upstream step.
    """
    return digest(canonical(["result", 1, step, fingerprint, id, params, inputs]))


def plan_base(
    step: str, fingerprint: str, params: Mapping[str, object], upstream: Mapping[str, str]
) -> str:
    """
    The part of a plan key that does not depend on the ID: 64 hex digits.

    Args:
        step: The step's name.
        fingerprint: Digest of the code the step reaches.
        params: The step's parameters, with defaults filled in.
        upstream: The base of each upstream step.
    """
    return digest(canonical(["plan", 3, step, fingerprint, params, upstream]))


def plan_key(base: str, id: str) -> str:
    """
    The key of a plan, known before anything is read: 64 hex digits.

    Args:
        base: What :func:`plan_base` returns.
        id: The ID.
    """
    return hashlib.sha256(f'["{base}",{_quoted(id)}]'.encode()).hexdigest()


def encode_id(id: str) -> str:
    """
    The folder name of an ID: no slash, never ``.`` or ``..``, at most 120 characters.

    Bytes other than letters, digits, ``-``, ``_`` and ``.`` are written ``%XX``, as in a URL. A
    name that would be too long keeps its start and ends with ``~`` and a digest; every object in
    the folder holds the ID itself.
    """
    text = escape_id(id)
    return text if len(text) <= LONGEST else f"{text[:40]}~{digest(id)}"


def escape_id(id: str) -> str:
    """An ID, or the start of one, in the characters of a folder name, at any length."""
    data = id.encode(errors="surrogatepass")  # A stored ID may be anything.
    text = id
    if data.translate(None, _PLAIN):
        text = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in data)
    return "%2E" + text[1:] if text.startswith(".") else text


def decode_id(folder: str) -> str | None:
    """The ID of a folder name; None if the name is ``~``, or holds only the ID's digest."""
    from urllib.parse import unquote

    return None if "~" in folder else unquote(folder)
