"""Flows as their author sees them: declared here, and turned into ordinary Prefect flows on request."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pfl.handler.core.declare import flows
from pfl.handler.core.declare.flows import Step

if TYPE_CHECKING:
    import prefect


class Flow(flows.Flow):
    """A declared flow; see :class:`pfl.handler.core.declare.flows.Flow`."""

    def to_prefect(self) -> prefect.Flow:
        """The ordinary Prefect flow: its parameters are the event's fields and the flow's own, its tasks the steps."""
        from pfl.handler.engine.prefect.builder import build

        return build(self)


def flow(name: str, *steps: Step, description: str = "") -> Flow:
    """
    Declare a flow.

    Args:
        name: Its name, in events and in Prefect.
        steps: Its steps, in any order; a parameter named like a step receives that step's result.
        description: What it is for, shown in Prefect.

    Raises:
        DeclarationError: The declaration is wrong; it names file and line.
    """
    caller = sys._getframe(1)
    where = flows.short_place(caller.f_code.co_filename, caller.f_lineno)
    return Flow(name, steps, description=description, where=where)
