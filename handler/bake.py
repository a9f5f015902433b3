"""``python -m pfl.handler.bake FILE`` writes the project's manifest, when its image is built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .core.declare import project
from .core.errors import PflError
from .core.settings import Settings
from .core.store import records


def bake(settings: Settings, path: Path) -> None:
    """
    Write the manifest of the project's flows to *path*, and the fingerprints' parts next to it.

    Raises:
        InvalidRequestError: The flows cannot be imported, or are declared wrongly; the message has
            file and line.
    """
    loaded = project.load(settings._replace(manifest=""))
    parts = {step: fingerprint.to_json() for step, fingerprint in loaded.prints.items()}
    path.with_name(f"{path.name}.parts").write_bytes(records.seal(parts))
    # An image cannot change, and the digests of variables of the build are nobody's concern.
    body = dict(loaded.body or {})
    body.pop("sources", None)
    path.write_bytes(records.seal(body))


if __name__ == "__main__":
    try:
        bake(Settings.from_env(os.environ), Path(sys.argv[1]))
    except PflError as exc:
        sys.exit(f"error: {exc}\n{exc.hint}".strip())
