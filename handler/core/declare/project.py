"""The user's flows, imported: declared once per edit, and described in the manifest."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery as machinery
import os
import sys
import time
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from pfl.handler.core import fingerprint
from pfl.handler.core.declare import manifest
from pfl.handler.core.declare.flows import Flow
from pfl.handler.core.errors import DeclarationError, InvalidRequestError, PflError
from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.keys import canonical, digest
from pfl.handler.core.store.records import unseal


class Project(NamedTuple):
    """
    The flows of this process, by name, the manifest of just this code, and what each step's fingerprint is made of.

    Args:
        body: The manifest as it is written.
        asked_others: File and line where their import started a process or made a connection; empty if it did not.
    """

    flows: dict[str, Flow]
    manifest: manifest.Manifest
    prints: dict[str, fingerprint.Fingerprint]
    body: dict = {}
    asked_others: str = ""


class _FromSource(machinery.SourceFileLoader):
    """Compiles a module anew: Python takes bytecode for current by second and size, so a quick edit would go unseen."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


_current: tuple[dict, Project] | None = None  # What it came from, and itself.
_hook: Callable[[str], object] | None = (
    None  # Finds the project's modules; stays for what steps import when they run.
)
_before: set[str] = (
    set()
)  # Modules that were there before any flow; all later ones of the project go with an edit.


def load(settings: Settings) -> Project:
    """
    Import the flows, or give those imported before if nothing they came from has changed.

    Raises:
        InvalidRequestError: ``flows/pipeline.py`` is not there or cannot be imported; the message names file and line.
        DeclarationError: Flows or steps are declared wrongly.
    """
    global _current
    root = settings.root
    if settings.manifest:
        return _of_image(root, settings.manifest)
    if _current is not None and manifest.is_current(_current[0], root):
        return _current[1]
    for _ in range(3):
        started = time.time()
        with fingerprint.record_reads() as reads:
            flows = _import(root, from_source=True)
            prints = _fingerprints(flows)
        body = describe(flows, root, reads, prints)
        if not _edited_since(body["sources"]["seen"]["files"], started):
            break  # What was imported is what was digested.
    if not reads.asked_others:  # What a process or a server said may be another thing next time.
        manifest.remember(body, settings)
    loaded = Project(
        flows,
        manifest.from_json(body),
        prints,
        body,
        reads.asked_others.removeprefix(f"{root}{os.sep}"),
    )
    _current = (body["sources"], loaded)
    return loaded


@functools.cache
def _of_image(root: Path, path: str) -> Project:
    """The flows of an image, which cannot change; its own word counts, for the fingerprints of its results were made with it."""
    flows = _import(root, from_source=False)
    parts = Path(
        f"{path}.parts"
    )  # See pfl.handler.bake; to find them out again would cost each cold start.
    rows = unseal(parts.read_bytes(), str(parts)) if parts.is_file() else {}
    prints = {
        step: fingerprint.Fingerprint.from_json(row) for step, row in rows.items()
    } or _fingerprints(flows)
    return Project(flows, manifest.baked(path), prints)


def describe_one(flow: Flow, root: Path) -> tuple[dict, dict[str, fingerprint.Fingerprint]]:
    """The body and the fingerprints of a manifest with *flow* alone, for a flow that Prefect imported by itself."""
    flows = {flow.name: flow}
    prints = _fingerprints(flows)
    return describe(flows, root, fingerprint.Reads(), prints), prints


def _fingerprints(flows: dict[str, Flow]) -> dict[str, fingerprint.Fingerprint]:
    return {
        name: fingerprint.fingerprint(step)
        for flow in flows.values()
        for name, step in flow.steps.items()
    }


def describe(
    flows: dict[str, Flow],
    root: Path,
    reads: fingerprint.Reads,
    prints: dict[str, fingerprint.Fingerprint],
) -> dict:
    """The body of the manifest of *flows*; see :class:`pfl.handler.core.declare.manifest.Manifest`."""
    described = {
        name: {
            "description": flow.description,
            "params": {key: param.to_json() for key, param in flow.params.items()},
            "steps": [
                {
                    "name": step.name,
                    "fingerprint": prints[step.name].digest,
                    "upstream": list(flow.upstream[step.name]),
                    "params": list(flow.own_params(step.name)),
                    "takes_previous": "previous" in step.takes,
                    "cache_for_s": step.cache_for_s,
                }
                for step in flow.steps.values()
            ],
        }
        for name, flow in flows.items()
    }
    body = {"version": manifest.VERSION, "default": next(iter(flows)), "flows": described}
    return body | {
        "digest": digest(canonical(body)),
        "sources": _sources(root, reads, prints.values()),
    }


def _import(root: Path, *, from_source: bool) -> dict[str, Flow]:
    if not (root / "flows" / "pipeline.py").is_file():
        raise InvalidRequestError(
            "there are no flows here",
            why=f"{root / 'flows' / 'pipeline.py'} is not there",
            hint="run pfl inside the project",
        )
    for name in [
        name
        for name in list(sys.modules)
        if name.split(".")[0] == "flows" or (_before and _project_file(name))
    ]:
        if name not in _before:
            del sys.modules[name]
    if not _before:
        _before.update(sys.modules)
    sys.path[:] = [str(root), *(entry for entry in sys.path if entry != str(root))]
    importlib.invalidate_caches()
    if from_source:
        _compile_anew(str(root))
    if not (root / "flows" / "__init__.py").is_file():
        # Without it, another package of this name on the path would win over the project's folder.
        sys.modules["flows"] = types.ModuleType("flows")
        sys.modules["flows"].__path__ = [str(root / "flows")]
    try:
        pipeline = importlib.import_module("flows.pipeline")
    except (PflError, KeyboardInterrupt):
        raise
    except BaseException as exc:  # A flow file may raise anything, SystemExit included.
        raise InvalidRequestError(
            "the flows cannot be imported", why=ownership.describe(exc, root)
        ) from exc
    return _listed(pipeline, root)


def _compile_anew(root: str) -> None:
    """Import what is below *root*, but for pfl and what is installed, from source; an image trusts its bytecode."""
    global _hook
    kinds = [
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (_FromSource, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    ]
    make = machinery.FileFinder.path_hook(*kinds)

    def hook(path: str) -> object:
        if (
            not f"{path}/".startswith(f"{root}/")
            or ownership.kind_of_file(f"{path}/_.py") != ownership.PROJECT
        ):
            raise ImportError(f"{path} is not the project's")
        return make(path)

    sys.path_hooks[:] = [hook, *(each for each in sys.path_hooks if each is not _hook)]
    _hook = hook
    for path in [path for path in sys.path_importer_cache if f"{path}/".startswith(f"{root}/")]:
        del sys.path_importer_cache[path]


def _listed(pipeline: object, root: Path) -> dict[str, Flow]:
    listed = getattr(pipeline, "FLOWS", None)
    if (
        not isinstance(listed, list | tuple)
        or not listed
        or not all(isinstance(each, Flow) for each in listed)
    ):
        raise DeclarationError(
            "flows/pipeline.py lists no flows",
            hint="FLOWS = [flow(...), flow(...)], the default one first",
        )
    flows: dict[str, Flow] = {}
    steps: dict[str, object] = {}
    for flow in listed:
        if flow.name in flows:
            raise flow.error(
                "two flows have this name", why=f"the other is at {flows[flow.name].where}"
            )
        flows[flow.name] = flow
        for step in flow.steps.values():
            if steps.setdefault(step.name, step) is not step:
                # Results are kept by ID and step, so a name means one step in the whole image.
                raise flow.error(
                    f"two steps of the image are named {step.name!r}",
                    why=f"{steps[step.name].where} and {step.where}",
                )
    return flows


def _sources(
    root: Path, reads: fingerprint.Reads, prints: Collection[fingerprint.Fingerprint]
) -> dict:
    # The fingerprint has imported what the steps import when they run.
    modules = {
        file for name in list(sys.modules) if name not in _before and (file := _project_file(name))
    }
    modules |= {str(root / "flows" / name) for name in ("__init__.py", "pipeline.py")}
    declared = {path for each in prints for path in each.files}
    seen = {
        "looked": reads.looked,
        "listings": reads.folders | set(filter(os.path.isdir, declared)),
        "packages": {
            path
            for path in sys.path
            if os.path.basename(path.rstrip("/")) in ("site-packages", "dist-packages")
        },
        "env": reads.env | {"PYTHONPATH"},
        "files": modules | reads.files | declared,
        "folders": {str(root), *(os.path.dirname(path) for path in modules)},
    }
    return {
        "process": manifest.process(root, asked_folder=reads.asked_folder),
        "seen": {
            kind: {name: manifest.LOOKS[kind](name) for name in sorted(names)}
            for kind, names in seen.items()
        },
    }


def _project_file(module: str) -> str | None:
    """The file of a module of the user's project; None for pfl's own, installed and built-in ones."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return None if not file or ownership.kind_of_file(file) != ownership.PROJECT else file


def _edited_since(files: dict, started: float) -> bool:
    for path in files:
        try:
            if os.stat(path).st_mtime > started:
                return True
        except OSError:
            continue
    return False
