"""What a deployment asks of the function it made: which code is this, and do the store and Prefect answer from here?"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress

from pfl.handler.core.errors import PflError, UnavailableError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.objects import AlreadyExistsError, Store
from pfl.handler.engine.prefect import client, environment


def reach(settings: Settings, store: Store) -> None:
    """
    Ask the store and Prefect for something.

    Raises:
        UnavailableError: One of them did not answer.
    """
    try_out(store)
    if settings.engine == "prefect":
        api = environment.choose(settings, lambda text: None)
        try:
            client.ask(api, "/flows/filter", {"limit": 1})  # Needs a key, where there is one.
        except UnavailableError as exc:
            hint = (
                exc.hint
                or "Lambda reaches the internet, not your machine: is PREFECT_API_URL public, or the function in its VPC?"
            )
            raise UnavailableError(exc.what, why=exc.why, hint=hint) from exc


def try_out(store: Store) -> float:
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
            raise UnavailableError(
                "a create overwrites: two calls may compute the same step",
                why=f"{store.url} has what was written last",
                hint=hint,
            )
        modified = next(
            (entry.modified for entry in store.list("setup") if entry.key == key), written
        )
    except PflError:
        with suppress(PflError):
            store.delete([key])
        raise
    store.delete([key])
    return modified - written
