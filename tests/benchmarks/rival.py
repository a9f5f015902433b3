"""
One of the tools, as a process that answers calls: ``rival.py TOOL ORDER``.

See :mod:`benchmarks.sandbox`. This module imports only what a hit of the tool needs.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import sandbox

_ran: list[str] = []


def _steps():
    """The plain functions, which record that they ran."""
    from plain import a, b, c

    return a.a, b.b, c.c


def _counted(answer):
    """*answer* with the number of steps that ran, as a sandbox reports it."""

    def call(flow: str, id: str) -> dict:
        _ran.clear()
        value = answer(id)
        return {"value": value, "computed": len(_ran), "store": {}}

    return call


def joblib():
    from joblib import Memory

    memory = Memory(os.environ["BENCH_PLACE"], verbose=0)
    a, b, c = map(memory.cache, _steps())

    def answer(id: str) -> float:
        first = a(id)
        return c(id, b(id, first))

    return _counted(answer)


def redun():
    import logging

    from redun import Scheduler, task
    from redun.config import Config

    logging.disable(logging.CRITICAL)
    a, b, c = (task(step, name=step.__name__, namespace="bench") for step in _steps())

    @task(namespace="bench")
    def chain(id: str):
        return c(id, b(id, a(id)))

    scheduler = Scheduler(
        Config({"backend": {"db_uri": f"sqlite:///{os.environ['BENCH_PLACE']}/redun.db"}})
    )
    scheduler.load()
    return _counted(lambda id: scheduler.run(chain(id)))


def hamilton():
    from hamilton import driver
    from plain import a, b, c

    built = (
        driver.Builder().with_modules(a, b, c).with_cache(path=os.environ["BENCH_PLACE"]).build()
    )
    return _counted(lambda id: built.execute(["c"], inputs={"id": id})["c"])


def _idempotent(**options: bool):
    """Powertools' decorator."""
    import functools
    from types import SimpleNamespace

    from aws_lambda_powertools.utilities.idempotency import (
        DynamoDBPersistenceLayer,
        IdempotencyConfig,
        idempotent_function,
    )

    layer = DynamoDBPersistenceLayer(table_name=os.environ["BENCH_TABLE"])
    config = IdempotencyConfig(expires_after_seconds=86_400, **options)
    # As its guide recommends, so that it knows when a call that died has ended.
    config.register_lambda_context(SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000))
    return functools.partial(
        idempotent_function, data_keyword_argument="event", persistence_store=layer, config=config
    )


def powertools(**options: bool):
    a, b, c = _steps()

    @_idempotent(**options)()
    def handler(*, event: dict) -> float:
        first = a(event["id"])
        return c(event["id"], b(event["id"], first))

    return _counted(lambda id: handler(event={"id": id}))


def powertools_local():
    return powertools(use_local_cache=True)


def powertools_steps():
    """Each step is kept."""
    a, b, c = _steps()
    idempotent = _idempotent()

    @idempotent()
    def kept_a(*, event: dict):
        return a(event["id"])

    @idempotent()
    def kept_b(*, event: dict):
        return b(event["id"], event["a"])

    @idempotent()
    def kept_c(*, event: dict):
        return c(event["id"], event["b"])

    def answer(id: str):
        first = kept_a(event={"id": id})
        second = kept_b(event={"id": id, "a": first})
        return kept_c(event={"id": id, "b": second})

    return _counted(answer)


def prefect():
    """Prefect with nothing but kept results: no tags, no limits."""
    from prefect import flow, task
    from prefect.cache_policies import INPUTS

    storage = os.environ["BENCH_BLOCK"]
    a, b, c = (
        task(step, cache_policy=INPUTS, persist_result=True, result_storage=storage)
        for step in _steps()
    )

    @flow
    def chain(id: str):
        return c(id, b(id, a(id)))

    return _counted(chain)


if __name__ == "__main__":
    del sys.path[1]  # This folder: its modules must not hide those of the tool.
    sandbox._KINDS[sys.argv[1]] = globals()[sys.argv[1]]
    sandbox.main()
