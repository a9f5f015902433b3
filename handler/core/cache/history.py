"""
History: what became of each step, an object each, created once and never rewritten.

history/<id>/<step>/<newest first>-<token>.json     a record, sealed: computed, failed, crashed, busted, restored, accepted
recent/<4>/<3>/<12 digits>-<token>=<id>=<step>      where it is: an empty object, made just before it

A name starts with 10^19 less a time in nanoseconds, so a listing starts with the newest, of a step as of the whole store, however
much is there. A step is computed by one call at a time, and its record gets a name after that of the record before it, so
their order is right also where a clock went backwards. The folder ``~`` holds what is about all IDs, the step ``~`` about all.
"""

from __future__ import annotations

import heapq
import math
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from itertools import islice, takewhile
from typing import NamedTuple

from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError, NotFoundError
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import AlreadyExistsError, Store

ALL = "~"  # No ID's folder and no step is called so.
COMPUTED, FAILED, BUSTED, RESTORED, ACCEPTED = (
    "computed",
    "failed",
    "busted",
    "restored",
    "accepted",
)
VERSION = 1
NEAR = (
    10_000  # Among so many of the newest records a short name is looked for where no ID is given.
)
_AHEAD, _MERGED = 16, 32  # Reads under way at once on S3; steps that are listed each for itself.
_NAME = re.compile(r"(\d{19})-(?:([0-9a-f]{16})|([a-z]+))-([0-9a-f]+)\.json")
Warn = Callable[[CorruptRecordError], None]
store_in_use: ContextVar[Store | None] = ContextVar("store_in_use", default=None)


class Name(NamedTuple):
    """Where a record is: all that is known of it without reading it."""

    folder: str
    step: str
    file: str

    @property
    def path(self) -> str:
        """The key of its object."""
        return f"history/{self.folder}/{self.step}/{self.file}"

    @property
    def order(self) -> str:
        """Sorts the newest first."""
        return self.file[:19]

    @property
    def time_ns(self) -> int:
        """When it was written, as far as clocks can be trusted, in nanoseconds since 1970."""
        return records.NEWEST_FIRST - int(self.file[:19])

    @property
    def written_at(self) -> str:
        """The same in ISO 8601, UTC."""
        return records.now_iso(self.time_ns / 1e9)

    @property
    def status(self) -> str:
        """What it tells of."""
        match = _NAME.fullmatch(self.file)
        return (match[3] or COMPUTED) if match else "?"

    @property
    def short(self) -> str:
        """What a person calls it: 8 hex digits, as good as unique among the records that one looks at."""
        return self.file.removesuffix(".json").rpartition("-")[2]

    @property
    def _recent(self) -> str:
        return f"recent/{self.file[:4]}/{self.file[4:7]}/{self.file[7:].removesuffix('.json')}={self.folder}={self.step}"


def new_name(
    folder: str,
    step: str,
    what: str,
    *,
    after: str | None = None,
    time_ns: int | None = None,
    token: str = "",
) -> Name:
    """
    A name for a record.

    Args:
        folder: The ID's.
        step: The step.
        what: The start of a result's key, or a status.
        after: The key of the record that this one comes after, whatever the clock says.
        time_ns: When it happened; now.
        token: What makes it the same name each time; random.
    """
    time_ns = time.time_ns() if time_ns is None else time_ns
    if after is not None and (before := parse(after)) is not None:
        time_ns = max(time_ns, before.time_ns + 1)
    return Name(
        folder,
        step,
        f"{records.NEWEST_FIRST - time_ns:019d}-{what}-{token or secrets.token_hex(4)}.json",
    )


def append(store: Store, name: Name, body: dict) -> str:
    """Write a record, unless one of this name is there already; its key."""
    store.put(name._recent, b"")
    try:
        store.put(name.path, records.seal({"version": VERSION, **body}), mode="create")
    except AlreadyExistsError:
        pass  # The same one, told by somebody before us.
    return name.path


def note(store: Store, folder: str, step: str, status: str, body: dict) -> str:
    """Write a record of something that happened to a step without its being computed: *status* says what."""
    at = {
        "step": None if step == ALL else step,
        "status": status,
        "computed_at": None,
        "noted_at": records.now_iso(),
    }
    return append(store, new_name(folder, step, status), {**at, **body})


def parse(path: str) -> Name | None:
    """The name of a record's key; None where it is none."""
    parts = path.split("/")
    return (
        Name(*parts[1:])
        if len(parts) == 4 and parts[0] == "history" and _NAME.fullmatch(parts[3])
        else None
    )


def names(store: Store, *, folder: str | None = None, step: str | None = None) -> Iterator[Name]:
    """
    The names of all records, newest first; nothing is read.

    Args:
        store: Where.
        folder: Only of the ID of this folder, with what is about all IDs.
        step: Only of this step, with what is about all steps.
    """
    if folder is None:
        yield from (
            name for name in _recent(store) if step in (None, name.step) or name.step == ALL
        )
        return
    places = (
        [(folder, step)]
        if step
        else [(folder, each) for each in store.folders(f"history/{folder}")]
    )
    if len(places) > _MERGED:
        found = (parse(entry.key) for entry in store.list(f"history/{folder}"))
        streams = [iter(sorted((name for name in found if name), key=lambda name: name.order))]
    else:
        streams = [_of_step(store, *place) for place in places]
    for each in {ALL, *([step] if step else store.folders(f"history/{ALL}"))}:
        streams.append(_of_step(store, ALL, each))
    if step:
        streams.append(_of_step(store, folder, ALL))
    yield from heapq.merge(*streams, key=lambda name: name.order)


def _of_step(store: Store, folder: str, step: str) -> Iterator[Name]:
    found = (Name(folder, step, file) for file in store.names(f"history/{folder}/{step}"))
    return (name for name in found if _NAME.fullmatch(name.file))


def _recent(store: Store) -> Iterator[Name]:
    def whole() -> Iterator[str]:
        if store.is_ordered:
            yield from (entry.key for entry in store.list("recent"))
            return
        for first in store.folders("recent"):
            for second in store.folders(f"recent/{first}"):
                yield from (
                    f"recent/{first}/{second}/{name}"
                    for name in store.names(f"recent/{first}/{second}")
                )

    for key in whole():
        start, _, rest = key.removeprefix("recent/").partition("=")
        folder, _, step = rest.partition("=")
        name = Name(folder, step, f"{start.replace('/', '')}.json")
        if _NAME.fullmatch(name.file):
            yield name


def read(store: Store, name: Name, warn: Warn) -> dict | None:
    """A record; None where there is none, and where *warn* was told that it is damaged or of another version."""
    return _checked(name, store.get(name.path), warn)


def _checked(name: Name, data: bytes | None, warn: Warn) -> dict | None:
    if data is None:
        return None  # Pruned, or its writer died between the two writes.
    try:
        body = records.unseal(data, name.path)
        if body.get("version") != VERSION:
            raise CorruptRecordError(
                f"{name.path} is of version {body.get('version')}",
                why=f"this pfl reads version {VERSION}",
                hint="use the pfl that wrote it",
            )
        if body["id"] is not None and keys.encode_id(body["id"]) != name.folder:
            raise CorruptRecordError(f"{name.path} is damaged", why=f"it is about {body['id']!r}")
        if not all(isinstance(body.get(field), dict | None) for field in ("inputs", "params")):
            raise CorruptRecordError(
                f"{name.path} is damaged", why="its inputs or parameters are no object"
            )
        return body
    except CorruptRecordError as exc:
        warn(exc)
    except (KeyError, TypeError, AttributeError) as exc:
        warn(CorruptRecordError(f"{name.path} is damaged", why=f"it is no record ({exc!r})"))
    return None


def bodies(store: Store, found: Iterable[Name], warn: Warn) -> Iterator[tuple[Name, dict]]:
    """The records of these names, read as they are asked for; on S3 some ahead."""
    for name, data in _fetched(store, found):
        if (body := _checked(name, data, warn)) is not None:
            yield name, body


def _fetched(store: Store, found: Iterable[Name]) -> Iterator[tuple[Name, bytes | None]]:
    if not store.is_ordered:
        yield from ((name, store.get(name.path)) for name in found)
        return
    from concurrent.futures import ThreadPoolExecutor

    under_way: deque = deque()
    ahead = 1  # Who wants the newest alone pays for it alone.
    pool = ThreadPoolExecutor(_AHEAD)
    try:
        for name in found:
            under_way.append((name, pool.submit(store.get, name.path)))
            if len(under_way) == ahead:
                name, future = under_way.popleft()
                yield name, future.result()
                ahead = min(ahead + 2, _AHEAD)
        yield from ((name, future.result()) for name, future in under_way)
    finally:
        pool.shutdown(cancel_futures=True)


def computed(
    store: Store,
    folder: str,
    step: str,
    warn: Warn = lambda exc: None,
    *,
    until_ns: float = math.inf,
) -> Iterator[tuple[Name, dict]]:
    """What a step of an ID had computed at a moment, newest first, as it is asked for."""
    found = (
        name
        for name in _of_step(store, folder, step)
        if name.status == COMPUTED and name.time_ns <= until_ns
    )
    return bodies(store, found, warn)


def _with_values(store: Store, folder: str, step: str) -> Iterator[tuple[Name, object]]:
    """The same with their values, but for those whose value is damaged or gone."""
    for name, body in computed(store, folder, step):
        try:
            found = value(store, name, body)
        except (NotFoundError, CorruptRecordError):
            continue
        yield name, found


def ls(
    store: Store,
    *,
    id: str | None = None,
    flow: str | None = None,
    step: str | None = None,
    since_ns: int | None = None,
    status: str | None = None,
    warn: Warn,
) -> Iterator[tuple[Name, dict]]:
    """
    Records, newest first, as they are found: the cost is that of what is looked at, not of what is stored.

    Args:
        store: Where.
        id: Only of this ID, with what is about all IDs.
        flow: Only of this flow; each record is read for that.
        step: Only of this step.
        since_ns: Not older than this, in nanoseconds since 1970.
        status: Only what has this status.
        warn: Told of each damaged record.
    """
    listed = names(store, folder=None if id is None else keys.encode_id(id), step=step)
    found = takewhile(lambda name: since_ns is None or name.time_ns >= since_ns, listed)
    for name, body in bodies(
        store, (name for name in found if status in (None, name.status)), warn
    ):
        is_about = (
            id is None
            or body["id"] == id
            or (body["id"] is None and keys.encode_id(id).startswith(body.get("prefix") or ""))
        )
        if is_about and flow in (None, body.get("flow")):
            yield name, body


def find(store: Store, short: str, *, folder: str | None = None) -> Name:
    """
    The name of a record that a person calls *short*: its key, or the first digits of its short name.

    Raises:
        NotFoundError: There is none, among the newest ``NEAR`` of the store or all of the ID.
        InvalidRequestError: There is more than one.
    """
    if (exact := parse(short)) is not None:
        return exact
    if not re.fullmatch(r"[0-9a-f]{1,64}", short):
        raise InvalidRequestError(
            f"{short!r} names no record",
            hint="the digits that pfl history ls shows, or a whole key: history/…",
        )
    listed = names(store, folder=folder)
    matching = [
        name
        for name in islice(listed, NEAR if folder is None else None)
        if name.short.startswith(short)
    ]
    if not matching:
        where = f"among the newest {NEAR} records" if folder is None else "of this ID"
        raise NotFoundError(
            f"there is no record {short} {where}",
            hint="pfl history ls; --id looks through all records of an ID",
        )
    if len(matching) > 1:
        paths = ", ".join(name.path for name in matching[:5])
        raise InvalidRequestError(
            f"{len(matching)} records begin with {short}",
            why=paths,
            hint="give more digits, or the whole key",
        )
    return matching[0]


def run(
    store: Store, of: str, *, folder: str | None = None, warn: Warn
) -> dict[str, tuple[Name, dict]]:
    """
    The records of one call, by step.

    Args:
        store: Where.
        of: Start of its request ID or of its flow run ID.
        folder: The ID's; without it the call is looked for among the newest ``NEAR`` records.
        warn: Told of each damaged record.

    Raises:
        NotFoundError: There is none.
    """

    def is_of(body: dict) -> bool:
        return any(
            str(body.get(field) or "").startswith(of) for field in ("request_id", "flow_run_id")
        )

    found: dict[str, tuple[Name, dict]] = {}
    home, began_ns = folder, 0
    listed = names(store, folder=folder)
    near = (
        listed
        if folder is not None
        else (
            name for _, name in takewhile(lambda each: found or each[0] < NEAR, enumerate(listed))
        )
    )
    for name, body in bodies(
        store, (name for name in near if not found or name.folder == home), warn
    ):
        if name.time_ns < began_ns:
            break
        if of and body.get("step") and is_of(body):
            if not found:  # All that the call did lies between its start and this, its last record.
                began = body.get("called_at") or body.get("started_at")
                home, began_ns = name.folder, 0 if began is None else ns_of(began)
            found.setdefault(body["step"], (name, body))
    if not found:
        raise NotFoundError(
            f"there is no record of a run {of!r}",
            hint="give the start of its request ID or flow run ID, and --id where it is old",
        )
    return found


def ns_of(moment: str) -> int:
    """A moment in ISO 8601, UTC if it does not say, in nanoseconds since 1970."""
    from datetime import UTC, datetime

    at = datetime.fromisoformat(moment)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6) * 1_000


def value(store: Store, name: Name, body: dict) -> object:
    """
    The value that a record tells of, wherever it is.

    Raises:
        NotFoundError: It tells of none, or the value is gone.
        CorruptRecordError: The value is damaged.
    """
    from pfl.handler.core.cache.entry import recorded

    if name.status != COMPUTED:
        raise NotFoundError(
            f"record {name.short} has no value",
            why=f"{body.get('step')} {body.get('status')}",
            hint="pfl history ls --status computed",
        )
    warnings: list[str] = []
    if (entry := recorded(body, store, warnings)) is not None:
        return entry.value
    if warnings:
        raise CorruptRecordError(f"the value of record {name.short} is damaged", why=warnings[0])
    path = records.value_path(body["id"], body["sha256"])
    raise NotFoundError(f"the value of record {name.short} is gone", why=f"{path} is not there")


def outputs(id: str, step: str, *, limit: int = 10) -> list[object]:
    """
    What a step computed for an ID, the newest first; more than ``previous``, which is the first of it.

    Inside a step this looks in the store of the call; elsewhere in the one that the environment names. It is no part of the
    cache key.

    Args:
        id: The ID.
        step: The step's name.
        limit: At most so many.
    """
    store = store_in_use.get()
    if store is None:
        import os

        from pfl.handler.core.settings import Settings
        from pfl.handler.core.store import objects as stores

        store = stores.of(Settings.from_env(os.environ))
    return [found for _, found in islice(_with_values(store, keys.encode_id(id), step), limit)]


def prune(store: Store, before_ns: int, *, folder: str | None = None) -> Iterator[Name]:
    """The records that may go: those older than a moment, but for the newest value of each step of each ID that can be read."""
    kept: dict[tuple[str, str], str] = {}
    for name in filter(
        None,
        (
            parse(entry.key)
            for entry in store.list("history" if folder is None else f"history/{folder}")
        ),
    ):
        if name.time_ns < before_ns:
            place = (name.folder, name.step)
            if place not in kept:
                kept[place] = next((newest.file for newest, _ in _with_values(store, *place)), "")
            if name.file != kept[place]:
                yield name


def delete(store: Store, doomed: Iterable[Name]) -> None:
    """Remove records for good, and then what leads to them."""
    rest = iter(doomed)
    while some := list(islice(rest, 1_000)):
        store.delete([name.path for name in some])
        store.delete([name._recent for name in some])
