"""
The steps of one invocation that no plan answered: each is found by its inputs, or computed, and steps that do not wait for
one another run at the same time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field

from handler.core import bust, cache, keys, records, store_format
from handler.core.cache import Entry, Finding
from handler.core.declare import Flow
from handler.core.event import Request
from handler.core.settings import Settings
from handler.core.store import Store
from handler.core.values import normalise
from handler.engine import publish, why
from handler.engine.call import raise_in_thread

_PATIENCE_S = 3  # How long an interrupted step may take to notice.
_SHOWN_BYTES = 16_384  # A longer input is named in history by its digest alone.
Notify = Callable[[str, str], None]


@dataclass
class Outcome:
    """What became of a step: ``hit``, ``computed``, ``skipped``, ``miss`` or ``failed``; *ms* is its wall time."""

    status: str
    entry: Entry | None = None
    why: str | None = None
    ms: float = 0.0
    error: BaseException | None = None


@dataclass
class Run:
    """Where a step is being computed: the engine, and Prefect's IDs and link where there are any."""

    engine: str
    flow_run_id: str | None = None
    task_run_id: str | None = None
    url: str | None = None


@dataclass
class Work:
    """
    One step to compute.

    An engine calls ``finish(value, run)`` inside its own unit of work, so that a value that could not be saved fails it.
    """

    name: str
    arguments: dict[str, object]
    finish: Callable[[object, Run], Entry]


Compute = Callable[[Work], None]


@dataclass
class Invocation:
    """
    One call on its way through the steps.

    Attributes:
        request: What was asked.
        finding: What the plans answered.
        flow: The user's flow, imported.
        store: Where results are.
        settings: The settings of the process.
        request_id: Lambda's name of the call.
        notify: Told ``(step, what it does)`` as it goes, for a person who waits.
        outcomes: What became of each step that was touched.
    """

    request: Request
    finding: Finding
    flow: Flow
    store: Store
    settings: Settings
    request_id: str
    notify: Notify = lambda step, doing: None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    flow_run_id: str | None = None
    url: str | None = None
    _absent: set[str] = field(default_factory=set)
    _marks: bust.Marks = field(default_factory=bust.Marks)
    _busted: dict[str, bust.Mark] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store_format.check(self.store)
        # Older marks than there are do no harm: what was computed with them in view is void, or its plan is withdrawn.
        self._folder = keys.encode_id(self.request.id)
        self._marks = bust.marks(self.store, self._folder)

    def look(self) -> bool:
        """Find by their inputs what can be found so, without an engine; say whether anything is left to compute."""
        for name in self.finding.missing:
            if self._has_inputs(name):
                outcome = self._settle(name, None, look_only=True)
                if outcome is None:
                    self._absent.add(name)
                else:
                    self._note(name, outcome)
        return len(self.outcomes) < len(self.finding.missing) and self.error is None

    def run(self, compute: Compute | None) -> None:
        """
        Settle every missing step; those after a failed one are left out.

        Args:
            compute: Runs one step and finishes it; None where nothing may be computed.
        """
        waiting = [name for name in self.finding.missing if name not in self.outcomes]
        done: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()
        running: dict[str, threading.Thread] = {}
        try:
            while True:
                ready = [name for name in waiting if self._has_inputs(name)]
                waiting = [name for name in waiting if name not in ready]
                if len(ready) == 1 and not running:
                    # Alone, a step runs in the thread that asked: signals and Ctrl-C reach it.
                    done.put((ready[0], self._settle(ready[0], compute)))
                else:
                    for name in ready:
                        running[name] = self._start(name, compute, done)
                if not running and not ready:
                    return
                name, outcome = done.get()
                running.pop(name, None)
                self._note(name, outcome)
                if isinstance(outcome.error, KeyboardInterrupt):
                    raise outcome.error
        except KeyboardInterrupt:
            self._interrupt(running, done)
            raise

    def _start(self, name: str, compute: Compute | None, done: queue.SimpleQueue) -> threading.Thread:
        context = copy_context()
        # A daemon: a step that does not heed an interruption does not keep the process.
        thread = threading.Thread(
            target=lambda: done.put((name, context.run(self._settle, name, compute))), name=f"step {name}", daemon=True
        )
        thread.start()
        return thread

    def _interrupt(self, running: dict[str, threading.Thread], done: queue.SimpleQueue) -> None:
        for thread in running.values():
            raise_in_thread(thread.ident or 0, KeyboardInterrupt)
        try:
            while running:
                name, outcome = done.get(timeout=_PATIENCE_S)
                running.pop(name, None)
                self._note(name, outcome)
        except queue.Empty:
            pass  # It hangs in a call into C; whoever started the run tells Prefect.

    @property
    def error(self) -> BaseException | None:
        """The first thing that went wrong."""
        return next((outcome.error for outcome in self.outcomes.values() if outcome.error is not None), None)

    def _has_inputs(self, name: str) -> bool:
        return all(before in self.finding.found for before in self.flow.upstream[name])

    def _note(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        if outcome.entry is not None:
            self.finding.found[name] = outcome.entry

    def _settle(self, name: str, compute: Compute | None, *, look_only: bool = False) -> Outcome | None:
        started = time.perf_counter()
        try:
            outcome = None if name in self._absent else self._look_again(name)
            if outcome is None and look_only:
                return None
            outcome = outcome or self._compute(name, compute)
        except BaseException as exc:  # A step may raise anything, SystemExit included.
            outcome = Outcome("failed", error=exc)
        outcome.ms = (time.perf_counter() - started) * 1e3
        return outcome

    def _look_again(self, name: str) -> Outcome | None:
        """Early cut-off: the plan was new, the inputs are not."""
        if name in self.request.bust:
            return None
        key = cache.result_key(self.request, name, self.finding.found)
        entry = cache.read_result(self.request, name, key, self.store, self.finding.warnings)
        if entry is None:
            return None
        recorded = cache.told(self.request, entry, self.store, self.finding.warnings)
        if mark := self._marks.void(self._folder, recorded or entry):
            self._busted[name] = mark
            return None
        if recorded is None:
            recorded = entry._replace(computed_at=records.now_iso())
            publish.history(self.request, self.store, recorded, {"repaired": True}, inline_bytes=self.settings.inline_bytes)
        entry = recorded
        self._plan(name, entry)
        return Outcome("hit", entry)

    def _compute(self, name: str, compute: Compute | None) -> Outcome:
        request, step = self.request, self.flow.steps[name]
        before = next((body for _, body in records.newest(self.store, request.id, name, self.finding.warnings)), None)
        inputs = {other: self.finding.found[other] for other in self.flow.upstream[name]}
        seen = self._marks.seen(self._folder, name, cache.result_key(request, name, inputs))
        reason = why.explain(request, name, inputs, before, self._busted.get(name))
        if compute is None:
            return Outcome("miss", why=reason)
        self.notify(name, "computing")
        arguments = {other: entry.value for other, entry in inputs.items()} | request.step_params(name)
        if "id" in step.takes:
            arguments["id"] = request.id
        if "previous" in step.takes:
            # Chosen once: every retry of this computation sees the same.
            last = before and cache.recorded(request, before, self.store, self.finding.warnings)
            arguments["previous"] = last.value if last else None
        made: list[Entry] = []
        started = time.time()

        def finish(value: object, run: Run) -> Entry:
            made.append(self._save(name, value, inputs, run, started, reason, seen))
            return made[-1]

        compute(Work(name, {p: arguments[p] for p in step.takes}, finish))
        return Outcome("computed", made[-1], reason)

    def _save(
        self, name: str, value: object, inputs: dict[str, Entry], run: Run, started: float, reason: str,
        seen: tuple[str, ...],
    ) -> Entry:  # fmt: skip
        value, text = normalise(value, step=name)
        ended, cache_for_s = time.time(), self.flow.steps[name].cache_for_s
        key = cache.result_key(self.request, name, inputs)
        if name in self.request.bust:
            own = bust.new_name(by_call=True)
            bust.mark(self.store, own, name, bust.Scope(self._folder), result=key, seen=seen)
            publish.forget(self.request, self.store, name, self.finding.plan_keys[name])
            seen = (*seen, own)
        entry = Entry(
            name,
            key,
            value,
            keys.value_digest(value),
            len(text),
            records.now_iso(ended),
            None if cache_for_s is None else records.now_iso(ended + cache_for_s),
            run.engine,
            run.flow_run_id,
            run.task_run_id,
            run.url,
            seen,
        )
        about = {
            "status": "computed",
            "params": self.request.step_params(name),
            "inputs": {other: _input(e) for other, e in inputs.items()},
            "plan_key": self.finding.plan_keys[name],
            "started_at": records.now_iso(started),
            "ms": (ended - started) * 1e3,
            "why": reason,
            "request_id": self.request_id,
        }
        publish.result(self.request, self.store, entry, text, about, inline_bytes=self.settings.inline_bytes)
        self._plan(name, entry)
        return entry

    def _plan(self, name: str, entry: Entry) -> None:
        if name in self._after_skipped:
            return  # It rests on a stale value: nobody who did not ask for that may find it.
        known = self.finding.known | self.finding.found | {name: entry}
        needed = self.request.flow.closure([name])
        entries = [known.get(other) for other in self.flow.steps if other in needed and other != name]
        entries = [e for e in entries if e is not None] + [entry]
        plan_key, inline_bytes = self.finding.plan_keys[name], self.settings.inline_bytes
        self._marks = bust.publish(
            self.store,
            self._folder,
            entries,
            lambda: publish.plan(self.request, self.store, plan_key, entries, inline_bytes=inline_bytes),
        )

    @property
    def _after_skipped(self) -> frozenset[str]:
        return self.request.flow.dependents(self.request.skip) - self.request.skip


def _input(entry: Entry) -> dict[str, object]:
    told = {"key": entry.key, "sha256": entry.sha256}
    return told | {"value": entry.value} if entry.size_bytes <= _SHOWN_BYTES else told


__all__ = ["Compute", "Invocation", "Notify", "Outcome", "Run", "Work"]
