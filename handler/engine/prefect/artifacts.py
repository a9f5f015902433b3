"""
What Prefect's pages tell of a step: its real inputs and cache key on the task run, and one artifact per ID and step.

The artifact of step b of abc has the key ``abc-task-b``; each computation is a version of it, so its versions are the step's history.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import TYPE_CHECKING

from pfl.handler.core import links
from pfl.handler.core.cache.entry import Entry
from pfl.handler.core.errors import PflError
from pfl.handler.engine.prefect import client
from pfl.handler.engine.prefect.environment import Api

if TYPE_CHECKING:
    from pfl.handler.engine.invocation import Invocation, Work

_CELL, _VALUE, _ROWS, _COLUMNS = (
    200,
    4_000,
    50,
    12,
)  # Longest cell and value, in characters; the largest table.


def key_of(id: str, step: str) -> str:
    """The key of a step's artifact; Prefect allows lowercase letters, digits and dashes, so anything else ends in a digest."""
    return f"{_encoded(id)}-task-{_encoded(step)}"


def show_inputs(task_run: object, arguments: dict[str, object], cache_key: str | None) -> None:
    """
    Put values where Prefect's engine leaves ``{"id": []}`` and ``None``; they travel with the next state of the task run.

    Source: ``collect_task_run_inputs`` in Prefect 3.8 keeps only futures and states, and nothing sets ``cache_key``.
    """
    from prefect.client.schemas.objects import Parameter

    task_run.cache_key = cache_key
    for name, value in arguments.items():
        # Prefect has links here to the runs that a value came from; a value stands before them.
        others = [
            each for each in task_run.task_inputs.get(name, ()) if not isinstance(each, Parameter)
        ]
        task_run.task_inputs[name] = [
            Parameter(name=value if isinstance(value, str) else _text(value, _CELL)),
            *others,
        ]


def note(invocation: Invocation, work: Work, entry: Entry) -> None:
    """Keep the artifact of a computed step for :func:`publish`, unless artifacts are off or this one is not in the sample."""
    if random.random() >= invocation.settings.artifacts:
        return
    request, (run_url, task_url, _) = invocation.request, links.of_record(entry._asdict())
    before = work.before or {}
    rows = [
        ("computed", f"{entry.computed_at}, {_escaped(work.why)}"),
        ("cache key", f"`{entry.key}`"),
        ("fingerprint", f"`{request.flow.steps[entry.step].fingerprint}`"),
        ("runs", f"[task run and its inputs]({task_url}), [flow run]({run_url})"),
    ]
    if older := links.of_record(before)[2]:
        rows.append(
            (
                "before",
                f"[{before['computed_at']}]({older}), fingerprint `{before['fingerprint'][:12]}`",
            )
        )
    text = [
        f"# {_escaped(entry.step)} of {_escaped(request.id)}",
        _table(("", ""), rows),
        "## Inputs",
    ]
    text.append(
        _table(
            ("name", "value"),
            [(name, _code(_text(value, _CELL))) for name, value in work.arguments.items()],
        )
    )
    text += ["## Value", _shown(entry.value)]
    about = {"key": key_of(request.id, entry.step), "type": "markdown", "data": "\n\n".join(text)}
    about["description"] = f"step {entry.step} of {request.id}"[:5_000]
    invocation.artifacts.append(
        about | {"flow_run_id": entry.flow_run_id, "task_run_id": entry.task_run_id}
    )


def publish(invocation: Invocation, api: Api) -> None:
    """Send what was noted; what Prefect does not take is a warning, for the result itself is saved."""
    try:
        while invocation.artifacts:
            client.ask(api, "/artifacts/", invocation.artifacts[0])
            invocation.artifacts.pop(0)
    except PflError as exc:
        invocation.finding.warnings.append(
            f"{len(invocation.artifacts)} artifacts were not written ({exc})"
        )


def _encoded(part: str) -> str:
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", part) and len(part) <= 80:
        return part
    slug = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:40].rstrip("-")
    return f"{slug}-{hashlib.sha256(part.encode()).hexdigest()[:10]}".lstrip("-")


def _shown(value: object) -> str:
    """A list of objects as a table, anything else as JSON, cut."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        columns = list(dict.fromkeys(name for row in value[:_ROWS] for name in row))
        if 0 < len(columns) <= _COLUMNS:
            rows = [
                [_code(_text(row[name], 60)) if name in row else "" for name in columns]
                for row in value[:_ROWS]
            ]
            more = f"\n\n{len(value) - _ROWS} more rows" if len(value) > _ROWS else ""
            return _table([_escaped(name) for name in columns], rows) + more
    text = json.dumps(value, indent=2, ensure_ascii=False)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    more = (
        f"\n\n{len(text) - _VALUE} more characters: `pfl cache inspect` shows them"
        if len(text) > _VALUE
        else ""
    )
    return f"{fence}json\n{text[:_VALUE]}\n{fence}{more}"


def _table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: object, longest: int) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _code(text: str) -> str:
    fence = "`" * (max([0, *(len(run) for run in re.findall("`+", text))]) + 1)
    return f"{fence} {text} {fence}".replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
