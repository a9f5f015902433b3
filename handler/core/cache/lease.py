"""
One computation at a time: a call claims a step before it computes, and a call that died is noticed.

    calls/<call>-<generation>.json          a call, alive until its newest generation expires
    leases/<id>/<step>/<generation>.json    a step, held by a call or free again

No object is ever overwritten. To change something, a call creates the next number, which only one
can do, so the number is also the fencing token:

    A   calls/A-1 ─ b/1 held by A ─ compute ─ b/1 is newest: publish ─ b/2 free ─ delete calls/A-*
    B                 b/1 is A's, A is alive: poll ................. b/2 is free: look again, joined
    A dies            calls/A-1 expires ─ b/2 held by B: compute; A, if it wakes, may not publish

A folder keeps its two newest numbers, so it stays small and never starts over. A call that is slow
between list and create may create a number that existed before; a newer one exists then, which the
list after each claim finds:

    C   list: nothing ................................. create b/1 ─ list: b/4 is newest, so retry
    A                  b/1 held ─ b/2 free
    B                                       b/3 held ─ b/4 free ─ b/1, b/2 deleted

A call expires by the store's clock: *modified* of its newest generation against *modified* of an
object written just now, so machines whose clocks differ agree. On one machine pfl checks the
process itself, and no call waits for a dead one.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, TypeVar, Unpack, cast
from weakref import WeakKeyDictionary

from ..errors import CorruptRecordError, LeaseLostError, PflError, UnavailableError
from ..store import records
from ..store.keys import encode_id
from ..store.objects import AlreadyExistsError, ObjectInfo, Store

# Names the call in progress in a sandbox of Lambda, for its extension.
SANDBOX_NOTE = os.path.join(os.environ.get("TMPDIR") or "/tmp", "pfl-call")
# S3 reports in whole seconds when an object was written.
COARSE_S = 2
# How often a waiter checks whether the holder is alive.
_CHECK_INTERVAL_S = 2.5
_REAPING_S = 60
T = TypeVar("T")


class Host(TypedDict):
    """A process, so that another one on the same machine can see whether it is alive."""

    name: str
    boot: str
    space: str
    pid: int
    started: str


class Failure(TypedDict):
    """Why a step failed, for the calls that wait for it."""

    what: str
    why: str
    hint: str


class ClaimNote(TypedDict, total=False):
    """What a call adds to its claim on a step."""

    flow_run_id: str | None
    task_run_id: str | None
    tags: list[str]
    attempt: int
    failure: Failure
    failed_plan: str


class EndNote(TypedDict, total=False):
    """What a call that ends leaves for a reaper: its outcome, and its task runs that have ended."""

    outcome: str
    finished: Mapping[str, Mapping[str, object]]


class CallFields(TypedDict, total=False):
    """What both the object of a call and its claims hold."""

    version: int
    state: str
    call: str
    id: str
    flow: str | None
    request_id: str
    engine: str
    ttl_s: float
    expires_at: str
    host: Host | None


class CallBody(CallFields, EndNote, total=False):
    """A call: ``running``, ``ended`` or ``reaping``."""

    step: str | None
    flow_run_id: str | None
    cause: str
    why: str
    was: CallBody
    by: str


class ClaimBody(CallFields, ClaimNote, total=False):
    """A claim on a step: ``held`` or ``free``; its ``number`` is in the name of its object only."""

    step: str
    since: str
    noted_at: str
    number: int


class HeldByOther(NamedTuple):
    """A step that another call holds, and when to check again whether that call is alive."""

    number: int
    body: ClaimBody
    check_at: float

    @property
    def description(self) -> str:
        """Who holds it, and until when."""
        until = self.body.get("expires_at")
        return f"held by {describe_holder(self.body)}" + (f" until {until[:19]}Z" if until else "")


@dataclass
class Claim:
    """A step that this call holds: the numbers of its newest and its oldest object."""

    step: str
    number: int
    body: ClaimBody
    first: int


class CallState(NamedTuple):
    """Whether a call is alive, the objects of its generations, and what the newest one holds."""

    is_alive: bool
    entries: tuple[ObjectInfo, ...]
    body: CallBody

    @property
    def number(self) -> int:
        """The newest generation; 0 if the call is not on record."""
        return _number(self.entries[-1].key) if self.entries else 0


class LeaseHolder:
    """
    One call that computes, from its first claim to its end.

    Args:
        store: The store that holds the leases.
        id: The ID that it computes for.
        info: What its object holds about it: ``request_id``, ``flow``, ``step``, ``engine``,
            ``flow_run_id``.
        ttl_s: How long one generation lives, if the call renews itself.
        deadline: When it will be killed, as a ``time.monotonic()`` reading; None: it renews itself.
        clock: ``time.monotonic``.
    """

    def __init__(
        self,
        store: Store,
        id: str,
        info: CallBody,
        *,
        ttl_s: float,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.id = id
        self.info = info
        self.clock = clock
        self.token = secrets.token_hex(8)
        # Calls whose claims were taken over; the caller has them reaped.
        self.dead: list[str] = []
        self._ttl_s = ttl_s
        self._deadline = deadline
        self._number = 0
        self._valid_until = 0.0
        self._is_lost = False
        self._claims: dict[str, Claim] = {}
        self._to_delete: list[str] = []
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def try_claim(
        self, step: str, held: HeldByOther | None, find: Callable[[ClaimBody], T | None]
    ) -> Claim | HeldByOther | T:
        """
        Claim *step* if it is free, or if its holder has died.

        Args:
            step: The step.
            held: What the previous try returned, so that a poll is one request.
            find: Called before claiming a step that other calls have held, with the claim that the
                holder this call waited for has released; its result is returned instead of a claim.
        """
        while True:
            entries = sorted(self.store.list(_folder(self.id, step)))
            number = _number(entries[-1].key) if entries else 0
            if held is not None and held.number == number and self.clock() < held.check_at:
                return held
            body = _read(self.store, entries[-1].key) if entries else {}
            if body is None:
                continue  # It was deleted since it was listed, so a newer one exists.
            dead = None
            if body.get("state") == "held" and body["call"] != self.token:
                holder = call_state(self.store, body["call"], clock=self.clock)
                if holder.is_alive:
                    body["expires_at"] = holder.body["expires_at"]
                    return HeldByOther(number, body, self.clock() + _CHECK_INTERVAL_S)
                if not holder.entries and _newest(self.store, self.id, step) != number:
                    continue  # It ended, and released the step just before.
                dead = body["call"]
            has_waited = held is not None and held.body["call"] == body.get("call")
            if number and (found := find(body if has_waited else {})) is not None:
                return found
            self.begin()
            claim = self._create_claim(step, number + 1, _number(entries[0].key) if entries else 1)
            if claim is not None:
                if dead is not None:
                    self.dead.append(dead)
                return claim

    def _create_claim(self, step: str, number: int, first: int) -> Claim | None:
        """A claim on *step* with this number; None if another call was faster."""
        body = {
            **self._body(),
            "step": step,
            "state": "held",
            "attempt": 1,
            "task_run_id": None,
            "since": records.now_iso(),
        }
        path = _path(self.id, step, number)
        if not _create(self.store, path, body):
            return None
        if _newest(self.store, self.id, step) != number:
            self.store.delete([path])
            return None
        claim = self._claims[step] = Claim(step, number, cast(ClaimBody, body), first)
        return claim

    def note(self, step: str, **fields: Unpack[ClaimNote]) -> ClaimBody:
        """
        Add to a claim, such as where the step is being computed; returns the whole claim.

        Raises:
            LeaseLostError: Another call has taken over the step.
        """
        claim = self._claims[step]
        self._create_next(claim, fields)
        return claim.body

    def check(self, step: str) -> None:
        """
        Make sure that the claim is still valid, before something is published under it.

        Raises:
            LeaseLostError: The claim is not valid any more.
        """
        claim = self._claims.get(step)
        if claim is None or self._ended.is_set():
            raise self._lost(step, "the call had already ended")
        if not self._is_valid():
            why = "the call counted as dead: it did not renew its lease in time"
            raise self._lost(step, why)
        if _newest(self.store, self.id, step) != claim.number:
            raise self._lost(step)

    def release(self, step: str, **fields: Unpack[ClaimNote]) -> None:
        """Release a step, if this call still holds it; calls that wait for it see *fields*."""
        claim = self._claims.pop(step, None)
        if claim is None:
            return
        claim.body["state"] = "free"
        with suppress(LeaseLostError):
            self._create_next(claim, fields)
            old = range(claim.first, claim.number - 1)
            self._to_delete += [_path(self.id, step, number) for number in old]

    def end(self, why: str = "", **fields: Unpack[EndNote]) -> None:
        """
        Release everything and take the call off the record.

        Args:
            why: What a reaper still has to do; then the call stays on record, as a dead one.
            fields: What else the reaper needs.
        """
        self._ended.set()
        for step in list(self._claims):
            self.release(step)
        with self._lock:
            if not self._number:
                return
            with suppress(OSError):
                os.unlink(SANDBOX_NOTE)
            if why:
                body = {**self._body(), **_ended("left", why), **fields}
                _create(self.store, _call_path(self.token, self._number + 1), body)
            else:
                generations = range(max(1, self._number - 1), self._number + 1)
                self._to_delete += [_call_path(self.token, number) for number in generations]
            self._number = 0
        self.store.delete(self._to_delete)

    def begin(self) -> None:
        """Put the call on record, unless it is already; the first claim does so, too."""
        with self._lock:
            if self._number or self._ended.is_set():
                return
            if not self._renew():
                raise UnavailableError("the call could not be recorded", hint="call again")
            if os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
                with suppress(OSError), open(SANDBOX_NOTE, "w") as file:
                    file.write(self.token)
            if self._deadline is None:
                name = f"lease {self.token}"
                threading.Thread(target=self._keep_renewing, name=name, daemon=True).start()

    def _keep_renewing(self) -> None:
        while not self._ended.wait(self._ttl_s / 3):
            try:
                self._renew()
            except PflError:
                continue  # The store does not answer; two more tries fit before the lease expires.

    def _renew(self) -> bool:
        with self._lock:
            if self._is_lost or self._ended.is_set():
                return False
            before = self.clock()
            if not _create(self.store, _call_path(self.token, self._number + 1), self._body()):
                self._is_lost = True
                return False
            self._number += 1
            self._valid_until = before + self._remaining_s()
            if self._number > 2:
                self.store.delete([_call_path(self.token, self._number - 2)])
            return True

    def _is_valid(self) -> bool:
        if self._is_lost:
            return False
        # A suspended machine wakes late: the call goes on, unless it was recorded as dead.
        return self.clock() < self._valid_until or (self._deadline is None and self._renew())

    def _create_next(self, claim: Claim, fields: ClaimNote) -> None:
        changed = {**claim.body, **fields, "noted_at": records.now_iso()}
        claim.body = cast(ClaimBody, changed)
        if not _create(self.store, _path(self.id, claim.step, claim.number + 1), changed):
            raise self._lost(claim.step)
        claim.number += 1

    def _lost(self, step: str, why: str = "another call has taken it over") -> LeaseLostError:
        return LeaseLostError(
            f"step {step} of {self.id!r} was not saved",
            why=why,
            hint="call again: pfl uses what the other call computed",
        )

    def _remaining_s(self) -> float:
        return self._ttl_s if self._deadline is None else max(0.0, self._deadline - self.clock())

    def _body(self) -> CallBody:
        ttl_s = self._remaining_s()
        return {
            "version": 1,
            "state": "running",
            "call": self.token,
            "id": self.id,
            **self.info,
            "ttl_s": ttl_s,
            "expires_at": records.now_iso(time.time() + ttl_s),
            "host": _this_process(),
        }


def describe_holder(body: CallBody | ClaimBody) -> str:
    """The process or request that made a call, and its flow run."""
    holder = f"request {body.get('request_id') or body.get('call')}"
    if host := body.get("host"):
        holder = f"process {host['pid']} on {host['name']}"
    flow_run_id = body.get("flow_run_id")
    return f"{holder}, flow run {flow_run_id}" if flow_run_id else holder


def calls(store: Store) -> dict[str, tuple[ObjectInfo, ...]]:
    """The calls on record, each with its generations in order."""
    found: dict[str, tuple[ObjectInfo, ...]] = {}
    for entry in sorted(store.list("calls")):
        call, _, number = entry.key.removeprefix("calls/").removesuffix(".json").partition("-")
        if entry.key.endswith(".json") and number.isdigit():
            found[call] = (*found.get(call, ()), entry)
    return found


def call_state(
    store: Store, call: str, *, clock: Callable[[], float] = time.monotonic
) -> CallState:
    """Whether a call is alive; one that is not on record has ended, and holds nothing."""
    now = store_now(store, clock=clock)
    while entries := calls(store).get(call):
        body = cast("CallBody | None", _read(store, entries[-1].key))
        if body is None:
            continue  # It was renewed, or has ended meanwhile.
        if not body or body["state"] == "ended" or is_gone(body.get("host")):
            return CallState(False, entries, body)
        return CallState(now - entries[-1].modified <= body["ttl_s"] + COARSE_S, entries, body)
    return CallState(False, (), {})


def report(store: Store, call: str, cause: str, why: str) -> bool:
    """Record that a call died, so that nobody waits until it expires; False if it is not alive."""
    state = call_state(store, call)
    if not state.is_alive:
        return False
    body = {**state.body, **_ended(cause, why)}
    return _create(store, _call_path(call, state.number + 1), body)


def _ended(cause: str, why: str) -> dict[str, str]:
    return {"state": "ended", "cause": cause, "why": why}


def claim_dead_call(store: Store, call: str) -> CallState | None:
    """
    Claim a dead call for a minute, to clean up after it; None if that is not possible.

    If several processes try at once, one succeeds; if that one dies too, another can claim it
    afterwards.
    """
    state = call_state(store, call)
    if state.is_alive or not state.entries:
        return None
    was = state.body.get("was", state.body)
    body = {
        **state.body,
        "state": "reaping",
        "ttl_s": _REAPING_S,
        "host": _this_process(),
        "by": secrets.token_hex(8),
        "was": was,
        "expires_at": records.now_iso(time.time() + _REAPING_S),
    }
    path = _call_path(call, state.number + 1)
    if not _create(store, path, body):
        return None
    keys = [entry.key for entry in calls(store).get(call, ())]
    # It may have been cleaned up or renewed just before the claim.
    if state.entries[-1].key not in keys or keys[-1] != path:
        store.delete([path])
        return None
    return CallState(False, state.entries, was)


def claims_of(store: Store, id: str, call: str) -> list[ClaimBody]:
    """The claims of *call* on steps of *id* that it did not release, each with its ``number``."""
    newest: dict[str, ClaimBody] = {}
    for entry in sorted(store.list(f"leases/{encode_id(id)}")):
        body = _read(store, entry.key)
        if body and body["call"] == call:
            body["number"] = _number(entry.key)
            newest[body["step"]] = body
    return [body for body in newest.values() if body["state"] == "held"]


def free(store: Store, claim: ClaimBody) -> None:
    """Release a claim of a dead call, unless another call has taken over the step."""
    body = {**claim, "state": "free"}
    del body["number"]
    _create(store, _path(claim["id"], claim["step"], claim["number"] + 1), body)


def release_dead_call(store: Store, call: str, state: CallState) -> None:
    """Release a call that was claimed by :func:`claim_dead_call`, for another try."""
    store.delete([_call_path(call, state.number + 1)])


def forget_call(store: Store, call: str) -> None:
    """Take a call off the record, once everything it left is cleaned up."""
    store.delete([entry.key for entry in calls(store).get(call, ())])


# By store: how far its clock is ahead of ours, and when that was measured.
_offsets: WeakKeyDictionary[Store, tuple[float, float]] = WeakKeyDictionary()


def store_now(store: Store, *, clock: Callable[[], float] = time.monotonic) -> float:
    """The store's own time, in seconds since 1970, or a little earlier; measured once a minute."""
    measured = _offsets.get(store)
    if measured is None or not 0 <= clock() - measured[1] < 60:
        key = f"calls/clock-{secrets.token_hex(8)}"
        store.put(key, b"")
        found = next((entry.modified for entry in store.list("calls") if entry.key == key), None)
        store.delete([key])
        if found is None:
            raise UnavailableError(f"the store {store.url} does not list what was just written")
        measured = _offsets[store] = (found - clock(), clock())
    return clock() + measured[0]


def is_gone(host: Host | None) -> bool:
    """Whether a process of this machine has ended; False for other machines."""
    here = _this_process()
    if not here or not host or (here["boot"], here["space"]) != (host["boot"], host["space"]):
        return False
    return _started(host["pid"]) != host["started"]


def _this_process() -> Host | None:
    # Sandboxes of Lambda may be copies of one machine, with its boot ID and its process IDs.
    started = _started(os.getpid())
    if started is None or os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        return None
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return {
        "name": platform.node(),
        "boot": boot,
        "space": space,
        "pid": os.getpid(),
        "started": started,
    }


def _started(pid: int) -> str | None:
    """
    When a process started; None if it has ended. Its ID alone may be that of a later process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _create(store: Store, path: str, body: Mapping[str, object]) -> bool:
    with suppress(AlreadyExistsError):
        store.put(path, records.seal(body), mode="create")
        return True
    return False


def _read(store: Store, key: str) -> ClaimBody | None:
    """The body; None if the object is gone, empty if it is damaged: then nobody holds it."""
    data = store.get(key)
    with suppress(CorruptRecordError):
        return None if data is None else cast(ClaimBody, records.unseal(data, key))
    return {}


def _newest(store: Store, id: str, step: str) -> int:
    return max((_number(entry.key) for entry in store.list(_folder(id, step))), default=0)


def _number(key: str) -> int:
    return int(key.removesuffix(".json")[-12:])


def _folder(id: str, step: str) -> str:
    return f"leases/{encode_id(id)}/{step}"


def _path(id: str, step: str, number: int) -> str:
    return f"{_folder(id, step)}/{number:012d}.json"


def _call_path(call: str, number: int) -> str:
    return f"calls/{call}-{number:012d}.json"
