"""
Runs the steps of one call, each as soon as its inputs are there.

Steps that do not need one another run at once. Workers return outcomes; only the scheduler, in its
own thread, writes them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace

from ..core.cache.entry import Entry
from ..core.cache.publish import Publisher
from ..core.errors import PflError
from .call import Call
from .causes import END_NOT_RECORDED
from .claims import Claims
from .deadline import Stopped
from .interrupt import raise_in_thread
from .work import Compute, Outcome, Run
from .worker import Worker

# How long an interrupted step may take to notice, in seconds.
_PATIENCE_S = 3
_Done = queue.SimpleQueue[tuple[str, Outcome]]


class Scheduler:
    """
    Decides which step comes next, and keeps what has come out.

    Attributes:
        outcomes: The outcome of each step that was touched.
        found: The results so far, by step.
    """

    def __init__(self, call: Call, claims: Claims, worker: Worker, publisher: Publisher) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.found: dict[str, Entry] = dict(claims.finding.found)
        self._call = call
        self._claims = claims
        self._worker = worker
        self._publisher = publisher
        self._missing = claims.finding.missing
        self._is_over = False
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
            if self.error is not None:
                break
            if len(self.outcomes) == before:
                try:
                    self._claims.pause(ready[0])
                except PflError as exc:
                    self._note(ready[0], self._worker.to_outcome(ready[0], exc))
                    break
        self._finish()
        return False

    def run(self, compute: Compute | None, run: Run, when_computed: Callable[[], None]) -> None:
        """
        Find or compute every missing step; those that need a failed step are left out.

        Args:
            compute: Computes one step and finishes it; None if nothing may be computed.
            run: Where steps are computed.
            when_computed: Called once all steps have results, while the last ones are published.
        """

        def settle(name: str) -> Outcome:
            return self._worker.settle(name, dict(self.found), compute, run)

        started: list[str] = []
        running: dict[str, threading.Thread] = {}
        done: _Done = queue.SimpleQueue()
        try:
            self._run(settle, started, running, done)
            if self.is_complete:
                when_computed()
        except KeyboardInterrupt as exc:
            self._interrupt(running, done, type(exc), _PATIENCE_S)
            raise
        except Stopped:
            self._current_step = None
            self._interrupt(running, done, Stopped, self._call.settings.margin_s / 4)
            for name in started:
                if name not in self.outcomes:
                    self._note(name, self._worker.to_outcome(name, Stopped()))
        finally:
            self._current_step = None
            self._finish()

    def _run(
        self,
        settle: Callable[[str], Outcome],
        started: list[str],
        running: dict[str, threading.Thread],
        done: _Done,
    ) -> None:
        while True:
            ready = [name for name in self._ready() if name not in started]
            started += ready
            if len(ready) == 1 and not running:
                # A single step runs in this thread: signals and Ctrl-C reach it.
                self._current_step = ready[0]
                done.put((ready[0], settle(ready[0])))
            else:
                for name in ready:
                    running[name] = self._start(name, settle, done)
            if not running and not ready:
                return
            self._current_step = ""
            if self._stop_is_due:
                raise Stopped
            name, outcome = done.get()
            self._current_step = None
            running.pop(name, None)
            self._note(name, outcome)
            if isinstance(outcome.error, KeyboardInterrupt):
                raise outcome.error

    def _ready(self) -> list[str]:
        """Missing steps without an outcome whose inputs are there."""
        return [
            name
            for name in self._missing
            if name not in self.outcomes
            and all(before in self.found for before in self._call.flow.upstream[name])
        ]

    def _start(self, name: str, settle: Callable[[str], Outcome], done: _Done) -> threading.Thread:
        context = copy_context()

        def target() -> None:
            # Whatever happens, the scheduler gets an outcome: it waits for one.
            try:
                outcome = context.run(settle, name)
            except BaseException as exc:
                outcome = Outcome("failed", error=exc)
            done.put((name, outcome))

        # A daemon: a step that ignores an interruption does not keep the process alive.
        thread = threading.Thread(target=target, name=f"step {name}", daemon=True)
        thread.start()
        return thread

    def _interrupt(
        self,
        running: dict[str, threading.Thread],
        done: _Done,
        kind: type[BaseException],
        patience_s: float,
    ) -> None:
        for name, thread in running.items():
            with self._worker.guard:
                if name not in self._worker.saved:
                    raise_in_thread(thread.ident or 0, kind)
        try:
            while running:
                name, outcome = done.get(timeout=patience_s)
                running.pop(name, None)
                self._note(name, outcome)
        except queue.Empty:
            pass  # A step hangs in a call into C; the engine ends its run in Prefect.

    def _note(self, name: str, outcome: Outcome) -> None:
        if self._is_over:
            return
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
            for other in self._call.request.flow.dependents([name]) - {name}:
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
        self._is_over = True  # Threads that still run change nothing from here on.
        for name in self._missing:
            if name in self.outcomes:
                continue
            saved = self._worker.saved.get(name)
            if saved is not None and self._publisher.is_decided(saved.publication):
                self.outcomes[name] = Outcome("computed", saved.entry)
                self.found[name] = saved.entry
            elif self.error is None:
                self.outcomes[name] = Outcome("failed", error=error(name))
        if self.error is None:
            self._call.warnings.append(f"{END_NOT_RECORDED} in time; run pfl runs reap")
