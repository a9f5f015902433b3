"""The short part of the failing stores; ``python -m tests.faults --outages`` is the long one."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from faults import outages


def nothing_is_wrong(count) -> bool:
    """Whether calls failed, and all that has to be 0 is 0; what was wrong is printed."""
    assert count["failed"] > 0
    return {name: count[name] for name in outages.COUNTS if count[name]} == {}


@pytest.fixture
def place(tmp_path, request):
    """A function that makes a project whose store can fail."""

    def make(kind: str, engine: str = "direct"):
        if kind in outages.ANSWERS:
            request.getfixturevalue("s3_env")
        try:
            return stack.enter_context(outages.place(tmp_path / "project", kind, engine))
        except PermissionError:
            pytest.skip("a disk cannot be mounted here")

    with ExitStack() as stack:
        yield make


@pytest.mark.parametrize("kind", ["disk full", "open files"])
def test_a_directory_that_fails_once_twice_or_from_a_request_on_loses_nothing(place, kind):
    assert nothing_is_wrong(outages.every_request(place(kind), stride=23))


def test_a_bucket_that_refuses_once_twice_or_from_a_request_on_loses_nothing(place):
    assert nothing_is_wrong(outages.every_request(place("403"), stride=97))


def test_a_bust_of_a_store_that_fails_leaves_the_old_values_or_the_new(place):
    assert nothing_is_wrong(outages.every_request(place("permissions"), stride=211, busts=True))


def test_a_store_that_fails_leaves_no_run_open_in_prefect(place, prefect_server):
    os.environ["PREFECT_API_URL"] = prefect_server.url
    assert nothing_is_wrong(outages.every_request(place("permissions", "prefect"), stride=151))


@pytest.mark.parametrize("kind", ["disk full"])
def test_a_store_that_fails_at_random_under_load_loses_nothing(place, kind):
    assert nothing_is_wrong(outages.at_random(place(kind), outages=12, processes=4, ids=4))
