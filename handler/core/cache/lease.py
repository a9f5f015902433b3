"""
One computation at a time: a call takes a lease on each step before it computes, and a call that
died is noticed.

    leases/<id>=<step>=first.json           a call that computes this step
    leases/<id>=<step>=after-<call>.json    the same, taken over from a call that counts as dead
    calls/<call>-alive.json                 rewritten while a call without a deadline is long
    calls/<call>-ended.json                 how a call ended that left its leases behind
    calls/<call>-reaped.json                a call that counts as dead, and was cleaned up
    ids/<id>                                while it holds a lease: the call that found the ID new
                                            still takes its leases

Only one call can create an object, so only one holds a lease. It deletes its own lease at the end:

    A   first held by A ─ compute ─ publish ─ delete first
    B   first is A's, A is alive: wait for the plan ............ joined
    A dies: B creates after-A ─ cleans up A ─ compute ─ publish ─ delete after-A

A lease only saves a second computation. What a call publishes is guarded by conditional creates,
so a call that pauses, counts as dead, and wakes does no harm, see
:mod:`pfl.handler.core.cache.publish`. While such a call may still wake, its lease stays where it
is: nobody reuses a name that the call will delete, and a bust sees that the call may still publish.

A call expires by the store's clock: *modified* of its newest object against *modified* of an object
written just now, so machines whose clocks differ agree. On one machine pfl checks the process
itself, and no call waits for a dead one.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Annotated, NamedTuple, TypedDict, cast
from weakref import WeakKeyDictionary

from ..errors import CorruptRecordError, PflError, UnavailableError
from ..store import records
from ..store.at_once import at_once
from ..store.keys import digest, encode_id
from ..store.objects import AlreadyExistsError, ObjectInfo, Store
from ..store.values import JsonObject

# Names the call in progress in a sandbox of Lambda, for its extension.
SANDBOX_NOTE = os.path.join(os.environ.get("TMPDIR") or "/tmp", "pfl-call")
# The step of a lease on a whole flow run that Prefect scheduled.
WHOLE_RUN = "~"
# S3 reports in whole seconds when an object was written.
COARSE_S = 2
_DAY_S = 86_400
# The fields of a lease that pfl relies on.
_REQUIRED = ("call", "id", "step", "ttl_s", "since", "host")
# How long a measurement of the store's clock is used.
_CLOCK_S = 60
# How often a waiter checks whether the holder is alive.
_CHECK_INTERVAL_S = 2.5
_clock = time.monotonic


class Host(TypedDict):
    """A process, so that another one on the same machine can see whether it is alive."""

    name: str
    boot: str
    space: str
    pid: int
    started: str


class Body(TypedDict, total=False):
    """
    A lease as JSON.

    ``plan_key`` is the plan that the call is going to write, ``needs`` are the steps that the step
    needs, ``target`` is the step that was asked for. ``is_bounded``: Lambda kills the process at
    ``expires_at``. ``is_reaper``: it computes nothing, but cleans up after a dead call.
    """

    version: int
    call: Annotated[str, re.compile("[0-9a-f]{16}")]
    id: str
    step: str
    plan_key: records.Digest
    fingerprint: str
    needs: list[str]
    task_run_id: Annotated[str, re.compile("[0-9a-f-]{36}")]
    tags: list[str]
    target: str | None
    flow: str | None
    request_id: str
    engine: str
    flow_run_id: str | None
    since: records.Moment
    ttl_s: float
    expires_at: records.Moment
    is_bounded: bool
    host: Host | None
    is_reaper: bool


class Ended(TypedDict, total=False):
    """
    How a call ended that did not delete its leases.

    ``outcome`` and ``finished``, its task runs that have ended, are only there if the call itself
    wrote this: its results are saved, but Prefect does not know yet.
    """

    cause: str
    why: str
    outcome: str
    finished: dict[str, JsonObject]


class Lease(NamedTuple):
    """The object of a lease, and what it holds."""

    key: str
    modified: float
    body: Body


class Held(NamedTuple):
    """A step that another call holds, and when to check again whether that call is alive."""

    key: str
    body: Body
    check_at: float

    @property
    def description(self) -> str:
        """Who holds it, and until when."""
        until = self.body.get("expires_at")
        return f"held by {describe_holder(self.body)}" + (f" until {until[:19]}Z" if until else "")


class Claim(NamedTuple):
    """
    A step that this call holds.

    Attributes:
        key: The key of its lease.
        dead: The leases of dead calls before it, the oldest first.
        is_gone: For each of them, whether its process was gone for certain.
    """

    key: str
    dead: tuple[Lease, ...] = ()
    is_gone: tuple[bool, ...] = ()


class OpenCall(NamedTuple):
    """A call that holds leases."""

    call: str
    leases: tuple[Lease, ...]

    @property
    def body(self) -> Body:
        """What all its leases hold about the call."""
        return self.leases[0].body


class LeaseHolder:
    """
    One call that computes, from its first claim to its end.

    Args:
        store: The store that holds the leases.
        id: The ID that it computes for.
        info: What its leases hold about it: ``request_id``, ``flow``, ``engine``.
        ttl_s: How long it counts as alive without a sign of life, if it has no deadline.
        deadline: When it will be killed, as a ``time.monotonic()`` reading; None: it gives signs
            of life.

    Attributes:
        token: Names the call.
        claims: The steps that it holds.
        reaped: The dead calls that this one cleaned up, and how many leases each has.
    """

    def __init__(
        self,
        store: Store,
        id: str,
        info: Body,
        *,
        ttl_s: float,
        deadline: float | None = None,
    ) -> None:
        self.store = store
        self.id = id
        self.token = secrets.token_hex(8)
        self.claims: dict[str, Claim] = {}
        self.reaped: dict[str, int] = {}
        self._info = info
        self._ttl_s = ttl_s
        self._deadline = deadline
        self._ended = threading.Event()
        self._renewer: threading.Thread | None = None
        self._has_renewed = False

    @property
    def is_bounded(self) -> bool:
        """Whether Lambda kills this process at the deadline of the call."""
        return self._deadline is not None and "AWS_LAMBDA_FUNCTION_NAME" in os.environ

    def claim(self, steps: Mapping[str, Body]) -> dict[str, Held]:
        """
        Claim those of *steps* that are free or whose holder has died, all at once.

        Args:
            steps: What the lease holds about each step: ``plan_key``, ``task_run_id``, ``tags``.

        Returns:
            The steps that other calls hold.
        """
        self._begin()
        names = list(steps)
        results = at_once(self.store, [partial(self._claim, name, steps[name]) for name in names])
        return {name: held for name, held in zip(names, results, strict=True) if held is not None}

    def marker(self) -> bytes:
        """The marker of an ID, while this call still takes leases; see :func:`read_marker`."""
        return records.seal({**self._body(), "step": WHOLE_RUN})

    def claim_after(self, dead: Lease) -> bool:
        """Take over one lease of a dead call, to clean up after it; False if another call did."""
        self._begin()
        step = dead.body["step"]
        return self._claim(step, {}, dead) is None and step in self.claims

    def _claim(self, step: str, about: Body, after: Lease | None = None) -> Held | None:
        place = f"leases/{encode_id(self.id)}={step}="
        body: Body = {**self._body(), **about, "step": step}
        data = records.seal(body)
        key = f"{place}first.json"
        dead: list[Lease] = []
        if after is not None:
            dead = [after]
            key = f"{place}after-{after.body['call']}.json"
        while True:
            if _create(self.store, key, data):
                # A takeover of a lease that has been deleted meanwhile is none.
                is_gone = tuple(cannot_wake(each.body) for each in dead)
                if all(self._is_there(each) for each in dead):
                    # Noted at once: if the claim of another step fails, this one is released.
                    self.claims[step] = Claim(key, tuple(dead), is_gone)
                    return None
                self.store.delete([key])
                if after is not None:
                    return None
                key = f"{place}first.json"
                dead = []
                continue
            found = read(self.store, key)
            if found is None and after is not None:
                return None
            if found is None:
                key = f"{place}first.json"
                dead = []
            elif is_alive(self.store, found):
                return Held(key, found.body, _clock() + _CHECK_INTERVAL_S)
            else:
                dead.append(found)
                key = f"{place}after-{found.body['call']}.json"

    def _is_there(self, dead: Lease) -> bool:
        """Whether a lease exists; another call may have a lease with its name by now."""
        data = self.store.get(dead.key)
        return data is not None and _parse(dead.key, data)["call"] == dead.body["call"]

    def still_held(self, held: Held) -> Held | None:
        """*held* with a new time to check, or None if its step may be free: one request a poll."""
        if _clock() < held.check_at:
            return held if self.store.get(held.key) == records.seal(held.body) else None
        now = read(self.store, held.key)
        if now is None or now.body != held.body or not is_alive(self.store, now):
            return None
        return held._replace(check_at=_clock() + _CHECK_INTERVAL_S)

    def release(self, steps: Iterable[str]) -> None:
        """Delete the leases of *steps*, and those of dead calls that can never wake."""
        claims = [self.claims.pop(step) for step in list(steps) if step in self.claims]
        gone = [
            dead
            for claim in claims
            for number, dead in enumerate(claim.dead)
            # A call that may wake deletes its own lease, and so uncovers those before it.
            if self._is_clean(dead) and all(claim.is_gone[number:])
        ]
        count = Counter(dead.body["call"] for dead in gone)
        notes = [reaped_key(call) for call in count if count[call] == self.reaped.get(call)]
        # In this order: who sees the older one gone knows that its own takeover is none.
        self.store.delete([*(dead.key for dead in gone), *notes])
        if claims:
            # If this call counted as dead meanwhile, it was reaped.
            keys = [claim.key for claim in claims]
            self.store.delete([*keys, reaped_key(self.token)])

    def _is_clean(self, dead: Lease) -> bool:
        """Whether nothing is left to do about a dead call."""
        if "id" not in dead.body or dead.body.get("is_reaper"):
            return True  # It is damaged, or has computed nothing.
        return dead.body["call"] in self.reaped

    def end(self, why: str = "", **ended: object) -> None:
        """
        Release everything.

        Args:
            why: What a reaper still has to do; then the leases stay, as those of a dead call.
            ended: What else the reaper needs; see :class:`Ended`.
        """
        self._ended.set()
        if self._renewer is not None:
            self._renewer.join()
        if why and self.claims:
            write_end(self.store, self.token, {"cause": "left", "why": why, **ended})
        else:
            self.release(list(self.claims))
            if self._has_renewed:
                self.store.delete([_alive_key(self.token)])
        with suppress(OSError):
            os.unlink(SANDBOX_NOTE)

    def _begin(self) -> None:
        if os.environ.get("AWS_LAMBDA_FUNCTION_NAME") and not self.claims:
            with suppress(OSError), open(SANDBOX_NOTE, "w") as file:
                json.dump({"call": self.token, "id": self.id}, file)
        if self._deadline is None and self._renewer is None:
            name = f"lease {self.token}"
            self._renewer = threading.Thread(target=self._keep_renewing, name=name, daemon=True)
            self._renewer.start()

    def _keep_renewing(self) -> None:
        while not self._ended.wait(self._ttl_s / 3):
            # If the store does not answer, two more tries fit before the lease expires.
            with suppress(PflError):
                self.renew()

    def renew(self) -> None:
        """Give a sign of life."""
        self._has_renewed = True
        self.store.put(_alive_key(self.token), records.seal({"version": 1}))

    def _body(self) -> Body:
        ttl_s = self._ttl_s
        if self._deadline is not None:
            ttl_s = max(0.0, self._deadline - _clock())
        return {
            "version": 2,
            "call": self.token,
            "id": self.id,
            **self._info,
            "since": records.now_iso(),
            "ttl_s": ttl_s,
            "expires_at": records.now_iso(time.time() + ttl_s),
            "is_bounded": self.is_bounded,
            "host": _this_process(),
        }


def describe_holder(body: Body) -> str:
    """The process or request that made a call."""
    if host := body.get("host"):
        return f"process {host['pid']} on {host['name']}"
    return f"request {body.get('request_id') or body.get('call')}"


def list_leases(store: Store, folder: str | None = None) -> list[Lease]:
    """All leases, or those of the ID of a folder, those of dead calls included."""
    start = "leases/" if folder is None else f"leases/{folder}="
    listed = sorted(entry for entry in store.list("leases") if entry.key.startswith(start))
    found = at_once(store, [partial(_read_listed, store, entry) for entry in listed])
    return [lease for lease in found if lease is not None]


def open_calls(
    store: Store, folder: str | None = None, *, with_reapers: bool = False
) -> dict[str, OpenCall]:
    """
    The calls that hold leases, by token.

    Without those that were cleaned up, unless they can never wake: then their leases can go.
    """
    found: dict[str, OpenCall] = {}
    reaped = {entry.key for entry in store.list("calls")}
    for lease in list_leases(store, folder):
        call = lease.body["call"]
        is_counted = with_reapers or not lease.body.get("is_reaper")
        if is_counted and (reaped_key(call) not in reaped or cannot_wake(lease.body)):
            before = found.get(call, OpenCall(call, ()))
            found[call] = OpenCall(call, (*before.leases, lease))
    return found


def is_call_alive(store: Store, call: OpenCall) -> bool:
    """Whether a call that holds leases is alive."""
    return any(is_alive(store, lease) for lease in call.leases)


def is_alive(store: Store, lease: Lease) -> bool:
    """Whether the call that holds *lease* is alive."""
    body = lease.body
    if is_gone(body.get("host")):
        return False
    modified = lease.modified
    for sign in store.list("calls"):
        if sign.key in (_ended_key(body["call"]), reaped_key(body["call"])):
            return False
        if sign.key == _alive_key(body["call"]):
            modified = max(modified, sign.modified)
    return store_now(store) - modified <= body["ttl_s"] + COARSE_S


def read_marker(store: Store, key: str) -> Lease | None:
    """The call that created the marker of an ID, if it has not noted that it took its leases."""
    data = store.get(key)
    try:
        body = _checked(key, data or b"")
    except CorruptRecordError:
        return None
    info = store.info(key)
    return info and Lease(key, info.modified, body)


def cannot_wake(body: Body) -> bool:
    """Whether the process of a call that counts as dead is gone for certain."""
    return bool(body.get("is_bounded")) or is_gone(body.get("host"))


def is_reaped(store: Store, call: str) -> bool:
    """Whether a dead call was cleaned up."""
    return store.get(reaped_key(call)) is not None


def mark_reaped(store: Store, call: str) -> None:
    """Note that a dead call was cleaned up; who took over its leases deletes them."""
    store.put(reaped_key(call), records.seal({"version": 1}))
    store.delete([_alive_key(call), _ended_key(call)])


def sweep(store: Store) -> None:
    """Delete the notes about calls that hold no lease any more, a day after they were written."""
    notes = [entry for entry in store.list("calls") if entry.key.endswith(".json")]
    if not notes:
        return
    holders = {lease.body["call"] for lease in list_leases(store)}
    oldest = store_now(store) - _DAY_S
    store.delete(
        note.key
        for note in notes
        if note.modified < oldest and note.key[len("calls/") :].partition("-")[0] not in holders
    )


def write_end(store: Store, call: str, ended: Mapping[str, object]) -> bool:
    """Record how a call ended, so that nobody waits for it; False if that is known already."""
    return _create(store, _ended_key(call), records.seal(ended))


def read_end(store: Store, call: str) -> Ended:
    """How a call ended; empty if that is not known."""
    data = store.get(_ended_key(call))
    if data is not None:
        with suppress(CorruptRecordError):
            body = records.unseal(data, _ended_key(call))
            records.check(body, _ended_key(call), Ended, "cause", "why")
            return cast(Ended, body)
    return {}


def read(store: Store, key: str) -> Lease | None:
    """The lease with this key, and when it was written; None if it does not exist."""
    listed = next((entry for entry in store.list("leases") if entry.key == key), None)
    return None if listed is None else _read_listed(store, listed)


def _read_listed(store: Store, listed: ObjectInfo) -> Lease | None:
    data = store.get(listed.key)
    return None if data is None else Lease(listed.key, listed.modified, _parse(listed.key, data))


def _parse(key: str, data: bytes) -> Body:
    """What a lease holds; one that is damaged belongs to no call, and counts as a dead one's."""
    with suppress(CorruptRecordError):
        body = _checked(key, data)
        if key.lower().startswith(f"leases/{encode_id(body['id'])}={body['step']}=".lower()):
            return body
    return {"call": digest(data)[:16], "is_bounded": True, "ttl_s": -1e9}


def _checked(key: str, data: bytes) -> Body:
    body = records.unseal(data, key)
    records.check(body, key, Body, *_REQUIRED)
    if body["host"] is not None:
        records.check(body["host"], key, Host)
    return cast(Body, body)


# By store: how far its clock is ahead of ours, and when that was measured.
_offsets: WeakKeyDictionary[Store, tuple[float, float]] = WeakKeyDictionary()


def store_now(store: Store) -> float:
    """The store's own time, in seconds since 1970, or a little earlier; measured once a minute."""
    measured = _offsets.get(store)
    if measured is None or not 0 <= _clock() - measured[1] < _CLOCK_S:
        key = f"calls/clock-{secrets.token_hex(8)}"
        store.put(key, b"")
        times = {each.key: each.modified for each in store.list("calls") if "/clock-" in each.key}
        found = times.get(key)
        if found is None:
            store.delete([key])
            raise UnavailableError(f"the store {store.url} does not list what was just written")
        # Those that killed processes left go, too.
        store.delete(each for each, at in times.items() if each == key or at < found - _CLOCK_S)
        measured = _offsets[store] = (found - _clock(), _clock())
    return _clock() + measured[0]


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


def _create(store: Store, key: str, data: bytes) -> bool:
    with suppress(AlreadyExistsError):
        store.put(key, data, mode="create")
        return True
    return False


def _alive_key(call: str) -> str:
    return f"calls/{call}-alive.json"


def reaped_key(call: str) -> str:
    """The key of the note that a dead call was cleaned up."""
    return f"calls/{call}-reaped.json"


def _ended_key(call: str) -> str:
    return f"calls/{call}-ended.json"
