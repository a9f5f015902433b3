"""
Prefect's REST API with the standard library alone: for whoever looks at runs and limits, or ends them, and need not load Prefect.

An extension of Lambda has two seconds for that, and Prefect takes as long to import.
"""

from __future__ import annotations

import base64
import json
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import TypeVar

from pfl.handler.core.errors import BusyError, UnavailableError
from pfl.handler.core.tags import call_tag
from pfl.handler.engine.prefect.environment import Api

T = TypeVar("T")
TIMEOUT_S = 20
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
_PAGE = 200
AWAY_S = 30  # How long a run puts up with a Prefect that does not answer.
_TRIES, _PAUSE_S = (
    5,
    0.3,
)  # A busy server gets them all in four seconds, one that is not there the first three.


def ask(
    api: Api, path: str, body: object = None, *, method: str = "", none: tuple[int, ...] = (404,)
) -> object:
    """
    What the API answers to a POST of *body*, or to a GET without one; None where its status is one of *none*: there is no such thing.

    Raises:
        UnavailableError: It did not answer, or refused.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", "user-agent": "pfl"}
    if api.key:
        headers["authorization"] = f"Bearer {api.key}"
    elif api.auth:
        headers["authorization"] = "Basic " + base64.b64encode(api.auth.encode()).decode()
    request = urllib.request.Request(api.url + path, data, headers, method=method or None)
    for number in range(_TRIES):
        try:
            with urllib.request.urlopen(
                request, timeout=TIMEOUT_S, context=_trusted(api.url)
            ) as response:
                text = response.read()
                return json.loads(text) if text else {}
        except urllib.error.HTTPError as exc:
            why = f"HTTP {exc.code}: {exc.read(500).decode(errors='replace')}"
            if exc.code in none:
                return None
            # Whatever is said here may be said twice.
            if number == _TRIES - 1 or exc.code not in (429, 502, 503, 504):
                hint = "check PREFECT_API_KEY" if exc.code in (401, 403) else ""
                raise UnavailableError(
                    f"Prefect at {api.url} refused {path}", why=" ".join(why.split()), hint=hint
                ) from exc
        except (OSError, ValueError) as exc:
            if number >= 2:
                raise UnavailableError(
                    f"Prefect at {api.url} did not answer", why=" ".join(str(exc).split())[:500]
                ) from exc
        time.sleep(_PAUSE_S * 2**number)
    raise AssertionError("unreachable")


def pages(api: Api, path: str, chosen: Mapping[str, object] = {}) -> Iterator[dict]:  # noqa: B006
    """All that a filter finds, asked for page by page."""
    for offset in count(0, _PAGE):
        page = ask(api, path, {**chosen, "limit": _PAGE, "offset": offset}) or []
        yield from page
        if len(page) < _PAGE:
            return


def patiently(call: Callable[[], T], *, longest_s: float = AWAY_S) -> T:
    """What *call* gives, also where Prefect is away for a while, as when it is started anew; not where it refuses."""
    until = time.monotonic() + longest_s
    while True:
        try:
            return call()
        except UnavailableError as exc:
            is_refused = isinstance(exc, BusyError) or (
                isinstance(exc.__cause__, urllib.error.HTTPError)
                and exc.__cause__.code < 500
                and exc.__cause__.code != 429
            )
            if is_refused or time.monotonic() > until:
                raise
        pause()


def pause() -> None:
    """Wait before asking again; many that wait do not ask together."""
    time.sleep(random.uniform(0.25, 0.45))


def set_state(api: Api, kind: str, run_id: str, type: str, message: str, *, force: bool) -> bool:
    """
    Say that a run, of *kind* ``flow_runs`` or ``task_runs``, is in a terminal state; whether it became so.

    Without *force* the server itself refuses to change a terminal state that came meanwhile.
    """
    state = {"type": type, "name": type.capitalize(), "message": message}
    answer = ask(api, f"/{kind}/{run_id}/set_state", {"state": state, "force": force})
    return answer is not None and answer["status"] == "ACCEPT"


def end(
    api: Api,
    type: str,
    message: str,
    *,
    call: str = "",
    flow_runs: Iterable[str] = (),
    tasks: Mapping[str, dict] = {},  # noqa: B006
    finished: Mapping[str, dict] = {},  # noqa: B006
    is_over: bool = True,
    force: bool = False,
    wait_s: float = 0,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """
    Leave nothing open behind a run: task runs first, for that frees their slots.

    States of task runs are events, which may be on their way still when their process is dead. So a task run that looks open may
    have ended, and one that holds a slot may be unknown.

    Args:
        api: Prefect's.
        type: Of the state: ``CRASHED``, ``CANCELLED``, or what the run came to, where Prefect did not hear of that.
        message: Of the state: what happened, why, and what to do, a line each.
        call: Flow runs with the tag of this call, too.
        flow_runs: Their IDs, as far as known.
        tasks: Task runs that surely did not end, each with ``flow_run_id``, ``step``, ``id`` and ``tags``.
        finished: Task runs that surely ended, each with the same and its ``type`` of state.
        is_over: Whether the process is gone, so that what Prefect has not heard of these it will not hear; else it is on its way.
        force: Also where a terminal state came meanwhile, and where Prefect's own engine has called a crash what it was not.
        wait_s: How long the events of others may take.

    Returns:
        The IDs of the runs that were not in a terminal state, and now are.
    """
    until, changed = time.monotonic() + wait_s, []
    ids = set(flow_runs)
    if call:
        ids |= {
            run["id"]
            for run in pages(
                api, "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [call_tag(call)]}}}
            )
        }
    chosen = {"flow_runs": {"id": {"any_": sorted(ids)}}}
    runs = {run["id"]: run for run in pages(api, "/flow_runs/filter", chosen)} if ids else {}
    tasks = {task: about for task, about in tasks.items() if about["flow_run_id"] in runs}
    told = tasks | (
        {task: about for task, about in finished.items() if about["flow_run_id"] in runs}
        if is_over
        else {}
    )
    while runs:
        is_late = time.monotonic() >= until
        known = {task["id"]: task for task in pages(api, "/task_runs/filter", chosen)}
        # What an interruption strikes between two states Prefect calls a crash; of our own tasks we know better.
        ended = {task: FINAL - {"CRASHED"} if force and task in tasks else FINAL for task in known}
        open_now = [
            t
            for t in known.values()
            if t["state_type"] not in ended[t["id"]] and (is_over or t["id"] not in finished)
        ]
        for task in open_now:
            if is_late and task["id"] in finished:
                set_state(
                    api,
                    "task_runs",
                    task["id"],
                    finished[task["id"]]["type"],
                    "Told by a reaper.",
                    force=False,
                )
                continue
            if (is_late or task["id"] in tasks) and set_state(
                api, "task_runs", task["id"], type, message, force=force
            ):
                changed.append(task["id"])
        if is_late or (
            told.keys() <= known.keys() and all(task["id"] in tasks for task in open_now)
        ):
            break
        sleep(0.25)
    for task, about in told.items():
        # It was killed before it said more than that it took a slot, which is freed by its end; or Prefect was away.
        if task not in known:
            body = {
                "id": task,
                "flow_run_id": about["flow_run_id"],
                "task_key": about["step"],
                "dynamic_key": task,
            }
            body |= {"name": f"{about['step']}[{about['id']}]", "tags": about.get("tags") or []}
            state = about.get("type", type)
            ask(
                api,
                "/task_runs/",
                body | {"state": {"type": state, "name": state.capitalize(), "message": message}},
            )
            changed.append(task)
    for run in runs.values():
        is_told = (run["state"] or {}).get("message") == message
        if run["state_type"] not in (
            FINAL - {"CRASHED"} if force and not is_told else FINAL
        ) and set_state(api, "flow_runs", run["id"], type, message, force=force):
            changed.append(run["id"])
    return changed


_contexts: dict[str, ssl.SSLContext] = {}


def _trusted(url: str) -> ssl.SSLContext | None:
    if not url.startswith("https://"):
        return None
    if url not in _contexts:
        _contexts[url] = ssl.create_default_context()
        if not _contexts[url].get_ca_certs():
            import certifi  # A Python that knows no authorities of its machine; Prefect brings these.

            _contexts[url].load_verify_locations(certifi.where())
    return _contexts[url]
