"""The user's flows, imported once per edit, and described in a manifest."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery as machinery
import os
import sys
import time
import types
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import fingerprint
from ..errors import DeclarationError, InvalidRequestError, PflError
from ..fingerprint import ownership
from ..settings import Settings
from ..store.keys import canonical, digest
from ..store.records import unseal
from . import manifest, sources
from .flow import Flow
from .step import AnyStep

if TYPE_CHECKING:
    from _typeshed.importlib import PathEntryFinderProtocol

Prints = dict[str, fingerprint.Fingerprint]


class Project(NamedTuple):
    """
    The imported flows of this process.

    Attributes:
        flows: The flows by name.
        manifest: Their manifest.
        prints: The fingerprint of each step, with its parts.
        body: The manifest as it is written; None in an image, which has it already.
        asked_others: File and line where the import started a process or made a connection.
    """

    flows: dict[str, Flow]
    manifest: manifest.Manifest
    prints: Prints
    body: manifest.ManifestBody | None = None
    asked_others: str = ""


class _SourceLoader(machinery.SourceFileLoader):
    """
    Compiles a module each time it is imported.

    Python compares bytecode with its source by second and size, and would miss a quick edit.
    """

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


# The project that was loaded last, with its sources.
_current: tuple[sources.Sources, Project] | None = None
# Modules that were imported before any flow: an edit of the flows does not concern them.
_before: set[str] = set()


def load(settings: Settings) -> Project:
    """
    The imported flows; they are imported again only if something they were made from has changed.

    Raises:
        InvalidRequestError: ``flows/pipeline.py`` does not exist or cannot be imported; the message
            has file and line.
        DeclarationError: Flows or steps are declared wrongly.
    """
    global _current
    root = settings.root
    if settings.manifest:
        return _load_image(root, settings.manifest)
    if _current is not None and sources.is_current(_current[0], root):
        return _current[1]
    # What was imported has to be what was digested, so an edit meanwhile starts this again.
    for _ in range(3):
        started = time.time()
        with fingerprint.record_reads() as reads:
            flows = _import(root, from_source=True)
            prints = _fingerprints(flows)
        body = describe(flows, root, reads, prints)
        if not _edited_since(body["sources"]["seen"]["files"], started):
            break
    # A process or a server may answer differently next time.
    if not reads.asked_others:
        manifest.remember(body, settings.home)
    asked_others = reads.asked_others.removeprefix(f"{root}{os.sep}")
    project = Project(flows, manifest.from_body(body), prints, body, asked_others)
    _current = (body["sources"], project)
    return project


@functools.cache
def _load_image(root: Path, path: str) -> Project:
    """The flows of an image, with its own manifest: its results were made under that one."""
    flows = _import(root, from_source=False)
    # Written by pfl.handler.bake: computing them again would slow down each cold start.
    parts = Path(f"{path}.parts")
    if parts.is_file():
        rows = unseal(parts.read_bytes(), str(parts))
        prints = {step: fingerprint.Fingerprint.from_json(row) for step, row in rows.items()}
    else:
        prints = _fingerprints(flows)
    return Project(flows, manifest.read_baked(path), prints)


def describe_one(flow: Flow, root: Path) -> tuple[manifest.ManifestBody, Prints]:
    """The manifest's body, and the fingerprints, of a flow that Prefect imported by itself."""
    flows = {flow.name: flow}
    prints = _fingerprints(flows)
    return describe(flows, root, fingerprint.Reads(), prints), prints


def _fingerprints(flows: dict[str, Flow]) -> Prints:
    steps: dict[str, AnyStep] = {}
    for flow in flows.values():
        steps |= flow.steps
    return {name: fingerprint.fingerprint(step) for name, step in steps.items()}


def describe(
    flows: dict[str, Flow], root: Path, reads: fingerprint.Reads, prints: Prints
) -> manifest.ManifestBody:
    """The body of the manifest of *flows*; the first is the default."""
    bodies = {name: _describe_flow(flow, prints) for name, flow in flows.items()}
    default = next(iter(flows))
    return {
        "version": manifest.VERSION,
        "default": default,
        "flows": bodies,
        "digest": digest(canonical([manifest.VERSION, default, bodies])),
        "sources": _sources(root, reads, prints.values()),
    }


def _describe_flow(flow: Flow, prints: Prints) -> manifest.FlowBody:
    steps = [
        manifest.StepEntry(
            name,
            prints[name].digest,
            flow.upstream[name],
            flow.own_params(name),
            "previous" in step.takes,
            step.cache_for_s,
        )
        for name, step in flow.steps.items()
    ]
    return {"description": flow.description, "params": flow.params, "steps": steps}


def _import(root: Path, *, from_source: bool) -> dict[str, Flow]:
    pipeline = root / "flows" / "pipeline.py"
    if not pipeline.is_file():
        raise InvalidRequestError(
            "no flows found here",
            why=f"{pipeline} does not exist",
            hint="run pfl inside the project",
        )
    _forget_modules()
    sys.path[:] = [str(root), *(entry for entry in sys.path if entry != str(root))]
    importlib.invalidate_caches()
    if from_source:
        _compile_from_source(str(root))
    if not (root / "flows" / "__init__.py").is_file():
        # Without it, another package of this name on the path would win over the project's folder.
        package = sys.modules["flows"] = types.ModuleType("flows")
        package.__path__ = [str(root / "flows")]
    try:
        return _listed(importlib.import_module("flows.pipeline"))
    except (PflError, KeyboardInterrupt):
        raise
    except BaseException as exc:  # A flow file may raise anything, SystemExit included.
        raise InvalidRequestError(
            "the flows cannot be imported", why=ownership.describe(exc, root)
        ) from exc


def _forget_modules() -> None:
    """Remove the project's modules, so that they are imported again."""
    if not _before:
        _before.update(name for name in sys.modules if name.split(".")[0] != "flows")
    for name in _project_modules():
        del sys.modules[name]


def _find_in_project(root: str, path: str) -> PathEntryFinderProtocol:
    """The path hook that compiles the project's modules from source, and no others."""
    is_inside = f"{path}/".startswith(f"{root}/")
    if not is_inside or ownership.kind_of_file(f"{path}/_.py") != ownership.PROJECT:
        raise ImportError(f"{path} is outside the project")
    open_folder = machinery.FileFinder.path_hook(
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (_SourceLoader, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    )
    return open_folder(path)


def _compile_from_source(root: str) -> None:
    """Import the project's modules from source, including those imported later by steps."""
    hook = functools.partial(_find_in_project, root)
    others = [
        each for each in sys.path_hooks if getattr(each, "func", None) is not _find_in_project
    ]
    sys.path_hooks[:] = [hook, *others]
    for path in list(sys.path_importer_cache):
        if f"{path}/".startswith(f"{root}/"):
            del sys.path_importer_cache[path]


def _listed(pipeline: types.ModuleType) -> dict[str, Flow]:
    listed = getattr(pipeline, "FLOWS", None)
    is_list = isinstance(listed, list | tuple)
    if not is_list or not listed or not all(isinstance(each, Flow) for each in listed):
        raise DeclarationError(
            "flows/pipeline.py lists no flows",
            hint="FLOWS = [flow(...), flow(...)], the default one first",
        )
    flows: dict[str, Flow] = {}
    steps: dict[str, AnyStep] = {}
    for flow in listed:
        other = flows.setdefault(flow.name, flow)
        if other is not flow:
            raise flow.error("two flows have this name", why=f"the other is at {other.location}")
        for step in flow.steps.values():
            # Results are kept by ID and step, so a name means one step in the whole image.
            same = steps.setdefault(step.name, step)
            if same is not step:
                raise flow.error(
                    f"two steps of the project are named {step.name!r}",
                    why=f"{same.location} and {step.location}",
                )
    return flows


def _sources(
    root: Path, reads: fingerprint.Reads, prints: Collection[fingerprint.Fingerprint]
) -> sources.Sources:
    modules = {str(root / "flows" / name) for name in ("__init__.py", "pipeline.py")}
    # The fingerprint has imported what the steps import when they run.
    modules.update(filter(None, _project_modules().values()))
    declared = set(chain.from_iterable(each.files for each in prints))
    installed = ("site-packages", "dist-packages")
    names = {
        "looked": reads.looked,
        "listings": reads.folders | {path for path in declared if os.path.isdir(path)},
        "packages": {path for path in sys.path if os.path.basename(path.rstrip("/")) in installed},
        "env": reads.env | {"PYTHONPATH"},
        "files": modules | reads.files | declared,
        "folders": {str(root), *map(os.path.dirname, modules)},
    }
    return sources.snapshot(root, names, asked_folder=reads.asked_folder)


def _project_modules() -> dict[str, str]:
    """The imported modules of the user's project, and the file of each; empty if it has none."""
    found: dict[str, str] = {}
    for name in sys.modules.keys() - _before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        is_project = ownership.kind_of_file(file) == ownership.PROJECT
        if is_project or name.split(".")[0] == "flows":
            found[name] = file
    return found


def _edited_since(files: Iterable[str], started: float) -> bool:
    for path in files:
        try:
            if os.stat(path).st_mtime > started:
                return True
        except OSError:
            continue
    return False
