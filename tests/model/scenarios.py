"""Who meets whom, and what is stored before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from . import current, protocol, side_by_side, two_steps
from .explore import Actors, Check, Store, explore
from .invariants import find_fault, find_fault_at_end

CALLS = frozenset("ABD")
_OLD = ("old", (), False)
_EXPIRED = ("old", (), True)
STORED: Store = {
    "marker": "",
    "result": _OLD,
    "history/old": "",
    "plan": ("plan", *_OLD),
}
EXPIRED: Store = {**STORED, "result": _EXPIRED, "plan": ("plan", *_EXPIRED)}
BUSTED: Store = {"marker": "", "result": _OLD, "history/old": "", "mark/W": ""}


class Scenario(NamedTuple):
    """The arguments of :func:`tests.model.explore.explore`."""

    actors: Actors
    crashes: int = 0
    pauses: int = 0
    store: Store = {}
    may_fail: frozenset[str] = CALLS
    dead: frozenset[str] = frozenset()

    def explore(self, most_states: int = 3_000_000) -> int:
        """The number of states, if all are well."""
        module = next(iter(self.actors.values()))[0].__module__
        is_protocol = module == protocol.__name__
        checks: dict[str, Check] = {"find_fault": find_fault}
        if is_protocol:
            checks["find_fault_at_end"] = find_fault_at_end
        if module == two_steps.__name__:
            checks["find_fault"] = two_steps.find_fault
        if module == side_by_side.__name__:
            checks["find_fault_at_end"] = side_by_side.find_fault_at_end
        values = {content[0] for name, content in self.store.items() if name.startswith("result")}
        return explore(
            self.actors,
            **checks,
            store=self.store,
            notes=frozenset(("computes", value, frozenset[str]()) for value in values),
            crashes=self.crashes,
            pauses=self.pauses,
            may_fail=self.may_fail,
            dead=self.dead,
            most_states=most_states,
        )


@contextmanager
def faulty(module: ModuleType, *faults: str) -> Iterator[None]:
    """The protocol as it is with these faults."""
    module.faults = frozenset(faults)
    try:
        yield
    finally:
        module.faults = frozenset()


def calls(*names: str, module: Any = protocol) -> dict[str, tuple[Any, ...]]:
    """Calls without a bust."""
    return {name: (module.call, name) for name in names}


def busts(*names: str, module: Any = protocol) -> dict[str, tuple[Any, ...]]:
    """Busts of the ID, or of its first step."""
    return {name: (module.bust, name) for name in names}


BUST_OF_ALL = {"X": (protocol.bust, "X", True)}
CALL_THAT_BUSTS = {"A": (protocol.call, "A", protocol.BUSTS)}
REAPER = {"R": (protocol.reaper, "R")}
RESTORE = {"X": (protocol.restore, "X", "W")}

TWO_OLD_CALLS = Scenario(calls("A", "B", module=current))
OLD_CALL_AND_BUST = Scenario({**busts("X", module=current), **calls("A", module=current)})

# B has created its result, and comes to the plan, which is expired. It has paused, and A waits.
_LEASE = ("lease", "B", True, False)
PUBLISHER = Scenario(
    {
        "B": (
            protocol._write_plan,
            "B",
            protocol.Claim("lease/first", ()),
            protocol.Value("B1", (), True),
            "plan",
            0,
        ),
        "A": (
            protocol._wait,
            "A",
            protocol.ONCE,
            protocol.Held("lease/first", _LEASE),
        ),
        **busts("X"),
    },
    store={
        **EXPIRED,
        "result~old": ("B1", (), False),
        "lease/first": _LEASE,
    },
    dead=frozenset("B"),
)

SMALL = {
    "two calls, a crash and a pause": Scenario(calls("A", "B"), 1, 1),
    "two calls, a reaper, a crash": Scenario({**calls("A", "B"), **REAPER}, 1),
    "a call, a bust, a pause": Scenario({**calls("A"), **busts("X")}, 0, 1, EXPIRED),
    "a call that busts, a bust, a crash": Scenario({**CALL_THAT_BUSTS, **busts("X")}, 1, 0, STORED),
    "a call that busts, a call, a pause": Scenario({**CALL_THAT_BUSTS, **calls("B")}, 1, 1, STORED),
    "a call, a bust of all IDs, a pause": Scenario({**calls("A"), **BUST_OF_ALL}, 0, 1),
    "a call, two busts": Scenario({**calls("A"), **busts("X", "Y")}),
    "a call, a restore, a pause": Scenario({**calls("A"), **RESTORE}, 0, 1, BUSTED),
    "two steps, a call, a bust": Scenario(
        {**calls("A", module=two_steps), **busts("X", module=two_steps)}
    ),
    "two steps, two calls": Scenario(calls("A", "B", module=two_steps)),
    "two steps, a store that refuses, a reaper, a crash": Scenario(
        {**calls("A", module=side_by_side), "R": (side_by_side.reaper, "R", "A")},
        1,
        store=side_by_side.LEASED,
    ),
}

LARGE = {
    "a publisher that paused, a call, a bust": PUBLISHER,
    "two calls, a reaper, a crash and a pause": Scenario({**calls("A", "B"), **REAPER}, 1, 1),
    "two calls, a bust, a crash": Scenario({**calls("A", "B"), **busts("X")}, 1),
    "two calls, a bust, a crash, expired": Scenario(
        {**calls("A", "B"), **busts("X")}, 1, 0, EXPIRED
    ),
    "two calls, a bust, a pause, expired": Scenario(
        {**calls("A", "B"), **busts("X")}, 0, 1, EXPIRED, frozenset("A")
    ),
    "two calls, a bust of all IDs, a crash": Scenario({**calls("A", "B"), **BUST_OF_ALL}, 1),
    "a call, two busts, a pause": Scenario({**calls("A"), **busts("X", "Y")}, 0, 1),
    "a call, two busts, expired": Scenario({**calls("A"), **busts("X", "Y")}, 0, 0, EXPIRED),
    "two calls that bust, a pause": Scenario(
        {**CALL_THAT_BUSTS, "B": (protocol.call, "B", protocol.BUSTS)}, 0, 1, STORED
    ),
    "a call that busts, a call, a bust, a pause": Scenario(
        {**CALL_THAT_BUSTS, **calls("B"), **busts("X")}, 0, 1, STORED
    ),
    "two calls, a restore": Scenario({**calls("A", "B"), **RESTORE}, store=BUSTED),
    "three calls, a crash": Scenario(calls("A", "B", "D"), 1),
    "three calls, two crashes": Scenario(calls("A", "B", "D"), 2),
    "three calls, a pause": Scenario(calls("A", "B", "D"), 0, 1),
    "two steps, two calls, a bust": Scenario(
        {**calls("A", "B", module=two_steps), **busts("X", module=two_steps)}
    ),
    "three calls, a bust, a pause": Scenario({**calls("A", "B", "D"), **busts("X")}, 0, 1),
}
