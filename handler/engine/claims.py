"""
What a call may compute: the steps that it holds a lease on, and what is stored for them.

    take leases, create the marker of the ID ─┬─ created: nothing is stored, everything is computed
                                              └─ it is there: read plans, busts and history

Over a network, leases and marker are created at the same time. The marker may then exist before
the leases do, so it names the call until that has taken its leases. Nobody else publishes
meanwhile: a step could be computed and its lease deleted before this call creates its own.

A call holds only steps that it can compute without waiting for another call, so two calls never
wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from ..core.cache import accept, bust, history, lease, lookup, reasons, shared
from ..core.cache.entry import Entry
from ..core.cache.history import ComputedRecord
from ..core.cache.lease import Held
from ..core.cache.lookup import Finding
from ..core.errors import BusyError, PflError
from ..core.retry import jitter_s
from ..core.store.at_once import at_once
from ..core.store.objects import AlreadyExistsError
from ..core.tags import limit_tag
from .call import Call
from .steps import from_record, is_repeatable

_sleep = time.sleep


class Previous(NamedTuple):
    """The newest computation of a step whose value is still stored."""

    path: str
    record: ComputedRecord
    entry: Entry


class Claims:
    """
    The leases of one call, and what the store holds about its ID.

    Attributes:
        holder: Its leases.
        finding: What the plans answered.
        marks: The busts that its results have seen.
        shared: What is known of all IDs.
        is_new: Whether nothing is stored for the ID.
        held: Steps that another call held when this call looked last.
        previous: For each missing step, its newest computation whose value is still stored.
        task_run_ids: For each step, the ID of the task run that it will have in Prefect.
        dead: Calls whose leases this one has taken over; the engine cleans them up.
    """

    def __init__(self, call: Call, finding: Finding) -> None:
        info: lease.Body = {
            "flow": call.flow.name,
            "request_id": call.request_id,
            "engine": call.request.engine,
            "target": call.request.step,
            "flow_run_id": str(call.flow_run.id) if call.flow_run is not None else None,
        }
        self.holder = lease.LeaseHolder(
            call.store,
            call.request.id,
            info,
            ttl_s=call.settings.lease_s,
            deadline=call.deadline,
        )
        self.finding = finding
        self.marks = bust.Marks()
        self.shared = shared.NOTHING
        self.is_new = False
        self.task_run_ids = {name: str(uuid4()) for name in call.flow.steps}
        self.dead: dict[str, lease.Lease] = {}
        self._call = call
        self._marker = bust.marker_path(call.folder)
        self._settled = self.holder.token.encode()
        self.held: dict[str, Held] = {}
        self._polls: Counter[str] = Counter()
        self.previous: dict[str, Previous | None] = {}
        self._lock = threading.Lock()

    # At the start.

    def take(self) -> None:
        """Take leases on all steps that may have to be computed, then read what is stored."""
        call = self._call
        wanted = {name: self._about(name) for name in self.finding.missing}

        def claim() -> None:
            self.held = self.holder.claim(wanted)

        def read_shared() -> None:
            self.shared = shared.read(call.store)

        def mark() -> None:
            self.is_new = not call.request.skip and self._mark_id()

        try:
            try:
                at_once(call.store, [claim, read_shared, mark])
            finally:
                if self.is_new and not call.store.is_local:
                    self._settle_beside()
            self._note_dead()
            if self.is_new:
                self.marks = bust.Marks(bust.parse_marks(self.shared["busts"]))
            else:
                at_once(call.store, [self.read, self._wait_for_marker])
                self.holder.release(self.holder.claims.keys() - set(self.finding.missing))
            self._release_blocked()
        except BaseException:
            with suppress(PflError):
                self.holder.end()
            raise

    def _about(self, name: str) -> lease.Body:
        request = self._call.request
        id = request.id
        return {
            "plan_key": request.plan_key(name),
            "fingerprint": request.flow.steps[name].fingerprint,
            "needs": list(request.flow.steps[name].upstream),
            "task_run_id": self.task_run_ids[name],
            # The slots that it may take in Prefect: a reaper has to free them.
            "tags": [limit_tag(id, name), limit_tag(None, name)],
        }

    def _mark_id(self) -> bool:
        """Create the object that shows that something is stored for the ID; False if it exists."""
        store = self._call.store
        # In a directory, the leases have been taken before.
        body = self._settled if store.is_local else self.holder.marker()
        try:
            # No two calls write the same bytes, so an answer that got lost is not taken for ours.
            store.put(self._marker, body, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def _settle_beside(self) -> None:
        """Note in the marker that this call has taken its leases, beside the first step."""

        def settle() -> None:
            with suppress(PflError):  # Then others wait until this call counts as dead.
                self._call.store.put(self._marker, self._settled)

        threading.Thread(target=settle, name="settle", daemon=True).start()

    def _wait_for_marker(self) -> None:
        """Wait while the call that found the ID new takes its leases, or until it is dead."""
        store = self._call.store
        while not store.is_local and (other := lease.read_marker(store, self._marker)):
            if lease.is_alive(store, other):
                what = f"{self._call.request.id!r} is being claimed by another call"
                self._pause(what, f"it is held by {lease.describe_holder(other.body)}")
            else:
                store.put(self._marker, self._settled)

    def _note_dead(self) -> None:
        for claim in self.holder.claims.values():
            for dead in claim.dead:
                self.dead[dead.body["call"]] = dead

    def read(self) -> None:
        """Read what is stored: plans, busts, and the newest record of each missing step."""
        call = self._call
        store = call.store

        def find() -> None:
            before = self.finding.found
            found = lookup.find(call.request, store, call.warnings, skipped=before)
            if found.missing:
                found = accept.include_accepted(call.request, found, store)
            self.finding = found

        names = self.finding.missing

        def read_previous(name: str) -> None:
            self.previous[name] = self._read_previous(name)

        reads: list[Callable[[], None]] = [find, self.list_marks]
        reads += [partial(read_previous, name) for name in names]
        at_once(store, reads)

    def list_marks(self) -> None:
        """Look for busts again."""
        self.marks = bust.list_marks(self._call.store, self._call.folder)

    def _read_previous(self, name: str) -> Previous | None:
        call = self._call
        warn = call.warnings.append
        found = next(history.with_values(call.store, call.folder, name, warn), None)
        if found is None:
            return None
        listed, record, entry = found
        if record["fingerprint"] != call.request.flow.steps[name].fingerprint:
            # Remembered for when the step explains why it is computed.
            reasons.parts(call.store, name, record["fingerprint"])
        return Previous(listed.path, record, entry)

    def _release_blocked(self) -> None:
        """Release the steps that need a step which another call holds."""
        held = set(self.held) & set(self.finding.missing)
        blocked = self._call.request.flow.dependents(held) - held if held else frozenset()
        self.holder.release([name for name in self.holder.claims if name in blocked])

    # For one step.

    def has(self, name: str) -> bool:
        """Whether this call may compute the step now."""
        return name in self.holder.claims

    def try_again(self, name: str, found: Mapping[str, Entry]) -> Entry | bool:
        """
        Look again at a step that this call does not hold, and whose inputs are in *found*.

        Returns:
            The result of the call that held it; or else whether this call holds the step now.

        Raises:
            StepFailedError: The call that held it failed; this one would fail in the same way.
        """
        call = self._call
        request = call.request
        held = self.held.get(name)
        may_join = name not in request.bust
        # By its plan, if another call has written it.
        find = partial(lookup.find_step, request, name, call.store, self.finding, found)
        if held is not None:
            self._polls[name] += 1
            if self._polls[name] == 1:
                call.notify(name, f"waiting: it is {held.description}")
            is_same = held.body.get("plan_key") == request.plan_key(name)
            if may_join and is_same and self._polls[name] % 2:
                return find() or False
            if still := self.holder.still_held(held):
                self.held[name] = still
                return False
            self._raise_its_failure(name, held)
        result = self.holder.claim({name: self._about(name)})
        if name in result:
            self.held[name] = result[name]
            return False
        with self._lock:
            self.held.pop(name, None)
            self._note_dead()
            self.is_new = False
            self.list_marks()
        self.previous[name] = self._read_previous(name)
        return (may_join and find()) or True

    def _raise_its_failure(self, name: str, held: Held) -> None:
        call = self._call
        listed = history.list_records(
            call.store, id=call.request.id, step=name, warn=call.warnings.append
        )
        _, record = next(listed, (None, None))
        if record is None or record.get("status") != history.FAILED:
            return
        is_same_call = record.get("request_id") == held.body.get("request_id")
        is_same_plan = record.get("plan_key") == call.request.plan_key(name)
        error = record.get("error")
        if is_same_call and is_same_plan and error is not None and is_repeatable(error):
            raise from_record(name, error)

    def pause(self, name: str) -> None:
        """
        Wait before the next look at a step that another call holds.

        Raises:
            BusyError: There is no time left to wait.
        """
        what = f"step {name} of {self._call.request.id!r} is being computed by another call"
        self._pause(what, f"it is {self.held[name].description}")

    def _pause(self, what: str, why: str) -> None:
        pause_s = jitter_s()
        if time.monotonic() + pause_s >= self._call.stop_at:
            raise BusyError(what, why=why, hint="call again")
        _sleep(pause_s)
