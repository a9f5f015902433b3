"""What passes between an invocation and the engine that computes its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..core.cache.entry import Entry
from ..core.cache.history import ComputedRecord
from ..core.declare.step import AnyStep


@dataclass
class Outcome:
    """
    The outcome of a step.

    Attributes:
        status: ``hit``, ``computed``, ``joined``, ``miss``, ``busy`` or ``failed``.
        entry: Its result, if it has one.
        why: Why it was computed, or has to be.
        ms: Wall time in milliseconds.
        error: What it raised.
    """

    status: str
    entry: Entry | None = None
    why: str | None = None
    ms: float = 0.0
    error: BaseException | None = None


class Run(NamedTuple):
    """Where a step is computed: the engine, and in Prefect the IDs and the link."""

    engine: str
    flow_run_id: str | None = None
    task_run_id: str | None = None
    url: str | None = None


@dataclass
class Work:
    """
    One step to compute.

    Attributes:
        step: The step.
        arguments: Its arguments by name, as JSON values.
        finish: Saves the value. An engine calls it inside its own unit of work, so that a value
            that cannot be saved fails that unit.
        previous: The record of the previous computation, if there is one.
        why: Why the step has to be computed.
    """

    step: AnyStep
    arguments: dict[str, object]
    finish: Callable[[object, Run], Entry]
    previous: ComputedRecord | None
    why: str


Compute = Callable[[Work], None]
