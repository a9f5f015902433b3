"""
What Prefect's pages show of a step: its inputs and cache key, and one artifact per ID and step.

The artifact of step b of abc has the key ``abc-task-b``. Each computation adds a version to it, so
its versions are the step's history.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from ...core import links
from ...core.cache.entry import Entry
from ...core.event import Request
from ...core.store.values import JsonObject
from ..work import Work
from . import plain

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

# The longest input and value, in characters.
_CELL = 200
_VALUE = 4_000


def key_of(id: str, step: str) -> str:
    """
    The key of a step's artifact.

    Prefect allows lowercase letters, digits and dashes; any other name ends in a digest.
    """
    return f"{_encode(id)}-task-{_encode(step)}"


def show_inputs(task_run: TaskRun, arguments: dict[str, object], cache_key: str | None) -> None:
    """
    Show a task run's inputs and cache key, for which Prefect's engine has ``[]`` and ``None``.

    They are sent with the next state of the task run.

    Source: ``collect_task_run_inputs`` in Prefect 3.8 keeps only futures and states, and nothing
    sets ``cache_key``.
    """
    from prefect.client.schemas.objects import Parameter

    task_run.cache_key = cache_key
    for name, value in arguments.items():
        # Here Prefect keeps links to the runs that a value came from; they follow the value.
        inputs = task_run.task_inputs.get(name, ())
        others = [each for each in inputs if not isinstance(each, Parameter)]
        text = plain.text(value, _VALUE) if isinstance(value, str) else plain.shown(value, _CELL)
        task_run.task_inputs[name] = [Parameter(name=text), *others]


def describe(request: Request, work: Work, entry: Entry) -> JsonObject:
    """The artifact of a computed step, as Prefect's API takes it."""
    run_url, task_url, _ = links.of_record(entry._asdict())
    parts = [
        f"# {_escape(entry.step)} of {_escape(request.id)}",
        f"Computed {entry.computed_at}: {_escape(work.why)}",
        f"Cache key `{entry.key}`",
        f"Fingerprint `{request.flow.steps[entry.step].fingerprint}`",
        f"[Task run and its inputs]({task_url}), [flow run]({run_url})",
    ]
    before = work.previous
    if before is not None and (older := links.of_record(before)[2]):
        fingerprint = before["fingerprint"][:12]
        parts.append(f"Before: [{before['computed_at']}]({older}), fingerprint `{fingerprint}`")
    inputs = {name: plain.parameter(value, _CELL) for name, value in work.arguments.items()}
    parts += ["## Inputs", _json(inputs), "## Value", _json(entry.value)]
    parts.append("`pfl cache inspect` shows them in full.")
    return {
        "key": key_of(request.id, entry.step),
        "type": "markdown",
        "data": "\n\n".join(parts),
        "description": f"step {entry.step} of {request.id}"[:5_000],
        "flow_run_id": entry.flow_run_id,
        "task_run_id": entry.task_run_id,
    }


def _encode(part: str) -> str:
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", part) and len(part) <= 80:
        return part
    slug = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:40].rstrip("-")
    return f"{slug}-{hashlib.sha256(part.encode()).hexdigest()[:10]}".lstrip("-")


def _json(value: object) -> str:
    # No line of JSON can end the fence.
    return f"```json\n{plain.shown(value, _VALUE, indent=2)}\n```"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
