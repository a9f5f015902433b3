"""One call that the plans did not answer: import the flow, and compute what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.cache import lookup
from ..core.cache.lookup import Finding
from ..core.declare import project
from ..core.declare.manifest import FlowEntry, StepEntry
from ..core.errors import UnavailableError
from ..core.event import Notify, Request
from ..core.settings import Settings
from ..core.store.objects import Store
from . import causes, deadline, direct
from .call import Call
from .invocation import Invocation
from .prefect import environment

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
    kill_at: float | None,
    is_cold: bool,
    flow_run: FlowRun | None,
    is_again: bool = False,
) -> Invocation:
    """
    Compute every step of *request* that is missing in *finding*.

    Raises:
        UnavailableError: Prefect or the store did not answer, or the code changed meanwhile.
        KeyboardInterrupt: The user pressed Ctrl-C; no run is left ``Running``.
    """
    environment.prepare(settings)  # The user's code may import Prefect.
    loaded = project.load(settings)
    entry = loaded.manifest.flows.get(request.flow.name)
    if entry is None or _shape(entry) != _shape(request.flow):
        raise UnavailableError("the flow was edited while it was being called", hint="call again")
    if any(entry.steps[name] != request.flow.steps[name] for name in finding.missing):
        # The code was edited, or holds a value that differs in each process, such as a clock's:
        # what is imported here counts.
        prints = {name: step.fingerprint for name, step in entry.steps.items()}
        request = request.with_fingerprints(prints)
        finding = lookup.find(request, store, finding.warnings, only_targets=True)
    call = Call(
        request,
        loaded.flows[request.flow.name],
        store,
        settings,
        request_id,
        loaded.prints,
        {"cold_start": is_cold, "code": loaded.manifest.digest},
        finding.warnings,
        notify,
        kill_at,
        flow_run,
        is_again,
    )
    invocation = Invocation(call, finding)
    if request.cached_only:
        invocation.settle(None)
        return invocation
    try:
        # If nothing is left to compute, Prefect has no run to show.
        if flow_run is not None or invocation.scheduler.run_without_engine():
            _compute(invocation)
    finally:
        invocation.end()
    if not invocation.is_superseded:
        return invocation
    return missing(
        request,
        lookup.find(request, store, finding.warnings, only_targets=True),
        store,
        settings,
        request_id=request_id,
        notify=notify,
        kill_at=kill_at,
        is_cold=is_cold,
        flow_run=flow_run,
        is_again=True,
    )


def _shape(flow: FlowEntry) -> dict[str, StepEntry]:
    return {name: step._replace(fingerprint="") for name, step in flow.steps.items()}


def _compute(invocation: Invocation) -> None:
    call = invocation.call
    scheduler = invocation.scheduler
    margin_s = call.settings.margin_s
    try:
        with (
            deadline.raise_on_sigterm(),
            deadline.watch(call.deadline, margin_s, scheduler.stop_now_or_later),
        ):
            if call.request.engine == "direct":
                direct.compute(invocation)
            else:
                _compute_in_prefect(invocation)
    except deadline.Abandoned:
        what = "was abandoned: Prefect or the store did not answer in time"
        scheduler.abandon(lambda step: causes.out_of_time(f"step {step} {what}", margin_s))


def _compute_in_prefect(invocation: Invocation) -> None:
    from .prefect import session

    call = invocation.call
    try:
        session.compute(invocation)
    except UnavailableError as exc:
        if call.flow_run is not None:
            raise
        error = exc
        if call.settings.on_prefect_down != "direct" or invocation.error is not None:
            invocation.scheduler.abandon(lambda step: error)
            return
        invocation.use_direct_engine(str(error))
        call.warnings.append(f"computed without Prefect (PFL_ON_PREFECT_DOWN=direct): {error}")
        call.notify("", "Prefect does not answer: computing without it")
        if invocation.run.flow_run_id is None:
            invocation.run.reap_reason = ""  # No run was created, so none can be left open.
        direct.compute(invocation)
