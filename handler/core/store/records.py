"""
The objects in the store: their paths, and how they are encoded and checked.

results/<id>/<step>/<result key>          a Prefect result record: stock Prefect can read it
plans/<id>/<step>/<plan key>.json         where a plan's result is, and its values if they are small
history/<id>/<step>/<newest first>.json   one per computed result, or what else happened to it
recent/…                                  what the newest calls wrote, see cache/history.py
values/<id>/<sha256>                      a value too large for history, as JSON
code/<step>/<fingerprint>.json            the parts of a fingerprint, to report what changed
busts/<id>/<step>/…                       what was busted, see pfl.handler.core.cache.bust
ids/<id>                                  that something is stored for the ID
shared.json                               see pfl.handler.core.cache.shared
aside/…                                   what verify set aside, under the name it had
format.json                               the version of all this

Plans, history and the manifest are *sealed*: ``{"sha256":"<64 hex digits>","body":{…}}``, where the
digest covers the bytes of the body. A result has its digest next to the fields that Prefect reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from functools import cache, partial
from types import UnionType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ..errors import CorruptRecordError
from .keys import canonical, digest, encode_id
from .values import MAX_DEPTH, JsonObject

# 64 hex digits: a key, or the digest of a value.
DIGEST = re.compile("[0-9a-f]{64}")
# What a field may hold; see :func:`fields`.
Kind = Any

_HEAD = b'{"sha256":"'
_MIDDLE = b'","body":'
_BODY_START = len(_HEAD) + 64 + len(_MIDDLE)
# As now_iso() and Prefect write a moment.
_YEAR_9999 = 253_402_300_799.0
# How deep an object may hold a value.
_AROUND = 10
# Larger integers do not fit into a float.
_LARGEST = 2**53
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
# The same, as the types of fields.
Digest = Annotated[str, DIGEST]
Moment = Annotated[str, MOMENT]
JSON_SERIALIZER: JsonObject = {
    "type": "json",
    "jsonlib": "json",
    # Prefect's own hooks import any class that a value names under "__class__"; ours is plain JSON.
    "object_encoder": None,
    "object_decoder": None,
    "dumps_kwargs": {},
    "loads_kwargs": {},
}


class ResultMetadata(TypedDict, total=False):
    """What pfl stores with a result, in a field that Prefect ignores; Prefect's own have none."""

    id: str
    step: str
    fingerprint: str
    after: list[str]
    record: Annotated[str, re.compile(r"\d{19}-[0-9a-f]{16}-[0-9a-f]+\.json")]


class StoredResult(NamedTuple):
    """A decoded result record: the value, its length as JSON, its expiry, and what pfl added."""

    value: object
    size_bytes: int
    expires_at: str | None
    metadata: JsonObject


def seal(body: object) -> bytes:
    """*body* as JSON with its digest."""
    data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((_HEAD, hashlib.sha256(data).hexdigest().encode(), _MIDDLE, data, b"}"))


def unseal(data: bytes, key: str) -> Any:
    """
    The body of a sealed object; its shape is that of the caller's own TypedDict.

    Raises:
        CorruptRecordError: The bytes are not what was written.
    """
    body = data[_BODY_START:-1]
    head = b"".join((_HEAD, hashlib.sha256(body).hexdigest().encode(), _MIDDLE))
    if data[:_BODY_START] != head or data[-1:] != b"}":
        raise damaged(key, f"its digest does not match its {len(data)} bytes")
    found = loads(body, key)
    fields(found, key, {})
    return found


def fields(
    body: object, key: str, required: Mapping[str, Kind], optional: Mapping[str, Kind] = {}
) -> None:
    """
    Check the fields of a stored object before its values are used.

    Args:
        body: A JSON value.
        key: The object that holds it.
        required: The kind of each field: a type such as ``str | None``, where ``float`` includes
            integers; ``list[str]``; a TypedDict, which is
            not looked into; or a pattern that a text matches.
        optional: The kinds of fields that may be absent.

    Raises:
        CorruptRecordError: *body* is not an object, or a field is absent, of another kind, or a
            number that is too large for arithmetic.
    """
    if not isinstance(body, dict):
        raise damaged(key, f"it holds a {type(body).__name__}, not an object")
    for name, kind in {**required, **optional}.items():
        if name not in body and name in required:
            raise damaged(key, f"it has no {name}")
        if name in body and not _is(body[name], kind):
            raise damaged(key, f"its {name} is {body[name]!r:.80}")


def check(body: object, key: str, shape: Any, *required: str) -> None:
    """
    Check that the object at *key* has the fields of a TypedDict; see :func:`fields`.

    Args:
        body: A JSON value.
        key: The object that holds it.
        shape: The TypedDict.
        required: The fields that have to be there; default: those that the TypedDict requires.
    """
    kinds = _hints(shape)
    fields(body, key, {name: kinds[name] for name in required or shape.__required_keys__}, kinds)


_hints = cache(partial(get_type_hints, include_extras=True))


def _is(value: object, kind: Kind) -> bool:
    origin: Any = get_origin(kind)
    inner = get_args(kind)
    if origin in (Union, UnionType):
        return any(_is(value, each) for each in inner)
    if origin is Annotated:
        return _is(value, inner[1])
    if origin is list:
        return isinstance(value, list) and all(_is(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, inner[1]) for item in value.values())
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and kind.fullmatch(value) is not None
    if kind in (object, Any):
        return True
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int | float):
        return abs(value) <= _LARGEST and (kind is float or isinstance(value, kind))
    return isinstance(value, dict if is_typeddict(kind) else kind)


def loads(text: str | bytes, key: str) -> object:
    """
    The JSON value in *text*; unlike ``json.loads``, numbers that are not finite are errors.

    Raises:
        CorruptRecordError: It is not JSON, or nested deeper than a value that is stored.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        found: object = _decode(text)
        # Few texts have this many brackets, so that one has to look at how they nest.
        is_suspicious = text.count("[") + text.count("{") > MAX_DEPTH
        if is_suspicious and _depth(found) > MAX_DEPTH + _AROUND:
            raise ValueError("it is nested too deeply")
        return found
    except (ValueError, RecursionError) as exc:
        raise damaged(key, f"its {len(text)} bytes are not JSON ({exc})") from exc


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is not a JSON number")
    return number


_decode = json.JSONDecoder(parse_constant=_finite, parse_float=_finite).decode


def _depth(found: object) -> int:
    """How many lists and objects of *found* are inside one another."""
    level: Any = [found]
    depth = 0
    while level:
        depth += 1
        inner = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    return depth


def result_path(id: str, step: str, key: str) -> str:
    """The path of a result, which is also Prefect's storage key."""
    return f"results/{encode_id(id)}/{step}/{key}"


def plan_path(id: str, step: str, key: str) -> str:
    """The path of a plan."""
    return f"plans/{encode_id(id)}/{step}/{key}.json"


def value_path(id: str, sha256: str) -> str:
    """The path of a value that is too large for its record of history."""
    return f"values/{encode_id(id)}/{sha256}"


def code_path(step: str, fingerprint: str) -> str:
    """The path of the parts of a fingerprint."""
    return f"code/{step}/{fingerprint}.json"


def encode_result(path: str, text: str, metadata: ResultMetadata, expires_at: str | None) -> bytes:
    """
    A result record as Prefect writes it, with *metadata* in a field that Prefect ignores.

    The bytes depend on the arguments alone, so both engines write the same.

    Args:
        path: The storage key.
        text: The value as JSON.
        metadata: The result's ID, step and code.
        expires_at: When the value expires, as ISO 8601 in UTC.

    Source: Prefect 3.8, ``ResultRecord`` in ``prefect/_internal/result_records.py``.
    """
    record = {
        "metadata": {
            "storage_key": path,
            "expiration": expires_at,
            "serializer": JSON_SERIALIZER,
        },
        "result": text,
        "pfl": {"version": 1, "sha256": _result_digest(text, expires_at, metadata), **metadata},
    }
    return json.dumps(record, separators=(",", ":")).encode()


def _result_digest(text: str, expires_at: str | None, metadata: Mapping[str, object]) -> str:
    return digest(canonical([digest(text), expires_at, metadata]))


def decode_result(data: bytes, path: str) -> StoredResult:
    """
    Read a result record without Prefect; one of stock Prefect has no metadata.

    Raises:
        CorruptRecordError: The bytes are not what was written.
    """
    record: Any = loads(data, path)
    fields(record, path, {"metadata": dict, "result": str}, {"pfl": dict})
    about, text, metadata = record["metadata"], record["result"], record.get("pfl", {})
    about = {name: given for name, given in about.items() if given is not None}
    fields(about, path, {"serializer": dict}, {"storage_key": str, "expiration": MOMENT})
    serializer, storage_key = about["serializer"], about.get("storage_key", "")
    fields(serializer, path, {"type": str})
    expires_at = about.get("expiration")
    if storage_key and not storage_key.endswith(path):
        raise damaged(path, f"it holds the record of {storage_key}")
    if metadata:
        metadata.pop("version", None)
        sha256 = metadata.pop("sha256", None)
        check(metadata, path, ResultMetadata, "id", "step", "fingerprint")
        folder = result_path(metadata["id"], metadata["step"], "")
        if sha256 != _result_digest(text, expires_at, metadata) or not path.startswith(folder):
            raise damaged(path, "its value or its metadata differs from what was written")
    if serializer["type"] != "json":
        raise damaged(path, f"its value is a {serializer['type']}, and pfl reads only JSON")
    return StoredResult(loads(text, path), len(text), expires_at, metadata)


def now_iso(at: float | None = None) -> str:
    """
    A moment as ISO 8601 in UTC, to the microsecond: ``2026-11-23T12:42:42.474939Z``.

    A stored time may be any number, so those before 1970 and after 9999 become these.
    """
    at = time.time() if at is None else min(max(at, 0.0), _YEAR_9999)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06d}Z"


def is_past(moment: str | None, now: str | None = None) -> bool:
    """Whether an ISO 8601 moment in UTC, as pfl or Prefect writes it, is past; None never is."""
    return moment is not None and moment.replace("+00:00", "Z") <= (now or now_iso())


def damaged(key: str, why: str) -> CorruptRecordError:
    """The error of an object that does not hold what it should."""
    hint = "pfl ignores it; pfl cache verify --repair sets it aside"
    return CorruptRecordError(f"{key} is damaged", why=why, hint=hint)
