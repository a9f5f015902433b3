"""
What the objects of the store hold, and how they are checked when they are read.

results/<id>/<step>/<result key>       a Prefect result record: stock Prefect can read it
plans/<id>/<step>/<plan key>.json      where the result of a plan is, and the values themselves when they are small
history/<id>/<step>/<newest first>.json   one per computed result, created once; others have a status that says so
recent/…                               which records of history are the newest, see pfl.handler.core.cache.history
values/<id>/<sha256>                   a value too large for history, as JSON: it outlives its result
code/<step>/<fingerprint>.json         the parts of a fingerprint, for those who ask what changed
busts/<id>/<step>/…                    what was made void, see pfl.handler.core.cache.bust
publishing/<id>~…                      who is about to write a plan
aside/…                                what verify set aside, below the name it had
format.json                            the version of all this

Plans, history and the manifest are *sealed*: ``{"sha256":"<64 hex digits>","body":{…}}``, the digest being over the bytes of
the body. A result carries the digest of its text beside the fields Prefect reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping

from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError
from pfl.handler.core.store.keys import canonical, digest, encode_id

_HEAD, _MIDDLE = b'{"sha256":"', b'","body":'
_START = len(_HEAD) + 64 + len(_MIDDLE)  # Where the body of a sealed object begins.
MOMENT = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"
)  # As now_iso() and Prefect write them.
JSON_SERIALIZER = {
    "type": "json",
    "jsonlib": "json",
    # Prefect's own hooks import whatever class a value names under "__class__"; ours are plain JSON both ways.
    "object_encoder": None,
    "object_decoder": None,
    "dumps_kwargs": {},
    "loads_kwargs": {},
}


def seal(body: object) -> bytes:
    """*body* as JSON with its digest."""
    data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((_HEAD, hashlib.sha256(data).hexdigest().encode(), _MIDDLE, data, b"}"))


def unseal(data: bytes, key: str) -> dict:
    """
    The body of a sealed object.

    Raises:
        CorruptRecordError: The bytes are not what was written.
    """
    body = data[_START:-1]
    if (
        data[:_START] != b"".join((_HEAD, hashlib.sha256(body).hexdigest().encode(), _MIDDLE))
        or data[-1:] != b"}"
    ):
        raise _damaged(key, f"the digest of its {len(data)} bytes is not the one that was written")
    if type(found := loads(body, key)) is not dict:
        raise _damaged(key, f"it holds a {type(found).__name__}, not an object")
    return found


def loads(text: str | bytes, key: str) -> object:
    """
    What stands in *text* as JSON; a number that is no JSON, such as ``NaN``, is refused.

    Raises:
        CorruptRecordError: It is no JSON, or nested too deeply.
    """
    try:
        text = (text if isinstance(text, str) else text.decode()).strip()
        found, end = _decode(text)
        if end != len(text):
            raise ValueError("there is more behind it")
        return found
    except (ValueError, RecursionError) as exc:
        raise _damaged(key, f"{len(text)} bytes stored, and they are no JSON ({exc})") from exc


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


_decode = json.JSONDecoder(parse_constant=_refuse).raw_decode


def result_path(id: str, step: str, key: str) -> str:
    """Where a result is; Prefect's storage key."""
    return f"results/{encode_id(id)}/{step}/{key}"


def plan_path(id: str, step: str, key: str) -> str:
    """Where a plan is."""
    return f"plans/{encode_id(id)}/{step}/{key}.json"


def value_path(id: str, sha256: str) -> str:
    """Where a value is that is too large to travel inside a record of history."""
    return f"values/{encode_id(id)}/{sha256}"


def code_path(step: str, fingerprint: str) -> str:
    """Where it is told what a fingerprint is made of."""
    return f"code/{step}/{fingerprint}.json"


def encode_result(
    path: str, text: str, about: Mapping[str, object], expires_at: str | None
) -> bytes:
    """
    A result record as Prefect writes it, with what pfl checks in a field that Prefect passes over.

    The bytes depend on nothing but the arguments: both engines write the same.

    Args:
        path: The storage key.
        text: The value as JSON.
        about: Step, ID and the parts of the key.
        expires_at: When the value stops being valid, as ISO 8601 in UTC.

    Source: Prefect 3.8, ``ResultRecord`` in ``prefect/_internal/result_records.py``.
    """
    metadata = {"storage_key": path, "expiration": expires_at, "serializer": JSON_SERIALIZER}
    told = {"version": 1, "sha256": _result_digest(text, expires_at, about), **about}
    return json.dumps(
        {"metadata": metadata, "result": text, "pfl": told}, separators=(",", ":")
    ).encode()


def _result_digest(text: str, expires_at: str | None, about: Mapping[str, object]) -> str:
    return digest(canonical([digest(text), expires_at, about]))


def decode_result(data: bytes, path: str) -> tuple[object, int, str | None, dict]:
    """
    Read a result record, ours or stock Prefect's, without Prefect.

    Returns:
        The value, its length as JSON, when it expires (ISO 8601) or None, and what pfl noted beside it (empty in Prefect's own).

    Raises:
        CorruptRecordError: The bytes are not what was written.
        InvalidRequestError: The value is pickled.
    """
    record = loads(data, path)
    try:
        metadata, text, about = record["metadata"], record["result"], record.get("pfl", {})
        serializer, expires_at, storage_key = (
            metadata["serializer"],
            metadata.get("expiration"),
            metadata.get("storage_key"),
        )
        if not all(isinstance(each, str) for each in (text, serializer["type"], storage_key or "")):
            raise TypeError("a field is no text")
        if expires_at is not None and not MOMENT.fullmatch(expires_at):
            raise ValueError(f"it expires at {expires_at!r}")
        told = {name: each for name, each in about.items() if name not in ("version", "sha256")}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _damaged(
            path, f"{len(data)} bytes stored, and they are no result record ({exc!r})"
        ) from exc
    if storage_key and not storage_key.endswith(path):
        raise _damaged(path, f"it is the record of {storage_key}")
    if about and about.get("sha256") != _result_digest(text, expires_at, told):
        raise _damaged(path, "its value, or what stands beside it, is not what was written")
    try:
        text = _as_json(text, serializer, path)
        return loads(text, path), len(text), expires_at, told
    except (ValueError, EOFError) as exc:
        raise _damaged(path, f"its {serializer['type']} value cannot be decoded ({exc})") from exc


def _as_json(text: str, serializer: dict, path: str) -> str:
    kind = serializer["type"]
    if kind.startswith("compressed/"):
        text, kind = (
            _decompressed(text, serializer.get("compressionlib", "lzma")),
            kind.removeprefix("compressed/"),
        )
    if kind == "json":
        return text
    if kind == "pickle":
        raise InvalidRequestError(
            f"{path} holds a pickled value, which pfl does not read",
            why="anyone who can write to the store could run code here",
            hint="pfl cache bust computes the step again",
        )
    raise ValueError(f"unknown serializer {kind}")


def _decompressed(text: str, library: str) -> str:
    import lzma
    from base64 import b64decode

    if library != "lzma":
        raise ValueError(f"compressed by {library}")
    try:
        return lzma.decompress(b64decode(text)).decode()
    except lzma.LZMAError as exc:
        raise ValueError(str(exc)) from exc


def now_iso(at: float | None = None) -> str:
    """A moment as ISO 8601 in UTC, to the microsecond: ``2026-11-23T12:42:42.474939Z``."""
    at = time.time() if at is None else at
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06d}Z"


def is_past(moment: str | None, now: str | None = None) -> bool:
    """Whether an ISO 8601 moment in UTC is over; None never is. Prefect's spelling of the offset is understood."""
    return moment is not None and moment.replace("+00:00", "Z") <= (now or now_iso())


def earliest(*moments: str | None) -> str | None:
    """The first of the moments that are given."""
    return min((m for m in moments if m is not None), default=None)


def _damaged(key: str, why: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"{key} is damaged", why=why, hint="it is passed over; computing again writes it anew"
    )
