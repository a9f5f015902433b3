"""Computes steps without Prefect: with the same keys, bytes, retries and timeouts."""

from __future__ import annotations

from itertools import repeat

from ..core.errors import PflError
from ..core.retry import retry
from . import reap
from .invocation import Invocation
from .steps import call_step
from .work import Work


def compute(invocation: Invocation) -> None:
    """Compute what is missing, in this process and its threads."""

    def compute_step(work: Work) -> None:
        step = work.step
        reap.reap_predecessors(invocation, api=None)
        value = retry(
            lambda: call_step(step, work.arguments),
            repeat(step.retry_delay_s, step.retries),
            may_pass=lambda exc: not isinstance(exc, PflError),
            on_retry=lambda number, _: invocation.call.notify(
                step.name, f"retry {number} of {step.retries}"
            ),
        )
        work.finish(value)

    invocation.settle(compute_step)
