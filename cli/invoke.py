"""``pfl invoke`` and ``pfl plan``: run steps for an ID, or say what would run."""

from __future__ import annotations

from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import Engine, Json
from pfl.handler.core import errors
from pfl.handler.core.errors import InvalidRequestError

Id = Annotated[str | None, typer.Option("--id", help="What the results are about.")]
FlowName = Annotated[
    str | None,
    typer.Option("--flow", help="The flow; the first of flows/pipeline.py if not given."),
]
Step = Annotated[
    str | None,
    typer.Option("--step", help="The step to run, with what it needs; all if not given."),
]
Bust = Annotated[
    list[str] | None,
    typer.Option("--bust", help="Compute again: this, all, or a step; repeatable."),
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", help="Take this step's newest stored value; repeatable."),
]
Param = Annotated[
    list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A parameter; repeatable.")
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
        str | None, typer.Option("--function", help="The Lambda function to call.")
    ] = None,
    endpoint_url: Annotated[str, typer.Option("--endpoint-url", help="Where Lambda listens.")] = "",
    json: Json = False,
) -> None:
    """Run a flow, or one step of it, for an ID; what is stored is not computed again."""
    import uuid

    from pfl.handler.core.store import objects

    chosen = settings.load(engine=engine, function=function)
    if local and function:
        raise InvalidRequestError(
            "--local and --function do not go together", hint="leave one of the two out"
        )
    target = None if local else _target(chosen)
    if asynchronous and target is None:
        why = (
            "only a deployed function goes on after the call"
            if local
            else "no function is deployed from here"
        )
        raise InvalidRequestError("--async cannot be used here", why=why, hint="leave --async out")
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
    if target is not None:
        if isinstance(raw, dict) and engine is not None:
            raw["engine"] = engine
        return _remote(chosen, target, raw, endpoint_url, asynchronous, json)
    from pfl.handler import entry

    results = objects.of(chosen)
    output.say(f"running here, store {chosen.store or chosen.home / 'store'}")
    with output.stdout_kept_for_data():
        reply = entry.handle(
            raw, chosen, request_id=str(uuid.uuid4()), results=results, notify=output.progress
        )
    _show(reply, json)
    if "error" in reply:
        raise typer.Exit(errors.exit_code(reply["error"]["type"]))


def _target(chosen):
    """The deployed function; without one, nothing of AWS is imported."""
    if not chosen.function and not (chosen.home / "deployed.json").exists():
        return None
    from pfl.serverless import remote

    return remote.target(chosen)


def _remote(chosen, target, raw, endpoint_url: str, asynchronous: bool, json: bool) -> None:
    from pfl.handler.core.declare import catalog
    from pfl.serverless import remote

    output.say(
        f"calling function {target.function}{f' in {target.region}' if target.region else ''}"
    )
    try:
        sent = remote.call(
            target, raw, endpoint_url=endpoint_url, asynchronous=asynchronous, tell=output.say
        )
    except errors.UnavailableError as exc:
        _bury(chosen, exc)
        raise
    if sent.reply is None:
        asked = raw.get("id") if isinstance(raw, dict) else None
        output.emit(
            {
                "version": 1,
                "status": "queued",
                "id": asked,
                "function": target.function,
                "request_id": sent.request_id,
            }
        ) if json else None
        output.say(
            f"queued as {sent.request_id}; to follow it: pfl logs -f{f' --id {asked}' if asked else ''}, or invoke with --cached-only"
        )
        return
    remote.fetch(sent.reply, chosen)
    try:
        with output.stdout_kept_for_data():
            here = catalog.load(chosen).digest
        if sent.reply.get("code") not in (None, "", here):
            output.say(
                "warning: the deployed code is not the code here; pfl deploy --dry-run says what differs"
            )
    except errors.PflError:
        pass  # No flows here, or none that can be imported: nothing to compare with.
    _show(sent.reply, json)
    if "error" in sent.reply:
        raise typer.Exit(errors.exit_code(sent.reply["error"]["type"]))


def _bury(chosen, died) -> None:
    """Mark the runs of a call that died in Lambda as Crashed, with what Lambda said of it; else the next reap does, without."""
    causes = {
        "FunctionTimedOutError": "timeout",
        "FunctionOutOfMemoryError": "memory",
        "FunctionExitedError": "exit",
    }
    cause = causes.get(type(died).__name__)
    if cause is None or not chosen.store:
        return  # Nothing of it is on record, or not where we could see it.
    from pfl.handler.core.store import objects
    from pfl.handler.engine import reap

    try:
        for row in reap.after_error(objects.of(chosen), chosen, died.request_id, cause, died.why):
            output.say(f"{row['what']}: its runs are marked as Crashed")
    except errors.PflError as exc:
        output.say(f"warning: its runs are not marked yet ({exc}); pfl runs reap does it")


def plan(
    id: Id = None, flow: FlowName = None, step: Step = None, bust: Bust = None, skip: Skip = None, param: Param = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Say what an invoke would run, and why, before paying for it; nothing is computed or written."""
    chosen = settings.load()
    raw = event_of(chosen, id=id, flow=flow, step=step, bust=bust, skip=skip, params=param)
    request, finding, rows, loaded = forecast(chosen, raw)
    for warning in finding.warnings:
        output.say(f"warning: {warning}")
    if json:
        output.emit({"version": 1, "id": request.id, "flow": request.flow.name, "steps": rows})
    else:
        output.table(
            ["step", "would", "why"],
            [(row["step"], row["status"], row["why"] or "") for row in rows],
        )
    _doubts(request, rows, loaded)
    computing = sum(row["status"] == "compute" for row in rows)
    depends = sum(row["status"] == "depends" for row in rows)
    output.say(
        f"{computing} of {len(rows)} steps would be computed"
        + (f", {depends} more may be" if depends else "")
    )


def forecast(chosen, raw: dict, *, diff: bool = False):
    """The request of an event, what is stored for it, what would be done with each step, and the project; what is not known is warned of."""
    from pfl.handler.core import event as events
    from pfl.handler.core.cache import accept
    from pfl.handler.core.cache import forecast as forecasting
    from pfl.handler.core.declare import catalog, project
    from pfl.handler.core.store import objects

    request = events.parse(raw, catalog.load(chosen))
    results = objects.of(chosen)
    finding = accept.find(request, results, [])
    with output.stdout_kept_for_data():
        loaded = project.load(chosen)
    if loaded.asked_others:
        output.say(
            f"warning: {loaded.asked_others} starts a process or connects when it is imported: each pfl imports the flows anew"
        )
    rows = forecasting.steps(request, finding, results, loaded.prints, diff=diff)
    for row in rows:
        row["opaque"] = [
            f"{part.name} at {part.file or '?'}:{part.line}: {part.text}"
            for part in loaded.prints[row["step"]].opaque
        ]
        for doubt in row["opaque"]:
            output.say(f"warning: {row['step']} cannot be known whole: {doubt}")
    return request, finding, rows, loaded


def _doubts(request, rows: list[dict], loaded) -> None:
    """Warn of values that differ from process to process."""
    from pfl.handler.core import fingerprint

    for row in rows:
        if row["status"] == "compute":
            function = loaded.flows[request.flow.name].steps[row["step"]].function
            try:
                parts = fingerprint.unstable(function)
            except InvalidRequestError as exc:
                output.say(
                    f"warning: whether {row['step']} is the same in each process is not known: {exc}"
                )
                continue
            for part in parts:
                output.say(
                    f"warning: {row['step']} never hits: `{part.name}` at {part.file or '?'}:{part.line} differs in each process"
                )


def event_of(chosen, event: str | None = None, **options: object) -> dict | str:
    """The event of the options that were given; *event* is taken whole and goes with none of the others."""
    given = {name: value for name, value in options.items() if value not in (None, [], False)}
    if event is not None:
        if given:
            raise InvalidRequestError(
                f"--event and --{next(iter(given))} do not go together", hint="put it in the event"
            )
        return _read(event)
    if "bust" in given:
        given["bust"] = given["bust"][0] if given["bust"] in (["this"], ["all"]) else given["bust"]
    if "params" in given:
        given["params"] = _params(chosen, given.get("flow"), given["params"])
    return given


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


def _params(chosen, flow: str | None, texts: list[str]) -> dict[str, object]:
    from pfl.handler.core.declare import catalog

    flows = catalog.load(chosen)
    entry = flows.flows.get(flow or flows.default)
    values: dict[str, object] = {}
    for text in texts:
        name, sep, value = text.partition("=")
        if not sep or not name:
            raise InvalidRequestError(f"--param {text!r} has no value", hint="--param rate=2")
        if name in values:
            raise InvalidRequestError(f"--param {name} is given twice", hint="give it once")
        # An unknown flow or parameter is told by the event's own check.
        values[name] = (
            entry.params[name].parse(name, value) if entry and name in entry.params else value
        )
    return values


def _show(reply: dict, json: bool) -> None:
    for warning in reply.get("warnings", ()):
        output.say(f"warning: {output.printable(warning)}")
    if json:
        output.emit(reply)
    elif reply["steps"]:
        rows = []
        for row in reply["steps"]:
            shown = "" if row["status"] in ("miss", "failed") else output.cut(row["value"])
            rows.append(
                (row["step"], (row["status"], row["url"]), shown, _ms(row["ms"]), row["why"] or "")
            )
        output.table(["step", "status", "value", "time>", "why"], rows)
    if "error" in reply:
        output.explain(reply["error"])
    elif not json:
        cached = sum(row["status"] == "hit" for row in reply["steps"])
        output.say(
            f"{cached} of {len(reply['steps'])} steps from the cache, {_ms(reply['ms'])} in all"
        )
    if reply.get("url"):
        output.say(f"flow run {reply['url']}")


def _ms(ms: float) -> str:
    return f"{ms / 1e3:.1f} s" if ms >= 1_000 else f"{ms:.1f} ms" if ms >= 0.05 else "-"
