"""
The steps of one invocation that no plan answered: each is found by its inputs, or computed, and steps that do not wait for
one another run at the same time.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

from pfl.handler.core.cache import accept, bust, history, lease, lookup, publish, reasons
from pfl.handler.core.cache.entry import Entry
from pfl.handler.core.cache.lookup import Finding
from pfl.handler.core.declare.flows import Flow
from pfl.handler.core.errors import BusyError, PflError, StepFailedError
from pfl.handler.core.event import Request
from pfl.handler.core.fingerprint import Fingerprint
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import keys, layout, records
from pfl.handler.core.store.objects import Store
from pfl.handler.core.store.values import normalise
from pfl.handler.engine.deadline import TERMINATED, GivenUp, Stopped, Terminated, out_of_time
from pfl.handler.engine.interrupt import raise_in_thread
from pfl.handler.engine.steps import as_error

_PATIENCE_S = 3  # How long an interrupted step may take to notice.
_SHOWN_BYTES = 16_384  # A longer input is named in history by its digest alone.
_sleep = time.sleep
Notify = Callable[[str, str], None]


@dataclass
class Outcome:
    """What became of a step: ``hit``, ``computed``, ``joined``, ``miss``, ``busy`` or ``failed``; *ms* is its wall time."""

    status: str
    entry: Entry | None = None
    why: str | None = None
    ms: float = 0.0
    error: BaseException | None = None


class Run(NamedTuple):
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
    before: dict | None = None  # The record of the computation before this one.
    why: str = ""


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
        prints: What each step's fingerprint is made of, for those who ask later what changed.
        deadline: When Lambda kills the process, as a ``time.monotonic()`` reading.
        outcomes: What became of each step that was touched.
        is_cold: Whether it is the first call of its process.
        code: Which code of the image this is: the digest of its manifest.
    """

    request: Request
    finding: Finding
    flow: Flow
    store: Store
    settings: Settings
    request_id: str
    notify: Notify = lambda step, doing: None
    prints: Mapping[str, Fingerprint] = field(default_factory=dict)
    deadline: float | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    flow_run_id: str | None = None
    url: str | None = None
    is_cold: bool = False
    code: str = ""
    _called_at: float = field(default_factory=time.time)
    _untold: set[str] = field(
        default_factory=set
    )  # Results whose writer may be about to write their record.
    reap_reason: str = ""  # What a reaper has still to do, once this has ended.
    tasks: dict[str, dict] = field(
        default_factory=dict
    )  # Prefect's task runs that have begun, and those that ended by themselves.
    finished: dict[str, dict] = field(default_factory=dict)
    artifacts: list[dict] = field(default_factory=list)  # Those that Prefect has not got yet.
    flow_run: object = (
        None  # The flow run in Prefect that this is to be, where there is one already.
    )
    interrupted: KeyboardInterrupt | None = None  # What ended its flow in Prefect from outside.
    degraded: str | None = None  # Why it computes without Prefect, though it should have.
    _absent: set[str] = field(default_factory=set)
    _claimed: set[str] = field(default_factory=set)
    _held: dict[str, lease.HeldByOther] = field(default_factory=dict)
    _is_over: bool = False
    stop_is_due: bool = False  # The moment to stop came while this thread might not be interrupted.
    _here: str | None = (
        None  # The step that computes in this thread; "" while it waits for other threads.
    )
    _saved: dict[str, Entry | None] = field(default_factory=dict)  # None while it is being saved.
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _marks: bust.Marks = field(default_factory=bust.Marks)
    _busted: dict[str, bust.Mark] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layout.check(self.store)
        # Older marks than there are do no harm: what was computed with them in view is void, or its plan is withdrawn.
        self._folder = keys.encode_id(self.request.id)
        self._marks = bust.list_marks(self.store, self._folder)

    @property
    def stop_at(self) -> float:
        """When to stop what is being computed, so that what is done can still be saved and told."""
        return float("inf") if self.deadline is None else self.deadline - self.settings.margin_s

    @cached_property
    def limited(self) -> frozenset[str]:
        """Where the limits stand that were set by hand; see :mod:`pfl.handler.engine.prefect.limits`."""
        return frozenset(entry.key for entry in self.store.list("limits"))

    @property
    def may_stop(self) -> bool:
        """Whether what this thread does may be interrupted: a step that is being saved is not."""
        return self._here is not None and self._here not in self._saved

    @cached_property
    def call(self) -> lease.LeaseHolder:
        """The claim of this invocation on what it computes; on record from its first step on."""
        about = {"flow": self.flow.name, "step": self.request.step, "request_id": self.request_id}
        about |= {"engine": self.request.engine, "flow_run_id": self.flow_run_id}
        return lease.LeaseHolder(
            self.store, self.request.id, about, ttl_s=self.settings.lease_s, deadline=self.deadline
        )

    def error_to_report(self) -> PflError | None:
        """Why the call failed, as its reply reports it."""
        if self.error is None:
            return None
        failed = next(name for name, each in self.outcomes.items() if each.error is self.error)
        return as_error(failed, self.error, self.flow)

    def find_by_inputs(self) -> bool:
        """Find by their inputs what can be found so, without an engine; say whether anything is left to compute."""
        for name in self.finding.missing:
            if (
                self._has_inputs(name)
                and self._found(name, lambda name=name: self._look_again(name)) is None
            ):
                self._absent.add(name)
        return len(self.outcomes) < len(self.finding.missing) and self.error is None

    def wait_for_others(self) -> bool:
        """
        Wait, without an engine, while all that could be computed now is computed by other calls.

        Returns:
            Whether something is left to compute; the first of it is claimed then.
        """
        while ready := [
            name
            for name in self.finding.missing
            if name not in self.outcomes and self._has_inputs(name)
        ]:
            before = len(self.outcomes)
            for name in ready:
                # Who waits for another looks behind the claim alone, which says that it was joined.
                is_known = name in self._absent or name in self._held
                if (
                    self._found(
                        name,
                        lambda name=name, known=is_known: (
                            (None if known else self._look_again(name)) or self._try(name)
                        ),
                    )
                    is True
                ):
                    return True
            if len(self.outcomes) == before:
                self._found(ready[0], lambda name=ready[0]: self._pause(name))
            if self.error is not None:
                return False
        return False

    def _found(self, name: str, find: Callable[[], Outcome | bool | None]) -> Outcome | bool | None:
        """What *find* gives; an outcome, or what it raised, is noted."""
        started = time.perf_counter()
        try:
            got = find()
        except Exception as exc:
            got = self._failed(name, exc)
        if isinstance(got, Outcome):
            got.ms = (time.perf_counter() - started) * 1e3
            self._note(name, got)
        return got

    def _try(self, name: str) -> Outcome | bool:
        """What another call computed meanwhile, else whether *name* is ours to compute."""
        held = self._held.get(name)
        got = self.call.try_claim(
            name, held, lambda waited: self._failed_there(name, waited) or self._look_again(name)
        )
        if isinstance(got, lease.HeldByOther):
            if held is None:
                self.notify(name, f"waiting: it is {got.description}")
            self._held[name] = got
            return False
        if isinstance(got, Outcome):
            got.status = "joined" if got.error is None else "failed"
            return got
        self._claimed.add(name)
        return True

    def _failed_there(self, name: str, waited: dict) -> Outcome | None:
        """The failure of the call that was waited for, if it computed the same: it would be ours too, and as slow."""
        if waited.get("failed_plan") != self.request.plan_key(name):
            return None
        return Outcome("failed", error=StepFailedError(**waited["failure"]))

    def _pause(self, name: str) -> None:
        """Wait for the next look at a step that another call holds, if there is time left for that."""
        pause_s = random.uniform(
            0.25, 0.45
        )  # Many that wait do not ask together, and none asks often.
        if time.monotonic() + pause_s >= self.stop_at:
            why = f"it is {self._held[name].description}"
            raise BusyError(
                f"step {name} of {self.request.id!r} is being computed by another call",
                why=why,
                hint="call again",
            )
        _sleep(pause_s)

    def _claim(self, name: str) -> Outcome | None:
        """Hold *name*, however long others do; what they computed meanwhile ends it."""
        while name not in self._claimed:
            if isinstance(got := self._try(name), Outcome):
                return got
            if got is False:
                self._pause(name)
        return None

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
                    self._here = ready[0]
                    done.put((ready[0], self._settle(ready[0], compute)))
                else:
                    for name in ready:
                        running[name] = self._start(name, compute, done)
                if not running and not ready:
                    return
                self._here = ""
                if self.stop_is_due:
                    raise Stopped
                name, outcome = done.get()
                self._here = None
                running.pop(name, None)
                self._note(name, outcome)
                if isinstance(outcome.error, KeyboardInterrupt):
                    raise outcome.error
        except KeyboardInterrupt as exc:
            self._interrupt(running, done, type(exc), _PATIENCE_S)
            raise
        except Stopped:
            self._here = None
            self._interrupt(running, done, Stopped, self.settings.margin_s / 4)
            for name in running:
                self._note(name, self._failed(name, Stopped()))
        finally:
            self._here = None

    def _start(
        self, name: str, compute: Compute | None, done: queue.SimpleQueue
    ) -> threading.Thread:
        context = copy_context()
        # A daemon: a step that does not heed an interruption does not keep the process.
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
        done: queue.SimpleQueue,
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
            pass  # It hangs in a call into C; whoever started the run tells Prefect.

    @property
    def error(self) -> BaseException | None:
        """The first thing that went wrong."""
        return next(
            (outcome.error for outcome in self.outcomes.values() if outcome.error is not None), None
        )

    @property
    def is_complete(self) -> bool:
        """Whether each step was settled, and none went wrong."""
        return self.error is None and all(name in self.outcomes for name in self.finding.missing)

    def _failed(self, name: str, exc: BaseException) -> Outcome:
        if isinstance(exc, Stopped):
            if (entry := self._saved.get(name)) is not None:
                return Outcome("computed", entry)
            exc = out_of_time(name, "was stopped before it had a result", self.settings.margin_s)
        return Outcome("busy" if isinstance(exc, BusyError) else "failed", error=exc)

    def give_up(self, error: Callable[[str], PflError]) -> None:
        """Say what is known now, and by *error* why a step has no result; whatever goes on in other threads is not heard any more."""
        self._is_over = True
        for name in self.finding.missing:
            if name not in self.outcomes and (entry := self._saved.get(name)) is not None:
                self.outcomes[name] = Outcome("computed", entry)
        left = [name for name in self.finding.missing if name not in self.outcomes]
        if left and self.error is None:
            self.outcomes[left[0]] = Outcome("failed", error=error(left[0]))

    def _has_inputs(self, name: str) -> bool:
        return all(before in self.finding.found for before in self.flow.upstream[name])

    def _note(self, name: str, outcome: Outcome) -> None:
        if self._is_over:
            return
        self.outcomes[name] = outcome
        if outcome.entry is not None:
            self.finding.found[name] = outcome.entry

    def _settle(self, name: str, compute: Compute | None) -> Outcome:
        started, told = time.perf_counter(), {}
        try:
            outcome = None if name in self._absent else self._look_again(name)
            if outcome is None and compute is not None:
                outcome = self._claim(name) or (
                    self._look_again(name) if name in self._untold else None
                )
            outcome = outcome or self._compute(name, compute)
        except GivenUp:
            raise
        except BaseException as exc:  # A step may raise anything, SystemExit included.
            outcome = self._failed(name, exc)
            if isinstance(exc, Exception) and isinstance(
                error := as_error(name, exc, self.flow), StepFailedError
            ):
                failure = {"what": error.what, "why": error.why, "hint": error.hint}
                told = {"failure": failure, "failed_plan": self.request.plan_key(name)}
        finally:
            if compute is not None:
                self.call.release(name, **told)
        outcome.ms = (time.perf_counter() - started) * 1e3
        return outcome

    def _look_again(self, name: str) -> Outcome | None:
        """Early cut-off: the plan was new, the inputs are not."""
        if name in self.request.bust:
            return None
        if (
            found := accept.find_by_inputs(
                self.request, name, self.finding, self.finding.found, self.store, self._marks
            )
        ) is None:
            return None
        entry, recorded, fingerprint, mark = found
        if fingerprint != self.request.flow.steps[name].fingerprint:
            self.finding = self.finding._replace(accepted=self.finding.accepted | {name})
        if mark is not None:
            self._busted[name] = mark
            return None
        if recorded is None and name not in self._claimed and not self.request.cached_only:
            self._untold.add(name)  # Who holds the lease may be just about to tell.
            return None
        if recorded is None:
            recorded = entry._replace(
                computed_at=history.written_at(self.store, self.request.id, entry)
            )
            told = {"repaired": True} | self._about(name)
            publish.append_record(
                self.request, self.store, recorded, told, inline_bytes=self.settings.inline_bytes
            )
        entry = recorded
        self._plan(name, entry)
        return Outcome("hit", entry)

    def _compute(self, name: str, compute: Compute | None) -> Outcome:
        request, step = self.request, self.flow.steps[name]
        last, before, earlier = self._before(name)
        inputs = {other: self.finding.found[other] for other in self.flow.upstream[name]}
        print = self.prints.get(name)
        if (
            earlier is not None
            and name in request.bust
            and self.request_id
            and before.get("request_id") == self.request_id
        ):
            # This very call computed it before its process died and it was sent again: no turn is taken twice.
            if not records.is_past(earlier.expires_at) and not self._marks.first_invalidating(
                self._folder, earlier
            ):
                self._plan(name, earlier)
                return Outcome("hit", earlier)
        seen = self._marks.seen(self._folder, name, lookup.result_key(request, name, inputs))
        reason = "; ".join(
            reasons.explain(
                request, name, inputs, before, self.store, print, busted=self._busted.get(name)
            )
        )
        if compute is None:
            return Outcome("miss", why=reason)
        if time.monotonic() >= self.stop_at:
            raise out_of_time(name, "was not started", self.settings.margin_s)
        self.notify(name, "computing")
        arguments = {other: entry.value for other, entry in inputs.items()} | request.step_params(
            name
        )
        if "id" in step.takes:
            arguments["id"] = request.id
        if "previous" in step.takes:
            # Chosen once: every retry of this computation sees the same.
            arguments["previous"] = earlier.value if earlier is not None else None
        if print is not None and (before is None or before["fingerprint"] != print.digest):
            publish.save_code(self.store, name, print)
        made: list[Entry] = []
        started = time.time()
        told = self._about(name) | {
            "started_at": records.now_iso(started),
            "why": reason,
            "previous": last,
        }
        told |= {"called_at": records.now_iso(self._called_at), "request_id": self.request_id}

        def finish(value: object, run: Run) -> Entry:
            made.append(self._save(name, value, inputs, run, started, told, seen))
            return made[-1]

        history.store_in_use.set(self.store)
        try:
            compute(Work(name, {p: arguments[p] for p in step.takes}, finish, before, reason))
        except BaseException as exc:
            is_ours = isinstance(exc, (GivenUp, KeyboardInterrupt)) and not isinstance(
                exc, Terminated
            )
            if name not in self._saved and not is_ours:
                self._note_failure(name, exc, started, told)
            raise
        return Outcome("computed", made[-1], reason)

    def _about(self, name: str) -> dict[str, object]:
        """What history tells of a result beside it."""
        return {
            "status": history.COMPUTED,
            "params": self.request.step_params(name),
            "inputs": {
                other: _input(self.finding.found[other]) for other in self.flow.upstream[name]
            },
            "plan_key": self.request.plan_key(name),
        }

    def _before(self, name: str) -> tuple[str | None, dict | None, Entry | None]:
        """The newest record of the step that has its value still: its key, the record, the value."""
        warn = self.finding.warnings.append
        for record_name, body in history.list_computed(self.store, self._folder, name, warn):
            if (entry := history.load_entry(self.store, body, warn)) is not None:
                return record_name.path, body, entry
        return None, None, None

    def _note_failure(
        self, name: str, exc: BaseException, started: float, told: dict[str, object]
    ) -> None:
        error = TERMINATED if isinstance(exc, Terminated) else self._failed(name, exc).error
        said = (
            error.to_json()
            if isinstance(error, PflError)
            else {"type": type(error).__name__, "what": str(error)[:1_000]}
        )
        body = {
            "flow": self.request.flow.name,
            "id": self.request.id,
            "fingerprint": self.request.flow.steps[name].fingerprint,
        }
        body |= {
            "engine": self.request.engine,
            "flow_run_id": self.flow_run_id,
            "url": self.url,
            "key": None,
        }
        body |= told | {
            "status": history.FAILED,
            "ms": (time.time() - started) * 1e3,
            "error": said,
            **self._process(),
        }
        try:
            history.note(self.store, self._folder, name, history.FAILED, body)
        except PflError as trouble:
            self.finding.warnings.append(
                f"the failure of step {name} is not in its history ({trouble})"
            )

    def _process(self) -> dict[str, object]:
        told = {
            "cold_start": self.is_cold,
            "code": self.code,
            "memory_peak_bytes": publish.memory_peak_bytes(),
        }
        return told | ({"degraded": self.degraded} if self.degraded else {})

    def _save(
        self, name: str, value: object, inputs: dict[str, Entry], run: Run, started: float, told: dict,
        seen: tuple[str, ...],
    ) -> Entry:  # fmt: skip
        value, text = normalise(value, step=name)
        ended, cache_for_s = time.time(), self.flow.steps[name].cache_for_s
        key = lookup.result_key(self.request, name, inputs)
        if name in self.request.bust:
            own = bust.new_name(from_call=True)
            bust.create_mark(self.store, own, name, bust.Scope(self._folder), result=key, seen=seen)
            publish.remove_plans(self.request, self.store, name, self.request.plan_key(name))
            seen = (*seen, own)
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
        told = told | {"ms": (ended - started) * 1e3, **self._process()}
        entry = publish.save_result(
            self.request, self.store, entry, text, told, inline_bytes=self.settings.inline_bytes
        )
        self._plan(name, entry)
        self._saved[name] = entry
        self.call.release(name)  # Not when Prefect is through with the task: others wait for it.
        return entry

    def _plan(self, name: str, entry: Entry) -> None:
        skip, needed = self.request.skip, self.request.flow.closure([name])
        if name in self.request.flow.dependents(skip) - skip or needed & self.finding.accepted:
            # It rests on a stale value, which not everybody asks for, or on an accepted one, which may be taken back.
            return
        known = self.finding.known | self.finding.found | {name: entry}
        entries = [
            known.get(other) for other in self.flow.steps if other in needed and other != name
        ]
        entries = [e for e in entries if e is not None] + [entry]
        plan_key, inline_bytes = self.request.plan_key(name), self.settings.inline_bytes
        write = partial(
            publish.save_plan,
            self.request,
            self.store,
            plan_key,
            entries,
            inline_bytes=inline_bytes,
        )
        self._marks = bust.write_plan(self.store, self._folder, entries, write)


def _input(entry: Entry) -> dict[str, object]:
    told = {"key": entry.key, "sha256": entry.sha256}
    return told | {"value": entry.value} if entry.size_bytes <= _SHOWN_BYTES else told
