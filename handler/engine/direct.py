"""Steps computed without Prefect: the same keys and the same stored bytes, and Prefect's retries and timeouts."""

from __future__ import annotations

import time

from pfl.handler.core.errors import PflError
from pfl.handler.engine import reap
from pfl.handler.engine.invocation import Invocation, Run, Work
from pfl.handler.engine.steps import call_step


def run(invocation: Invocation) -> None:
    """Compute what is missing, in this process and its threads."""

    def compute(work: Work) -> None:
        step = invocation.flow.steps[work.name]
        reap.followed(invocation, api=None)
        for attempt in range(step.retries + 1):
            try:
                value = call_step(step, work.arguments)
                break
            except PflError:
                raise
            except Exception:
                if attempt == step.retries:
                    raise
                invocation.notify(work.name, f"retry {attempt + 1} of {step.retries}")
                time.sleep(step.retry_delay_s)
        work.finish(value, Run("direct"))

    invocation.run(compute)
