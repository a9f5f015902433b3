"""A store tried out: everything that pfl asks of one, with an object that is gone afterwards."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress

from handler.core.errors import PflError, UnavailableError
from handler.core.store import AlreadyExistsError, Store


def run(store: Store) -> float:
    """
    Do with an object all that pfl does: create it once only, read, list and delete it.

    Returns:
        By how many seconds the store's clock is ahead of ours.

    Raises:
        UnavailableError: One of these is not allowed, or a create overwrites.
    """
    key = f"setup/check-{secrets.token_hex(8)}"
    try:
        store.put(key, b"1", mode="create")
        written = time.time()
        try:
            store.put(key, b"2", mode="create")
        except AlreadyExistsError:
            pass
        if store.get(key) != b"1":
            hint = "use S3 itself, or a server with If-None-Match"
            raise UnavailableError("a create overwrites: two calls may compute the same step", why=f"{store.url} has what was written last", hint=hint)
        modified = next((entry.modified for entry in store.list("setup") if entry.key == key), written)
    except PflError:
        with suppress(PflError):
            store.delete([key])
        raise
    store.delete([key])
    return modified - written
