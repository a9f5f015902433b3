"""
What the image can run: flows, steps, parameters and fingerprints, without importing user code.

An image contains its manifest as a file that is made by the build, and trusts it. Elsewhere it is
made from the flows, and remembered in ``.pfl/manifest-….json`` with the digest of all its sources:
every edit is noticed, and touching a file without an edit does not count. Processes that differ in
interpreter, paths or variables that the flows read have a file each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CorruptRecordError
from ..store.keys import canonical, digest, plan_base
from ..store.records import seal, unseal
from .params import Param

if TYPE_CHECKING:
    from pathlib import Path

    from ..files import Seen

VERSION = 3
_KEPT = 8


class StepEntry(NamedTuple):
    """One step of one flow: its fingerprint, what it takes, and how long its result is valid."""

    name: str
    fingerprint: str
    upstream: tuple[str, ...]
    params: tuple[str, ...]
    takes_previous: bool
    cache_for_s: int | None


# The manifest as it is written: ``version``, ``default``, ``flows`` (each with ``description``,
# ``params`` and ``steps``), their ``digest``, and ``sources``. Tuples are lists in the file.
ManifestBody = dict[str, Any]


class FlowEntry(NamedTuple):
    """
    One flow: its steps, each after those it needs, and its parameters.

    The rest is computed once, because every call needs it.

    Attributes:
        sinks: The steps that no other step takes.
        defaults: The parameters of a call that sets none.
        default_bases: The bases of such a call; see :meth:`bases`.
    """

    name: str
    description: str
    steps: dict[str, StepEntry]
    params: dict[str, Param]
    sinks: tuple[str, ...]
    defaults: dict[str, object]
    default_bases: dict[str, str]

    def bases(self, params: dict[str, object]) -> dict[str, str]:
        """The part of each step's plan key without the ID; see :func:`…store.keys.plan_base`."""
        bases: dict[str, str] = {}
        for name, step in self.steps.items():
            own = {key: params[key] for key in step.params}
            upstream = {before: bases[before] for before in step.upstream}
            bases[name] = plan_base(name, step.fingerprint, own, upstream)
        return bases

    def closure(self, steps: Iterable[str]) -> frozenset[str]:
        """*steps* and all they need."""
        needed: set[str] = set()
        todo = list(steps)
        while todo:
            name = todo.pop()
            if name not in needed:
                needed.add(name)
                todo += self.steps[name].upstream
        return frozenset(needed)

    def dependents(self, steps: Iterable[str]) -> frozenset[str]:
        """*steps* and all that need them."""
        found = set(steps)
        # Each step comes after those it needs, so one pass finds all.
        for name, step in self.steps.items():
            if not found.isdisjoint(step.upstream):
                found.add(name)
        return frozenset(found)


class Manifest(NamedTuple):
    """All flows by name, the name of the default one, and the digest of it all."""

    flows: dict[str, FlowEntry]
    default: str
    digest: str

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """The fingerprint of each step, by flow."""
        return {
            name: {step.name: step.fingerprint for step in flow.steps.values()}
            for name, flow in self.flows.items()
        }


def from_body(body: ManifestBody) -> Manifest:
    """The manifest in a body that :func:`pfl.handler.core.declare.project.describe` made."""
    flows: dict[str, FlowEntry] = {}
    for name, flow in body["flows"].items():
        # Rows from the file hold lists; as tuples, equal manifests compare equal.
        steps: dict[str, StepEntry] = {}
        for row in flow["steps"]:
            step = StepEntry(*row)
            upstream, takes = tuple(step.upstream), tuple(step.params)
            steps[step.name] = step._replace(upstream=upstream, params=takes)
        params: dict[str, Param] = {}
        for key, (kinds, choices, default, location) in flow["params"].items():
            params[key] = Param(tuple(kinds), tuple(choices), default, location)
        taken = {before for step in steps.values() for before in step.upstream}
        sinks = tuple(step for step in steps if step not in taken)
        defaults = {key: param.default for key, param in params.items()}
        entry = FlowEntry(name, flow["description"], steps, params, sinks, defaults, {})
        flows[name] = entry._replace(default_bases=entry.bases(defaults))
    return Manifest(flows, body["default"], body["digest"])


def read_baked(path: str) -> Manifest:
    """
    The manifest of an image.

    Raises:
        CorruptRecordError: It does not exist, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            return from_body(unseal(file.read(), path))
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise CorruptRecordError(
            f"the manifest {path} cannot be read", why=str(exc), hint="build the image again"
        ) from exc


def is_current(sources: Seen, root: Path) -> bool:
    """Whether *sources* are those of the project in *root*, and as they were."""
    from .. import files  # An image does not need it.

    return str(root) in sources["folders"] and not files.changed(sources)


def remember(body: ManifestBody, home: Path) -> None:
    """Keep a manifest in ``.pfl`` for the next process; failing to write costs only time."""
    seen = body["sources"]
    differing = [seen["process"], seen["env"], sorted(seen["packages"])]
    kind = digest(canonical(differing))[:12]
    with suppress(OSError):
        home.mkdir(0o700, exist_ok=True)
        draft = home / f"manifest-{kind}.{os.getpid()}.tmp"
        draft.write_bytes(seal(body))
        draft.replace(home / f"manifest-{kind}.json")
        for old in remembered(home)[_KEPT:]:
            old.unlink(missing_ok=True)


def remembered(home: Path) -> list[Path]:
    """The manifests in ``.pfl``, newest first; another process may remove some meanwhile."""
    with suppress(OSError):
        return sorted(home.glob("manifest*"), key=os.path.getmtime, reverse=True)
    return []
