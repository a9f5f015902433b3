"""
What Prefect's pages show of a step: its inputs and cache key, and one artifact per ID and step.

The artifact of step b of abc has the key ``abc-task-b``. Each computation adds a version to it, so
its versions are the step's history.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from ...core import links
from ...core.cache.entry import Entry
from ...core.event import Request
from ...core.store.values import JsonObject
from ..work import Work
from . import plain

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
        text = plain.text(value, _VALUE) if isinstance(value, str) else plain.shown(value, _CELL)
        task_run.task_inputs[name] = [Parameter(name=text), *others]


def describe(request: Request, work: Work, entry: Entry) -> JsonObject:
    """The artifact of a computed step, as Prefect's API takes it."""
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
    inputs = [(name, _code(plain.shown(value, _CELL))) for name, value in work.arguments.items()]
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
                [_code(plain.shown(row[name], 60)) if name in row else "" for name in columns]
                for row in shown
            ]
            rest = len(value) - len(shown)
            note = f"\n\n{rest} more rows" if rest else ""
            return _table([_escape(name[:60]) for name in columns], rows) + note
    text = plain.shown(value, _VALUE, indent=2)
    fence = _fence(text, 3)
    note = "\n\nThe rest: `pfl cache inspect` shows it" if len(text) >= _VALUE else ""
    return f"{fence}json\n{text}\n{fence}{note}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fence(text: str, shortest: int) -> str:
    """A Markdown fence: more backticks in a row than *text* has anywhere."""
    return "`" * max(shortest, *(len(run) + 1 for run in re.findall("`+", text)), 1)


def _code(text: str) -> str:
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}".replace("|", "\\|")


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
