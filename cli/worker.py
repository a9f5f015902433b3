"""``pfl worker``: the process that passes runs scheduled in Prefect to the function."""

from __future__ import annotations

from typing import Annotated

from typer import Option, Typer

from ..handler.core.errors import NotFoundError
from . import output, settings
from .command import Command
from .options import Pool
from .setup import connected

app = Typer(help="Pass runs scheduled in Prefect to the function.")


@app.command("start", cls=Command)
def start(
    pool: Pool = None,
    name: Annotated[str | None, Option(help="Worker name.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Maximum number of runs at once.")] = None,
    every: Annotated[float, Option(min=0.1, help="Seconds between checks for runs.")] = 2,
    once: Annotated[bool, Option("--once", help="Start what is due, and exit.")] = False,
) -> None:
    """Pass scheduled runs to the function until the worker is stopped."""
    import os

    chosen = settings.load()
    pool = pool or chosen.work_pool
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    os.environ["PREFECT_WORKER_QUERY_SECONDS"] = str(every)
    # Without retries, a run crashes if the server is busy while it is handed over.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "5")
    with connected(chosen) as api:
        import asyncio

        from ..serverless import prefect_setup
        from ..serverless.worker import LambdaWorker

        if prefect_setup.work_pool(api, pool) is None:
            raise NotFoundError(
                f"the work pool {pool} does not exist", hint="pfl setup deployments"
            )
        others = prefect_setup.workers(api, pool)
        if others:
            output.say(
                f"{output.counted(len(others), 'other worker')} for this pool may be running:"
                f" {', '.join(others)}; each run goes to only one of them"
            )
        worker = LambdaWorker(
            work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False
        )
        asyncio.run(worker.start(run_once=once))
