"""
The hit path: what is stored for a request, found without a lock, Prefect or the user's code.

A plan key follows from the manifest alone, and a plan holds the values of its step and of all the step needs, so a hit at any
depth is one read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pfl.handler.core.errors import CorruptRecordError, NotFoundError
from pfl.handler.core.event import Request
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import Store

UNREAD = object()
_ROW = 12  # Fields of an entry that stand in a plan, its value being the last.


class Entry(NamedTuple):
    """
    One stored result, as a reply shows it and as later steps take it; its value is UNREAD where nobody asked for it.

    ``after`` names the busts that its computation had seen when it began, ``record`` the file of its record of history. A row
    of a plan is its fields from ``step`` to ``value`` in this order, the value left out where it is too large.
    """

    step: str
    key: str
    sha256: str
    size_bytes: int
    computed_at: str | None
    expires_at: str | None
    engine: str | None = None
    flow_run_id: str | None = None
    task_run_id: str | None = None
    url: str | None = None
    after: Sequence[str] = ()
    value: object = UNREAD
    record: str | None = None


class Finding(NamedTuple):
    """
    What is there for a request, and what is not.

    Attributes:
        found: Stored results by step, with their values.
        known: All that the plans told of, values read or not.
        missing: Steps with no usable plan, each after those it needs.
        warnings: Damaged objects that were passed over.
        older: Fingerprints of older code that the present code of a step stands for, by step.
        accepted: Steps whose value rests on older code for that reason.
    """

    found: dict[str, Entry]
    known: dict[str, Entry]
    missing: tuple[str, ...]
    warnings: list[str]
    older: dict[str, tuple[str, ...]] = {}
    accepted: frozenset[str] = frozenset()


def find(request: Request, store: Store, warnings: list[str]) -> Finding:
    """
    Look up what *request* asks for: the plan of the asked step, and those of the steps before it only where that misses.

    Args:
        request: What is asked.
        store: Where.
        warnings: Told of damaged objects, also where this raises.

    Raises:
        NotFoundError: A step is to be skipped and has no stored value.
        UnavailableError: The store did not answer.
    """
    flow = request.flow
    finding = Finding({}, {}, (), warnings)
    undecided: frozenset[str] = frozenset()
    if request.bust or request.skip:
        # A busted step and all after it are decided by their inputs, which nobody knows yet; so are those after a skipped one.
        undecided = flow.dependents(request.bust) | (flow.dependents(request.skip) - request.skip)
    wanted = set(flow.steps if request.step is None else request.targets)
    missing = []
    for name in reversed(flow.steps):
        if name not in wanted:
            continue
        if name in request.skip:
            finding.found[name] = newest(request, name, store, finding.warnings)
        elif name in undecided or not (
            (finding.known and _is_known(request, name, store, finding))
            or _read_plan(request, name, store, finding)
        ):
            missing.append(name)
            wanted.update(flow.steps[name].upstream)
    return finding._replace(missing=tuple(reversed(missing))) if missing else finding


def result_key(
    request: Request, step: str, inputs: dict[str, Entry], fingerprint: str | None = None
) -> str:
    """The key of the result that *step* has for these inputs, with its present code or that of *fingerprint*."""
    digests = {name: inputs[name].sha256 for name in request.flow.steps[step].upstream}
    fingerprint = fingerprint or request.flow.steps[step].fingerprint
    return keys.result_key(step, fingerprint, request.id, request.step_params(step), digests)


def read_result(
    request: Request, step: str, key: str, store: Store, warnings: list[str]
) -> Entry | None:
    """The stored result under *key*; None if there is none, or a damaged (with a warning) or expired one."""
    path = records.result_path(request.id, step, key)
    if (data := store.get(path)) is None:
        return None
    try:
        value, size_bytes, expires_at, about = records.decode_result(
            data, path, allow_pickle=request.allow_pickle
        )
    except CorruptRecordError as exc:
        warnings.append(str(exc))
        return None
    if records.is_past(expires_at):
        return None
    after = tuple(about.get("after", ()))
    return Entry(
        step,
        key,
        keys.value_digest(value),
        size_bytes,
        None,
        expires_at,
        after=after,
        value=value,
        record=about.get("record"),
    )


def told(request: Request, entry: Entry, store: Store, warnings: list[str]) -> Entry | None:
    """A result that was found by its inputs, with what history knows of it; None where its writer died before telling."""
    having = entry.record or entry.key[:16]
    for _, body in records.newest(store, request.id, entry.step, warnings, having=having):
        if body["key"] == entry.key and body["sha256"] == entry.sha256:
            known = ("computed_at", "engine", "flow_run_id", "task_run_id", "url")
            return entry._replace(**{field: body.get(field) for field in known})
    return None


def written_at(request: Request, entry: Entry, store: Store) -> str | None:
    """When a result was written that history does not tell of (any more): the name of its record says it, else the age of its object."""
    if entry.record:
        return records.now_iso((records.NEWEST_FIRST - int(entry.record[:19])) / 1e9)
    path = records.result_path(request.id, entry.step, entry.key)
    return next(
        (
            records.now_iso(each.modified)
            for each in store.list(path.rpartition("/")[0])
            if each.key == path
        ),
        None,
    )


def newest(request: Request, step: str, store: Store, warnings: list[str]) -> Entry:
    """
    The value *step* computed last for this ID, however stale; a warning says so where it was busted.

    Raises:
        NotFoundError: There is none.
    """
    for _, body in records.newest(store, request.id, step, warnings):
        if (entry := recorded(body, store, warnings)) is not None:
            from pfl.handler.core.cache import bust  # It builds on this module.

            folder = keys.encode_id(request.id)
            if (mark := bust.marks(store, folder).void(folder, entry)) is not None:
                warnings.append(
                    f"step {step} is skipped, and the value it has was busted at {records.now_iso(mark.at)[:19]}Z: without skip it computes anew"
                )
            return entry
    from shlex import quote

    raise NotFoundError(
        f"there is no stored value of step {step} for {request.id!r}",
        why="it is to be skipped, and history has no value of it",
        hint=f"pfl invoke --id {quote(request.id)} --step {step}",
    )


def recorded(body: dict, store: Store, warnings: list[str]) -> Entry | None:
    """The result that a record of history is about; None where its value is gone."""
    entry, path = entry_of(body), records.value_path(body["id"], body["sha256"])
    try:
        if entry.value is UNREAD:
            if (data := store.get(path)) is None:
                return None
            entry = entry._replace(value=records.loads(data, path))
        if keys.value_digest(entry.value) == entry.sha256:
            return entry
        warnings.append(f"{path} is damaged: its digest is not its name")
    except CorruptRecordError as exc:
        warnings.append(str(exc))
    return None


def plan_body(request: Request, plan_key: str, entries: list[Entry], inline_bytes: int) -> dict:
    """
    The body of a plan.

    Args:
        request: What was asked.
        plan_key: The plan's key.
        entries: The results of all steps that the plan's step needs, its own last.
        inline_bytes: Values that together fit are kept inside, the step's own first.
    """
    room, rows = inline_bytes, []
    for entry in reversed(entries):
        inside = entry.value is not UNREAD and entry.size_bytes <= room
        room -= entry.size_bytes if inside else 0
        rows.append(entry[: _ROW if inside else _ROW - 1])
    return {
        "version": 2,
        "flow": request.flow.name,
        "id": request.id,
        "step": entries[-1].step,
        "plan_key": plan_key,
        "expires_at": records.earliest(*(entry.expires_at for entry in entries)),
        "entries": rows,
    }


def plan_of(data: bytes, path: str) -> tuple[dict, dict[str, Entry]]:
    """
    The body of the plan at *path*, and its entries by step.

    Raises:
        CorruptRecordError: The bytes are not what was written, or not there.
    """
    body = records.unseal(data, path)
    if body.get("version") != 2:
        raise CorruptRecordError(
            f"{path} is of another version", why=f"{body.get('version')!r}, where this one writes 2"
        )
    try:
        place, rows = records.plan_path(body["id"], body["step"], body["plan_key"]), body["entries"]
        entries = {row[0]: Entry(*row) for row in rows}
        is_whole = (
            "flow" in body
            and body["step"] in entries
            and all([_ROW - 1 <= len(row) <= _ROW and type(row[3]) is int for row in rows])
        )
        is_whole = is_whole and (
            body["expires_at"] is None or records.MOMENT.fullmatch(body["expires_at"])
        )
    except (LookupError, TypeError, AttributeError) as exc:
        raise CorruptRecordError(f"{path} is damaged", why=f"it is no plan ({exc!r})") from exc
    if place != path or not is_whole:
        raise CorruptRecordError(
            f"{path} is damaged",
            why=f"it is the plan of {body['step']} for {body['id']!r}"
            if is_whole
            else "it is no plan",
        )
    return body, entries


def entry_json(entry: Entry, *, with_value: bool) -> dict:
    """An entry as plans and history keep it."""
    said = entry._asdict()
    if not with_value:
        del said["value"]
    if not entry.after:
        del said["after"]
    return said


def entry_of(body: Mapping) -> Entry:
    """The entry in a record of history."""
    return Entry(
        **{name: body[name] for name in Entry._fields if name in body and name != "record"}
    )


def _is_known(request: Request, step: str, store: Store, finding: Finding) -> bool:
    """Whether a plan that was read already told of *step*; a value too large to travel in it is one more read."""
    entry = finding.known.get(step)
    if entry is not None and entry.value is UNREAD:
        stored = read_result(request, step, entry.key, store, finding.warnings)
        entry = (
            None
            if stored is None or stored.sha256 != entry.sha256
            else entry._replace(value=stored.value)
        )
    if entry is None:
        return False
    finding.found[step] = entry
    return True


def _read_plan(request: Request, step: str, store: Store, finding: Finding) -> bool:
    path = records.plan_path(request.id, step, request.plan_key(step))
    if (data := store.get(path)) is None:
        return False
    try:
        body, entries = plan_of(data, path)
    except CorruptRecordError as exc:
        finding.warnings.append(str(exc))
        return False
    if body["expires_at"] is not None and records.is_past(body["expires_at"]):
        return False
    for name, entry in entries.items():
        finding.known.setdefault(name, entry)
    return _is_known(request, step, store, finding)
