"""What a deployment asks of the function it made: which code is this, and do the store and Prefect answer from here?"""

from __future__ import annotations

from handler.core import manifest
from handler.core.errors import UnavailableError
from handler.core.settings import Settings
from handler.core.store import Store
from handler.engine import prefect_api, prefect_env, trial


def code(settings: Settings) -> dict[str, object]:
    """The digest of the code, and the fingerprint of each step of each flow."""
    flows = manifest.load(settings)
    prints = {name: {step.name: step.fingerprint for step in flow.steps.values()} for name, flow in flows.flows.items()}
    return {"code": flows.digest, "fingerprints": prints}


def reach(settings: Settings, store: Store) -> None:
    """
    Ask the store and Prefect for something.

    Raises:
        UnavailableError: One of them did not answer.
    """
    trial.run(store)
    if settings.engine == "prefect":
        api = prefect_env.choose(settings, lambda text: None)
        try:
            prefect_api.ask(api, "/flows/filter", {"limit": 1})  # Needs a key, where there is one.
        except UnavailableError as exc:
            hint = exc.hint or "Lambda reaches the internet, not your machine: is PREFECT_API_URL public, or the function in its VPC?"
            raise UnavailableError(exc.what, why=exc.why, hint=hint) from exc
