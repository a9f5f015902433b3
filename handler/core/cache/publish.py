"""
Publishes what a call computes, in an order that survives a crash between any two requests.

    create result ─ record and plan         beside the next steps, in a thread for each step
    end of the call: pointer to the records ─ leases deleted

Creating the result decides: the store lets one call create it, and a call that comes second takes
the value that is there. So nothing has to be checked first, and a call that paused for hours does
no harm. A plan is created, too, never overwritten; a bust keeps it from being created, see
:mod:`pfl.handler.core.cache.bust`.

A call that holds a lease hardly ever comes second. So the next step may begin before the result is
decided, if the engine allows that. Record and plan of a step wait until the results of all steps it
rests on are decided. If one of them comes second after all, the call is made again from the start.

After a crash before the plan, the next call is a miss that finds the result by its inputs. The
result holds the name of its record, and a call that finds no such record writes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from ..errors import CorruptRecordError
from ..event import Request
from ..fingerprint import Fingerprint
from ..store import keys, records
from ..store.at_once import at_once
from ..store.objects import AlreadyExistsError, Store
from ..store.values import encode
from . import accept, bust, history
from .entry import (
    NOT_LOADED,
    Entry,
    entry_json,
    parse_plan,
    parse_result,
    plan_body,
    seal_fence,
)


class SupersededError(Exception):
    """Another call has created a result on whose value this one has already gone on."""


class Publication(NamedTuple):
    """
    What is left to write about a result.

    Attributes:
        step: Its step.
        needs: The steps that it rests on, and itself.
        create_result: Creates the result; None: it is decided already.
        writes: Write the record, the code that it names, and the plan.
    """

    step: str
    needs: frozenset[str]
    create_result: Callable[[], object] | None
    writes: tuple[Callable[[], None], ...]


class Publisher:
    """
    Publishes the results of one call.

    Args:
        request: The request.
        store: The store to write.
        warnings: Receives a line about each damaged object.
        inline_bytes: A longer value is stored next to its record, and not in its plan.
        is_bounded: Whether Lambda kills this process at the deadline of the call.

    Attributes:
        errors: What could not be written, by step.
        unrecorded: Steps with a result whose record is not written, or not yet.
    """

    def __init__(
        self,
        request: Request,
        store: Store,
        warnings: list[str],
        inline_bytes: int,
        is_bounded: bool,
    ) -> None:
        self.request = request
        self.store = store
        self._warnings = warnings
        self._inline_bytes = inline_bytes
        self._is_bounded = is_bounded
        self._folder = keys.encode_id(request.id)
        self._names: list[history.Name] = []
        self._threads: list[threading.Thread] = []
        self._decided: dict[str, threading.Event] = {}
        self._planned: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.unrecorded: set[str] = set()

    def commit(
        self,
        entry: Entry,
        text: str,
        fields: history.Fields,
        *,
        replaces: bool = False,
        is_final: bool = False,
    ) -> tuple[Entry, history.Fields]:
        """
        Make *entry* the result of its key.

        Args:
            entry: The result; ``result`` is the file name to try first.
            text: Its value as JSON.
            fields: What its record holds besides: parameters, inputs, timings, the reason.
            replaces: Whether it replaces valid results, so that the file name decides alone.
            is_final: Whether this call has gone on with it, so that no other one can take its
                place.

        Returns:
            The result and the fields of its record: those of another call, if that was faster.

        Raises:
            UnavailableError: The store did not accept it; no call will be answered with it.
            SupersededError: Another call was faster, and *is_final*.
        """
        store = self.store
        request = self.request
        record = self.record_of(entry, fields)
        entry = entry._replace(record=record)
        fingerprint = request.flow.steps[entry.step].fingerprint
        if entry.size_bytes > self._inline_bytes:
            store.put(records.value_path(request.id, entry.sha256), text.encode())
        while True:
            data = history.encode_result(record, request.id, fingerprint, entry, text)
            path = records.result_path(request.id, entry.step, entry.file)
            try:
                store.put(path, data, mode="create")
                return entry, fields
            except AlreadyExistsError:
                if is_final:
                    raise SupersededError(path) from None
                # The marks may be older than what is there.
                marks = bust.list_marks(store, self._folder)
            if replaces and (other := self._other(path)) is not None:
                return other, {**fields, "repaired": True}
            found = accept.find_result(
                request.id, entry.step, entry.key, store, marks, self._warnings
            )
            if isinstance(found, accept.NotStored):
                entry = entry._replace(result=found.free if "~" in found.free else "")
                continue
            stored, recorded = found
            return recorded or stored, {**fields, "repaired": True}

    def record_of(self, entry: Entry, fields: history.Fields) -> str:
        """The file name of the record of *entry*: a new one, if it has none yet."""
        if entry.record:
            return entry.record
        after = fields.get("previous")
        return history.new_name(self._folder, entry.step, entry.key[:16], after=after).file

    def _other(self, path: str) -> Entry | None:
        """The result of the call that was faster; None if it is damaged."""
        with suppress(CorruptRecordError):
            stored = parse_result(self.store.get(path) or b"", path)
            warn = self._warnings.append
            return history.add_run(self.store, self.request.id, stored, warn) or stored
        return None

    def publication(
        self,
        entry: Entry,
        fields: history.Fields | None,
        entries: Sequence[Entry] | None,
        print: Fingerprint,
        *,
        text: str | None = None,
    ) -> Publication:
        """
        What is left to write about a result.

        Args:
            entry: The result.
            fields: What its record holds besides; None: it has a record.
            entries: The results of all steps that it rests on, for its plan, its own last; None:
                it gets no plan, since not every call may use it.
            print: The fingerprint of its code.
            text: Its value as JSON, if the result is still to be created.
        """
        create_result: Callable[[], object] | None = None
        writes: list[Callable[[], None]] = []
        if text is not None:
            create_result = partial(self.commit, entry, text, fields or {}, is_final=True)
        if fields is not None:
            name = history.Name(self._folder, entry.step, self.record_of(entry, fields))
            self._names.append(name)
            writes.append(partial(self._write_record, name, entry, fields))
            writes.append(partial(_save_code, self.store, entry.step, print))
        if entries:
            writes.append(partial(self.write_plan, entries))
        needs = self.request.flow.closure([entry.step])
        return Publication(entry.step, needs, create_result, tuple(writes))

    def publish(self, publication: Publication) -> None:
        """Write what is left about a result; in a store over the network, beside other work."""
        self._decided[publication.step] = threading.Event()
        if self.store.is_local:
            self._write(publication)
        else:
            thread = threading.Thread(
                target=self._write, args=(publication,), name="publish", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _write(self, publication: Publication) -> None:
        step = publication.step
        if publication.create_result is not None:
            self._try(step, publication.create_result)
        self._decided[step].set()
        # What it rests on was published before it.
        for needed in publication.needs & self._decided.keys():
            self._decided[needed].wait()
        if self.errors.keys().isdisjoint(publication.needs):
            writes = [partial(self._try, step, write) for write in publication.writes]
            at_once(self.store, writes)

    def _try(self, step: str, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as exc:  # A thread that dies of it reports nothing.
            self.errors.setdefault(step, exc)

    def is_decided(self, publication: Publication) -> bool:
        """Whether the results that it rests on, and its own, are known to be created."""
        if publication.create_result is None:
            return True
        if not self.errors.keys().isdisjoint(publication.needs):
            return False
        decided = [self._decided.get(step) for step in publication.needs]
        return all(event is not None and event.is_set() for event in decided)

    @property
    def is_writing(self) -> bool:
        """Whether something may still be written, because :meth:`finish` was interrupted."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def lacks_record(self) -> bool:
        """
        Whether a plan may hold a result that has no record.

        The next call is a hit then, and repairs nothing, so a reaper has to.
        """
        return not self._planned.isdisjoint(self.unrecorded)

    def finish(self) -> None:
        """Write what is left, and wait until all is written."""
        if self._names:
            point = partial(history.point, self.store, self._names)
            self._try(self._names[-1].step, point)
        self._names = []
        for thread in self._threads:
            thread.join()

    def _write_record(self, name: history.Name, entry: Entry, fields: history.Fields) -> None:
        self.unrecorded.add(entry.step)
        request = self.request
        is_inline = entry.size_bytes <= self._inline_bytes
        if fields.get("repaired") and not is_inline and entry.value is not NOT_LOADED:
            # The writer may have died before it stored the value.
            text = encode(entry.value)
            self.store.put(records.value_path(request.id, entry.sha256), text.encode())
        head = {
            "flow": request.flow.name,
            "id": request.id,
            "fingerprint": request.flow.steps[entry.step].fingerprint,
        }
        has_value = entry.value is not NOT_LOADED and is_inline
        body = {**head, **entry_json(entry, with_value=has_value), **fields}
        history.append(self.store, name, body)
        self.unrecorded.discard(entry.step)

    def write_plan(self, entries: Sequence[Entry]) -> None:
        """
        Create the plan in which later calls find all *entries* with one read.

        It is not written if one of them is void by now.
        """
        self._planned.update(entry.step for entry in entries)
        step = entries[-1].step
        first = self.request.plan_key(step)
        plan_key = first
        while True:
            path = records.plan_path(self.request.id, step, plan_key)
            body = plan_body(self.request, plan_key, list(entries), self._inline_bytes)
            try:
                self.store.put(path, records.seal(body), mode="create")
                return
            except AlreadyExistsError:
                plan_key = self._make_way(path, step, first, plan_key)
            # The marks after the way was free: a later bust finds this call's lease.
            marks = bust.list_marks(self.store, self._folder)
            if not plan_key or marks.first_invalidating(self._folder, *entries):
                return

    def _make_way(self, path: str, step: str, first: str, plan_key: str) -> str:
        """
        Where to write the plan instead of at *path*, which is taken.

        Returns:
            A plan key; empty if the plan that is there can be used.
        """
        data = self.store.get(path)
        if data is None:
            return plan_key
        with suppress(CorruptRecordError):
            plan, stored = parse_plan(data, path)
            if "next" in plan:
                return plan["next"]
            marks = bust.list_marks(self.store, self._folder)
            is_void = marks.first_invalidating(self._folder, *stored.values()) is not None
            if not is_void and not records.is_past(plan["expires_at"]):
                return ""
        if self._is_bounded:
            # Lambda kills this call before another one takes its place.
            self.store.delete([path])
            return plan_key
        # This call may pause here, count as dead and wake, when a bust has put a fence there for
        # the next one: so it puts a fence itself.
        free = f"{first}~{bust.new_name()}"
        fence = seal_fence(self.request.id, step, first, free)
        self.store.put(records.plan_path(self.request.id, step, first), fence)
        return free


# The code whose parts this process has stored, by store, step and fingerprint.
_stored_code: set[tuple[str, str, str]] = set()


def _save_code(store: Store, step: str, print: Fingerprint) -> None:
    """Keep the parts of a fingerprint, so that a later miss can report what changed."""
    known = (store.url, step, print.digest)
    if known not in _stored_code:
        body = {"version": 1, "step": step, "parts": [part.to_json() for part in print.parts]}
        store.put(records.code_path(step, print.digest), records.seal(body))
        _stored_code.add(known)
