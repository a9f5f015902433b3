"""
Prefect's REST API with the standard library alone, for code that reads or ends runs without loading
Prefect.

An extension of Lambda has two seconds for that, and importing Prefect takes as long.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPException
from itertools import count
from typing import Any

from ...core import retry
from ...core.errors import UnavailableError
from ...core.store.values import JsonObject
from ...core.tags import call_tag
from . import connections
from .environment import Api
from .plain import plain

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
# How long a run waits for a Prefect that does not answer.
AWAY_S = 30
_PAGE = 200
BUSY = (429, *range(500, 600))
_OLD = "Prefect's server may be too old for this: pfl doctor compares the versions"
HINTS = {
    401: "check PREFECT_API_KEY",
    403: "PREFECT_API_KEY lacks a permission: ask for a role that has it",
    404: _OLD,
    405: _OLD,
    422: _OLD,
}

# A task run that pfl recorded: its ``flow_run_id``, ``step``, ``id`` and ``tags``, and if it ended,
# the ``type`` of its state.
TaskInfo = Mapping[str, object]


class RefusedError(Exception):
    """The status with which Prefect refused a request, and what it wrote."""

    def __init__(self, status: int, text: bytes) -> None:
        shown = " ".join(text[:500].decode(errors="replace").split())
        super().__init__(f"HTTP {status}: {shown}")
        self.status = status


def ask(
    api: Api,
    path: str,
    body: object = None,
    *,
    method: str = "",
    none: tuple[int, ...] = (404,),
    longest_s: float = 2,
) -> Any:
    """
    Return Prefect's answer, in Prefect's own format: to a POST of *body*, or to a GET without
    one.

    Args:
        api: The API to call.
        path: The path, with a slash in front.
        body: What to send as JSON.
        method: The HTTP method, if it is not the one above.
        none: Statuses for which the answer is None: 404 means that the thing does not exist.
        longest_s: How long to repeat the request while Prefect does not answer or is busy.

    Raises:
        UnavailableError: Prefect did not answer, or refused.
    """
    data = None if body is None else json.dumps(plain(body)).encode()
    headers = {"content-type": "application/json", "user-agent": "pfl"}
    if api.key:
        headers["authorization"] = f"Bearer {api.key}"
    elif api.auth:
        headers["authorization"] = "Basic " + base64.b64encode(api.auth.encode()).decode()
    verb = method or ("GET" if data is None else "POST")

    def send() -> Any:
        try:
            status, text = connections.exchange(verb, api.url + path, data, headers)
            if status < 300:
                return json.loads(text) if text else {}
        except (OSError, HTTPException, ValueError) as exc:
            raise UnavailableError(
                f"Prefect at {api.url} did not answer",
                why=" ".join(str(exc).split())[:500],
                hint="is the server up, and PREFECT_API_URL right?",
            ) from exc
        if status in none:
            return None
        refusal = RefusedError(status, text)
        raise UnavailableError(
            f"Prefect at {api.url} refused {path}", why=str(refusal), hint=HINTS.get(status, "")
        ) from refusal

    # The server may have done its work: every request of pfl can be repeated.
    return retry.retry(
        send,
        retry.pauses_for(longest_s),
        may_pass=lambda exc: status_of(exc) in (None, *BUSY),
    )


def status_of(exc: Exception) -> int | None:
    """The status with which Prefect refused a request; None if it did not answer."""
    cause = exc.__cause__
    return cause.status if isinstance(cause, RefusedError) else None


def pages(api: Api, path: str, chosen: Mapping[str, object] = {}) -> Iterator[JsonObject]:
    """Yield all that the filter *chosen* finds, read page by page."""
    for offset in count(0, _PAGE):
        page = ask(api, path, {**chosen, "limit": _PAGE, "offset": offset}) or []
        yield from page
        if len(page) < _PAGE:
            return


def set_state(
    api: Api,
    kind: str,
    run_id: str,
    type: str,
    message: str,
    *,
    force: bool = False,
    longest_s: float = 2,
) -> bool:
    """
    Set a terminal state, and return whether the run accepted it.

    Without *force*, the server itself refuses to replace a terminal state that was set meanwhile.

    Args:
        api: The API to call.
        kind: ``flow_runs`` or ``task_runs``.
        run_id: The run's ID.
        type: The state's type, such as ``CRASHED``.
        message: The state's message.
        force: Whether to replace a terminal state.
        longest_s: See :func:`ask`.
    """
    body = {"state": _state(type, message), "force": force}
    answer = ask(api, f"/{kind}/{run_id}/set_state", body, longest_s=longest_s)
    return answer is not None and answer["status"] == "ACCEPT"


def runs_of_call(api: Api, call: str) -> list[str]:
    """The IDs of the flow runs with the tag of a call, given its token."""
    tagged = {"flow_runs": {"tags": {"all_": [call_tag(call)]}}}
    return [run["id"] for run in pages(api, "/flow_runs/filter", tagged)]


def end(
    api: Api,
    type: str,
    message: str,
    flow_runs: Iterable[str],
    *,
    tasks: Mapping[str, TaskInfo] = {},
    finished: Mapping[str, TaskInfo] = {},
    is_over: bool = True,
    force: bool = False,
    wait_s: float = 0,
) -> list[str]:
    """
    End all that is open of some flow runs: task runs first, which frees their slots.

    States of task runs are events, which may still be on their way when their process is dead. So a
    task run that looks open may have ended, and one that holds a slot may be unknown to Prefect.

    Args:
        api: The API to call.
        type: The type of the final state: ``CRASHED``, ``CANCELLED``, or how the run ended if
            Prefect does not know.
        message: The state's message: what happened, why, and what to do, a line each.
        flow_runs: The IDs of the flow runs.
        tasks: Task runs that certainly did not end, by ID.
        finished: Task runs that certainly ended, by ID.
        is_over: Whether the process is gone, so that nothing of *finished* is still on its way to
            Prefect.
        force: Replace a terminal state, such as the crash that Prefect's own engine makes of an
            interruption.
        wait_s: How long to wait for events of other task runs.

    Returns:
        The IDs of the runs that were not in a terminal state, and are now.
    """
    chosen = {"flow_runs": {"id": {"any_": sorted(flow_runs)}}}
    runs = {run["id"]: run for run in pages(api, "/flow_runs/filter", chosen)}
    if not runs:
        return []
    changed: list[str] = []
    expected = {**tasks, **finished} if is_over else tasks
    until = time.monotonic() + wait_s

    def is_open(run: JsonObject) -> bool:
        # Prefect's engine calls it a crash when an interruption comes between two states; of the
        # flow runs and of *tasks*, pfl knows better.
        is_ours = (run["state"] or {}).get("message") == message
        is_known = run["id"] in runs or run["id"] in tasks
        final = FINAL - {"CRASHED"} if force and is_known and not is_ours else FINAL
        return run["state_type"] not in final

    while True:
        is_late = time.monotonic() >= until
        found = {task["id"]: task for task in pages(api, "/task_runs/filter", chosen)}
        open_ids = [id for id, task in found.items() if is_open(task)]
        if not is_over:
            open_ids = [id for id in open_ids if id not in finished]
        for id in open_ids:
            if is_late and id in finished:
                outcome = str(finished[id]["type"])
                set_state(api, "task_runs", id, outcome, "Recorded later by pfl.")
            elif is_late or id in tasks:
                if set_state(api, "task_runs", id, type, message, force=force):
                    changed.append(id)
        if is_late or (expected.keys() <= found.keys() and tasks.keys() >= set(open_ids)):
            break
        time.sleep(0.25)
    for id, info in expected.items():
        if id in found or info["flow_run_id"] not in runs:
            continue
        # Its process was killed before it reported more than the slot that it took, or Prefect was
        # away. A task run that is created as ended frees that slot.
        body = {
            "id": id,
            "flow_run_id": info["flow_run_id"],
            "task_key": info["step"],
            "dynamic_key": id,
            "name": f"{info['step']}[{info['id']}]",
            "tags": info.get("tags") or [],
            "state": _state(str(info.get("type", type)), message),
        }
        ask(api, "/task_runs/", body)
        changed.append(id)
    for id, run in runs.items():
        if is_open(run):
            if set_state(api, "flow_runs", id, type, message, force=force):
                changed.append(id)
    return changed


def _state(type: str, message: str) -> dict[str, str]:
    return {"type": type, "name": type.capitalize(), "message": message}
