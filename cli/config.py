"""``pfl config``: the current settings, and where each comes from."""

import re
from operator import itemgetter

import typer

from ..handler.core.settings import SETTINGS
from . import output, settings
from .options import Json

app = typer.Typer(help="The current settings.", no_args_is_help=True)


@app.command("show")
def show(json: Json = False) -> None:
    """Show each setting, its value and its source; secrets are masked."""
    from ..handler.engine.prefect import environment

    chosen = settings.load()
    values = {**chosen._asdict(), "project": str(chosen.root)}
    values["store"] = chosen.store or str(chosen.home / "store")
    sources = {name: settings.source(setting.env) for name, setting in SETTINGS.items()}
    api = environment.configured(chosen)
    if api is not None:
        for name, value in (("prefect_api_url", api.url), ("prefect_api_key", api.key)):
            if sources[name] == "default":
                values[name] = value
                sources[name] = api.source
    rows = []
    for name, setting in SETTINGS.items():
        value = values[name]
        if isinstance(value, str):
            value = _mask(value) if setting.secret else re.sub(r"(?<=://)[^/@]+@", "…@", value)
        rows.append(
            {
                "name": setting.env,
                "value": value,
                "source": sources[name],
                "meaning": setting.meaning,
            }
        )
    cells = itemgetter("name", "value", "source")
    output.print_rows(rows, ("setting", "value", "from"), cells, json=json)


def _mask(secret: str) -> str:
    start = secret[:4] if len(secret) > 12 else ""
    return secret and f"{start}…"
