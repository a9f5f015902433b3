"""One invocation that the plans did not answer: load the flow, compute what is missing, say what became of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pfl.handler.core.cache import accept
from pfl.handler.core.cache.lookup import Finding
from pfl.handler.core.declare import project
from pfl.handler.core.declare.manifest import FlowEntry, StepEntry
from pfl.handler.core.errors import PflError, UnavailableError
from pfl.handler.core.event import Request
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.objects import Store
from pfl.handler.engine import deadline, direct
from pfl.handler.engine.invocation import Invocation, Notify
from pfl.handler.engine.prefect import environment

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def missing(
    request: Request,
    finding: Finding,
    store: Store,
    settings: Settings,
    *,
    request_id: str,
    notify: Notify,
    kill_at: float | None = None,
    is_cold: bool = False,
    flow_run: FlowRun | None = None,
) -> Invocation:
    """
    Settle every step of *request* that *finding* left open.

    Raises:
        UnavailableError: Prefect or the store did not answer, or the code changed while it ran.
        KeyboardInterrupt: The person at the terminal had enough; no run is left ``Running``.
    """
    environment.prepare(settings)  # The user's code may import Prefect.
    loaded = project.load(settings)
    here = loaded.manifest.flows.get(request.flow.name)
    if here is None or _shape(here) != _shape(request.flow):
        raise UnavailableError("the flow was edited while it was being called", hint="call again")
    if any(here.steps[name] != request.flow.steps[name] for name in finding.missing):
        # Edited code, or a value that differs in each process, such as a clock's: what is here now counts.
        request = request.with_fingerprints(
            {name: step.fingerprint for name, step in here.steps.items()}
        )
        finding = accept.find(request, store, finding.warnings)
    flow = loaded.flows[request.flow.name]
    invocation = Invocation(
        request,
        finding,
        flow,
        store,
        settings,
        request_id,
        notify,
        loaded.prints,
        kill_at,
        flow_run=flow_run,
        is_cold=is_cold,
        code=loaded.manifest.digest,
    )
    if not invocation.find_by_inputs() and flow_run is None:
        return invocation  # All were found by their inputs: there is nothing to tell Prefect.
    if request.cached_only:
        invocation.run(None)
    else:
        _compute(invocation)
    return invocation


def _shape(flow: FlowEntry) -> dict[str, StepEntry]:
    return {name: step._replace(fingerprint="") for name, step in flow.steps.items()}


def _compute(invocation: Invocation) -> None:
    try:
        if invocation.flow_run is None and not invocation.wait_for_others():
            return  # Other calls computed it all: there is nothing to tell Prefect either.
        with deadline.heed_sigterm(), deadline.watch(invocation):
            if invocation.request.engine == "direct":
                direct.run(invocation)
            else:
                from pfl.handler.engine.prefect import session

                try:
                    session.run(invocation)
                except UnavailableError as exc:
                    if invocation.flow_run is not None:
                        raise
                    if invocation.settings.on_prefect_down == "direct" and invocation.error is None:
                        _degrade(invocation, exc)
                    else:
                        _give_up(invocation, lambda step, error=exc: error)
    except deadline.GivenUp:
        words, margin_s = (
            "was given up: Prefect or the store did not answer in time",
            invocation.settings.margin_s,
        )
        _give_up(invocation, lambda step: deadline.out_of_time(step, words, margin_s))
    finally:
        outcome = "COMPLETED" if invocation.is_complete else "CRASHED"
        invocation.call.end(invocation.reap_reason, finished=invocation.finished, outcome=outcome)


def _give_up(invocation: Invocation, error: Callable[[str], PflError]) -> None:
    """Reply with what is finished; *error* tells why a step is not."""
    invocation.give_up(error)
    if invocation.error is None:
        invocation.finding.warnings.append(
            "Prefect did not take the end of the run in time; pfl runs reap will tell it"
        )


def _degrade(invocation: Invocation, exc: UnavailableError) -> None:
    """Compute what is left without Prefect, and say so in the reply and in each record."""
    invocation.degraded = str(exc)
    invocation.finding.warnings.append(
        f"computed without Prefect (PFL_ON_PREFECT_DOWN=direct): {exc}"
    )
    invocation.notify("", "Prefect does not answer: computing without it")
    invocation.request = invocation.request._replace(engine="direct")
    if invocation.flow_run_id is None:
        invocation.reap_reason = ""  # There is no run that could be left open.
    direct.run(invocation)
