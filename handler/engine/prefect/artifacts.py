"""
What Prefect's pages show of a step: its inputs and cache key, and one artifact per ID and step.

The artifact of step b of abc has the key ``abc-task-b``. Each computation adds a version to it, so
its versions are the step's history.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from ...core import links
from ...core.cache.entry import Entry
from ...core.errors import PflError
from ...core.event import Request
from ...core.store.values import JsonObject
from ..work import Work
from . import client
from .environment import Api

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

# The longest cell and value, in characters.
_CELL = 200
_VALUE = 4_000
# The largest table.
_ROWS = 50
_COLUMNS = 12


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
        shown = value if isinstance(value, str) else _text(value, _CELL)
        task_run.task_inputs[name] = [Parameter(name=shown), *others]


def describe(request: Request, work: Work, entry: Entry) -> JsonObject:
    """The artifact of a computed step, for :func:`publish`."""
    run_url, task_url, _ = links.of_record(entry._asdict())
    rows = [
        ("computed", f"{entry.computed_at}, {_escape(work.why)}"),
        ("cache key", f"`{entry.key}`"),
        ("fingerprint", f"`{request.flow.steps[entry.step].fingerprint}`"),
        ("runs", f"[task run and its inputs]({task_url}), [flow run]({run_url})"),
    ]
    before = work.previous
    if before is not None and (older := links.of_record(before)[2]):
        fingerprint = before["fingerprint"][:12]
        rows.append(("before", f"[{before['computed_at']}]({older}), fingerprint `{fingerprint}`"))
    inputs = [(name, _code(_text(value, _CELL))) for name, value in work.arguments.items()]
    parts = (
        f"# {_escape(entry.step)} of {_escape(request.id)}",
        _table(("", ""), rows),
        "## Inputs",
        _table(("name", "value"), inputs),
        "## Value",
        _render(entry.value),
    )
    return {
        "key": key_of(request.id, entry.step),
        "type": "markdown",
        "data": "\n\n".join(parts),
        "description": f"step {entry.step} of {request.id}"[:5_000],
        "flow_run_id": entry.flow_run_id,
        "task_run_id": entry.task_run_id,
    }


def publish(artifacts: list[JsonObject], api: Api, warnings: list[str]) -> None:
    """Send *artifacts*, and take them off the list; a failure is only a warning."""
    try:
        while artifacts:
            client.ask(api, "/artifacts/", artifacts[0])
            artifacts.pop(0)
    except PflError as exc:
        warnings.append(f"{len(artifacts)} artifacts were not written ({exc})")


def _encode(part: str) -> str:
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", part) and len(part) <= 80:
        return part
    slug = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:40].rstrip("-")
    return f"{slug}-{hashlib.sha256(part.encode()).hexdigest()[:10]}".lstrip("-")


def _render(value: object) -> str:
    """A list of objects as a table, anything else as JSON; both are cut."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        shown = value[:_ROWS]
        columns = dict.fromkeys(chain(*shown))
        if 0 < len(columns) <= _COLUMNS:
            rows = [
                [_code(_text(row[name], 60)) if name in row else "" for name in columns]
                for row in shown
            ]
            rest = len(value) - len(shown)
            note = f"\n\n{rest} more rows" if rest else ""
            return _table([_escape(name) for name in columns], rows) + note
    text = json.dumps(value, indent=2, ensure_ascii=False)
    fence = _fence(text, 3)
    rest = len(text) - _VALUE
    note = f"\n\n{rest} more characters: `pfl cache inspect` shows them" if rest > 0 else ""
    return f"{fence}json\n{text[:_VALUE]}\n{fence}{note}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object, longest: int) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _fence(text: str, shortest: int) -> str:
    """A Markdown fence: more backticks in a row than *text* has anywhere."""
    return "`" * max(shortest, *(len(run) + 1 for run in re.findall("`+", text)), 1)


def _code(text: str) -> str:
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}".replace("|", "\\|")


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
