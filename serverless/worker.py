"""
The Prefect worker for Lambda: it sends scheduled runs to the function, and the function does the
rest.

It is registered as a collection, so ``prefect worker start --type aws-lambda`` finds it.
Credentials, region and endpoint are those of this process, and none of them is stored in Prefect.
"""

from __future__ import annotations

import time
from typing import Any

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseVariables,
    BaseWorker,
    BaseWorkerResult,
)
from pydantic import Field

from ..handler.core.errors import PflError
from ..handler.core.store.values import JsonObject
from . import remote

_FUNCTION = "Name or ARN of the function; a version or alias follows a colon."
# How often to search for runs that were sent to the function and never began, in seconds.
_LOST_CHECK_S = 60


def template(function: str) -> JsonObject:
    """Return the base job template of a work pool for a function."""
    variables = {
        "function": {
            "title": "Function",
            "type": "string",
            "default": function,
            "description": _FUNCTION,
        },
        "region": {
            "title": "Region",
            "type": "string",
            "description": "AWS region, if the worker's own settings have none.",
        },
    }
    return {
        "job_configuration": {"function": "{{ function }}", "region": "{{ region }}"},
        "variables": {"type": "object", "properties": variables, "required": ["function"]},
    }


class LambdaJobConfiguration(BaseJobConfiguration):
    """What the worker needs to know about a run."""

    function: str = Field(description=_FUNCTION)
    region: str | None = None


class LambdaWorker(BaseWorker[LambdaJobConfiguration, BaseVariables, BaseWorkerResult]):
    """Sends scheduled runs to an AWS Lambda function."""

    type = "aws-lambda"
    job_configuration = LambdaJobConfiguration
    _description = "Run flows in an AWS Lambda function that pfl has deployed."
    _display_name = "AWS Lambda"
    _checked_at = 0.0

    @classmethod
    def get_default_base_job_template(cls) -> JsonObject:
        """Return the template of a pool that is created without one."""
        return template("pfl")

    async def run(
        self,
        flow_run: FlowRun,
        configuration: LambdaJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> BaseWorkerResult:
        """
        Call the function without waiting for it; if AWS refuses, the run becomes Crashed with the
        reason.
        """
        function = configuration.function
        target = remote.Target(function, configuration.region or "")
        event = {"flow_run_id": str(flow_run.id)}
        started: str | PflError
        try:
            reply = await anyio.to_thread.run_sync(
                lambda: remote.call(target, event, asynchronous=True)
            )
            started = f"{function}/{reply['request_id']}"
        except PflError as exc:
            # The base class would leave out the hint, and log a traceback of our code.
            self.get_flow_run_logger(flow_run).error("%s", exc.lines)
            await self._propose_crashed_state(flow_run, exc.lines)
            started = exc
        if task_status is not None:
            task_status.started(started)
        return BaseWorkerResult(status_code=0, identifier=function)

    async def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: LambdaJobConfiguration,
        grace_seconds: int = 30,
    ) -> None:
        """
        Do nothing: the function does not begin a run that was cancelled before.

        A run that has begun notices by itself that it is cancelled.
        """

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Submit what is due; once a minute, also end runs that never began."""
        if time.monotonic() - self._checked_at > _LOST_CHECK_S:
            self._checked_at = time.monotonic()
            from ..handler.engine.prefect import builder, scheduled_runs

            for name in await anyio.to_thread.run_sync(
                scheduled_runs.end_lost, builder.current_api(), self._work_pool_name
            ):
                self._logger.warning("%s never started and is now marked as Crashed", name)
        return await super().get_and_submit_flow_runs()
