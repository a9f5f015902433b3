"""
Lists a bucket of S3 that holds keys which obstore refuses, such as ``calls//x``.

Others may be able to write to the bucket, and obstore refuses a whole page because of one such key.
So the same page is requested here, and keys that pfl cannot have written are left out.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree

from .. import signature
from .keys import is_key

if TYPE_CHECKING:
    from obstore.store import S3Store

_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_TIMEOUT_S = 60
_PAGE = 1_000


class Page(NamedTuple):
    """
    A part of a listing.

    Attributes:
        found: Keys in order, each with its size in bytes and its last write.
        last: The last key, valid or not; empty: no more follow.
    """

    found: list[tuple[str, int, float]]
    last: str


def read_page(store: S3Store, environ: Mapping[str, str], folder: str, after: str) -> Page:
    """
    The next keys in a folder.

    Args:
        store: The bucket, and the prefix that the keys are relative to.
        environ: The credentials, by the name of their variable.
        folder: The folder.
        after: List only greater keys.

    Raises:
        OSError: S3 refused, or did not answer.

    Source: Amazon S3 API Reference, "ListObjectsV2".
    """
    root = f"{store.prefix}/" if store.prefix else ""
    query = {"list-type": "2", "encoding-type": "url", "prefix": f"{root}{folder}/"}
    query["max-keys"] = str(_PAGE)
    if after:
        query["start-after"] = root + after
    answer = ElementTree.fromstring(_get(store, environ, query))
    found = []
    last = ""
    for each in answer.iter(f"{_NAMESPACE}Contents"):
        last = unquote_plus(_text(each, "Key")).removeprefix(root)
        modified = datetime.fromisoformat(_text(each, "LastModified"))
        if is_key(last):
            found.append((last, int(_text(each, "Size")), modified.timestamp()))
    return Page(found, last if _text(answer, "IsTruncated") == "true" else "")


def _get(store: S3Store, environ: Mapping[str, str], query: dict[str, str]) -> bytes:
    config: dict[str, Any] = {**store.config}
    region = config.get("region") or config.get("default_region") or "us-east-1"
    endpoint = config.get("endpoint_url_s3") or config.get("endpoint")
    url = (endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
    path = f"/{config['bucket']}"
    words = urlencode(sorted(query.items()), quote_via=quote, safe="")
    headers = signature.sign(
        "GET",
        url,
        b"",
        {"x-amz-content-sha256": hashlib.sha256().hexdigest()},
        service="s3",
        region=region,
        environ=environ,
        path=path,
        query=words,
    )
    request = urllib.request.Request(f"{url}{path}?{words}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as exc:
        raise OSError(f"HTTP {exc.code}: {exc.read(300).decode(errors='replace')}") from exc


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(_NAMESPACE + name, "")
