"""
Runs the model in its large form: ``python -m tests.model``, minutes.

Two calls and a bust, with a crash or a pause at every request.
"""

from __future__ import annotations

import sys
import time

from . import current, proposed
from .explore import Actors, InvariantError, explore
from .invariants import find_fault

MOST_STATES = 6_000_000


def main() -> int:
    """Print each combination's states or first fault; return 1 if the proposed protocol has one."""
    is_broken = False
    for protocol in (current, proposed):
        actors: Actors = {
            "A": lambda protocol=protocol: protocol.call("A"),
            "X": lambda protocol=protocol: protocol.bust("X"),
            "B": lambda protocol=protocol: protocol.call("B"),
        }
        for crashes, pauses in ((0, 0), (1, 0), (0, 1), (1, 1)):
            name = protocol.__name__.rpartition(".")[2]
            print(f"{name}, {crashes} crashes, {pauses} pauses: ", end="", flush=True)
            started = time.monotonic()
            try:
                states = explore(
                    actors,
                    find_fault,
                    crashes=crashes,
                    pauses=pauses,
                    may_fail=frozenset({"A", "B"}),
                    most_states=MOST_STATES,
                )
                print(f"{states:,} states are well", end="")
            except InvariantError as exc:
                is_broken |= protocol is proposed
                print(exc, end="")
            except MemoryError:
                print(f"the first {MOST_STATES:,} states are well", end="")
            print(f" ({time.monotonic() - started:.0f} s)")
    return 1 if is_broken else 0


if __name__ == "__main__":
    sys.exit(main())
