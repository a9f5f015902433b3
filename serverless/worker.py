"""
The Prefect worker that runs flows in Lambda: it hands a scheduled run to the function, and the function does the rest.

Registered as a collection, so that ``prefect worker start --type aws-lambda`` finds it. AWS's own settings apply: credentials,
region and endpoint are those of the process, and nothing of them is stored in Prefect.
"""

from __future__ import annotations

import json
import os
import time

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration, BaseWorker, BaseWorkerResult
from pydantic import Field

_FUNCTION = "Name or ARN of the function; a version or alias goes behind a colon."
_LOOK_S = 60  # How often runs are looked for that were handed over, and never began.


def template(function: str) -> dict:
    """The base job template of a work pool, with its function."""
    variables = {
        "function": {"title": "Function", "type": "string", "default": function, "description": _FUNCTION},
        "region": {"title": "Region", "type": "string", "description": "AWS region; the worker's own if empty."},
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
        self, flow_run: FlowRun, configuration: LambdaJobConfiguration, task_status: anyio.abc.TaskStatus | None = None
    ) -> LambdaWorkerResult:
        """
        Call the function, and do not wait for it.

        Raises:
            RuntimeError: AWS did not take the call; the run becomes Crashed with these words.
        """
        request_id = await anyio.to_thread.run_sync(invoke, configuration.function, configuration.region, str(flow_run.id))
        identifier = f"{configuration.function}/{request_id}"
        if task_status is not None:
            task_status.started(identifier)
        return LambdaWorkerResult(status_code=0, identifier=identifier)

    async def kill_infrastructure(self, infrastructure_pid: str, configuration: LambdaJobConfiguration, grace_seconds: int = 30) -> None:
        """Nothing is to be stopped: a run that is cancelled before it began is not begun, and one that runs looks for itself."""

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Prefect's round, and once a minute the end of those runs that never began."""
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            from handler.engine import claim, prefect_flow

            for name in await anyio.to_thread.run_sync(claim.end_lost, prefect_flow.api_around(), self._work_pool_name):
                self._logger.warning("%s never began: it is marked as Crashed", name)
        return await super().get_and_submit_flow_runs()


def invoke(function: str, region: str | None, flow_run_id: str) -> str:
    """
    Have the function run a flow run, asynchronously.

    Returns:
        Lambda's request ID.

    Raises:
        RuntimeError: AWS did not take the call; why, and what to do.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    payload = json.dumps({"flow_run_id": flow_run_id}).encode()
    try:
        config = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 4, "mode": "standard"})
        # AWS's own variable in Lambda, which boto3 does not look at.
        region = region or os.environ.get("AWS_REGION") or None
        client = boto3.client("lambda", region_name=region, config=config)
        answer = client.invoke(FunctionName=function, InvocationType="Event", Payload=payload)
    except ClientError as exc:
        code = exc.response.get("Error", {}).get("Code", "")
        raise RuntimeError(f"function {function}: {_WORDS.get(code, code)} ({exc})") from None
    except BotoCoreError as exc:
        raise RuntimeError(f"function {function}: AWS was not reached ({exc})") from None
    return answer["ResponseMetadata"].get("RequestId", "")


_WORDS = {
    "ResourceNotFoundException": "it is not there; deploy it, or correct its name in the work pool",
    "TooManyRequestsException": "it is throttled; raise its concurrency, or run fewer at once",
    "AccessDeniedException": "the worker may not call it; allow lambda:InvokeFunction",
    "UnrecognizedClientException": "AWS does not know the worker's credentials",
    "ExpiredTokenException": "the worker's AWS credentials have expired",
}
