"""``pfl config``: the current settings, and where each comes from."""

import re

from typer import Typer

from ..handler.core.settings import SETTINGS
from ..handler.engine.prefect import environment
from . import output, settings

app = Typer(help="Show the current settings.")


@app.command("show")
def show() -> None:
    """Show each setting, its value and its source; secrets are masked."""
    chosen = settings.load()
    values = {**chosen._asdict(), "project": str(chosen.root)}
    values["store"] = chosen.store or str(chosen.home / "store")
    api = environment.configured(chosen)
    rows = []
    for name, setting in SETTINGS.items():
        value = values[name]
        source = settings.source(setting.env)
        if name in ("prefect_api_url", "prefect_api_key") and api and source == "default":
            value = api.url if name == "prefect_api_url" else api.key
            source = api.source
        if isinstance(value, str):
            value = _mask(value) if setting.secret else re.sub(r"(?<=://)[^/@]+@", "…@", value)
        rows.append(
            {"name": setting.env, "value": value, "source": source, "meaning": setting.meaning}
        )
    output.print_rows(rows, ("name", "value", "source"))


def _mask(secret: str) -> str:
    start = secret[:4] if len(secret) > 12 else ""
    return secret and f"{start}…"
