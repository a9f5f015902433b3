"""Step collect of the flow *audit*: the modules of an installed distribution, and their digests."""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from pfl import step


class Collected(TypedDict):
    """A distribution; *modules* holds the digest of each module by its path."""

    name: str
    version: str
    modules: dict[str, str]


@step(cache_for="1h")
def collect(id: str) -> Collected:
    """
    The name, version and modules of the distribution *id*.

    What is installed can change while the code stays the same, so the result expires.
    """
    found = metadata.distribution(id)
    modules = {path: digest(source) for path, source in sources(id).items()}
    return {"name": found.metadata["Name"], "version": found.version, "modules": modules}


def sources(id: str) -> dict[str, bytes]:
    """The source of each module, by path relative to site-packages."""
    files = metadata.files(id) or []
    paths = {str(file): Path(str(file.locate())) for file in files if file.suffix == ".py"}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def digest(source: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(source).hexdigest()[:16]
