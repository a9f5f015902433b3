"""Step collect of the flow *audit*: which files of a distribution are installed, and the digest of each."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from pfl import step

# Whoever installs writes these, so they differ between two installs of one wheel; so do scripts, which name their Python.
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
    """There is no such distribution, or none of its files is there."""


@step(cache_for="1h")
def collect(id: str) -> dict:
    """
    The name, version and files of the distribution *id*.

    Returns:
        ``name``, ``version``, ``python`` (whose grammar the modules are read with) and ``files``: size in bytes and the first
        16 hex digits of the SHA-256, by path relative to site-packages.

    Raises:
        NotInstalledError: There is no such distribution; names that come close are in the message.
    """
    dist = distribution(id)
    return {
        "name": dist.metadata["Name"],
        "version": dist.version,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "files": {
            path: _identity(place, recorded) for path, (place, recorded) in files(dist).items()
        },
    }


def distribution(id: str) -> metadata.Distribution:
    """The installed distribution of this name, in any spelling of it."""
    try:
        return metadata.distribution(id)
    except metadata.PackageNotFoundError:
        raise NotInstalledError(f"no distribution {id!r} is installed here{_nearest(id)}") from None


def files(dist: metadata.Distribution) -> dict[str, tuple[Path, metadata.PackagePath | None]]:
    """Where each file is, and what RECORD says of it, by path relative to site-packages."""
    origin = json.loads(dist.read_text("direct_url.json") or "{}")
    if dist.read_text("RECORD") and not origin.get("dir_info", {}).get("editable"):
        listed = ((str(path), Path(str(path.locate())), path) for path in dist.files or ())
    else:  # RECORD of an editable install names a pointer to the sources, and an egg has none.
        listed = ((path, place, None) for path, place in _sources(dist))
    found = {
        path: (place, recorded)
        for path, place, recorded in listed
        if _is_content(path) and place.is_file()
    }
    if not found:
        raise NotInstalledError(
            f"the distribution {dist.metadata['Name']!r} is known here, but none of its files is there"
        )
    return dict(sorted(found.items()))


def digest(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def _identity(place: Path, recorded: metadata.PackagePath | None) -> list:
    size = place.stat().st_size
    # A module is read in any case, so an edit in place counts; reading all the data as well would take three times as long.
    if (
        place.suffix != ".py"
        and recorded
        and recorded.hash
        and recorded.hash.mode == "sha256"
        and recorded.size == size
    ):
        return [size, base64.urlsafe_b64decode(recorded.hash.value + "==").hex()[:16]]
    return [size, digest(place.read_bytes())]


def _is_content(path: str) -> bool:
    *folders, name = path.split("/")
    if name.endswith((".pyc", ".pyo")) or (folders[:1] == [".."] and folders[-1] in _SCRIPTS):
        return False
    return not (name in _BY_INSTALLER and folders and folders[-1].endswith(".dist-info"))


def _sources(dist: metadata.Distribution) -> Iterator[tuple[str, Path]]:
    """The files of the top-level packages of an editable install or an egg."""
    base = Path(str(dist.locate_file("")))
    for name in (
        dist.read_text("top_level.txt") or dist.metadata["Name"].replace("-", "_")
    ).split():
        beside = [place for place in (base / name, base / f"{name}.py") if place.exists()]
        for top in beside or _importable(name):
            for folder, inner, names in os.walk(top):
                inner[:] = [
                    each for each in inner if each != "__pycache__" and not each.startswith(".")
                ]
                yield from (
                    (Path(folder, each).relative_to(top.parent).as_posix(), Path(folder, each))
                    for each in names
                )
            yield (
                top.name,
                top,
            )  # A module that is no package; the folder of one is dropped by the caller.


def _importable(name: str) -> list[Path]:
    try:
        spec = util.find_spec(name)  # Asks the hooks of editable installs, and imports nothing.
    except (ImportError, ValueError):
        return []
    return (
        [Path(place) for place in (spec.submodule_search_locations or [spec.origin]) if place]
        if spec
        else []
    )


def _nearest(id: str) -> str:
    import difflib

    by_module = metadata.packages_distributions()
    names = {name.lower(): name for some in by_module.values() for name in some if name}
    close = by_module.get(id) or [
        names[each] for each in difflib.get_close_matches(id.lower(), names, cutoff=0.7)
    ]
    return f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
