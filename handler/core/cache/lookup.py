"""
The hit path: what is stored for a request, found without a lock, Prefect or the user's code.

A plan key follows from the manifest alone, and a plan holds the values of its step and of all steps
that it needs, so a hit at any depth is one read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from ..errors import NotFoundError
from ..event import Request
from ..store import keys, records
from ..store.at_once import at_once
from ..store.objects import Store
from .entry import NOT_LOADED, Entry, Plan, read_plan, read_value

# A plan, and its entries by step.
_Plan = tuple[Plan, dict[str, Entry]]


class Finding(NamedTuple):
    """
    What is stored for a request, and what is missing.

    Attributes:
        found: Stored results by step, with their values.
        known: All entries of the plans that were read, with or without their values.
        missing: Steps without a usable plan, each after those it needs.
        warnings: Damaged objects that were ignored.
        older: By step, fingerprints of older code whose results are accepted for the current code.
        accepted: Steps whose value comes from such older code.
    """

    found: dict[str, Entry]
    known: dict[str, Entry]
    missing: tuple[str, ...]
    warnings: list[str]
    older: dict[str, tuple[str, ...]] = {}
    accepted: frozenset[str] = frozenset()


def find(
    request: Request,
    store: Store,
    warnings: list[str],
    *,
    only_targets: bool = False,
    skipped: Mapping[str, Entry] = {},
) -> Finding:
    """
    Look up the plan of the requested step, and those of the steps before it only where that misses.

    Args:
        request: The request.
        store: The store to read.
        warnings: Receives a line about each damaged object, even if this raises.
        only_targets: Read no plan of a step before the requested one: it counts as missing.
        skipped: Values of steps to skip that were read before.

    Raises:
        NotFoundError: A step to skip has no stored value.
        UnavailableError: The store did not answer.
    """
    flow = request.flow
    finding = Finding({}, {}, (), warnings)
    undecided: frozenset[str] = frozenset()
    if request.bust or request.skip:
        # What follows a busted or a skipped step is decided by its inputs, which are not known yet.
        undecided = flow.dependents(request.bust) | (flow.dependents(request.skip) - request.skip)
    wanted = set(flow.steps if request.step is None else request.targets)
    readable = set(request.targets if only_targets else flow.steps)
    missing = []
    plans: dict[str, _Plan | None] = {}
    if not store.is_local:
        # Over a network, all at once takes as long as one.
        names = sorted((flow.closure(wanted) & readable) - undecided - request.skip)
        reads = [partial(_read_plan, request, name, store, warnings) for name in names]
        plans = dict(zip(names, at_once(store, reads), strict=True))

    for name in reversed(flow.steps):
        if name not in wanted:
            continue
        if name in request.skip:
            last = skipped.get(name)
            finding.found[name] = last or _last_value(request, name, store, warnings)
        elif name in undecided or not (
            (finding.known and _take_known(request, name, store, finding))
            or (name in readable and _take_plan(request, name, store, finding, plans))
        ):
            missing.append(name)
            wanted.update(flow.steps[name].upstream)
    return finding._replace(missing=tuple(reversed(missing))) if missing else finding


def find_step(
    request: Request, step: str, store: Store, finding: Finding, found: Mapping[str, Entry]
) -> Entry | None:
    """
    The result of one step by its plan; *finding* receives what else the plan holds.

    None, too, if it was computed from other values than those in *found*: after a bust, another
    call may have computed its inputs again.
    """
    own = Finding({}, {}, (), finding.warnings)
    _take_plan(request, step, store, own)
    for name in own.known.keys() & found.keys():
        if own.known[name].sha256 != found[name].sha256:
            return None
    finding.known.update(own.known)
    return own.found.get(step)


def result_key(
    request: Request, step: str, inputs: Mapping[str, Entry], fingerprint: str | None = None
) -> str:
    """The key of the result of *step* for these inputs, by its current code or *fingerprint*."""
    entry = request.flow.steps[step]
    digests = {name: inputs[name].sha256 for name in entry.upstream}
    return keys.result_key(
        step, fingerprint or entry.fingerprint, request.id, request.step_params(step), digests
    )


def _last_value(request: Request, step: str, store: Store, warnings: list[str]) -> Entry:
    """
    The value that *step* computed last for this ID, however old, and even if it is busted.

    Raises:
        NotFoundError: History has no value.
    """
    from . import history  # Few calls skip a step.

    listed = history.with_values(store, keys.encode_id(request.id), step, warnings.append)
    for _, _, entry in listed:
        return entry
    from shlex import quote

    raise NotFoundError(
        f"step {step} has no stored value for {request.id!r}",
        why="a skipped step takes its value from history, which has none",
        hint=f"pfl invoke --id {quote(request.id)} --step {step}",
    )


def _take_known(request: Request, step: str, store: Store, finding: Finding) -> bool:
    """Take *step* from the plans that were read; a large value costs one more read."""
    entry = finding.known.get(step)
    if entry is None:
        return False
    if entry.value is NOT_LOADED:
        loaded = read_value(request, entry, store, finding.warnings.append)
        if loaded is None:
            return False
        entry = loaded
    finding.found[step] = entry
    return True


def _read_plan(request: Request, step: str, store: Store, warnings: list[str]) -> _Plan | None:
    path = records.plan_path(request.id, step, request.plan_key(step))
    return read_plan(store, path, warnings.append)


def _take_plan(
    request: Request,
    step: str,
    store: Store,
    finding: Finding,
    plans: Mapping[str, _Plan | None] = {},
) -> bool:
    """Take *step* from its own plan, which may be among *plans* already."""
    if step in plans:
        plan = plans[step]
    else:
        plan = _read_plan(request, step, store, finding.warnings)
    if plan is None or records.is_past(plan[0]["expires_at"]):
        return False
    for name, entry in plan[1].items():
        finding.known.setdefault(name, entry)
    return _take_known(request, step, store, finding)
