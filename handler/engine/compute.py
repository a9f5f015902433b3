"""One call that the plans did not answer: import the flow, and compute what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.cache import accept
from ..core.cache.lookup import Finding
from ..core.declare import project
from ..core.declare.manifest import FlowEntry, StepEntry
from ..core.errors import UnavailableError
from ..core.event import Notify, Request
from ..core.settings import Settings
from ..core.store.objects import Store
from . import causes, deadline, direct
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
        finding = accept.find(request, store, finding.warnings)
    invocation = Invocation(
        request,
        finding,
        loaded.flows[request.flow.name],
        store,
        settings,
        request_id,
        loaded.prints,
        {"cold_start": is_cold, "code": loaded.manifest.digest},
        notify,
        kill_at,
        flow_run=flow_run,
    )
    if not invocation.find_all_by_inputs() and flow_run is None:
        return invocation  # Nothing is computed, so Prefect has no run to show.
    if request.cached_only:
        invocation.settle(None)
    else:
        _compute(invocation)
    return invocation


def _shape(flow: FlowEntry) -> dict[str, StepEntry]:
    return {name: step._replace(fingerprint="") for name, step in flow.steps.items()}


def _compute(invocation: Invocation) -> None:
    margin_s = invocation.settings.margin_s
    try:
        if invocation.flow_run is None and not invocation.wait_for_others():
            return  # Other calls computed everything.
        with (
            deadline.raise_on_sigterm(),
            deadline.watch(invocation.deadline, margin_s, invocation.stop_now_or_later),
        ):
            if invocation.request.engine == "direct":
                direct.compute(invocation)
            else:
                _compute_in_prefect(invocation)
    except deadline.Abandoned:
        what = "was abandoned: Prefect or the store did not answer in time"
        invocation.abandon(lambda step: causes.out_of_time(f"step {step} {what}", margin_s))
    finally:
        outcome = "COMPLETED" if invocation.is_complete else "CRASHED"
        invocation.call.end(invocation.reap_reason, finished=invocation.finished, outcome=outcome)


def _compute_in_prefect(invocation: Invocation) -> None:
    from .prefect import session

    try:
        session.compute(invocation)
    except UnavailableError as exc:
        if invocation.flow_run is not None:
            raise
        error = exc
        if invocation.settings.on_prefect_down != "direct" or invocation.error is not None:
            invocation.abandon(lambda step: error)
            return
        # The reply and each record note that the rest was computed without Prefect.
        invocation.process["degraded"] = str(error)
        invocation.finding.warnings.append(
            f"computed without Prefect (PFL_ON_PREFECT_DOWN=direct): {error}"
        )
        invocation.notify("", "Prefect does not answer: computing without it")
        invocation.request = invocation.request._replace(engine="direct")
        if invocation.flow_run_id is None:
            invocation.reap_reason = ""  # No run was created, so none can be left open.
        direct.compute(invocation)
