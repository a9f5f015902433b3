"""``pfl worker``: what carries runs from Prefect to the function."""

from __future__ import annotations

from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import Pool
from pfl.cli.setup import connected
from pfl.handler.core.errors import NotFoundError

app = typer.Typer(help="What carries runs from Prefect to the function.", no_args_is_help=True)


@app.command("start")
def start(
    pool: Pool = None,
    name: Annotated[str | None, typer.Option("--name", help="The worker's name.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Hand over at most so many at once.")
    ] = None,
    every: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between two looks for runs.")
    ] = 2,
    once: Annotated[bool, typer.Option("--once", help="Hand over what is due, and end.")] = False,
) -> None:
    """Look for scheduled runs and have the function run them, until it is stopped."""
    import os

    chosen = settings.load()
    pool = pool or chosen.work_pool
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    os.environ.setdefault(
        "PREFECT_CLIENT_MAX_RETRIES", "5"
    )  # A run whose server is busy as it is handed over would be a crash.
    with connected(chosen) as api:
        import asyncio

        from pfl.serverless import prefect_setup
        from pfl.serverless.worker import LambdaWorker
        from prefect.settings import PREFECT_WORKER_QUERY_SECONDS, temporary_settings

        if prefect_setup.work_pool(api, pool) is None:
            raise NotFoundError(f"there is no work pool {pool}", hint="pfl setup deployments")
        if others := prefect_setup.workers(api, pool):
            output.say(
                f"of this pool there may be {len(others)} more: {', '.join(others)}; each run is taken by one"
            )
        worker = LambdaWorker(
            work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False
        )
        with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: every}):
            asyncio.run(worker.start(run_once=once))
