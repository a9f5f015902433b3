"""
History: what happened to each step, one object per event, created once and never rewritten.

history/<id>/<step>/<newest first>-<token>.json    a record, sealed
recent/<4>/<3>/<12 digits>-<token>=<id>.json       the names of the records that a call wrote

A file name starts with 10^19 minus a time in nanoseconds, so each listing starts with the newest
record, however many there are. One call at a time computes a step, and names its record after the
previous one, so the order is right even if a clock went backwards. The folder ``~`` holds records
about all IDs, the step ``~`` those about all steps.
"""

from __future__ import annotations

import heapq
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from itertools import chain, islice, takewhile
from operator import attrgetter
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar, cast

from ..errors import CorruptRecordError, ErrorBody, InvalidRequestError, NotFoundError
from ..store import keys, records
from ..store.at_once import at_once
from ..store.objects import AlreadyExistsError, Store
from .entry import NOT_LOADED, Entry, Warn, ignore

ALL = "~"  # No ID's folder and no step has this name.
COMPUTED = "computed"
FAILED = "failed"
CRASHED = "crashed"
BUSTED = "busted"
RESTORED = "restored"
ACCEPTED = "accepted"
VERSION = 1
# Without an ID, only this many of the newest records are searched.
NEAR = 10_000
# On S3: how many reads are under way at once.
_READ_AHEAD = 16
# File names are subtracted from this, so that the newest comes first; works until 2286.
_NEWEST_FIRST = 10**19
T = TypeVar("T")
_by_time = attrgetter("file")  # Sorts names, the newest first.
_NAME = re.compile(r"(\d{19})-(?:([0-9a-f]{16})|([a-z]+))-([0-9a-f]+)\.json")
store_in_use: ContextVar[Store | None] = ContextVar("store_in_use", default=None)


class RecordedInput(TypedDict, total=False):
    """An input of a computation; a large one without its value."""

    key: str
    sha256: str
    value: object


class Record(TypedDict, total=False):
    """A record; ``id`` and ``step`` are None in one about all of them."""

    version: int
    id: str | None
    step: str | None
    flow: str
    prefix: str | None
    status: str
    noted_at: records.Moment | None
    fingerprint: str
    key: records.Digest | None
    sha256: records.Digest
    size_bytes: int
    computed_at: records.Moment | None
    expires_at: records.Moment | None
    engine: str | None
    flow_run_id: str | None
    task_run_id: str | None
    url: str | None
    after: list[str]
    result: Annotated[str, re.compile("[0-9a-f]{64}~[0-9a-f]{8}")]
    value: object
    record: str | None
    params: dict[str, object]
    inputs: dict[str, RecordedInput]
    plan_key: str | None
    why: str
    previous: str | None
    request_id: str | None
    called_at: records.Moment | None
    started_at: records.Moment | None
    ms: float
    error: ErrorBody
    cause: str
    cold_start: bool
    code: str
    degraded: str
    repaired: bool


Fields = Record  # What a caller adds to a record.
ComputedRecord = Record
# What the record of a result has to hold.
_OF_RESULT = (
    "id",
    "step",
    "flow",
    "fingerprint",
    "key",
    "sha256",
    "size_bytes",
    "computed_at",
    "expires_at",
    "engine",
    "flow_run_id",
    "task_run_id",
)


class Name(NamedTuple):
    """Where a record is: all that is known about it without reading it."""

    folder: str
    step: str
    file: str

    @property
    def path(self) -> str:
        """The key of its object."""
        return f"history/{self.folder}/{self.step}/{self.file}"

    @property
    def time_ns(self) -> int:
        """When it was written, by the clock of its writer, in nanoseconds since 1970."""
        return _NEWEST_FIRST - int(self.file[:19])

    @property
    def written_at(self) -> str:
        """The same in ISO 8601, UTC."""
        return records.now_iso(self.time_ns / 1e9)

    @property
    def status(self) -> str:
        """What happened to the step."""
        match = _NAME.fullmatch(self.file)
        return (match[3] or COMPUTED) if match else "?"

    @property
    def short(self) -> str:
        """The short name of the record on a terminal: 8 hex digits, unique in practice."""
        return self.file.removesuffix(".json").rpartition("-")[2]


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
        folder: The folder of the ID.
        step: The step.
        what: The first 16 digits of a result key, or a status.
        after: The path of an earlier record, which this one follows whatever the clock says.
        time_ns: When it happened; default: now.
        token: Hex digits that make the name repeatable; default: random.
    """
    if time_ns is None:
        time_ns = time.time_ns()
    if earlier := parse_path(after or ""):
        time_ns = max(time_ns, earlier.time_ns + 1)
    token = token or secrets.token_hex(4)
    return Name(folder, step, f"{_NEWEST_FIRST - time_ns:019d}-{what}-{token}.json")


def parse_path(path: str) -> Name | None:
    """The name of the record at *path*; None if that is not the path of a record."""
    top, _, rest = path.partition("/")
    parts = rest.split("/")
    if top != "history" or len(parts) != 3 or not _NAME.fullmatch(parts[2]):
        return None
    return Name(*parts)


# Writing.


def append(store: Store, name: Name, fields: Mapping[str, object]) -> None:
    """Write a record unless it exists; a pointer has to be written, too."""
    # Another process may have written the same record.
    with suppress(AlreadyExistsError):
        store.put(name.path, records.seal({"version": VERSION, **fields}), mode="create")


def point(store: Store, names: Collection[Name]) -> None:
    """Write the object that points to the records that one call wrote for an ID."""
    store.put(*pointer(names))


def pointer(names: Collection[Name]) -> tuple[str, bytes]:
    """The key and the bytes of the object that points to records of one ID."""
    newest = min(names, key=_by_time)
    digits = newest.file[:19]
    place = f"{digits[:4]}/{digits[4:7]}/{digits[7:]}-{newest.short}={newest.folder}.json"
    body = {"records": [f"{name.step}/{name.file}" for name in names]}
    return f"recent/{place}", records.seal(body)


def note(store: Store, folder: str, step: str, status: str, fields: Mapping[str, object]) -> None:
    """Write a record of something other than a computation."""
    head = {
        "step": None if step == ALL else step,
        "status": status,
        "computed_at": None,
        "noted_at": records.now_iso(),
    }
    name = new_name(folder, step, status)
    append(store, name, {**head, **fields})
    point(store, [name])


def delete(store: Store, names: Collection[Name]) -> None:
    """Delete records, and then the pointers that name no other record."""
    deleted = set(names)
    folders = {name.folder for name in deleted}
    store.delete(name.path for name in deleted)
    pointers = (key for key in _pointers(store) if _folder_of_pointer(key) in folders)
    for key, data in _fetch(store, pointers, str):
        if deleted.issuperset(_pointed(key, data)):
            store.delete([key])


# Listing.


def list_names(
    store: Store, *, folder: str | None = None, step: str | None = None
) -> Iterator[Name]:
    """
    The names of all records, newest first; no record is read.

    Args:
        store: The store to list.
        folder: Only records of the ID with this folder, and those about all IDs.
        step: Only records of this step, and those about all steps.
    """
    found: Iterable[Name] = _recent(store)
    if folder is not None:
        # One listing of the ID: its records are few beside those of the store.
        both = chain(_below(store, f"history/{folder}"), _below(store, f"history/{ALL}"))
        found = sorted(both, key=_by_time)
    return (name for name in found if step in (None, name.step) or name.step == ALL)


def _below(store: Store, prefix: str) -> Iterator[Name]:
    return filter(None, (parse_path(entry.key) for entry in store.list(prefix)))


def _recent(store: Store) -> Iterator[Name]:
    # A pointer bears the time of the newest record that it names, so records that are newer than
    # the next pointer can be returned.
    waiting: list[tuple[str, Name]] = []
    for key, data in _fetch(store, _pointers(store), str):
        digits = key.removeprefix("recent/").partition("-")[0].replace("/", "")
        while waiting and waiting[0][0][:19] <= digits:
            yield heapq.heappop(waiting)[1]
        for name in _pointed(key, data):
            # A reaper may have written a second pointer.
            if (name.file, name) not in waiting:
                heapq.heappush(waiting, (name.file, name))
    while waiting:
        yield heapq.heappop(waiting)[1]


def _pointers(store: Store) -> Iterator[str]:
    return (entry.key for entry in store.list("recent"))


def _folder_of_pointer(key: str) -> str:
    return key.partition("=")[2].removesuffix(".json")


def _pointed(key: str, data: bytes | None) -> list[Name]:
    """The records that a pointer names; none if it is damaged."""
    with suppress(CorruptRecordError):
        body = records.unseal(data or b"", key)
        records.fields(body, key, {"records": list[str]})
        folder = _folder_of_pointer(key)
        names = (parse_path(f"history/{folder}/{text}") for text in body["records"])
        return [name for name in names if name is not None]
    return []


def list_records(
    store: Store,
    *,
    id: str | None = None,
    flow: str | None = None,
    step: str | None = None,
    since_ns: int | None = None,
    status: str | None = None,
    seen: set[Name] | None = None,
    warn: Warn,
) -> Iterator[tuple[Name, Record]]:
    """
    Records, newest first, read on demand.

    Args:
        store: The store to read.
        id: Only records of this ID, and those about all IDs.
        flow: Only records of this flow; each record is read to find out.
        step: Only records of this step.
        since_ns: Only records written at or after this time, in nanoseconds since 1970.
        status: Only records with this status.
        seen: Records that are left out; each one that is read is added.
        warn: Called with a warning about each damaged record.
    """
    folder = None if id is None else keys.encode_id(id)
    seen = set() if seen is None else seen
    names: Iterator[Name] = list_names(store, folder=folder, step=step)
    names = takewhile(lambda name: name.time_ns >= (since_ns or 0), names)
    names = (name for name in names if status in (None, name.status) and name not in seen)
    for name, record in read_all(store, names, warn):
        seen.add(name)
        if flow not in (None, record.get("flow")):
            continue
        prefix = record.get("prefix") or ""
        if folder is None or (record["id"] in (None, id) and folder.startswith(prefix)):
            yield name, record


def list_computed(
    store: Store,
    folder: str,
    step: str,
    warn: Warn,
) -> Iterator[tuple[Name, Record]]:
    """
    The records of what a step computed for an ID, newest first, read on demand.

    Args:
        store: The store to read.
        folder: The folder of the ID.
        step: The step.
        warn: Called with a warning about each damaged record.
    """
    found = (name for name in _below(store, f"history/{folder}/{step}") if name.status == COMPUTED)
    yield from read_all(store, found, warn)


def newest(store: Store, folder: str, step: str, warn: Warn) -> Record | None:
    """The record of what a step computed last for an ID."""
    return next((record for _, record in list_computed(store, folder, step, warn)), None)


def list_prunable(store: Store, before_ns: int, *, folder: str | None = None) -> Iterator[Name]:
    """Records older than *before_ns*, except the newest readable value of each step of each ID."""
    newest: dict[tuple[str, str], str] = {}
    for name in _below(store, "history" if folder is None else f"history/{folder}"):
        if name.time_ns >= before_ns:
            continue
        place = (name.folder, name.step)
        if place not in newest:
            kept = next(with_values(store, *place, ignore), None)
            newest[place] = kept[0].file if kept else ""
        if name.file != newest[place]:
            yield name


def steps(store: Store, folder: str) -> list[str]:
    """The steps that have records of the ID with this folder."""
    return sorted({name.step for name in _below(store, f"history/{folder}")} - {ALL})


# Finding one.


def find(store: Store, short: str, *, folder: str | None = None) -> Name:
    """
    The name of the record with the path *short*, or with a short name that starts with it.

    Raises:
        NotFoundError: No such record, among the newest ``NEAR`` records or all those of the ID.
        InvalidRequestError: *short* is not a name, or matches several records.
    """
    exact = parse_path(short)
    if exact is not None:
        return exact
    if not re.fullmatch(r"[0-9a-f]{1,64}", short):
        raise InvalidRequestError(
            f"{short!r} is not the name of a record",
            hint="use the digits that pfl history ls shows, or a whole key: history/…",
        )
    names = islice(list_names(store, folder=folder), NEAR if folder is None else None)
    matching = [name for name in names if name.short.startswith(short)]
    if not matching:
        where = f"among the newest {NEAR} records" if folder is None else "for this ID"
        raise NotFoundError(
            f"record {short} not found {where}",
            hint="run pfl history ls; --id searches all records of an ID",
        )
    if len(matching) > 1:
        raise InvalidRequestError(
            f"{len(matching)} records start with {short}",
            why=", ".join(name.path for name in matching[:5]),
            hint="give more digits, or the whole key",
        )
    return matching[0]


def parse_time_ns(moment: str) -> int:
    """An ISO 8601 time with an offset, as nanoseconds since 1970."""
    from datetime import datetime

    return int(datetime.fromisoformat(moment).timestamp() * 1e6) * 1_000


# Reading.


def read(store: Store, name: Name) -> Record | None:
    """
    The record; None if it does not exist.

    Raises:
        CorruptRecordError: It is damaged, or has another version.
    """
    data = store.get(name.path)
    return None if data is None else _parse(name, data)


def read_all(store: Store, names: Iterable[Name], warn: Warn) -> Iterator[tuple[Name, Record]]:
    """The records with these names, read on demand; on S3 some are read ahead."""
    for name, data in _fetch(store, names, attrgetter("path")):
        try:
            record = None if data is None else _parse(name, data)
        except CorruptRecordError as exc:
            warn(str(exc))
            continue
        if record is not None:
            yield name, record


def _parse(name: Name, data: bytes) -> Record | None:
    record = cast(Record, records.unseal(data, name.path))
    if record.get("version") != VERSION:
        raise CorruptRecordError(
            f"{name.path} has version {record.get('version')}",
            why=f"this pfl reads version {VERSION}",
            hint="use the version of pfl that wrote it",
        )
    return record if check(name, record) else None


def check(name: Name, record: Record) -> bool:
    """
    Whether *record* has this *name*, and does not belong to another ID in the same folder.

    Raises:
        CorruptRecordError: It is not what was written there.
    """
    is_result = name.status == COMPUTED
    records.check(record, name.path, Record, *(_OF_RESULT if is_result else ("id", "step")))
    if is_result and not record["key"]:
        raise records.damaged(name.path, "it has no key")
    id = record["id"]
    folder = name.folder if id is None else keys.encode_id(id)
    step = record["step"] or ALL
    if folder.lower() != name.folder.lower() or step != name.step:
        raise records.damaged(name.path, f"it belongs to step {step} of {id!r}")
    # A file system that ignores case keeps the IDs A and a in one folder.
    return folder == name.folder


def _fetch(
    store: Store, items: Iterable[T], key_of: Callable[[T], str]
) -> Iterator[tuple[T, bytes | None]]:
    """Read the objects of *items* on demand; outside a directory, more and more at once."""
    remaining = iter(items)
    size = 1
    while batch := list(islice(remaining, size)):
        requests = [partial(store.get, key_of(item)) for item in batch]
        yield from zip(batch, at_once(store, requests), strict=True)
        if not store.is_local:
            size = min(2 * size, _READ_AHEAD)


# Values.


def entry_of(record: Record) -> Entry:
    """The result that a record is about."""
    fields = cast(Mapping[str, Any], record)
    return Entry(**{name: fields[name] for name in Entry._fields[:-1] if name in fields})


def encode_result(record: str, id: str, fingerprint: str, entry: Entry, text: str) -> bytes:
    """The stored result of an entry whose value is *text*; *record* is the file of its record."""
    metadata: records.ResultMetadata = {
        "id": id,
        "step": entry.step,
        "fingerprint": fingerprint,
        "record": record,
    }
    if entry.after:
        metadata["after"] = list(entry.after)
    path = records.result_path(id, entry.step, entry.file)
    return records.encode_result(path, text, metadata, entry.expires_at)


def load_entry(store: Store, record: Record, warn: Warn) -> Entry | None:
    """The result that a record is about, with its value; None if that is gone or damaged."""
    try:
        return _load(store, record)
    except CorruptRecordError as exc:
        warn(str(exc))
    except NotFoundError:
        pass
    return None


def value(store: Store, name: Name, record: Record) -> object:
    """
    The value that a record is about, wherever it is stored.

    Raises:
        NotFoundError: The record is not about a value, or the value is gone.
        CorruptRecordError: The value is damaged.
    """
    if name.status == COMPUTED:
        return _load(store, record).value
    raise NotFoundError(
        f"record {name.short} has no value",
        why=f"{record.get('step')} {record.get('status')}",
        hint="pfl history ls --status computed",
    )


def _load(store: Store, record: Record) -> Entry:
    entry = entry_of(record)
    path = records.value_path(record["id"] or "", entry.sha256)
    if entry.value is NOT_LOADED:
        data = store.get(path)
        if data is None:
            raise NotFoundError("the value of this record is gone", why=f"{path} does not exist")
        entry = entry._replace(value=records.loads(data, path))
    if keys.value_digest(entry.value) != entry.sha256:
        raise records.damaged(path, "its digest does not match its name")
    return entry


def with_values(
    store: Store, folder: str, step: str, warn: Warn
) -> Iterator[tuple[Name, Record, Entry]]:
    """What a step computed for an ID, newest first, without values that are damaged or gone."""
    for name, record in list_computed(store, folder, step, warn):
        if entry := load_entry(store, record, warn):
            yield name, record, entry


def record_of(store: Store, id: str, entry: Entry, warn: Warn) -> Record | None:
    """The record of a result as it is stored; None if it has none."""
    names = [Name(keys.encode_id(id), entry.step, entry.record)] if entry.record else []
    for _, record in read_all(store, names, warn):
        if record["key"] == entry.key and record["sha256"] == entry.sha256:
            return record
    return None


def add_run(store: Store, id: str, entry: Entry, warn: Warn) -> Entry | None:
    """An entry found by its inputs, with its run and time; None if it has no record."""
    record = record_of(store, id, entry, warn)
    if record is None:
        return None
    return entry_of(record)._replace(result=entry.result, value=entry.value, record=entry.record)


def written_at(store: Store, id: str, entry: Entry) -> str | None:
    """When a result was written, by the name of its record or the age of its object."""
    if entry.record:
        return Name("", "", entry.record).written_at
    path = records.result_path(id, entry.step, entry.file)
    ages = {each.key: each.modified for each in store.list(path.rpartition("/")[0])}
    return records.now_iso(ages[path]) if path in ages else None


def outputs(id: str, step: str, *, limit: int = 10) -> list[object]:
    """
    The values that a step computed for an ID, newest first; ``previous`` is the first one.

    Inside a step this reads the store of the call, elsewhere that of the environment. The result
    is not part of the cache key.

    Args:
        id: The ID.
        step: The step's name.
        limit: The largest number of values.
    """
    store = store_in_use.get()
    if store is None:
        import os

        from ..settings import Settings
        from ..store import objects

        store = objects.of(Settings.from_env(os.environ))
    found = with_values(store, keys.encode_id(id), step, ignore)
    return [entry.value for _, _, entry in islice(found, limit)]
