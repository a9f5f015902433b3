"""``pfl worker``: the process that passes runs scheduled in Prefect to the function."""

from typing import Annotated

from typer import Option, Typer

from ..handler.core.errors import NotFoundError
from . import output, settings

app = Typer(help="Pass runs scheduled in Prefect to the function.")


@app.command("start")
def start(
    pool: str | None = None,
    name: str | None = None,
    limit: Annotated[int | None, Option(min=1)] = None,
    every: Annotated[float, Option(min=0.1)] = 2,
    once: bool = False,
) -> None:
    """
    Pass scheduled runs to the function until the worker is stopped.

    Args:
        name: Worker name.
        limit: Maximum number of runs at once.
        every: Seconds between checks for runs.
        once: Start what is due, and exit.
    """
    import asyncio
    import os

    from ..handler.engine.prefect import session
    from ..serverless import prefect_setup

    chosen = settings.load()
    pool = pool or chosen.work_pool
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    os.environ["PREFECT_WORKER_QUERY_SECONDS"] = str(every)
    # Without retries, a run crashes if the server is busy while it is handed over.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "5")
    with session.session(chosen, output.progress) as api:
        from ..serverless.worker import LambdaWorker

        if prefect_setup.work_pool(api, pool) is None:
            raise NotFoundError(
                f"the work pool {pool} does not exist", hint="pfl setup deployments"
            )
        others = prefect_setup.workers(api, pool)
        if others:
            output.say(f"other workers of this pool: {', '.join(others)}; each run goes to one")
        worker = LambdaWorker(
            work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False
        )
        asyncio.run(worker.start(run_once=once))
