"""
Finds or computes the steps of one call that no plan answered.

Each step is found by its inputs or computed; steps that do not need one another run at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING

from ..core import tags
from ..core.cache import accept, bust, history, lease, lookup, publish, reasons
from ..core.cache.entry import Entry
from ..core.cache.history import ComputedRecord, Fields, RecordedInput
from ..core.cache.lookup import Finding
from ..core.declare import project
from ..core.declare.flow import Flow
from ..core.errors import BusyError, PflError, StepFailedError
from ..core.event import Notify, Request, notify_nobody
from ..core.fingerprint import Fingerprint
from ..core.retry import jitter_s
from ..core.settings import Settings
from ..core.store import keys, layout, records
from ..core.store.objects import Store
from ..core.store.values import JsonObject, round_trip
from .causes import END_NOT_RECORDED, TERMINATED, out_of_time
from .deadline import Abandoned, Stopped, Terminated
from .interrupt import raise_in_thread
from .steps import as_error
from .work import Compute, Outcome, Run, Work

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

# How long an interrupted step may take to notice, in seconds.
_PATIENCE_S = 3
# A longer input is named in history by its digest only.
_SHOWN_BYTES = 16_384
_sleep = time.sleep
_Done = queue.SimpleQueue[tuple[str, Outcome]]


@dataclass
class Invocation:
    """
    One call that finds or computes steps, and its state.

    Attributes:
        request: The request.
        finding: What the plans answered, and the results found or computed since.
        flow: The user's flow, imported.
        store: The store of results.
        settings: The settings of the process.
        request_id: Lambda's request ID of the call.
        prints: The fingerprints of the steps, stored so that a later miss can be explained.
        notify: Called with a step and what happens to it.
        deadline: When Lambda kills the process, as a ``time.monotonic()`` reading.
        outcomes: The outcome of each step that was touched.
        flow_run: The flow run in Prefect that made this call, if Prefect started it.
        flow_run_id, url: The flow run that the steps are computed in, once it began.
        process: What each record holds about the process.
        reap_reason: What a reaper has to do after this call has ended; empty: nothing.
        tasks: Claims whose task run in Prefect has begun, by task run ID.
        finished: Task runs that ended by themselves, by ID.
        artifacts: Artifacts that Prefect does not have yet.
        interrupted: The interruption that ended the flow in Prefect.
        stop_is_due: Whether the time to stop came while this thread could not be interrupted.
    """

    request: Request
    finding: Finding
    flow: Flow
    store: Store
    settings: Settings
    request_id: str
    prints: Mapping[str, Fingerprint]
    process: Fields
    notify: Notify = notify_nobody
    deadline: float | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    flow_run: FlowRun | None = None
    flow_run_id: str | None = None
    url: str | None = None
    reap_reason: str = ""
    tasks: dict[str, Mapping[str, object]] = field(default_factory=dict)
    finished: dict[str, Mapping[str, object]] = field(default_factory=dict)
    artifacts: list[JsonObject] = field(default_factory=list)
    interrupted: KeyboardInterrupt | None = None
    stop_is_due: bool = False

    def __post_init__(self) -> None:
        layout.check(self.store)
        self._called_at = records.now_iso()
        self._is_over = False
        # The step that this thread computes; "" while it waits for the threads of other steps.
        self._current_step: str | None = None
        # Steps whose results are not found by their inputs.
        self._known_missing: set[str] = set()
        # Steps with a result whose writer may be about to write its record.
        self._unrecorded: set[str] = set()
        self._claimed: set[str] = set()
        self._held: dict[str, lease.HeldByOther] = {}
        # Results by step; None while one is being saved.
        self._saved: dict[str, Entry | None] = {}
        self._guard = threading.Lock()
        self._busted: dict[str, bust.Mark] = {}
        self._folder = keys.encode_id(self.request.id)
        # Marks that come later do no harm: a result that has not seen them is invalid, or its plan
        # is withdrawn.
        self._marks = bust.list_marks(self.store, self._folder)

    @property
    def stop_at(self) -> float:
        """When to stop computing, so that what is done can be saved and reported."""
        return (self.deadline or inf) - self.settings.margin_s

    @cached_property
    def manual_limits(self) -> frozenset[str]:
        """The keys of the limits set by hand; see :mod:`pfl.handler.engine.prefect.limits`."""
        return frozenset(entry.key for entry in self.store.list("limits"))

    @cached_property
    def call(self) -> lease.LeaseHolder:
        """The lease holder of this call; on record from its first claim on."""
        info: lease.CallBody = {
            "flow": self.flow.name,
            "step": self.request.step,
            "request_id": self.request_id,
            "engine": self.request.engine,
            "flow_run_id": self.flow_run_id,
        }
        return lease.LeaseHolder(
            self.store,
            self.request.id,
            info,
            ttl_s=self.settings.lease_s,
            deadline=self.deadline,
        )

    @property
    def run_tags(self) -> set[str]:
        """The tags of its flow run in Prefect."""
        return tags.run_tags(self.request.id, self.request.step, self.call.token)

    @property
    def error(self) -> BaseException | None:
        """The first thing that went wrong."""
        errors = (outcome.error for outcome in self.outcomes.values())
        return next((error for error in errors if error is not None), None)

    @property
    def is_complete(self) -> bool:
        """Whether each step has an outcome, and none failed."""
        return self.error is None and len(self.outcomes) >= len(self.finding.missing)

    def error_to_report(self) -> PflError | None:
        """Why the call failed, for its reply."""
        for name, outcome in self.outcomes.items():
            if outcome.error is not None:
                return as_error(name, outcome.error, self.flow)
        return None

    def stop_now_or_later(self) -> bool:
        """
        Whether this thread may be stopped now: it computes a step, and does not save it.

        If not, it stops as soon as it waits for steps again.
        """
        if self._current_step is not None and self._current_step not in self._saved:
            return True
        self.stop_is_due = True
        return False

    def abandon(self, error: Callable[[str], PflError]) -> None:
        """End the call with what is finished; *error* makes the error of a step that is not."""
        self._is_over = True  # Threads that still run change nothing from here on.
        for name in self.finding.missing:
            if name in self.outcomes:
                continue
            if (entry := self._saved.get(name)) is not None:
                self.outcomes[name] = Outcome("computed", entry)
            elif self.error is None:
                self.outcomes[name] = Outcome("failed", error=error(name))
        if self.error is None:
            self.finding.warnings.append(f"{END_NOT_RECORDED} in time; run pfl runs reap")

    # Without an engine.

    def find_all_by_inputs(self) -> bool:
        """Find steps by their inputs, without an engine; returns whether any is left to compute."""
        for name in self.finding.missing:
            if self._has_inputs(name) and self._note_result_of(self._find_by_inputs, name) is None:
                self._known_missing.add(name)
        return len(self.outcomes) < len(self.finding.missing) and self.error is None

    def wait_for_others(self) -> bool:
        """
        Wait, without an engine, while other calls compute everything that can be computed now.

        Returns:
            Whether a step is left to compute; the first one is claimed then.
        """
        while ready := self._ready():
            before = len(self.outcomes)
            for name in ready:
                if self._note_result_of(self._find_or_claim, name) is True:
                    return True
            if len(self.outcomes) == before:
                self._note_result_of(self._pause, ready[0])
            if self.error is not None:
                return False
        return False

    def _note_result_of(
        self, act: Callable[[str], Outcome | bool | None], name: str
    ) -> Outcome | bool | None:
        """What *act* returns for a step; an outcome, or the outcome of what it raised, is noted."""
        started = time.perf_counter()
        try:
            result = act(name)
        except Exception as exc:
            result = self._to_outcome(name, exc)
        if isinstance(result, Outcome):
            result.ms = (time.perf_counter() - started) * 1e3
            self._note(name, result)
        return result

    def _find_or_claim(self, name: str) -> Outcome | bool:
        # A call that waits for a step looks again only once the step is free, in _try_claim.
        if name in self._known_missing or name in self._held:
            return self._try_claim(name)
        return self._find_by_inputs(name) or self._try_claim(name)

    def _try_claim(self, name: str) -> Outcome | bool:
        """What another call computed meanwhile, or else whether this call now holds the step."""
        held = self._held.get(name)

        def look(waited_for: lease.ClaimBody) -> Outcome | None:
            # The failure of the other call, if it computed the same: it would be repeated here.
            if waited_for.get("failed_plan") == self.request.plan_key(name):
                return Outcome("failed", error=StepFailedError(**waited_for["failure"]))
            return self._find_by_inputs(name)

        result = self.call.try_claim(name, held, look)
        if isinstance(result, lease.HeldByOther):
            if held is None:
                self.notify(name, f"waiting: it is {result.description}")
            self._held[name] = result
            return False
        if isinstance(result, Outcome):
            result.status = "joined" if result.error is None else "failed"
            return result
        self._claimed.add(name)
        return True

    def _pause(self, name: str) -> None:
        """Wait before the next look at a step that another call holds, if there is time."""
        pause_s = jitter_s()
        if time.monotonic() + pause_s >= self.stop_at:
            raise BusyError(
                f"step {name} of {self.request.id!r} is being computed by another call",
                why=f"it is {self._held[name].description}",
                hint="call again",
            )
        _sleep(pause_s)

    # With an engine.

    def settle(self, compute: Compute | None) -> None:
        """
        Find or compute every missing step; those that need a failed step are left out.

        Args:
            compute: Computes one step and finishes it; None if nothing may be computed.
        """
        started: list[str] = []
        running: dict[str, threading.Thread] = {}
        done: _Done = queue.SimpleQueue()
        try:
            while True:
                ready = [name for name in self._ready() if name not in started]
                started += ready
                if len(ready) == 1 and not running:
                    # A single step runs in this thread: signals and Ctrl-C reach it.
                    self._current_step = ready[0]
                    done.put((ready[0], self._settle(ready[0], compute)))
                else:
                    for name in ready:
                        running[name] = self._start(name, compute, done)
                if not running and not ready:
                    return
                self._current_step = ""
                if self.stop_is_due:
                    raise Stopped
                name, outcome = done.get()
                self._current_step = None
                running.pop(name, None)
                self._note(name, outcome)
                if isinstance(outcome.error, KeyboardInterrupt):
                    raise outcome.error
        except KeyboardInterrupt as exc:
            self._interrupt(running, done, type(exc), _PATIENCE_S)
            raise
        except Stopped:
            self._current_step = None
            self._interrupt(running, done, Stopped, self.settings.margin_s / 4)
            for name in started:
                if name not in self.outcomes:
                    self._note(name, self._to_outcome(name, Stopped()))
        finally:
            self._current_step = None

    def _ready(self) -> list[str]:
        """Missing steps without an outcome whose inputs are there."""
        missing = self.finding.missing
        return [name for name in missing if name not in self.outcomes and self._has_inputs(name)]

    def _has_inputs(self, name: str) -> bool:
        return all(before in self.finding.found for before in self.flow.upstream[name])

    def _start(self, name: str, compute: Compute | None, done: _Done) -> threading.Thread:
        context = copy_context()
        # A daemon: a step that ignores an interruption does not keep the process alive.
        thread = threading.Thread(
            target=lambda: done.put((name, context.run(self._settle, name, compute))),
            name=f"step {name}",
            daemon=True,
        )
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
            with self._guard:
                if name not in self._saved:
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
            self.finding.found[name] = outcome.entry

    def _to_outcome(self, name: str, exc: BaseException) -> Outcome:
        if isinstance(exc, Stopped):
            if (entry := self._saved.get(name)) is not None:
                return Outcome("computed", entry)
            what = f"step {name} was stopped before it had a result"
            exc = out_of_time(what, self.settings.margin_s)
        return Outcome("busy" if isinstance(exc, BusyError) else "failed", error=exc)

    def _settle(self, name: str, compute: Compute | None) -> Outcome:
        started = time.perf_counter()
        failure: lease.ClaimNote = {}
        try:
            outcome = None
            if name not in self._known_missing:
                outcome = self._find_by_inputs(name)
            if outcome is None and compute is not None:
                outcome = self._claim(name)
            if outcome is None:
                outcome = self._compute(name, compute)
        except Abandoned:
            raise
        except BaseException as exc:  # A step may raise anything, SystemExit included.
            outcome = self._to_outcome(name, exc)
            failure = self._failure_for_waiters(name, exc)
        finally:
            if compute is not None:
                self.call.release(name, **failure)
        outcome.ms = (time.perf_counter() - started) * 1e3
        return outcome

    def _claim(self, name: str) -> Outcome | None:
        """Claim a step, however long others hold it; None, or what they computed meanwhile."""
        while name not in self._claimed:
            result = self._try_claim(name)
            if isinstance(result, Outcome):
                return result
            if not result:
                self._pause(name)
        return self._find_by_inputs(name) if name in self._unrecorded else None

    def _failure_for_waiters(self, name: str, exc: BaseException) -> lease.ClaimNote:
        """The failure as waiting calls receive it, which would fail in the same way."""
        if not isinstance(exc, Exception):
            return {}
        error = as_error(name, exc, self.flow)
        if not isinstance(error, StepFailedError):
            return {}
        return {
            "failure": {"what": error.what, "why": error.why, "hint": error.hint},
            "failed_plan": self.request.plan_key(name),
        }

    def _find_by_inputs(self, name: str) -> Outcome | None:
        """The stored result of a step with these inputs; its plan is new, its inputs are not."""
        request = self.request
        if name in request.bust:
            return None
        found = accept.find_by_inputs(
            request, name, self.finding, self.finding.found, self.store, self._marks
        )
        if found is None:
            return None
        stored, entry, fingerprint, mark = found
        if fingerprint != request.flow.steps[name].fingerprint:
            self.finding = self.finding._replace(accepted=self.finding.accepted | {name})
        if mark is not None:
            self._busted[name] = mark
            return None
        if entry is None:
            if name not in self._claimed and not request.cached_only:
                self._unrecorded.add(name)
                return None
            entry = stored._replace(computed_at=history.written_at(self.store, request.id, stored))
            publish.append_record(
                request,
                self.store,
                entry,
                {"repaired": True, **self._record_fields(name)},
                inline_bytes=self.settings.inline_bytes,
            )
        self._plan(name, entry)
        return Outcome("hit", entry)

    # Computing and saving one step.

    def _compute(self, name: str, compute: Compute | None) -> Outcome:
        request = self.request
        record_key, record, entry = self._previous(name)
        if record and entry and self._is_computed_by_this_request(name, record, entry):
            self._plan(name, entry)
            return Outcome("hit", entry)
        found = self.finding.found
        fingerprint = self.prints[name]
        busted = self._busted.get(name)
        why = "; ".join(
            reasons.explain(request, name, found, record, self.store, fingerprint, busted=busted)
        )
        if compute is None:
            return Outcome("miss", why=why)
        if time.monotonic() >= self.stop_at:
            raise out_of_time(f"step {name} was not started", self.settings.margin_s)
        self.notify(name, "computing")
        if record is None or record["fingerprint"] != fingerprint.digest:
            publish.save_code(self.store, name, fingerprint)
        started = time.time()
        fields = self._record_fields(name) | {
            "started_at": records.now_iso(started),
            "why": why,
            "previous": record_key,
            "called_at": self._called_at,
            "request_id": self.request_id,
        }
        # Chosen once, so that every retry of this computation receives the same.
        arguments = self.arguments(name, previous=entry.value if entry else None)
        key = lookup.result_key(request, name, found)
        seen = self._marks.seen(self._folder, name, key)
        finish = partial(self._save, name, key, started, fields, seen)
        history.store_in_use.set(self.store)
        try:
            compute(Work(self.flow.steps[name], arguments, finish, record, why))
        except BaseException as exc:
            if name not in self._saved and isinstance(exc, Exception):
                project.check_unchanged(name, fingerprint)
            is_crash = not isinstance(exc, Abandoned | KeyboardInterrupt)
            if name not in self._saved and (is_crash or isinstance(exc, Terminated)):
                self._record_failure(name, exc, started, fields)
            raise
        return Outcome("computed", self._saved[name], why)

    def _previous(self, name: str) -> tuple[str | None, ComputedRecord | None, Entry | None]:
        """The newest computation of a step whose value is still stored."""
        warn = self.finding.warnings.append
        for listed, record in history.list_computed(self.store, self._folder, name, warn):
            entry = history.load_entry(self.store, record, warn)
            if entry is not None:
                return listed.path, record, entry
        return None, None, None

    def _is_computed_by_this_request(self, name: str, record: ComputedRecord, entry: Entry) -> bool:
        """Whether this request, sent again after its process died, computed the busted step."""
        return (
            name in self.request.bust
            and bool(self.request_id)
            and record.get("request_id") == self.request_id
            and not records.is_past(entry.expires_at)
            and not self._marks.first_invalidating(self._folder, entry)
        )

    def arguments(self, name: str, **others: object) -> dict[str, object]:
        """The arguments of a step, as known: its inputs, parameters and ID, and *others*."""
        values = {"id": self.request.id, **self.request.step_params(name), **others}
        for other in self.flow.upstream[name]:
            if other in self.finding.found:
                values[other] = self.finding.found[other].value
        takes = self.flow.steps[name].takes
        return {parameter: values[parameter] for parameter in takes if parameter in values}

    def _record_fields(self, name: str) -> Fields:
        """What a record has in addition to the result."""
        found = self.finding.found
        return {
            "status": history.COMPUTED,
            "params": self.request.step_params(name),
            "inputs": {other: _describe(found[other]) for other in self.flow.upstream[name]},
            "plan_key": self.request.plan_key(name),
        }

    def _measured(self, started: float) -> Fields:
        """What a record has about a computation that just ended."""
        return {
            **self.process,
            "memory_peak_bytes": publish.memory_peak_bytes(),
            "ms": (time.time() - started) * 1e3,
        }

    def _record_failure(
        self, name: str, exc: BaseException, started: float, fields: Fields
    ) -> None:
        error = TERMINATED if isinstance(exc, Terminated) else self._to_outcome(name, exc).error
        if isinstance(error, PflError):
            shown: Mapping[str, object] = error.to_json()
        else:
            shown = {"type": type(error).__name__, "what": str(error)[:1_000]}
        body = {
            "flow": self.request.flow.name,
            "id": self.request.id,
            "fingerprint": self.request.flow.steps[name].fingerprint,
            "engine": self.request.engine,
            "flow_run_id": self.flow_run_id,
            "url": self.url,
            "key": None,
            **fields,
            **self._measured(started),
            "status": history.FAILED,
            "error": shown,
        }
        try:
            history.note(self.store, self._folder, name, history.FAILED, body)
        except PflError as trouble:
            self.finding.warnings.append(
                f"the failure of step {name} could not be recorded ({trouble})"
            )

    def _save(
        self,
        name: str,
        key: str,
        started: float,
        fields: Fields,
        seen: tuple[str, ...],
        value: object,
        run: Run,
    ) -> Entry:
        request = self.request
        value, text = round_trip(value, step=name)
        project.check_unchanged(name, self.prints[name])
        fields = fields | self._measured(started)
        ended = time.time()
        if name in request.bust:
            own = bust.new_name(from_call=True)
            bust.create_mark(self.store, own, name, bust.Scope(self._folder), result=key, seen=seen)
            publish.remove_plans(request, self.store, name, request.plan_key(name))
            seen = (*seen, own)
        cache_for_s = self.flow.steps[name].cache_for_s
        expires_at = None if cache_for_s is None else records.now_iso(ended + cache_for_s)
        entry = Entry(
            name,
            key,
            keys.value_digest(value),
            len(text),
            records.now_iso(ended),
            expires_at,
            *run,
            seen,
            value,
        )
        with self._guard:
            self._saved[name] = None
        self.call.check(name)
        entry = publish.save_result(
            request,
            self.store,
            entry,
            text,
            fields,
            inline_bytes=self.settings.inline_bytes,
        )
        self._plan(name, entry)
        self._saved[name] = entry
        # Before Prefect is done with the task: other calls wait for it.
        self.call.release(name)
        return entry

    def _plan(self, name: str, entry: Entry) -> None:
        """Write the plan of a step, unless it depends on a value that not every call may use."""
        skip = self.request.skip
        needed = self.request.flow.closure([name])
        is_stale = name in self.request.flow.dependents(skip) - skip
        if is_stale or needed & self.finding.accepted:
            # An accepted value may be revoked.
            return
        known = self.finding.known | self.finding.found
        others = (needed & known.keys()) - {name}
        entries = [known[other] for other in self.flow.steps if other in others]
        entries.append(entry)
        write = partial(
            publish.save_plan,
            self.request,
            self.store,
            self.request.plan_key(name),
            entries,
            inline_bytes=self.settings.inline_bytes,
        )
        self._marks = bust.write_plan(self.store, self._folder, entries, write)


def _describe(entry: Entry) -> RecordedInput:
    """An input, as a record shows it."""
    shown: RecordedInput = {"key": entry.key, "sha256": entry.sha256}
    if entry.size_bytes <= _SHOWN_BYTES:
        shown["value"] = entry.value
    return shown
