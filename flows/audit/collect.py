"""Step collect of the flow *audit*: the installed files of a distribution, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata, util
from itertools import chain
from pathlib import Path
from typing import TypedDict

from pfl import step

# An installer writes these, so they differ between two installs of one wheel. Scripts differ too:
# each names its Python.
_BY_INSTALLER = set(
    "INSTALLER RECORD RECORD.jws RECORD.p7s REQUESTED direct_url.json uv_cache.json".split()
)
_SCRIPTS = {"bin", "Scripts"}


class NotInstalledError(LookupError):
    """The distribution is not installed, or none of its files exist."""


class Collected(TypedDict):
    """
    A distribution.

    Attributes:
        python: The version of Python whose grammar parses the modules.
        files: Size in bytes and digest of each file, by path relative to site-packages.
    """

    name: str
    version: str
    python: str
    files: dict[str, tuple[int, str]]


@step(cache_for="1h")
def collect(id: str) -> Collected:
    """
    The name, version and files of the distribution *id*.

    Raises:
        NotInstalledError: It is not installed; the message has similar names.
    """
    dist = distribution(id)
    return {
        "name": dist.metadata["Name"],
        "version": dist.version,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "files": {name: _identity(path.read_bytes()) for name, path in files(dist).items()},
    }


def distribution(id: str) -> metadata.Distribution:
    """The installed distribution of this name, in any spelling."""
    try:
        return metadata.distribution(id)
    except metadata.PackageNotFoundError:
        raise NotInstalledError(f"no distribution {id!r} is installed here{_nearest(id)}") from None


def files(dist: metadata.Distribution) -> dict[str, Path]:
    """The files of a distribution, by path relative to site-packages."""
    origin = json.loads(dist.read_text("direct_url.json") or "{}")
    if dist.read_text("RECORD") and not origin.get("dir_info", {}).get("editable"):
        found = {str(file): Path(str(file.locate())) for file in dist.files or ()}
    else:
        # RECORD of an editable install lists only a pointer to the sources; an egg has no RECORD.
        found = dict(_sources(dist))
    content = {
        name: path for name, path in sorted(found.items()) if _is_content(name) and path.is_file()
    }
    if not content:
        name = dist.metadata["Name"]
        raise NotInstalledError(f"the distribution {name!r} is known, but its files do not exist")
    return content


def digest(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def _identity(data: bytes) -> tuple[int, str]:
    # RECORD has digests, too, but does not know of an edit in place.
    return len(data), digest(data)


def _is_content(name: str) -> bool:
    folder, base = os.path.split(name)
    is_script = name.startswith("../") and os.path.basename(folder) in _SCRIPTS
    is_by_installer = base in _BY_INSTALLER and folder.endswith(".dist-info")
    return not (is_script or is_by_installer or base.endswith((".pyc", ".pyo")))


def _sources(dist: metadata.Distribution) -> Iterator[tuple[str, Path]]:
    """The files and folders of an editable install or an egg, by relative path."""
    site = Path(str(dist.locate_file("")))
    names = dist.read_text("top_level.txt") or dist.metadata["Name"].replace("-", "_")
    for name in names.split():
        installed = [path for path in (site / name, site / f"{name}.py") if path.exists()]
        for top in installed or _importable(name):
            for path in (top, *top.rglob("*")):
                relative = path.relative_to(top.parent)
                if not any(folder.startswith(".") for folder in relative.parts[:-1]):
                    yield relative.as_posix(), path


def _importable(name: str) -> list[Path]:
    with suppress(ImportError, ValueError):
        # This asks the hooks of editable installs, and imports nothing.
        if spec := util.find_spec(name):
            locations = spec.submodule_search_locations or [spec.origin or ""]
            return [Path(location) for location in locations if location]
    return []


def _nearest(id: str) -> str:
    import difflib

    by_module = metadata.packages_distributions()
    close = by_module.get(id)
    if not close:
        names = {name.lower(): name for name in chain.from_iterable(by_module.values()) if name}
        close = [names[each] for each in difflib.get_close_matches(id.lower(), names, cutoff=0.7)]
    return f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
