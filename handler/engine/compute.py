"""One call that the plans did not answer: import the flow, and compute what is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..core import event
from ..core.cache import lookup
from ..core.cache.lookup import Finding
from ..core.declare import project
from ..core.errors import UnavailableError
from ..core.event import Caller, Request
from . import causes, deadline, direct
from .call import Call
from .invocation import Invocation
from .prefect import environment

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def missing(
    raw: object, request: Request, finding: Finding, caller: Caller, flow_run: FlowRun | None
) -> Invocation:
    """
    Compute every step of *request* that is missing in *finding*.

    Args:
        raw: The event.
        request: The same, checked.
        finding: What the store has for it.
        caller: Who sent it.
        flow_run: The flow run that made this call, if Prefect started it.

    Raises:
        InvalidRequestError: The flow was edited meanwhile, and the event does not fit it.
        UnavailableError: Prefect or the store did not answer.
        KeyboardInterrupt: The user pressed Ctrl-C; no run is left ``Running``.
    """
    settings = caller.settings
    store = caller.store
    environment.prepare(settings)  # The user's code may import Prefect.
    loaded = project.load(settings)
    if loaded.manifest.flows.get(request.flow.name) != request.flow:
        # The code was edited, or holds a value that differs in each process, such as a clock's:
        # what is imported here counts.
        request = event.parse(raw, loaded.manifest, engine=settings.engine)
        finding = lookup.find(request, store, finding.warnings, only_targets=True)
    call = Call(
        request,
        loaded.flows[request.flow.name],
        store,
        settings,
        caller.request_id,
        loaded.prints,
        {"cold_start": caller.is_cold, "code": loaded.manifest.digest},
        finding.warnings,
        caller.notify,
        caller.deadline,
        flow_run,
    )
    invocation = _settled(call, finding)
    if invocation.is_superseded:
        finding = lookup.find(request, store, finding.warnings, only_targets=True)
        invocation = _settled(replace(call, is_again=True), finding)
    return invocation


def _settled(call: Call, finding: Finding) -> Invocation:
    invocation = Invocation(call, finding)
    if call.request.cached_only:
        invocation.settle(None)
        return invocation
    try:
        # If nothing is left to compute, Prefect has no run to show.
        if call.flow_run is not None or invocation.run_without_engine():
            _compute(invocation)
    finally:
        invocation.end()
    return invocation


def _compute(invocation: Invocation) -> None:
    call = invocation.call
    margin_s = call.settings.margin_s
    try:
        with (
            deadline.raise_on_sigterm(),
            deadline.watch(call.deadline, margin_s, invocation.stop_now_or_later),
        ):
            if call.request.engine == "direct":
                direct.compute(invocation)
            else:
                _compute_in_prefect(invocation)
    except deadline.Abandoned:
        what = "was abandoned: Prefect or the store did not answer in time"
        invocation.abandon(lambda step: causes.out_of_time(f"step {step} {what}", margin_s))


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
            invocation.abandon(lambda step: error)
            return
        invocation.run.leave_prefect(str(error))
        call.warnings.append(f"computed without Prefect (PFL_ON_PREFECT_DOWN=direct): {error}")
        call.notify("", "Prefect does not answer: computing without it")
        direct.compute(invocation)
