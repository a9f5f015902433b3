"""The model in its small form; ``python -m tests.model`` runs the large one."""

from __future__ import annotations

import pytest

from model import protocol, side_by_side, two_steps
from model.explore import InvariantError
from model.scenarios import (
    BUSTED,
    LARGE,
    OLD_CALL_AND_BUST,
    PUBLISHER,
    SMALL,
    TWO_OLD_CALLS,
    Scenario,
    calls,
    faulty,
)

LOST_LEASE = r"A holds lease/first, where"
HIT_OF_BUSTED = r"a hit would be answered with \w+, which was busted"


@pytest.mark.parametrize("scenario", [pytest.param(SMALL[name], id=name) for name in SMALL])
def test_no_interleaving_has_a_fault(scenario):
    assert scenario.explore() > 100


@pytest.mark.parametrize(
    ("fault", "scenario", "message"),
    [
        (protocol.UNVERIFIED, LARGE["three calls, a pause"], LOST_LEASE),
        (protocol.IN_LEASE, LARGE["three calls, a pause"], LOST_LEASE),
        (protocol.FROM_FIRST, SMALL["two calls, a crash and a pause"], "is never reaped"),
        (
            protocol.REAPED_ONCE,
            LARGE["two calls, a reaper, a crash and a pause"],
            "has a plan and no record",
        ),
        (protocol.UNSETTLED, Scenario(calls("A", "B")), "computed 2 times"),
        (protocol.MAKES_ROOM, PUBLISHER, HIT_OF_BUSTED),
        (protocol.OWN_FENCE, SMALL["a call that busts, a bust, a crash"], HIT_OF_BUSTED),
        (protocol.LATE_DELETE, SMALL["a call, two busts"], HIT_OF_BUSTED),
        (protocol.LATE_MARKS, SMALL["a call, a bust, a pause"], HIT_OF_BUSTED),
    ],
)
def test_the_model_sees_each_fault_that_the_protocol_could_have(fault, scenario, message):
    with faulty(protocol, fault), pytest.raises(InvariantError, match=message):
        scenario.explore()


def test_the_model_sees_that_a_plan_may_hold_a_void_input():
    scenario = LARGE["two steps, two calls, a bust"]
    with (
        faulty(two_steps, two_steps.VOID_INPUTS),
        pytest.raises(InvariantError, match=HIT_OF_BUSTED),
    ):
        scenario.explore()


@pytest.mark.parametrize("fault", sorted(side_by_side.FAULTS))
def test_the_model_sees_that_a_hit_may_have_no_record(fault):
    scenario = SMALL["two steps, a store that refuses, a reaper, a crash"]
    with faulty(side_by_side, fault), pytest.raises(InvariantError, match="which has no record"):
        scenario.explore()


def test_a_call_that_waits_takes_the_value_of_the_holder():
    # A second computation would be a second value.
    assert Scenario(calls("A", "B"), store=BUSTED).explore() > 100


def test_the_model_sees_that_a_paused_holder_published_after_it_lost_its_lease():
    scenario = TWO_OLD_CALLS._replace(pauses=1)
    with pytest.raises(InvariantError, match="history has two values"):
        scenario.explore()


def test_the_model_sees_that_a_bust_did_not_stop_a_paused_publisher():
    scenario = OLD_CALL_AND_BUST._replace(pauses=1)
    with pytest.raises(InvariantError, match="which was busted"):
        scenario.explore()


@pytest.mark.parametrize("scenario", [TWO_OLD_CALLS, OLD_CALL_AND_BUST], ids=["calls", "bust"])
def test_the_old_protocol_is_well_without_a_pause(scenario):
    assert scenario._replace(crashes=1).explore() > 100
