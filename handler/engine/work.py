"""What passes between the invocation, its workers and the engine that computes their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core import links
from ..core.cache.entry import Entry
from ..core.cache.history import ComputedRecord
from ..core.cache.publish import Publication
from ..core.declare.step import AnyStep


@dataclass(frozen=True)
class Outcome:
    """
    The outcome of a step.

    Attributes:
        status: ``hit``, ``computed``, ``joined``, ``miss``, ``busy`` or ``failed``.
        entry: Its result, if it has one.
        why: Why it was computed, or has to be.
        ms: Wall time in milliseconds.
        error: What it raised.
        publication: What is left to write about its result.
    """

    status: str
    entry: Entry | None = None
    why: str | None = None
    ms: float = 0.0
    error: BaseException | None = None
    publication: Publication | None = None


class Run(NamedTuple):
    """Where a step is computed: the engine, and in Prefect the IDs and the link."""

    engine: str
    flow_run_id: str | None = None
    task_run_id: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Work:
    """
    One step to compute.

    Attributes:
        step: The step.
        arguments: Its arguments by name, as JSON values.
        run: Where it is computed.
        finish: Saves the value. An engine calls it inside its own unit of work, so that a value
            that cannot be saved fails that unit.
        previous: The record of the previous computation, if there is one.
        why: Why the step has to be computed.
    """

    step: AnyStep
    arguments: dict[str, object]
    run: Run
    finish: Callable[[object], Entry]
    previous: ComputedRecord | None
    why: str


Compute = Callable[[Work], None]


@dataclass
class RunState:
    """
    The flow run that a call is computed in; the engine alone writes it.

    Attributes:
        engine: ``prefect`` or ``direct``.
        flow_run_id, url: The flow run, once it has begun.
        reap_reason: What a reaper has to do after the call has ended; empty: nothing.
        tasks: Task runs that have begun and not ended, by ID.
        finished: Task runs that ended by themselves, by ID.
        interrupted: The interruption that ended the flow in Prefect.
        degraded: Why Prefect was left out; empty if it was not.
    """

    engine: str
    flow_run_id: str | None = None
    url: str | None = None
    reap_reason: str = ""
    tasks: dict[str, Mapping[str, object]] = field(default_factory=dict)
    finished: dict[str, Mapping[str, object]] = field(default_factory=dict)
    interrupted: KeyboardInterrupt | None = None
    degraded: str = ""

    def leave_prefect(self, why: str) -> None:
        """Compute the rest without Prefect."""
        self.engine = "direct"
        self.degraded = why
        if self.flow_run_id is None:
            self.reap_reason = ""  # No run was created, so none can be left open.

    def of_task(self, id: str) -> Run:
        """Where a step is computed, given the ID that its task run has in Prefect."""
        if self.engine == "direct":
            return Run("direct")
        url = self.url and links.task_run(self.url.split("/runs/")[0], id)
        return Run(self.engine, self.flow_run_id, id, url)
