"""The version of the store's format, noted in the store: whoever would write in another one stops, and says so."""

from __future__ import annotations

import json

from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError
from pfl.handler.core.store.objects import AlreadyExistsError, Store

VERSION = 1
KEY = "format.json"


def check(store: Store) -> None:
    """
    Note our version in a new store, and refuse one of another; a store is asked once, and only before a write.

    Raises:
        InvalidRequestError: The store is of another version.
        CorruptRecordError: The note cannot be read.
    """
    if store.format is None:
        data = store.get(KEY)
        if data is None:
            try:
                data = json.dumps({"version": VERSION, "by": "pfl"}).encode()
                store.put(KEY, data, mode="create")
            except AlreadyExistsError:
                data = store.get(KEY)
        store.format = _version(data)
    if store.format != VERSION:
        raise InvalidRequestError(
            f"the store {store.url} is of format {store.format}, and this pfl writes format {VERSION}",
            why="what it wrote there the other could not read, or would misread",
            hint="use the pfl that made the store, or set PFL_STORE to another place",
        )


def _version(data: bytes | None) -> int:
    try:
        version = json.loads(data or b"")["version"]
        if type(version) is int:
            return version
        why = f"its version is {version!r}"
    except (ValueError, KeyError, TypeError) as exc:
        why = f"{exc!r}"
    raise CorruptRecordError(
        f"{KEY} of the store is damaged", why=why, hint=f'put {{"version": {VERSION}}} there'
    )
