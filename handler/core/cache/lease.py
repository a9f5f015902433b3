"""
One computation at a time: a call claims a step before it computes, and a call that died is noticed.

    calls/<call>-<generation>.json          a call that computes, alive until its newest generation expires
    leases/<id>/<step>/<generation>.json    the step is held by a call, or free again

Nothing here is ever overwritten. Whoever wants to change something creates the next number, which only one can do, so the
number is also the fencing token:

    A   calls/A-1 ─ b/1 held by A ─ compute ─ is b/1 newest? ─ result, history, plan ─ b/2 free ─ calls/A-* deleted
    B                 b/1 is A's, A lives: poll ............................... b/2 is free: look again, joined
    A dies            calls/A-1 expires ─ b/2 held by B ─ B computes; A, if it wakes, finds b/2 and may not publish

A folder keeps its two newest numbers, so it stays small and never starts anew. Whoever was slow between list and create may
get a number that was there before; then a newer one is there too, which it finds by the list after each claim:

    C   list: nothing ............................................... create b/1: done ─ list: b/4 is newest, so wait for b/4
    A                  b/1 held ─ b/2 free     B  b/3 held ─ b/4 free ─ b/1, b/2 deleted

A call expires by the store's clock: *modified* of its newest generation against *modified* of an object written just now. So
machines whose clocks differ agree. On one machine the process itself is looked at, and nobody waits for a dead one.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

from pfl.handler.core.errors import CorruptRecordError, LeaseLostError, PflError, UnavailableError
from pfl.handler.core.store import records
from pfl.handler.core.store.keys import encode_id
from pfl.handler.core.store.objects import AlreadyExistsError, ObjectInfo, Store

SANDBOX_NOTE = os.path.join(
    os.environ.get("TMPDIR") or "/tmp", "pfl-call"
)  # The call under way in a sandbox of Lambda, for its extension.
COARSE_S = 2  # S3 tells when an object was written in whole seconds.
_LOOK_S = 2.5  # How often a waiter asks whether the holder lives.


class HeldByOther(NamedTuple):
    """A step that another call holds: what that call said, and when to ask again whether it lives."""

    number: int
    body: dict
    check_at: float

    @property
    def description(self) -> str:
        """Who holds it until when."""
        until = self.body.get("expires_at")
        return f"held by {describe_holder(self.body)}" + (f" until {until[:19]}Z" if until else "")


@dataclass
class Claim:
    """A step that this call holds, by its newest number."""

    step: str
    number: int
    body: dict
    first: int


class CallState(NamedTuple):
    """What is known of a call: whether it lives, its newest generation, and what stands there."""

    is_alive: bool
    entries: tuple[ObjectInfo, ...]
    body: dict

    @property
    def number(self) -> int:
        """The newest generation; 0 where there is none."""
        return _number(self.entries[-1].key) if self.entries else 0


class LeaseHolder:
    """
    One call that computes, from its first claim to its end.

    Args:
        store: Where.
        id: What it computes for.
        about: What others are told of it: ``request_id``, ``flow``, ``step``, ``engine``, ``flow_run_id``.
        ttl_s: How long a generation of it lives, where it renews itself.
        deadline: When it will be killed, as a ``time.monotonic()`` reading; then nothing is renewed.
        clock: ``time.monotonic``.
    """

    def __init__(
        self,
        store: Store,
        id: str,
        about: dict[str, object],
        *,
        ttl_s: float,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.id, self.about, self.clock = store, id, about, clock
        self.token = secrets.token_hex(8)
        self.dead: list[
            str
        ] = []  # Calls whose claims were taken over: somebody should tell Prefect.
        self._ttl_s, self._deadline = ttl_s, deadline
        self._number, self._valid_until, self._is_lost = 0, 0.0, False
        self._claims: dict[str, Claim] = {}
        self._trash: list[str] = []
        self._lock, self._ended = threading.RLock(), threading.Event()

    def try_claim(
        self, step: str, held: HeldByOther | None, look: Callable[[dict], object]
    ) -> Claim | HeldByOther | object:
        """
        Take the lease of *step* if it is free, or if its holder died.

        Args:
            step: The step.
            held: What the last try gave, so that a poll is one request.
            look: Asked before a lease is taken that others held before, with what the one that was waited for gave back;
                what it finds is given instead of the lease.
        """
        folder = _folder(self.id, step)
        while True:
            entries = sorted(self.store.list(folder), key=lambda entry: entry.key)
            number = _number(entries[-1].key) if entries else 0
            if held is not None and held.number == number and self.clock() < held.check_at:
                return held
            body = _read(self.store, entries[-1].key) if entries else {}
            if body is None:
                continue  # It was deleted since it was listed, so there is a newer one.
            dead = None
            if body.get("state") == "held" and body["call"] != self.token:
                life = call_state(self.store, body["call"], clock=self.clock)
                if life.is_alive:
                    return HeldByOther(
                        number,
                        body | {"expires_at": life.body["expires_at"]},
                        self.clock() + _LOOK_S,
                    )
                if not life.entries and _newest(self.store, folder) != number:
                    continue  # It ended, and gave the step back just before.
                dead = body["call"]
            waited = body if held is not None and held.body["call"] == body.get("call") else {}
            if number and (found := look(waited)) is not None:
                return found
            self.begin()
            said = {
                "step": step,
                "state": "held",
                "attempt": 1,
                "task_run_id": None,
                "since": records.now_iso(),
            }
            claim = Claim(
                step, number + 1, self._body() | said, _number(entries[0].key) if entries else 1
            )
            path = _path(folder, claim.number)
            if not _create(self.store, path, claim.body):
                continue  # Another was faster.
            if _newest(self.store, folder) != claim.number:
                self.store.delete([path])
                continue
            self._claims[step] = claim
            if dead is not None:
                self.dead.append(dead)
            return claim

    def note(self, step: str, **more: object) -> dict:
        """
        Say more about a claim, such as where it is being computed; all that is said of it.

        Raises:
            LeaseLostError: The step was taken over.
        """
        claim = self._claims[step]
        claim.body |= more | {"noted_at": records.now_iso()}
        self._next(claim)
        return claim.body

    def check(self, step: str) -> None:
        """
        Make sure that the claim still stands, before something is published under it.

        Raises:
            LeaseLostError: It does not.
        """
        claim = self._claims.get(step)
        if claim is None or self._ended.is_set():
            raise _lost(step, self.id, "the call had ended")
        if not self._is_valid():
            raise _lost(
                step, self.id, "the call was taken for dead: it had not renewed its lease in time"
            )
        if _newest(self.store, _folder(self.id, step)) != claim.number:
            raise _lost(step, self.id, "another call has taken it over")

    def release(self, step: str, **more: object) -> None:
        """Give a step back, if this call holds it still, with a word for those who wait for it."""
        if (claim := self._claims.pop(step, None)) is None:
            return
        claim.body |= {"state": "free", "noted_at": records.now_iso(), **more}
        try:
            self._next(claim)
        except LeaseLostError:
            return
        self._trash += [
            _path(_folder(self.id, step), number) for number in range(claim.first, claim.number - 1)
        ]

    def end(self, why: str = "", **more: object) -> None:
        """
        Give everything back, and forget the call.

        Args:
            why: What is left to be done by whoever reaps: the call stays on record, as one that is dead.
            more: What else is to be told then.
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
                _create(
                    self.store,
                    _call_path(self.token, self._number + 1),
                    self._body() | _ended("left", why) | more,
                )
            else:
                self._trash += [
                    _call_path(self.token, number)
                    for number in range(max(1, self._number - 1), self._number + 1)
                ]
            self._number = 0
        if self._trash:
            self.store.delete(self._trash)

    def begin(self) -> None:
        """Put the call on record, if it is not: with its first claim at the latest."""
        with self._lock:
            if self._number or self._ended.is_set():
                return
            if not self._renew():
                raise UnavailableError("the call could not be put on record", hint="call again")
            if os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
                with suppress(OSError), open(SANDBOX_NOTE, "w") as file:
                    file.write(self.token)
            if self._deadline is None:
                threading.Thread(target=self._keep, name=f"lease {self.token}", daemon=True).start()

    def _keep(self) -> None:
        while not self._ended.wait(self._ttl_s / 3):
            try:
                self._renew()
            except PflError:
                continue  # The store does not answer now; two more tries fit before it expires.

    def _renew(self) -> bool:
        with self._lock:
            if self._is_lost or self._ended.is_set():
                return False
            before = self.clock()
            if not _create(self.store, _call_path(self.token, self._number + 1), self._body()):
                self._is_lost = True
                return False
            self._number += 1
            self._valid_until = before + self._body()["ttl_s"]
            if self._number > 2:
                self.store.delete([_call_path(self.token, self._number - 2)])
            return True

    def _is_valid(self) -> bool:
        if self._is_lost:
            return False
        # A suspended machine wakes late: if nobody took it for dead meanwhile, it goes on.
        return self.clock() < self._valid_until or (self._deadline is None and self._renew())

    def _next(self, claim: Claim) -> None:
        folder = _folder(self.id, claim.step)
        if not _create(self.store, _path(folder, claim.number + 1), claim.body):
            raise _lost(claim.step, self.id, "another call has taken it over")
        claim.number += 1

    def _body(self) -> dict:
        ttl_s = self._ttl_s if self._deadline is None else max(0.0, self._deadline - self.clock())
        body = {"version": 1, "state": "running", "call": self.token, "id": self.id, **self.about}
        return body | {
            "ttl_s": ttl_s,
            "expires_at": records.now_iso(time.time() + ttl_s),
            "host": _here(),
        }


def describe_holder(body: dict) -> str:
    """Who that is, in words."""
    host = body.get("host") or {}
    who = (
        f"process {host['pid']} on {host['name']}"
        if host
        else f"request {body.get('request_id') or body.get('call')}"
    )
    return who + (f", flow run {body['flow_run_id']}" if body.get("flow_run_id") else "")


def calls(store: Store) -> dict[str, tuple[ObjectInfo, ...]]:
    """The calls on record, each with its generations in order."""
    found: dict[str, list[ObjectInfo]] = {}
    for entry in sorted(store.list("calls"), key=lambda entry: entry.key):
        token, _, number = entry.key.removeprefix("calls/").removesuffix(".json").partition("-")
        if entry.key.endswith(".json") and number.isdigit():
            found.setdefault(token, []).append(entry)
    return {token: tuple(entries) for token, entries in found.items()}


def call_state(
    store: Store, call: str, *, clock: Callable[[], float] = time.monotonic
) -> CallState:
    """Whether a call lives. One that is not on record does not: it has ended, and given back what it held."""
    now = store_now(store, clock=clock)
    entries = calls(store).get(call, ())
    if not entries:
        return CallState(False, (), {})
    body = _read(store, entries[-1].key)
    if body is None:  # Renewed or ended meanwhile.
        return call_state(store, call, clock=clock)
    if not body or body["state"] == "ended" or is_gone(body.get("host")):
        return CallState(False, entries, body)
    return CallState(now - entries[-1].modified <= body["ttl_s"] + COARSE_S, entries, body)


def report(store: Store, call: str, cause: str, why: str) -> bool:
    """Put on record that a call died, and of what: nobody waits then until it expires. False if it is not on record, or dead."""
    life = call_state(store, call)
    if not life.is_alive:
        return False
    return _create(store, _call_path(call, life.number + 1), life.body | _ended(cause, why))


def _ended(cause: str, why: str) -> dict[str, str]:
    return {"state": "ended", "cause": cause, "why": why}


def claim_dead_call(
    store: Store, call: str, *, clock: Callable[[], float] = time.monotonic
) -> CallState | None:
    """
    Take it upon oneself to bury a call, for a minute; None if it lives, is not on record, or another was faster.

    Of any number that try at once, one gets it; if that one dies too, another can have it after it.
    """
    life = call_state(store, call, clock=clock)
    if life.is_alive or not life.entries:
        return None
    mine = life.body | {
        "state": "reaping",
        "ttl_s": 60,
        "host": _here(),
        "by": secrets.token_hex(8),
    }
    mine |= {
        "was": life.body.get("was", life.body),
        "expires_at": records.now_iso(time.time() + 60),
    }
    path = _call_path(call, life.number + 1)
    if not _create(store, path, mine):
        return None
    keys = [entry.key for entry in calls(store).get(call, ())]
    if (
        life.entries[-1].key not in keys or keys[-1] != path
    ):  # It was buried, or rose, between our look and our word.
        store.delete([path])
        return None
    return CallState(False, life.entries, mine["was"])


def claims_of(store: Store, id: str, call: str) -> list[dict]:
    """The claims of *call* on steps of *id* that it did not give back, each with its ``number``; some may be taken over by now."""
    found: dict[str, dict] = {}
    for key in sorted(entry.key for entry in store.list(f"leases/{encode_id(id)}")):
        body = _read(store, key)
        if body and body["call"] == call:
            found[body["step"]] = body | {"number": _number(key)}
    return [body for body in found.values() if body["state"] == "held"]


def free(store: Store, claim: dict) -> None:
    """Free a claim of a dead call; nothing happens where another has it already."""
    body = {name: value for name, value in claim.items() if name != "number"} | {"state": "free"}
    _create(store, _path(_folder(claim["id"], claim["step"]), claim["number"] + 1), body)


def release_dead_call(store: Store, call: str, life: CallState) -> None:
    """Leave a call that was taken by :func:`claim_dead_call` to the next who tries."""
    store.delete([_call_path(call, life.number + 1)])


def forget_call(store: Store, call: str) -> None:
    """Take a call off the record, once all that it left is in order."""
    store.delete([entry.key for entry in calls(store).get(call, ())])


_offsets: WeakKeyDictionary[Store, tuple[float, float]] = WeakKeyDictionary()


def store_now(store: Store, *, clock: Callable[[], float] = time.monotonic) -> float:
    """The store's own time, in seconds since 1970: never later than it is, and asked for once a minute."""
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


def is_gone(host: dict | None) -> bool:
    """Whether a process of this very machine is no more; of other machines nothing is known."""
    here = _here() if host else None
    if not here or (here["boot"], here["space"]) != (host["boot"], host["space"]):
        return False
    return _started(host["pid"]) != host["started"]


def _here() -> dict | None:
    # Sandboxes of Lambda may be copies of one machine, with its boot ID and its process IDs.
    if os.environ.get("AWS_LAMBDA_FUNCTION_NAME") or (started := _started(os.getpid())) is None:
        return None
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot, space = file.read().strip(), os.readlink("/proc/self/ns/pid")
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
    """When a process was started, which tells it from a later one of its number; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _create(store: Store, path: str, body: dict) -> bool:
    try:
        store.put(path, records.seal(body), mode="create")
        return True
    except AlreadyExistsError:
        return False


def _read(store: Store, key: str) -> dict | None:
    """The body; None where it is gone, and empty where it is damaged: then nobody holds it."""
    if (data := store.get(key)) is None:
        return None
    try:
        return records.unseal(data, key)
    except CorruptRecordError:
        return {}


def _newest(store: Store, folder: str) -> int:
    return max((_number(entry.key) for entry in store.list(folder)), default=0)


def _number(key: str) -> int:
    return int(key.removesuffix(".json")[-12:])


def _folder(id: str, step: str) -> str:
    return f"leases/{encode_id(id)}/{step}"


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


def _call_path(call: str, number: int) -> str:
    return f"calls/{call}-{number:012d}.json"


def _lost(step: str, id: str, why: str) -> LeaseLostError:
    return LeaseLostError(
        f"step {step} of {id!r} was not saved",
        why=why,
        hint="call again: what the other one computed is taken",
    )
