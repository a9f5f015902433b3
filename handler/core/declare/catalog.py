"""The manifest to use: that of the image, or that of the project as its files are now."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from ..errors import CorruptRecordError
from ..settings import Settings
from ..store.records import unseal
from .manifest import VERSION, Manifest, ManifestBody, from_body, read_baked, remembered

if TYPE_CHECKING:
    from pathlib import Path

    from .sources import Sources


# By path: the state of the file, and what it describes.
_remembered: dict[Path, tuple[str, Sources, Manifest]] = {}
# By project: the path of the manifest that was used last.
_used: dict[Path, Path] = {}
# An image cannot change, so its manifest is read once per process.
baked = cache(read_baked)


def load(settings: Settings) -> Manifest:
    """
    The manifest of the image, or that of the project as its files are now.

    Raises:
        CorruptRecordError: The image's manifest does not exist, or is damaged.
        InvalidRequestError: The flows cannot be imported, or are declared wrongly.
    """
    if settings.manifest:
        return baked(settings.manifest)
    manifest = _recall(settings.root)
    if manifest is None:
        from . import project  # Imports the user's code.

        manifest = project.load(settings).manifest
    return manifest


def _recall(root: Path) -> Manifest | None:
    """The manifest in ``.pfl`` that describes the project as this process sees it, if any does."""
    for path in _candidates(root):
        manifest = _recall_from(path, root)
        if manifest is not None:
            _used[root] = path
            return manifest
    return None


def _candidates(root: Path) -> Iterator[Path]:
    if root in _used:
        yield _used[root]
    yield from remembered(root / ".pfl")


def _recall_from(path: Path, root: Path) -> Manifest | None:
    """The manifest in *path*; None if it has another version, is damaged, or is out of date."""
    from .. import files  # Imported late, as the next: an image does not need them.
    from . import sources

    try:
        state = files.state("files", str(path))
        known = _remembered.get(path)
        if known is None or known[0] != state:
            body: ManifestBody = unseal(path.read_bytes(), str(path))
            if state is None or body["version"] != VERSION:
                return None
            known = _remembered[path] = (state, body["sources"], from_body(body))
        _, made_from, manifest = known
        return manifest if sources.is_current(made_from, root) else None
    except (OSError, CorruptRecordError, KeyError, TypeError, ValueError):
        _remembered.pop(path, None)
        return None
