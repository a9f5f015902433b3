"""``pfl config``: the settings in force, and where each came from."""

from __future__ import annotations

import re

import typer
from pfl.cli import output, settings
from pfl.cli.options import Json
from pfl.handler.core.settings import SETTINGS

app = typer.Typer(help="The settings in force.", no_args_is_help=True)


@app.command("show")
def show(json: Json = False) -> None:
    """Show each setting, its value and where it came from; secrets are masked."""
    from pfl.handler.engine.prefect import environment

    chosen = settings.load()
    api = environment.configured(chosen)
    rows = []
    for name, setting in SETTINGS.items():
        env, value = setting.env, getattr(chosen, name)
        source = settings.source(env)
        if (
            name in ("prefect_api_url", "prefect_api_key")
            and source == "default"
            and api is not None
        ):
            value, source = (api.url if name == "prefect_api_url" else api.key), api.source
        if name == "store":
            value = value or str(chosen.home / "store")
        if name == "project":
            value = str(chosen.root)
        shown = _mask(str(value)) if setting.secret else _without_password(value)
        rows.append({"name": env, "value": shown, "source": source, "meaning": setting.meaning})
    if json:
        for row in rows:
            output.emit(row)
        return
    output.table(
        ["setting", "value", "from"], [(row["name"], row["value"], row["source"]) for row in rows]
    )


def _without_password(value: object) -> object:
    return re.sub(r"(?<=://)[^/@]+@", "…@", value) if isinstance(value, str) else value


def _mask(secret: str) -> str:
    return f"{secret[:4]}…" if len(secret) > 12 else "…" if secret else ""
