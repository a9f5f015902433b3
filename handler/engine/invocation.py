"""One call that computes, and the parts that do it, as an engine sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..core import tags
from ..core.cache.entry import Entry
from ..core.cache.lookup import Finding
from ..core.cache.publish import Publisher, SupersededError
from ..core.errors import PflError
from ..core.store import layout
from .call import Call
from .claims import Claims
from .scheduler import Scheduler
from .steps import as_error
from .work import Compute, Run, RunState
from .worker import Worker


class Invocation:
    """
    One call that finds or computes steps.

    Attributes:
        call: What it is about.
        claims: What it may compute.
        scheduler: Its steps and their outcomes.
        run: Its flow run.
    """

    def __init__(self, call: Call, finding: Finding) -> None:
        layout.check(call.store)
        self.call = call
        self.claims = Claims(call, finding)
        self.run = RunState()
        if call.request.cached_only:
            self.claims.read()
        else:
            self.claims.take()
        self._publisher = Publisher(
            call.request,
            call.store,
            call.warnings,
            call.settings.inline_bytes,
            self.claims.holder.is_bounded,
        )
        worker = Worker(call, self.claims, self._publisher)
        self.scheduler = Scheduler(call, self.claims, worker, self._publisher)

    @property
    def found(self) -> dict[str, Entry]:
        """The results so far, by step."""
        return self.scheduler.found

    @property
    def error(self) -> BaseException | None:
        """The first thing that went wrong."""
        return self.scheduler.error

    @property
    def is_superseded(self) -> bool:
        """Whether it went on with a value, and another call had created that result before."""
        errors = self._publisher.errors.values()
        return any(isinstance(error, SupersededError) for error in errors)

    @property
    def run_tags(self) -> set[str]:
        """The tags of its flow run in Prefect."""
        request = self.call.request
        return tags.run_tags(request.id, request.step, self.claims.holder.token)

    def error_to_report(self) -> PflError | None:
        """Why the call failed, for its reply."""
        for name, outcome in self.scheduler.outcomes.items():
            if outcome.error is not None:
                return as_error(name, outcome.error, self.call.flow)
        return None

    def settle(
        self, compute: Compute | None, when_computed: Callable[[], None] = lambda: None
    ) -> None:
        """Find or compute every missing step; see :meth:`Scheduler.run`."""
        run = Run(self.call.request.engine, self.run.flow_run_id, url=self.run.url)
        self.scheduler.run(compute, run, when_computed)

    def use_direct_engine(self, why: str) -> None:
        """Go on without Prefect; the reply and each record note *why*."""
        self.call.process["degraded"] = why
        self.call = replace(self.call, request=self.call.request._replace(engine="direct"))

    def end(self) -> None:
        """Release what it holds; what is left for a reaper stays on record."""
        outcome = "COMPLETED" if self.scheduler.is_complete else "CRASHED"
        why = self.run.reap_reason
        if self._publisher.is_writing:
            # A bust has to see that a plan may still appear.
            why = why or "the store did not answer in time"
        elif self._publisher.lacks_record:
            why = why or "the store did not accept a record"
            self.call.warnings.append(
                "the leases of this call were not released: "
                "pfl runs reap writes the record that the store refused"
            )
        try:
            self.claims.holder.end(why, finished=self.run.finished, outcome=outcome)
        except PflError as exc:
            self.call.warnings.append(f"the leases of this call were not released ({exc})")
