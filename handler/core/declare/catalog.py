"""The manifest to use: that of the image, or that of the project as its files are now."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..errors import CorruptRecordError
from ..settings import Settings
from ..store.records import unseal
from .manifest import VERSION, Manifest, ManifestBody, from_body, read_baked

if TYPE_CHECKING:
    from pathlib import Path

    from .sources import Sources


# By path: the content of the file, and what it describes.
_remembered: dict[Path, tuple[bytes, Sources, Manifest]] = {}
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
    """The manifest in ``.pfl``; None if it has another version, is damaged, or is out of date."""
    from . import sources  # Imported late: an image does not need it.

    path = root / ".pfl" / "manifest.json"
    try:
        data = path.read_bytes()
        known = _remembered.get(path)
        if known is None or known[0] != data:
            body: ManifestBody = unseal(data, str(path))
            if body["version"] != VERSION:
                return None
            known = _remembered[path] = (data, body["sources"], from_body(body))
        _, made_from, manifest = known
        return manifest if sources.is_current(made_from, root) else None
    except (OSError, CorruptRecordError, KeyError, TypeError, ValueError):
        return None
