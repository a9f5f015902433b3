"""Step collect of the flow *audit*: the installed files of a distribution, and their digests."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypedDict

from pfl import step

# An installer writes these, so they differ between two installs of one wheel. Scripts differ too:
# each names its Python.
_BY_INSTALLER = {
    "INSTALLER",
    "RECORD",
    "RECORD.jws",
    "RECORD.p7s",
    "REQUESTED",
    "direct_url.json",
    "uv_cache.json",
}
_SCRIPTS = {"bin", "Scripts"}


class NotInstalledError(LookupError):
    """The distribution, or all of its files, do not exist."""


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


class File(NamedTuple):
    """One installed file, and its line in RECORD if it has one."""

    path: Path
    recorded: metadata.PackagePath | None


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
        "files": {name: _identity(file) for name, file in files(dist).items()},
    }


def distribution(id: str) -> metadata.Distribution:
    """The installed distribution of this name, in any spelling."""
    try:
        return metadata.distribution(id)
    except metadata.PackageNotFoundError:
        raise NotInstalledError(f"no distribution {id!r} is installed here{_nearest(id)}") from None


def files(dist: metadata.Distribution) -> dict[str, File]:
    """The files of a distribution, by path relative to site-packages."""
    origin = json.loads(dist.read_text("direct_url.json") or "{}")
    found: dict[str, File] = {}
    if dist.read_text("RECORD") and not origin.get("dir_info", {}).get("editable"):
        for recorded in dist.files or ():
            found[str(recorded)] = File(Path(str(recorded.locate())), recorded)
    else:
        # RECORD of an editable install lists only a pointer to the sources; an egg has no RECORD.
        for path, name in _sources(dist):
            found[name] = File(path, None)
    content = {
        name: file
        for name, file in sorted(found.items())
        if _is_content(name) and file.path.is_file()
    }
    if not content:
        name = dist.metadata["Name"]
        raise NotInstalledError(f"the distribution {name!r} is known, but its files do not exist")
    return content


def digest(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def _identity(file: File) -> tuple[int, str]:
    size_bytes = file.path.stat().st_size
    recorded = file.recorded
    # A module is read in any case, to notice an edit in place; reading all data as well would take
    # three times as long.
    if file.path.suffix != ".py" and recorded and recorded.size == size_bytes:
        if recorded.hash and recorded.hash.mode == "sha256":
            return size_bytes, base64.urlsafe_b64decode(recorded.hash.value + "==").hex()[:16]
    return size_bytes, digest(file.path.read_bytes())


def _is_content(name: str) -> bool:
    *folders, base = name.split("/")
    if base.endswith((".pyc", ".pyo")):
        return False
    if not folders:
        return True
    is_script = folders[0] == ".." and folders[-1] in _SCRIPTS
    is_by_installer = base in _BY_INSTALLER and folders[-1].endswith(".dist-info")
    return not is_script and not is_by_installer


def _sources(dist: metadata.Distribution) -> Iterator[tuple[Path, str]]:
    """The files and folders of an editable install or an egg, and their relative paths."""
    site = Path(str(dist.locate_file("")))
    names = dist.read_text("top_level.txt") or dist.metadata["Name"].replace("-", "_")
    for name in names.split():
        installed = [path for path in (site / name, site / f"{name}.py") if path.exists()]
        for top in installed or _importable(name):
            for path in (top, *top.rglob("*")):
                relative = path.relative_to(top.parent)
                if not any(folder.startswith(".") for folder in relative.parts[:-1]):
                    yield path, relative.as_posix()


def _importable(name: str) -> list[Path]:
    try:
        spec = util.find_spec(name)  # Asks the hooks of editable installs, and imports nothing.
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    locations: Iterable[str | None] = spec.submodule_search_locations or [spec.origin]
    return [Path(location) for location in locations if location]


def _nearest(id: str) -> str:
    import difflib

    by_module = metadata.packages_distributions()
    close = by_module.get(id)
    if not close:
        names = {name.lower(): name for name in chain.from_iterable(by_module.values()) if name}
        close = [names[each] for each in difflib.get_close_matches(id.lower(), names, cutoff=0.7)]
    return f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
