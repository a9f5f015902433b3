"""
Finds or computes one step, and returns its outcome.

    find by inputs ─┬─ found ──────────────────────────────────────── hit
                    └─ wait for the lease ─┬─ another call computed it ─ joined
                                           └─ compute ─ create its result ─ computed

A worker is called in several threads at once. It changes nothing that the invocation reads, except
`saved`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from threading import Lock

from ..core.cache import accept, bust, history, lookup, reasons
from ..core.cache.entry import Entry
from ..core.cache.history import Fields, RecordedInput
from ..core.cache.publish import Publication, Publisher
from ..core.declare import project
from ..core.errors import BusyError, PflError
from ..core.store import keys, records
from ..core.store.values import round_trip
from .call import Call
from .causes import TERMINATED, out_of_time
from .claims import Claims, Previous
from .deadline import Abandoned, Stopped, Terminated
from .steps import describe
from .work import Compute, Outcome, Run, RunState, Work

# A longer input is named in history by its digest only.
_SHOWN_BYTES = 16_384


class Worker:
    """
    Settles the steps of one call.

    Attributes:
        saved: Outcomes of computed steps; None while one is being saved.
        guard: Held while a step begins to be saved, and while a thread is interrupted.
        accepted: Steps whose result comes from older code that is accepted.
    """

    def __init__(self, call: Call, claims: Claims, run: RunState, publisher: Publisher) -> None:
        self.saved: dict[str, Outcome | None] = {}
        self.guard = Lock()
        self.accepted = set(claims.finding.accepted)
        self._call = call
        self._claims = claims
        self._run = run
        self._publisher = publisher
        self._busted: dict[str, bust.Mark | None] = {}
        self._free: dict[str, str] = {}
        # Steps that this call holds, and whose results were not found since.
        self._absent: set[str] = set()

    def settle(self, name: str, found: Mapping[str, Entry], compute: Compute | None) -> Outcome:
        """
        Find or compute a step.

        Args:
            name: The step.
            found: The results so far; those that the step needs are among them.
            compute: Computes it; None if nothing may be computed.
        """
        started = time.perf_counter()
        try:
            if compute is None:
                outcome = self.find(name, found) or self._compute(name, found, None)
            else:
                while not (result := self._look(name, found)):
                    self._claims.pause(name)
                if not isinstance(result, Outcome):
                    result = self._compute(name, found, compute)
                outcome = result
        except Abandoned:
            raise
        except BaseException as exc:  # A step may raise anything, SystemExit included.
            outcome = self.to_outcome(name, exc)
            if compute is not None and not isinstance(exc, Stopped):
                self.release(name)
        return replace(outcome, ms=(time.perf_counter() - started) * 1e3)

    def try_to_settle(self, name: str, found: Mapping[str, Entry]) -> Outcome | bool:
        """The outcome of a step without computing it; or else whether this call may compute it."""
        try:
            return self._look(name, found)
        except Exception as exc:
            return self.to_outcome(name, exc)

    def to_outcome(self, name: str, exc: BaseException) -> Outcome:
        """The outcome of a step that raised *exc*."""
        if isinstance(exc, Stopped):
            if (saved := self.saved.get(name)) is not None:
                return saved
            what = f"step {name} was stopped before it had a result"
            exc = out_of_time(what, self._call.settings.margin_s)
        return Outcome("busy" if isinstance(exc, BusyError) else "failed", error=exc)

    def release(self, name: str) -> None:
        """Release a step that failed, so that calls that wait for it go on."""
        try:
            self._claims.holder.release([name])
        except PflError as exc:
            self._call.warnings.append(f"the lease of step {name} was not released ({exc})")

    # Finding.

    def _look(self, name: str, found: Mapping[str, Entry]) -> Outcome | bool:
        if name in self._absent:
            return True
        if name not in self._claims.held:
            outcome = self.find(name, found)
            if outcome is not None:
                return outcome
            if self._claims.has(name):
                self._absent.add(name)
                return True
        result = self._claims.try_again(name, found)
        if isinstance(result, Entry):
            return Outcome("joined", result)
        outcome = self.find(name, found) if result else None
        return result if outcome is None else replace(outcome, status="joined")

    def find(self, name: str, found: Mapping[str, Entry]) -> Outcome | None:
        """The stored result of a step with these inputs; its plan is new, its inputs are not."""
        call = self._call
        claims = self._claims
        request = call.request
        if name in request.bust or claims.is_new:
            return None
        stored = accept.find_by_inputs(
            request, name, claims.finding, found, call.store, claims.marks
        )
        if isinstance(stored, accept.NotStored):
            self._free[name] = stored.free
            self._busted[name] = stored.mark
            return None
        if stored.fingerprint != request.flow.steps[name].fingerprint:
            self.accepted.add(name)
        entry = stored.recorded
        may_write = claims.has(name)
        if entry is None:
            if not may_write and not request.cached_only:
                return None  # Its writer may be about to write its record.
            at = history.written_at(call.store, request.id, stored.entry)
            entry = stored.entry._replace(computed_at=at)
        if not may_write:
            return Outcome("hit", entry)
        fields: Fields | None = None
        if stored.recorded is None:
            fields = {"repaired": True, **self._record_fields(name, found)}
        return Outcome("hit", entry, publication=self._publication(entry, fields, found))

    def _publication(
        self,
        entry: Entry,
        fields: Fields | None,
        found: Mapping[str, Entry],
        *,
        text: str | None = None,
    ) -> Publication:
        """What is left to write about a result: its record, unless *fields* is None, and a plan."""
        entries = self._plan_entries(entry, found)
        print = self._call.prints[entry.step]
        return self._publisher.publication(entry, fields, entries, print, text=text)

    def _plan_entries(self, entry: Entry, found: Mapping[str, Entry]) -> list[Entry] | None:
        """What the plan of a step holds; None if it rests on a value for this call alone."""
        name = entry.step
        request = self._call.request
        needed = request.flow.closure([name])
        is_stale = name in request.flow.dependents(request.skip) - request.skip
        if is_stale or needed & self.accepted:
            # An accepted value may be revoked.
            return None
        known = {**self._claims.finding.known, **found}
        others = (needed & known.keys()) - {name}
        entries = [*(known[other] for other in self._call.flow.steps if other in others), entry]
        # An input may have been busted before this call had its lease on this step.
        marks = self._claims.marks
        return None if marks.first_invalidating(self._call.folder, *entries) else entries

    # Computing and saving.

    def _compute(self, name: str, found: Mapping[str, Entry], compute: Compute | None) -> Outcome:
        call = self._call
        previous = self._claims.previous.get(name)
        if previous is not None and self._is_computed_by_this_request(name, previous):
            entry = previous.entry
            return Outcome("hit", entry, publication=self._publication(entry, None, found))
        record = previous and previous.record
        print = call.prints[name]
        busted = self._busted.get(name)
        why = "; ".join(
            reasons.explain(call.request, name, found, record, call.store, print, busted=busted)
        )
        if compute is None:
            return Outcome("miss", why=why)
        if time.monotonic() >= call.stop_at:
            raise out_of_time(f"step {name} was not started", call.settings.margin_s)
        call.notify(name, "computing")
        started = time.time()
        fields: Fields = {
            **self._record_fields(name, found),
            "started_at": records.now_iso(started),
            "why": why,
            "previous": previous and previous.path,
            "called_at": call.called_at,
            "request_id": call.request_id,
        }
        # Chosen once, so that every retry of this computation receives the same.
        value = previous and previous.entry.value
        arguments = call.arguments(name, found, previous=value)
        key = lookup.result_key(call.request, name, found)
        # Before the step runs: it may not have seen what a later bust is about.
        seen = self._claims.marks.seen(call.folder, name, key)
        if name in call.request.bust:
            start = previous.entry.file if previous and previous.entry.key == key else key
            self._free[name] = accept.find_free(call.store, call.request.id, name, key, start)
        run = self._run.of_task(self._claims.task_run_ids[name])
        finish = partial(self._save, name, key, seen, found, started, fields, run)
        history.store_in_use.set(call.store)
        work = Work(call.flow.steps[name], arguments, run, finish, record, why)
        try:
            compute(work)
        except BaseException as exc:
            if name not in self.saved and isinstance(exc, Exception):
                project.check_unchanged(name, print)
            is_crash = not isinstance(exc, Abandoned | KeyboardInterrupt)
            if name not in self.saved and (is_crash or isinstance(exc, Terminated)):
                self._record_failure(name, exc, started, fields, run)
            raise
        saved = self.saved[name]
        assert saved is not None, "an engine returns after it has called finish"
        return saved

    def _is_computed_by_this_request(self, name: str, previous: Previous) -> bool:
        """Whether this request, sent again after its process died, computed the busted step."""
        call = self._call
        return (
            name in call.request.bust
            and bool(call.request_id)
            and previous.record.get("request_id") == call.request_id
            and not records.is_past(previous.entry.expires_at)
            and not self._claims.marks.first_invalidating(call.folder, previous.entry)
        )

    def _record_fields(self, name: str, found: Mapping[str, Entry]) -> Fields:
        """What a record has in addition to the result."""
        call = self._call
        return {
            "status": history.COMPUTED,
            "params": call.request.step_params(name),
            "inputs": {other: _describe(found[other]) for other in call.flow.upstream[name]},
            "plan_key": call.request.plan_key(name),
        }

    def _measured(self, started: float) -> Fields:
        """What a record has about a computation that just ended."""
        fields: Fields = {**self._call.process, "ms": (time.time() - started) * 1e3}
        if self._run.degraded:
            fields["degraded"] = self._run.degraded
        return fields

    def _record_failure(
        self, name: str, exc: BaseException, started: float, fields: Fields, run: Run
    ) -> None:
        call = self._call
        error = TERMINATED if isinstance(exc, Terminated) else self.to_outcome(name, exc).error
        body = {
            "flow": call.request.flow.name,
            "id": call.request.id,
            "fingerprint": call.request.flow.steps[name].fingerprint,
            "key": None,
            **run._asdict(),
            **fields,
            **self._measured(started),
            "status": history.FAILED,
            "error": describe(name, error or exc, call.flow),
        }
        try:
            history.note(call.store, call.folder, name, history.FAILED, body)
        except PflError as trouble:
            call.warnings.append(f"the failure of step {name} could not be recorded ({trouble})")

    def _save(
        self,
        name: str,
        key: str,
        seen: tuple[str, ...],
        found: Mapping[str, Entry],
        started: float,
        fields: Fields,
        run: Run,
        value: object,
    ) -> Entry:
        call = self._call
        request = call.request
        value, text = round_trip(value, step=name)
        project.check_unchanged(name, call.prints[name])
        fields = fields | self._measured(started)
        ended = time.time()
        is_busted = name in request.bust
        if is_busted:
            seen = (*seen, bust.new_name(from_call=True))
        cache_for_s = call.flow.steps[name].cache_for_s
        expires_at = None if cache_for_s is None else records.now_iso(ended + cache_for_s)
        free = self._free.get(name, key)
        entry = Entry(
            name,
            key,
            keys.value_digest(value),
            len(text),
            records.now_iso(ended),
            expires_at,
            *run,
            after=seen,
            result=free if free != key else "",
            value=value,
        )
        with self.guard:
            self.saved[name] = None
        # Steps that need this one may begin before its result is decided. In Prefect, the task run
        # fails if its result cannot be saved, and a bust decides by its result.
        is_decided_first = call.is_again or is_busted or run.engine != "direct"
        may_go_on = not is_decided_first and not call.store.is_local
        if may_go_on:
            entry = entry._replace(record=self._publisher.record_of(entry, fields))
        else:
            entry, fields = self._publisher.commit(entry, text, fields, replaces=is_busted)
        if is_busted:
            self._bust_others(name, entry)
        left = text if may_go_on else None
        publication = self._publication(entry, fields, found, text=left)
        self.saved[name] = Outcome("computed", entry, fields["why"], publication=publication)
        return entry

    def _bust_others(self, name: str, entry: Entry) -> None:
        """Invalidate the results that *entry* has replaced."""
        own = [mark for mark in entry.after if mark.startswith("x")]
        if not own:
            return  # Another call has replaced a result that was void already.
        request = self._call.request
        bust.bust_result(
            self._call.store,
            request.id,
            name,
            entry.key,
            plan_key=request.plan_key(name),
            dependents=request.flow.dependents([name]) - {name},
            name=own[-1],
            seen=entry.after[:-1],
            own_call=self._claims.holder.token,
        )
        self._claims.list_marks()


def _describe(entry: Entry) -> RecordedInput:
    """An input, as a record shows it."""
    shown: RecordedInput = {"key": entry.key, "sha256": entry.sha256}
    if entry.size_bytes <= _SHOWN_BYTES:
        shown["value"] = entry.value
    return shown
