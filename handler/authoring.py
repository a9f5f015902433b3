"""Flows as their author declares them, with a way to turn them into ordinary Prefect flows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .core.declare import flow as declared
from .core.declare.location import location
from .core.declare.step import AnyStep

if TYPE_CHECKING:
    import prefect


class Flow(declared.Flow):
    """A declared flow; see :class:`pfl.handler.core.declare.flow.Flow`."""

    def to_prefect(self) -> prefect.Flow[..., Any]:
        """The ordinary Prefect flow: its tasks are the steps, its parameters those of an event."""
        from .engine.prefect.builder import build

        return build(self)


def flow(name: str, *steps: AnyStep, description: str = "") -> Flow:
    """
    Declare a flow.

    Args:
        name: Its name, in events and in Prefect.
        steps: Its steps, in any order; a parameter named like a step receives that step's result.
        description: What it is for; Prefect shows it.

    Raises:
        DeclarationError: The declaration is wrong; the message has file and line.
    """
    caller = sys._getframe(1)
    where = location(caller.f_code.co_filename, caller.f_lineno)
    return Flow(name, steps, description=description, location=where)
