"""
The hit path: what is stored for a request, found without a lock, Prefect or the user's code.

A plan key follows from the manifest alone, and a plan holds the values of its step and of all the step needs, so a hit at any
depth is one read.
"""

from __future__ import annotations

from typing import NamedTuple

from pfl.handler.core.cache.entry import UNREAD, Entry, plan_of, read_result, recorded
from pfl.handler.core.errors import CorruptRecordError, NotFoundError
from pfl.handler.core.event import Request
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import Store


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


def with_history(request: Request, entry: Entry, store: Store, warnings: list[str]) -> Entry | None:
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
