"""
What the image can run: flows, steps, parameters and fingerprints, known without importing the user's code.

In an image the manifest is a file made when the image was built, and trusted. Elsewhere it is made on the fly and kept in
``.pfl/manifest.json`` together with the digest of everything it came from, so that an edit is always noticed and a touch is
not an edit.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from pfl.handler.core.declare.params import Param
from pfl.handler.core.errors import CorruptRecordError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.keys import plan_base
from pfl.handler.core.store.records import seal, unseal

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1


class StepEntry(NamedTuple):
    """One step of one flow: its fingerprint, the steps and parameters it takes, and how long its result is valid."""

    name: str
    fingerprint: str
    upstream: tuple[str, ...]
    params: tuple[str, ...]
    takes_previous: bool
    cache_for_s: int | None


class FlowEntry(NamedTuple):
    """
    One flow: its steps, each after those it needs, and its parameters.

    What every call asks for is there once: *sinks*, the steps that no other step takes, and of a call that names no parameter
    the parameters (*defaults*) and what its plan keys rest on (*default_bases*).
    """

    name: str
    description: str
    steps: dict[str, StepEntry]
    params: dict[str, Param]
    sinks: tuple[str, ...]
    defaults: dict[str, object]
    default_bases: dict[str, str]

    @classmethod
    def of(
        cls, name: str, description: str, steps: dict[str, StepEntry], params: dict[str, Param]
    ) -> FlowEntry:
        """A flow of these steps and parameters."""
        taken = {before for step in steps.values() for before in step.upstream}
        sinks, defaults = (
            tuple(step for step in steps if step not in taken),
            {key: param.default for key, param in params.items()},
        )
        made = cls(name, description, steps, params, sinks, defaults, {})
        return made._replace(default_bases=made.bases(defaults))

    def bases(self, params: dict[str, object]) -> dict[str, str]:
        """What the plan keys of the steps rest on beside the ID, with these parameters; see :func:`pfl.handler.core.store.keys.plan_base`."""
        found: dict[str, str] = {}
        for name, step in self.steps.items():
            given, upstream = (
                {key: params[key] for key in step.params},
                {before: found[before] for before in step.upstream},
            )
            found[name] = plan_base(name, step.fingerprint, given, upstream)
        return found

    def closure(self, steps: Iterable[str]) -> frozenset[str]:
        """*steps* and all they need."""
        return self._reach(steps, lambda name: self.steps[name].upstream)

    def dependents(self, steps: Iterable[str]) -> frozenset[str]:
        """*steps* and all that need them."""
        return self._reach(
            steps, lambda name: [s.name for s in self.steps.values() if name in s.upstream]
        )

    def _reach(self, steps: Iterable[str], onward) -> frozenset[str]:
        seen: set[str] = set()
        todo = list(steps)
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo.extend(onward(name))
        return frozenset(seen)


class Manifest(NamedTuple):
    """All flows by name, the one that runs when none is named, and the digest of it all."""

    flows: dict[str, FlowEntry]
    default: str
    digest: str


def remember(body: dict, settings: Settings) -> None:
    """Keep a manifest for the next process; a place that cannot be written costs time, and nothing else."""
    path = settings.home / "manifest.json"
    try:
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"manifest.{os.getpid()}.tmp")
        part.write_bytes(seal(body))
        part.replace(path)
    except OSError:
        pass


def from_json(body: dict) -> Manifest:
    """A manifest from the body that :func:`pfl.handler.core.declare.project.describe` makes."""
    flows = {}
    for name, flow in body["flows"].items():
        steps = {
            s["name"]: StepEntry(
                s["name"],
                s["fingerprint"],
                tuple(s["upstream"]),
                tuple(s["params"]),
                s["takes_previous"],
                s["cache_for_s"],
            )
            for s in flow["steps"]
        }
        params = {key: Param.from_json(each) for key, each in flow["params"].items()}
        flows[name] = FlowEntry.of(name, flow["description"], steps, params)
    return Manifest(flows, body["default"], body["digest"])


def is_current(sources: dict, root: Path) -> bool:
    """Whether everything a manifest came from is as it was: files and folders by content, variables, packages, Python."""
    return sources["process"] == process(
        root, asked_folder=sources["process"][-1] is not None
    ) and all(
        LOOKS[kind](name) == old
        for kind, seen in sources["seen"].items()
        for name, old in seen.items()
    )


def process(root: Path, *, asked_folder: bool) -> list[object]:
    """What this process is that imports the flows; its working directory counts where they asked for it."""
    return [str(root), *sys.version_info[:2], sys.executable, os.getcwd() if asked_folder else None]


def _file_digest(path: str) -> str | None:
    """The SHA-256 of a file's bytes; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def _names_digest(path: str, counts: Callable[[str], bool]) -> str | None:
    try:
        names = sorted(name for name in os.listdir(path) if counts(name))
    except OSError:
        return None
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def _env_digest(name: str) -> str | None:
    if name == "*":
        return hashlib.sha256(
            "\0".join(sorted(os.environ)).encode(errors="surrogateescape")
        ).hexdigest()
    value = os.environ.get(name)
    return (
        None
        if value is None
        else hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()
    )


# What flows come from, each kind with what tells that it has changed; None where there is nothing of that name.
LOOKS: dict[str, Callable[[str], str | None]] = {
    # What is at a path: "file" or "folder".
    "looked": lambda path: (
        "folder" if os.path.isdir(path) else "file" if os.path.exists(path) else None
    ),
    # The names in a folder that the flows list.
    "listings": lambda path: _names_digest(path, lambda name: name != "__pycache__"),
    # The packages and versions that a site-packages folder holds.
    "packages": lambda path: _names_digest(
        path, lambda name: name.endswith((".dist-info", ".egg-info"))
    ),
    # Variables that the flows read when they are imported: a value may be a secret.
    "env": _env_digest,
    "files": _file_digest,
    # The names in a folder that an import could find: a new module can shadow an old one.
    "folders": lambda path: _names_digest(
        path,
        lambda name: (
            not name.startswith((".", "__pycache__")) and ("." not in name or name.endswith(".py"))
        ),
    ),
}


def baked(path: str) -> Manifest:
    """
    The manifest of an image.

    Raises:
        CorruptRecordError: It is not there or damaged.
    """
    try:
        with open(path, "rb") as file:
            return from_json(unseal(file.read(), path))
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise CorruptRecordError(
            f"the manifest {path} cannot be read", why=str(exc), hint="build the image anew"
        ) from exc
