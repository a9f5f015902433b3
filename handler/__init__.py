"""What runs inside Lambda, and the face a flow author imports from: ``from handler import flow, step``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handler.core.declare import step
    from handler.core.history import outputs as history
    from handler.face import Flow, flow

__version__ = "0.1.0"
__all__ = ["Flow", "flow", "history", "step"]


def __getattr__(name: str) -> object:
    # Looked up on use: a hit imports this package on its way to handler.core, and declares nothing.
    if name == "step":
        from handler.core.declare import step

        return step
    if name == "history":
        from handler.core.history import outputs

        return outputs
    if name in ("Flow", "flow"):
        from handler import face

        return getattr(face, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
