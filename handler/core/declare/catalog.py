"""What can be called: the manifest of the image, or that of the project as its files are now."""

from __future__ import annotations

from pfl.handler.core.declare.manifest import VERSION, Manifest, baked, from_json, is_current
from pfl.handler.core.errors import CorruptRecordError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.records import unseal

_loaded: dict[str, tuple[bytes, dict, Manifest]] = {}


def load(settings: Settings) -> Manifest:
    """
    The manifest of the image, or that of the project as its files are now.

    Raises:
        CorruptRecordError: The image's manifest is not there or damaged.
        InvalidRequestError: The flows cannot be imported, or are declared wrongly.
    """
    if settings.manifest:
        if settings.manifest not in _loaded:
            _loaded[settings.manifest] = (b"", {}, baked(settings.manifest))
        return _loaded[settings.manifest][2]
    root = settings.root
    path = str(root / ".pfl" / "manifest.json")
    try:
        with open(path, "rb") as file:
            data = file.read()
        if path not in _loaded or _loaded[path][0] != data:
            body = unseal(data, path)
            if body["version"] != VERSION:
                raise CorruptRecordError(f"{path} is of another version")
            _loaded[path] = (data, body["sources"], from_json(body))
        _, sources, manifest = _loaded[path]
        if is_current(sources, root):
            return manifest
    except (OSError, CorruptRecordError, KeyError, TypeError, ValueError):
        pass  # Not there, or not ours: it is made anew below.
    from pfl.handler.core.declare import (
        project,  # Imports the user's code, so only when there is no manifest for it.
    )

    return project.load(settings).manifest
