"""What the author of a flow imports: ``from pfl import flow, step``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .handler.authoring import Flow, flow
    from .handler.core.cache.history import outputs as history
    from .handler.core.declare.step import step

__version__ = "0.2.0"
__all__ = ["Flow", "flow", "history", "step"]


def __getattr__(name: str) -> object:
    # On first use: a hit imports this package on its way to handler.core, and declares nothing.
    if name == "step":
        from .handler.core.declare.step import step

        return step
    if name == "history":
        from .handler.core.cache.history import outputs

        return outputs
    if name in ("Flow", "flow"):
        from .handler import authoring

        return getattr(authoring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
