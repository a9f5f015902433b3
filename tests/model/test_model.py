"""The model in its small form; ``python -m tests.model`` runs the large one."""

from __future__ import annotations

import pytest

from model import current, proposed
from model.explore import Actors, InvariantError, explore
from model.invariants import find_fault

BOTH = frozenset({"A", "B"})


def two_calls(protocol) -> Actors:
    return {"A": lambda: protocol.call("A"), "B": lambda: protocol.call("B")}


def call_and_bust(protocol) -> Actors:
    return {"X": lambda: protocol.bust("X"), "A": lambda: protocol.call("A")}


@pytest.mark.parametrize("protocol", [current, proposed])
def test_two_calls_of_which_one_crashes_compute_once_and_agree(protocol):
    assert explore(two_calls(protocol), find_fault, crashes=1, may_fail=BOTH) > 1_000


@pytest.mark.parametrize("protocol", [current, proposed])
def test_a_bust_wins_over_a_call_that_does_not_pause(protocol):
    assert explore(call_and_bust(protocol), find_fault, crashes=1, may_fail=BOTH) > 500


def test_the_model_sees_that_a_paused_holder_publishes_after_it_lost_its_lease():
    with pytest.raises(InvariantError, match="history has two values"):
        explore(two_calls(current), find_fault, pauses=1, may_fail=BOTH)


def test_the_model_sees_that_a_bust_does_not_stop_a_paused_publisher():
    with pytest.raises(InvariantError, match="which was busted"):
        explore(call_and_bust(current), find_fault, pauses=1, may_fail=BOTH)


def test_in_the_proposed_protocol_a_paused_holder_takes_the_value_of_its_successor():
    states = explore(two_calls(proposed), find_fault, crashes=1, pauses=1, may_fail=BOTH)
    assert states > 5_000


def test_in_the_proposed_protocol_a_bust_wins_over_a_paused_call():
    assert explore(call_and_bust(proposed), find_fault, pauses=1, may_fail=BOTH) > 1_000
