"""The version of the store's format, kept in the store, so that no other version writes to it."""

from __future__ import annotations

import json
from typing import Any

from ..errors import CorruptRecordError, InvalidRequestError
from . import records
from .objects import AlreadyExistsError, Store

VERSION = 2
KEY = "format.json"


def check(store: Store) -> None:
    """
    Write our version into a new store, and refuse a store of another version.

    Each store is checked once per process, and only before the first write.

    Raises:
        InvalidRequestError: The store has another version.
        CorruptRecordError: The version cannot be read.
    """
    if store.format is None:
        data = store.get(KEY)
        if data is None:
            data = json.dumps({"version": VERSION, "by": "pfl"}).encode()
            try:
                store.put(KEY, data, mode="create")
            except AlreadyExistsError:
                data = store.get(KEY)
        try:
            body: Any = records.loads(data or b"", KEY)
            records.fields(body, KEY, {"version": int})
        except CorruptRecordError as exc:
            raise CorruptRecordError(
                f"{KEY} in the store is damaged",
                why=exc.why,
                hint=f'replace its content with {{"version": {VERSION}}}',
            ) from exc
        store.format = body["version"]
    if store.format != VERSION:
        raise InvalidRequestError(
            f"the store {store.url} has format {store.format}; this pfl writes format {VERSION}",
            why="each version could misread what the other writes",
            hint="use the pfl version that created it, or set PFL_STORE to another location",
        )
