"""What a deployment asks of the function it made: do the store and Prefect answer from here, and which code is this?"""

from __future__ import annotations

from handler.core import manifest
from handler.core.errors import UnavailableError
from handler.core.settings import Settings
from handler.core.store import Store
from handler.engine import prefect_api, prefect_env, trial


def check(settings: Settings, store: Store) -> dict[str, object]:
    """
    The digest of the code, and the fingerprint of each step of each flow.

    Raises:
        UnavailableError: The store or Prefect did not answer.
    """
    flows = manifest.load(settings)
    trial.run(store)
    if settings.engine == "prefect":
        api = prefect_env.choose(settings, lambda text: None)
        try:
            prefect_api.ask(api, "/flows/filter", {"limit": 1})  # Needs a key, where there is one.
        except UnavailableError as exc:
            hint = exc.hint or "Lambda reaches the internet, not your machine: is PREFECT_API_URL public, or the function in its VPC?"
            raise UnavailableError(exc.what, why=exc.why, hint=hint) from exc
    prints = {name: {step.name: step.fingerprint for step in flow.steps.values()} for name, flow in flows.flows.items()}
    return {"code": flows.digest, "fingerprints": prints}
