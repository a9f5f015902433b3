"""
The Prefect worker that runs flows in Lambda: it hands a scheduled run to the function, and the function does the rest.

Registered as a collection, so that ``prefect worker start --type aws-lambda`` finds it. AWS's own settings apply: credentials,
region and endpoint are those of the process, and nothing of them is stored in Prefect.
"""

from __future__ import annotations

import functools
import os
import time

import anyio
import anyio.abc
from pfl.handler.core.errors import PflError
from pfl.serverless import remote
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration, BaseWorker, BaseWorkerResult
from pydantic import Field

_FUNCTION = "Name or ARN of the function; a version or alias goes behind a colon."
_LOOK_S = 60  # How often runs are looked for that were handed over, and never began.


def template(function: str) -> dict:
    """The base job template of a work pool, with its function."""
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
            "description": "AWS region, where the worker's own settings name none.",
        },
    }
    return {
        "job_configuration": {"function": "{{ function }}", "region": "{{ region }}"},
        "variables": {"type": "object", "properties": variables, "required": ["function"]},
    }


class LambdaJobConfiguration(BaseJobConfiguration):
    """What the worker needs to know for a run."""

    function: str = Field(description=_FUNCTION)
    region: str | None = Field(default=None)


class LambdaWorkerResult(BaseWorkerResult):
    """That the function has taken the run; what becomes of it, it tells Prefect itself."""


class LambdaWorker(BaseWorker):
    """Hands scheduled runs to an AWS Lambda function."""

    type = "aws-lambda"
    job_configuration = LambdaJobConfiguration
    _description = "Run flows in an AWS Lambda function that pfl has deployed."
    _display_name = "AWS Lambda"
    _looked_at = 0.0

    @classmethod
    def get_default_base_job_template(cls) -> dict:
        """What a pool is made with that has no template of its own."""
        return template("pfl")

    async def run(
        self,
        flow_run: FlowRun,
        configuration: LambdaJobConfiguration,
        task_status: anyio.abc.TaskStatus | None = None,
    ) -> LambdaWorkerResult:
        """
        Call the function, and do not wait for it; where AWS does not take the call, the run becomes Crashed with the reason.
        """
        # AWS's own variable in Lambda, which boto3 does not look at.
        at = remote.Target(
            configuration.function, configuration.region or os.environ.get("AWS_REGION", "")
        )
        call = functools.partial(
            remote.call, at, {"flow_run_id": str(flow_run.id)}, asynchronous=True
        )
        try:
            started = identifier = (
                f"{at.function}/{(await anyio.to_thread.run_sync(call)).request_id}"
            )
        except PflError as exc:
            # Told here: the base class leaves out what to do, and logs where in our code it came from.
            self.get_flow_run_logger(flow_run).error("%s", exc.lines)
            await self._propose_crashed_state(flow_run, exc.lines)
            started, identifier = exc, at.function
        if task_status is not None:
            task_status.started(started)
        return LambdaWorkerResult(status_code=0, identifier=identifier)

    async def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: LambdaJobConfiguration,
        grace_seconds: int = 30,
    ) -> None:
        """Nothing is to be stopped: a run that is cancelled before it began is not begun, and one that runs looks for itself."""

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Prefect's round, and once a minute the end of those runs that never began."""
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            from pfl.handler.engine.prefect import builder, scheduled_runs

            for name in await anyio.to_thread.run_sync(
                scheduled_runs.end_lost, builder.current_api(), self._work_pool_name
            ):
                self._logger.warning("%s never began: it is marked as Crashed", name)
        return await super().get_and_submit_flow_runs()
