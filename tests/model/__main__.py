"""
Runs the model in its large form: ``python -m tests.model``, minutes.

A number as the first argument is the most states of a scenario; the last one has too many for any.
"""

from __future__ import annotations

import sys
import time

from .explore import InvariantError
from .scenarios import LARGE, SMALL

MOST_STATES = 1_000_000


def main() -> int:
    """Print each scenario's states or first fault; return 1 if there is a fault."""
    most_states = int(sys.argv[1]) if len(sys.argv) > 1 else MOST_STATES
    is_broken = False
    for name, scenario in {**SMALL, **LARGE}.items():
        print(f"{name}: ", end="", flush=True)
        started = time.monotonic()
        try:
            print(f"{scenario.explore(most_states):,} states are well", end="")
        except InvariantError as exc:
            is_broken = True
            print(exc, end="")
        except MemoryError:
            print(f"the first {most_states:,} states are well", end="")
        print(f" ({time.monotonic() - started:.0f} s)", flush=True)
    return 1 if is_broken else 0


if __name__ == "__main__":
    sys.exit(main())
