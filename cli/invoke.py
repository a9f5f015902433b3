"""``pfl invoke`` and ``pfl plan``: run steps for an ID, or show what would run."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ..handler.core import errors
from ..handler.core.errors import InvalidRequestError
from . import output, settings, stored
from .options import Engine, Json

if TYPE_CHECKING:
    from ..handler.core.cache.forecast import ForecastRow
    from ..handler.core.cache.lookup import Finding
    from ..handler.core.declare.project import Project
    from ..handler.core.event import Reply, Request
    from ..handler.core.settings import Settings
    from ..serverless.remote import FunctionCrashedError, Target

# The fields of an event, or its JSON.
Event = dict[str, object] | str

Id = Annotated[str | None, typer.Option("--id", help="ID to compute results for.")]
FlowName = Annotated[
    str | None,
    typer.Option("--flow", help="Flow; the first of flows/pipeline.py if not given."),
]
Step = Annotated[
    str | None,
    typer.Option("--step", help="Step, with the steps it needs; all steps if not given."),
]
Bust = Annotated[
    list[str] | None,
    typer.Option("--bust", help="Compute again: this, all, or a step; repeatable."),
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", help="Use the newest stored value of this step; repeatable."),
]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="Parameter of the flow; repeatable."),
]


def invoke(
    id: Id = None,
    flow: FlowName = None,
    step: Step = None,
    bust: Bust = None,
    skip: Skip = None,
    param: Param = None,
    cached_only: Annotated[
        bool, typer.Option("--cached-only", help="Never compute; exit 3 on a miss.")
    ] = False,
    engine: Engine = None,
    event: Annotated[
        str | None, typer.Option("--event", help="The whole event: JSON, @FILE, or - for stdin.")
    ] = None,
    asynchronous: Annotated[
        bool, typer.Option("--async", help="Do not wait; needs a deployed function.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run here, even if a function is deployed.")
    ] = False,
    function: Annotated[
        str | None, typer.Option("--function", help="Lambda function to call.")
    ] = None,
    endpoint_url: Annotated[
        str, typer.Option("--endpoint-url", help="Endpoint URL of Lambda.")
    ] = "",
    json: Json = False,
) -> None:
    """Run a flow, or one of its steps, for an ID; stored results are not computed again."""
    chosen = settings.load(engine=engine, function=function)
    if local and function:
        raise InvalidRequestError(
            "--local and --function do not go together", hint="leave one of the two out"
        )
    target = None if local else _target(chosen)
    if asynchronous and target is None:
        raise InvalidRequestError(
            "--async needs a deployed function",
            why="--local runs here" if local else "no function is deployed from here",
            hint="leave --async out",
        )
    raw = event_of(
        chosen,
        event,
        id=id,
        flow=flow,
        step=step,
        bust=bust,
        skip=skip,
        params=param,
        cached_only=cached_only,
    )
    if target is None:
        reply = _run_here(chosen, raw)
    else:
        if isinstance(raw, dict) and engine is not None:
            raw["engine"] = engine
        sent = _call(chosen, target, raw, endpoint_url, asynchronous, json)
        if sent is None:
            return
        reply = sent
    # If the reader of stdout is gone, the call has still failed or not.
    with suppress(SystemExit):
        _show(reply, json)
    if "error" in reply:
        raise typer.Exit(errors.exit_code(reply["error"]["type"]))


def _run_here(chosen: Settings, raw: Event) -> Reply:
    import uuid

    from ..handler import entry

    results = settings.open_store(chosen)
    output.say(f"running here, store {chosen.store or chosen.home / 'store'}")
    with output.stdout_kept_for_data():
        return entry.handle(
            raw, chosen, request_id=str(uuid.uuid4()), results=results, notify=output.progress
        )


def _target(chosen: Settings) -> Target | None:
    """The deployed function, if there is one; otherwise nothing of AWS is imported."""
    if not chosen.function and not (chosen.home / "deployed.json").exists():
        return None
    from ..serverless import remote

    return remote.target(chosen)


def _call(
    chosen: Settings,
    target: Target,
    raw: Event,
    endpoint_url: str,
    asynchronous: bool,
    json: bool,
) -> Reply | None:
    """The reply of the deployed function; None if the call is queued, which is printed here."""
    from ..serverless import remote

    region = f" in {target.region}" if target.region else ""
    output.say(f"calling function {target.function}{region}")
    try:
        reply = remote.call(
            target, raw, endpoint_url=endpoint_url, asynchronous=asynchronous, report=output.say
        )
    except remote.FunctionCrashedError as exc:
        _mark_as_crashed(chosen, exc)
        raise
    if asynchronous:
        id = raw.get("id") if isinstance(raw, dict) else None
        if json:
            row = {"id": id, "function": target.function, "request_id": reply["request_id"]}
            output.emit({"version": 1, "status": "queued", **row})
        only = f" --id {id}" if id else ""
        output.say(
            f"queued as {reply['request_id']}; to follow it: pfl logs -f{only},"
            " or invoke again with --cached-only"
        )
        return None
    remote.fetch(reply, chosen)
    _compare_code(chosen, reply)
    return reply


def _compare_code(chosen: Settings, reply: Reply) -> None:
    """Warn if the deployed code differs from the code here."""
    from ..handler.core.declare import catalog

    try:
        with output.stdout_kept_for_data():
            code = catalog.load(chosen).digest
    except errors.PflError:
        return  # There are no flows here, or none that can be imported.
    if reply.get("code") not in (None, "", code):
        output.say(
            "warning: the deployed code is not the code here;"
            " pfl deploy --dry-run shows the difference"
        )


_CAUSES = {
    "FunctionTimedOutError": "timeout",
    "FunctionOutOfMemoryError": "memory",
    "FunctionExitedError": "exit",
}


def _mark_as_crashed(chosen: Settings, error: FunctionCrashedError) -> None:
    """
    Mark the runs of a call that died in Lambda as crashed, with the cause that Lambda reports.

    The next reap would mark them too, but without the cause.
    """
    cause = _CAUSES.get(type(error).__name__)
    if cause is None or not chosen.store:
        return  # Nothing is on record, or not in a store that can be read from here.
    from ..handler.engine import reap

    results = settings.open_store(chosen)
    try:
        for row in reap.reap_failed_request(results, chosen, error.request_id, cause, error.why):
            output.say(f"{row['what']}: its runs are marked as Crashed")
    except errors.PflError as exc:
        output.say(f"warning: its runs are not marked as Crashed: {exc}; pfl runs reap does it")


def plan(
    id: Id = None,
    flow: FlowName = None,
    step: Step = None,
    bust: Bust = None,
    skip: Skip = None,
    param: Param = None,
    json: Json = False,
) -> None:
    """Show what an invoke would run, and why; nothing is computed or written."""
    chosen = settings.load()
    raw = event_of(chosen, id=id, flow=flow, step=step, bust=bust, skip=skip, params=param)
    found = forecast(chosen, raw)
    for warning in found.finding.warnings:
        output.say(f"warning: {warning}")
    if json:
        request = found.request
        reply = {"version": 1, "id": request.id, "flow": request.flow.name, "steps": found.rows}
        output.emit(reply)
    else:
        rows = [(row["step"], row["status"], row["why"] or "") for row in found.rows]
        output.table(["step", "would", "why"], rows)
    _warn_of_unstable(found)
    statuses = [row["status"] for row in found.rows]
    depends = statuses.count("depends")
    output.say(
        f"{statuses.count('compute')} of {len(statuses)} steps would be computed"
        + (f", {depends} more may be" if depends else "")
    )


class Forecast(NamedTuple):
    """What a call would do: its request, what is stored for it, a row for each step, the flows."""

    request: Request
    finding: Finding
    rows: list[ForecastRow]
    project: Project


def forecast(chosen: Settings, raw: Event, *, diff: bool = False) -> Forecast:
    """Forecast what the event *raw* would do, with a warning for each part that is unknown."""
    from ..handler.core import event as events
    from ..handler.core.cache import accept
    from ..handler.core.cache import forecast as forecasts
    from ..handler.core.declare import catalog, project

    request = events.parse(raw, catalog.load(chosen))
    results = settings.open_store(chosen)
    finding = accept.find(request, results, [])
    with output.stdout_kept_for_data():
        loaded = project.load(chosen)
    if loaded.asked_others:
        output.say(
            f"warning: {loaded.asked_others} starts a process or connects when it is imported:"
            " every pfl command imports the flows again"
        )
    rows = forecasts.steps(request, finding, results, loaded.prints, diff=diff)
    stored.explain_misses(results, request, rows)
    for row in rows:
        row["opaque"] = [
            f"{part.name} at {part.file or '?'}:{part.line}: {part.text}"
            for part in loaded.prints[row["step"]].opaque
        ]
        for part in row["opaque"]:
            output.say(f"warning: the fingerprint of {row['step']} is incomplete: {part}")
    return Forecast(request, finding, rows, loaded)


def _warn_of_unstable(found: Forecast) -> None:
    """Warn of values that differ from process to process, so that a step never hits."""
    from ..handler.core import fingerprint

    steps = found.project.flows[found.request.flow.name].steps
    for row in found.rows:
        if row["status"] != "compute":
            continue
        step = row["step"]
        try:
            parts = fingerprint.unstable(steps[step].function)
        except InvalidRequestError as exc:
            output.say(f"warning: pfl cannot check if {step} is the same in each process: {exc}")
            continue
        for part in parts:
            where = f"`{part.name}` at {part.file or '?'}:{part.line}"
            output.say(f"warning: {step} never hits: {where} differs in each process")


def event_of(
    chosen: Settings,
    event: str | None = None,
    *,
    flow: str | None = None,
    bust: list[str] | None = None,
    params: list[str] | None = None,
    **options: object,
) -> Event:
    """The event that the given options describe, or *event* as it is, which goes with no option."""
    fields: dict[str, object] = {**options, "flow": flow, "bust": bust, "params": params}
    fields = {name: value for name, value in fields.items() if value not in (None, [], False)}
    if event is not None:
        if fields:
            name = next(iter(fields)).replace("_", "-")
            raise InvalidRequestError(
                f"--event and --{name} do not go together", hint="put it into the event"
            )
        return _read(event)
    if bust in (["this"], ["all"]):
        fields["bust"] = bust[0]
    if params:
        fields["params"] = _params(chosen, flow, params)
    return fields


def _read(event: str) -> str:
    import sys

    try:
        if event == "-":
            return sys.stdin.read()
        if event.startswith("@"):
            with open(event[1:], encoding="utf-8") as file:
                return file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(
            f"the event {event} cannot be read", why=str(exc), hint="--event @FILE"
        ) from exc
    return event


def _params(chosen: Settings, flow: str | None, texts: list[str]) -> dict[str, object]:
    from ..handler.core.declare import catalog

    flows = catalog.load(chosen)
    entry = flows.flows.get(flow or flows.default)
    known = entry.params if entry else {}
    values: dict[str, object] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or "=" not in text:
            raise InvalidRequestError(f"--param {text!r} has no value", hint="--param rate=2")
        if name in values:
            raise InvalidRequestError(f"--param {name} is given twice", hint="give it once")
        # The check of the event reports an unknown flow or parameter.
        values[name] = known[name].parse(name, value) if name in known else value
    return values


def _show(reply: Reply, json: bool) -> None:
    steps = reply["steps"]
    for warning in reply.get("warnings", ()):
        output.say(f"warning: {warning}")
    if json:
        output.emit(reply)
    elif steps:
        rows = []
        for row in steps:
            value = "" if row["status"] in ("miss", "failed") else output.cut(row["value"])
            status = (row["status"], row["url"])
            rows.append((row["step"], status, value, _duration(row["ms"]), row["why"] or ""))
        output.table(["step", "status", "value", "time>", "why"], rows)
    if "error" in reply:
        output.explain(reply["error"])
    elif not json:
        hits = sum(row["status"] == "hit" for row in steps)
        took = _duration(reply["ms"])
        output.say(f"{hits} of {len(steps)} steps from the cache, {took} in all")
    if reply.get("url"):
        output.say(f"flow run {reply['url']}")


def _duration(ms: float) -> str:
    if ms >= 1_000:
        return f"{ms / 1e3:.1f} s"
    return f"{ms:.1f} ms" if ms >= 0.05 else "-"
