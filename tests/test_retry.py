"""One way to try again: only what may pass, only as often as there are pauses."""

from __future__ import annotations

import pytest

from pfl.handler.core import retry


class Flaky:
    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)

    def __call__(self) -> object:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture(autouse=True)
def slept(monkeypatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    return pauses


def is_timeout(exc: Exception) -> bool:
    return isinstance(exc, TimeoutError)


def test_what_may_pass_is_tried_again_after_each_pause(slept):
    retried = []
    call = Flaky(TimeoutError(), TimeoutError(), 7)
    result = retry.retry(
        call, [1, 2, 4], may_pass=is_timeout, on_retry=lambda *args: retried.append(args)
    )
    assert (result, slept, retried) == (7, [1, 2], [(1, 1), (2, 2)])


def test_the_failure_after_the_last_pause_is_raised(slept):
    with pytest.raises(TimeoutError, match="second"):
        retry.retry(
            Flaky(TimeoutError("first"), TimeoutError("second"), 7), [1], may_pass=is_timeout
        )
    assert slept == [1]


def test_what_cannot_pass_is_raised_at_once(slept):
    with pytest.raises(ValueError):
        retry.retry(Flaky(ValueError(), 7), [1], may_pass=is_timeout)
    assert slept == []


def test_pauses_end_when_the_time_is_over(monkeypatch):
    now = iter([0.0, 1.0, 5.0, 5.1])
    monkeypatch.setattr(retry.time, "monotonic", lambda: next(now))
    pauses = list(retry.pauses_for(5))
    assert len(pauses) == 2
    assert all(0.25 <= pause <= 0.45 for pause in pauses)
