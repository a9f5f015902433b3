"""The user's flows, imported once per edit, and described in a manifest."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery as machinery
import importlib.util
import io
import linecache
import os
import sys
import threading
import types
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .. import files, fingerprint
from ..errors import DeclarationError, InvalidRequestError, PflError, UnavailableError
from ..fingerprint import ownership
from ..settings import Settings
from ..store.keys import canonical, digest
from ..store.records import unseal
from . import manifest
from .flow import Flow
from .step import AnyStep

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

    def get_code(self, fullname: str) -> types.CodeType | None:
        path = self.get_filename(fullname)
        if ownership.kind_of_file(path) != ownership.PROJECT:
            return super().get_code(fullname)
        data = self.get_data(path)
        code = self.source_to_code(data, path)
        _keep_source(path, data)
        return code


# Like Python's own, but for the loader of sources; also for modules that steps import late.
_find_sources = machinery.FileFinder.path_hook(
    (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
    (_SourceLoader, machinery.SOURCE_SUFFIXES),
    (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
)
# Held while the flows are imported: two threads would remove each other's modules.
_lock = threading.RLock()
# The project that was loaded last, with its sources; None while it is being imported again.
_current: tuple[files.Seen, Project] | None = None
# Modules that were imported before any flow, which are not imported again. Those of the project are
# fingerprinted as they were: this process goes on running the old code after an edit.
_before: set[str] = set()
_files_before: set[str] = set()
# The digests of the sources that this process runs, by path.
_running: dict[str, str] = {}


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
    with _lock:
        if settings.manifest:
            return _load_image(root, settings.manifest)
        if _current is not None and manifest.is_current(_current[0], root):
            return _current[1]
        _current = None
        # What was read has to be what is remembered, so an edit meanwhile starts this again. After
        # three times, the import itself changes what it reads.
        for _ in range(3):
            with fingerprint.record_reads() as reads:
                flows = _import(root, from_source=True)
                prints = _fingerprints(flows)
            for print in prints.values():
                for kind, states in print.declared.items():
                    # What was read first is what the import used.
                    reads.seen[kind] = states | reads.seen[kind]
            body = describe(flows, root, reads, prints)
            if not _is_edited(body["sources"], reads.seen):
                break
        asked_others = reads.asked_others.removeprefix(f"{root}{os.sep}")
        project = Project(flows, manifest.from_body(body), prints, body, asked_others)
        _current = (_without_old_code(body["sources"]), project)
        # The next process starts without the variables that the import has set.
        body["sources"]["env"] |= reads.seen["env"]
        # A process or a server may answer differently next time.
        if not asked_others:
            manifest.remember(body, settings.home)
        return project


def check_unchanged(step: str, print: fingerprint.Fingerprint) -> None:
    """
    Refuse the result of a step that may have seen another version of its files or modules.

    Raises:
        UnavailableError: A file in ``depends_on`` was edited while the step ran; or a module that
            it imports was, and another thread has loaded the flows again.
    """
    changed = files.changed(print.declared)
    replaced = [name for name, module in print.late.items() if sys.modules.get(name) is not module]
    if replaced:
        with _lock:
            prints = _current[1].prints if _current else {}
        if step not in prints or prints[step].digest != print.digest:
            changed += replaced
    if changed:
        raise UnavailableError(
            f"step {step} was edited while it was running",
            why=f"{changed[0]} has changed",
            hint="call again",
        )


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


def _describe_flow(flow: Flow, prints: Prints) -> dict[str, object]:
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
    sys.path_importer_cache.clear()
    hooks = [each for each in sys.path_hooks if each is not _find_sources]
    sys.path_hooks[:] = [_find_sources, *hooks] if from_source else hooks
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
        running = _project_modules()
        _before.update(name for name in list(sys.modules) if name.split(".")[0] != "flows")
        _files_before.update(running[name] for name in running.keys() & _before)
        for path in _files_before:
            with suppress(OSError, SyntaxError, ValueError):
                _keep_source(path, Path(path).read_bytes())
    for name, path in _project_modules().items():
        sys.modules.pop(name, None)
        _running.pop(path, None)
        # It would be read again only if its size or time differs.
        linecache.cache.pop(path, None)


def _keep_source(path: str, data: bytes) -> None:
    """Keep a source as it runs, for its fingerprint and for tracebacks, whatever becomes of it."""
    lines = io.StringIO(importlib.util.decode_source(data)).readlines()
    # Without a time, linecache does not read it again.
    linecache.cache[path] = (len(data), None, lines, path)
    _running[path] = digest(data)


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
) -> files.Seen:
    """What the manifest is made from, as it is now."""
    modules = {str(root / "flows" / name) for name in ("__init__.py", "pipeline.py")}
    # The fingerprint has imported what the steps import when they run.
    modules.update(filter(None, _project_modules().values()))
    names = {kind: {*seen} for kind, seen in reads.seen.items()}
    names["files"] |= modules.union(*(print.files for print in prints))
    names["folders"] = {str(root), *map(os.path.dirname, modules)}
    sites = ("site-packages", "dist-packages")
    names["packages"] = {path for path in sys.path if os.path.basename(path.rstrip("/")) in sites}
    names["env"].add("PYTHONPATH")
    names["process"] = {"python", "folder"}
    seen = {
        kind: {name: files.state(kind, name) for name in sorted(some)}
        for kind, some in names.items()
    }
    seen["files"] |= {path: _running[path] for path in seen["files"].keys() & _running.keys()}
    return seen


def _is_edited(now: files.Seen, read: files.Seen) -> bool:
    """Whether a file or folder has changed since the flows or the fingerprints read it."""
    # A variable that the import sets was read as it was before.
    kinds = read.keys() - {"env"}
    return any(not read[kind].items() <= now[kind].items() for kind in kinds)


def _without_old_code(seen: files.Seen) -> files.Seen:
    """The sources of which an edit changes something in this process."""
    now = {path: state for path, state in seen["files"].items() if path not in _files_before}
    return seen | {"files": now}


def _project_modules() -> dict[str, str]:
    """The imported modules of the user's project, and the file of each; empty if it has none."""
    found: dict[str, str] = {}
    for name in sys.modules.keys() - _before:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        is_project = ownership.kind_of_file(file) == ownership.PROJECT
        if is_project or name.split(".")[0] == "flows":
            found[name] = file
    return found
