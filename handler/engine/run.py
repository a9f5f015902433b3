"""One invocation that the plans did not answer: load the flow, compute what is missing, say what became of each step."""

from __future__ import annotations

from handler.core import project
from handler.core.cache import Finding
from handler.core.errors import UnavailableError
from handler.core.event import Request
from handler.core.settings import Settings
from handler.core.store import Store
from handler.engine import deadline, direct, prefect_env
from handler.engine.execute import Invocation, Notify


def once(
    request: Request,
    finding: Finding,
    store: Store,
    settings: Settings,
    *,
    request_id: str,
    notify: Notify,
    kill_at: float | None = None,
    is_cold: bool = False,
) -> Invocation:
    """
    Settle every step of *request* that *finding* left open.

    Raises:
        UnavailableError: Prefect or the store did not answer, or the code changed while it ran.
        KeyboardInterrupt: The person at the terminal had enough; no run is left ``Running``.
    """
    prefect_env.prepare(settings)  # The user's code may import Prefect.
    loaded = project.load(settings)
    if any(loaded.manifest.flows[request.flow.name].steps[s].fingerprint != request.flow.steps[s].fingerprint for s in finding.missing):
        raise UnavailableError("the flow was edited while it was being called", hint="call again")
    flow = loaded.flows[request.flow.name]
    invocation = Invocation(request, finding, flow, store, settings, request_id, notify, loaded.prints, kill_at, is_cold=is_cold, code=loaded.manifest.digest)
    if not invocation.look():
        return invocation  # All were found by their inputs: there is nothing to tell Prefect.
    if request.cached_only:
        invocation.run(None)
    else:
        _compute(invocation)
    return invocation


def _compute(invocation: Invocation) -> None:
    try:
        if not invocation.join():
            return  # Other calls computed it all: there is nothing to tell Prefect either.
        with deadline.watch(invocation):
            if invocation.request.engine == "direct":
                direct.run(invocation)
            else:
                from handler.engine import prefect_run

                prefect_run.run(invocation)
    except deadline.GivenUp:
        invocation.give_up("was given up: Prefect or the store did not answer in time")
        if invocation.error is None:
            invocation.finding.warnings.append("Prefect did not take the end of the run in time; pfl runs reap will tell it")
    finally:
        invocation.call.end(invocation.left)
