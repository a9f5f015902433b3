"""The manifest to use: that of the image, or that of the project as its files are now."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from ..errors import CorruptRecordError
from ..settings import Settings
from ..store.records import unseal
from .manifest import VERSION, Manifest, ManifestBody, from_body, is_current, read_baked, remembered

if TYPE_CHECKING:
    from pathlib import Path

    from ..files import Seen


# By project: the manifest that was used last, and what it was made from.
_used: dict[Path, tuple[Seen, Manifest]] = {}
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
    if root in _used and is_current(_used[root][0], root):
        return _used[root][1]
    for path in remembered(root / ".pfl"):
        # It may have another version, be damaged or be out of date.
        with suppress(OSError, CorruptRecordError, KeyError, TypeError, ValueError):
            body: ManifestBody = unseal(path.read_bytes(), str(path))
            if body["version"] == VERSION and is_current(body["sources"], root):
                _used[root] = (body["sources"], from_body(body))
                return _used[root][1]
    return None
