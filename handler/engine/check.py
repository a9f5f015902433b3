"""Checks of a deployed function: which code it runs, and whether its services answer."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress

from ..core.errors import PflError, UnavailableError
from ..core.event import notify_nobody
from ..core.settings import Settings
from ..core.store.objects import AlreadyExistsError, Store
from .prefect import client, environment


def reach(settings: Settings, store: Store) -> None:
    """
    Send a request to the store, and one to Prefect if the engine is ``prefect``.

    Raises:
        UnavailableError: One of them did not answer.
    """
    try_out(store)
    if settings.engine != "prefect":
        return
    api = environment.choose(settings, notify_nobody)
    try:
        # This path needs a key if the server has one.
        client.ask(api, "/flows/filter", {"limit": 1})
    except UnavailableError as exc:
        exc.hint = exc.hint or (
            "Lambda cannot reach your machine: set PREFECT_API_URL to a public server, "
            "or put the function in its VPC"
        )
        raise


def try_out(store: Store) -> float:
    """
    Try with one object all that pfl does: create it without overwriting, read, list, delete.

    Returns:
        How far the store's clock is ahead of this machine's, in seconds.

    Raises:
        UnavailableError: One of these is not allowed, or a create overwrites.
    """
    key = f"setup/check-{secrets.token_hex(8)}"
    try:
        store.put(key, b"1", mode="create")
        written = time.time()
        with suppress(AlreadyExistsError):
            store.put(key, b"2", mode="create")
        if store.get(key) != b"1":
            raise UnavailableError(
                "the store overwrites objects: two calls may compute the same step",
                why=f"{store.url} returned what was written last",
                hint="use S3 itself, or a server that supports If-None-Match",
            )
        listed = {entry.key: entry.modified for entry in store.list("setup")}
    except PflError:
        with suppress(PflError):
            store.delete([key])
        raise
    store.delete([key])
    return listed.get(key, written) - written
