"""
One call that computes: its steps, each settled as soon as its inputs are there, and their outcomes.

Steps that do not need one another run at once. Workers return outcomes; only the invocation, in its
own thread, writes them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace

from ..core.cache.entry import Entry
from ..core.cache.lookup import Finding
from ..core.cache.publish import Publisher, SupersededError
from ..core.errors import PflError
from ..core.store import layout
from .call import Call
from .causes import END_NOT_RECORDED
from .claims import Claims
from .deadline import Stopped
from .interrupt import raise_in_thread
from .steps import as_error
from .work import Compute, Outcome, RunState
from .worker import Worker

# How long an interrupted step may take to notice, in seconds.
_PATIENCE_S = 3


class Invocation:
    """
    One call that finds or computes steps.

    Attributes:
        call: What it is about.
        claims: What it may compute.
        run: Its engine and its flow run.
        outcomes: The outcome of each step that was touched.
        found: The results so far, by step.
    """

    def __init__(self, call: Call, finding: Finding) -> None:
        layout.check(call.store)
        self.call = call
        self.claims = Claims(call, finding)
        self.run = RunState(call.request.engine)
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
        self._worker = Worker(call, self.claims, self.run, self._publisher)
        self.outcomes: dict[str, Outcome] = {}
        self.found: dict[str, Entry] = dict(self.claims.finding.found)
        self._missing = self.claims.finding.missing
        # The step that this thread computes; "" while it waits for the threads of other steps.
        self._current_step: str | None = None
        # Whether the time to stop came while this thread could not be interrupted.
        self._stop_is_due = False

    @property
    def error(self) -> BaseException | None:
        """The first thing that went wrong."""
        errors = (outcome.error for outcome in self.outcomes.values())
        return next((error for error in errors if error is not None), None)

    @property
    def is_complete(self) -> bool:
        """Whether each step has an outcome, and none failed."""
        return self.error is None and len(self.outcomes) >= len(self._missing)

    @property
    def is_superseded(self) -> bool:
        """Whether it went on with a value, and another call had created that result before."""
        errors = self._publisher.errors.values()
        return any(isinstance(error, SupersededError) for error in errors)

    def error_to_report(self) -> PflError | None:
        """Why the call failed, for its reply."""
        for name, outcome in self.outcomes.items():
            if outcome.error is not None:
                return as_error(name, outcome.error, self.call.flow)
        return None

    def run_without_engine(self) -> bool:
        """
        Find steps by their inputs, and wait while other calls compute all that can be computed.

        Returns:
            Whether a step is left to compute that this call may compute now.
        """
        while ready := self._ready():
            before = len(self.outcomes)
            for name in ready:
                result = self._worker.try_to_settle(name, self.found)
                if result is True:
                    return True
                if isinstance(result, Outcome):
                    self._note(name, result)
            if self.error is None and len(self.outcomes) == before:
                try:
                    self.claims.pause(ready[0])
                except PflError as exc:
                    self._note(ready[0], self._worker.to_outcome(ready[0], exc))
            if self.error is not None:
                break
        self._finish()
        return False

    def settle(
        self, compute: Compute | None, when_computed: Callable[[], None] = lambda: None
    ) -> None:
        """
        Find or compute every missing step; those that need a failed step are left out.

        Args:
            compute: Computes one step and finishes it; None if nothing may be computed.
            when_computed: Called once all steps have results, while the last ones are published.
        """
        self._started: list[str] = []
        self._running: dict[str, threading.Thread] = {}
        # A thread of an engine that was given up puts its outcome into the queue of that engine.
        self._done = queue.SimpleQueue[tuple[str, Outcome]]()
        try:
            self._settle(compute)
            if self.is_complete:
                when_computed()
        except KeyboardInterrupt as exc:
            self._interrupt(type(exc), _PATIENCE_S)
            raise
        except Stopped:
            self._current_step = None
            self._interrupt(Stopped, self.call.settings.margin_s / 4)
            for name in self._started:
                if name not in self.outcomes:
                    self._note(name, self._worker.to_outcome(name, Stopped()))
        finally:
            self._current_step = None
            self._finish()

    def _settle(self, compute: Compute | None) -> None:
        while True:
            ready = [name for name in self._ready() if name not in self._started]
            self._started += ready
            if len(ready) == 1 and not self._running:
                # A single step runs in this thread: signals and Ctrl-C reach it.
                self._current_step = ready[0]
                outcome = self._worker.settle(ready[0], dict(self.found), compute)
                self._done.put((ready[0], outcome))
            else:
                for name in ready:
                    self._start(name, compute)
            if not self._running and not ready:
                return
            self._current_step = ""
            if self._stop_is_due:
                raise Stopped
            name, outcome = self._done.get()
            self._current_step = None
            self._running.pop(name, None)
            self._note(name, outcome)
            if isinstance(outcome.error, KeyboardInterrupt):
                raise outcome.error

    def _ready(self) -> list[str]:
        """Missing steps without an outcome whose inputs are there."""
        return [
            name
            for name in self._missing
            if name not in self.outcomes
            and all(before in self.found for before in self.call.flow.upstream[name])
        ]

    def _start(self, name: str, compute: Compute | None) -> None:
        """Settle a step in a thread."""
        done = self._done
        found = dict(self.found)
        context = copy_context()

        def target() -> None:
            # Whatever happens, there is an outcome: the invocation waits for one.
            try:
                outcome = context.run(self._worker.settle, name, found, compute)
            except BaseException as exc:
                outcome = Outcome("failed", error=exc)
            done.put((name, outcome))

        # A daemon: a step that ignores an interruption does not keep the process alive.
        thread = threading.Thread(target=target, name=f"step {name}", daemon=True)
        self._running[name] = thread
        thread.start()

    def _interrupt(self, kind: type[BaseException], patience_s: float) -> None:
        """Raise *kind* in the threads that compute steps, and wait for their outcomes."""
        for name, thread in self._running.items():
            with self._worker.guard:
                if name not in self._worker.saved:
                    raise_in_thread(thread.ident or 0, kind)
        try:
            while self._running:
                name, outcome = self._done.get(timeout=patience_s)
                self._running.pop(name, None)
                self._note(name, outcome)
        except queue.Empty:
            pass  # A step hangs in a call into C; the engine ends its run in Prefect.

    def _note(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        if outcome.entry is not None:
            self.found[name] = outcome.entry
        if outcome.publication is not None:
            self._publisher.publish(outcome.publication)
        self._note_errors()

    def _finish(self) -> None:
        """Write what is left to write; a result that cannot be saved is an error of its step."""
        self._publisher.finish()
        self._note_errors()

    def _note_errors(self) -> None:
        for name, error in list(self._publisher.errors.items()):
            # A call that was interrupted may have saved a step without noting its outcome.
            outcome = self.outcomes.get(name, Outcome("failed"))
            # A reaper may have to write the record, and finds it by the lease.
            if outcome.error is None and name not in self._publisher.unrecorded:
                self._worker.release(name)
            # Its value may not be stored, so that the next call computes another one.
            self.outcomes[name] = replace(outcome, status="failed", error=error, entry=None)
            self.found.pop(name, None)
            for other in self.call.request.flow.dependents([name]) - {name}:
                # It may have gone on with a result that could not be saved.
                self.outcomes.pop(other, None)
                self.found.pop(other, None)

    def stop_now_or_later(self) -> bool:
        """
        Whether this thread may be stopped now: it computes a step, and does not save it.

        If not, it stops as soon as it waits for steps again.
        """
        if self._current_step is not None and self._current_step not in self._worker.saved:
            return True
        self._stop_is_due = True
        return False

    def abandon(self, error: Callable[[str], PflError]) -> None:
        """End the call with what is finished; *error* makes the error of a step that is not."""
        for name in self._missing:
            if name in self.outcomes:
                continue
            saved = self._worker.saved.get(name)
            left = saved and saved.publication
            if saved and left and self._publisher.is_decided(left):
                self._note(name, replace(saved, publication=None))
            elif self.error is None:
                self.outcomes[name] = Outcome("failed", error=error(name))
        if self.error is None:
            self.call.warnings.append(f"{END_NOT_RECORDED} in time; run pfl runs reap")

    def end(self) -> None:
        """Release what it holds; what is left for a reaper stays on record."""
        outcome = "COMPLETED" if self.is_complete else "CRASHED"
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
