"""``pfl invoke`` and ``pfl plan``: run steps for an ID, or show what would run."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

from typer import Exit, Option

from ..handler.core import errors, event
from ..handler.core.cache import accept
from ..handler.core.cache import forecast as forecasts
from ..handler.core.cache.lookup import Finding
from ..handler.core.declare import catalog, project
from ..handler.core.errors import InvalidRequestError
from ..handler.core.event import Reply, Request
from ..handler.core.settings import Settings
from ..handler.core.store import objects, records
from ..handler.engine import reap
from ..serverless import remote
from . import output, settings, stored
from .options import Engine, refuse_together

# The last lines of a failed process, which name the exception and its module.
_SHOWN_LINES = 4
# The fields of an event, or its JSON.
Event = dict[str, object] | str

Id = Annotated[str | None, Option(help="ID to compute results for.")]
FlowName = Annotated[str | None, Option(help="Flow (default: the first in flows/pipeline.py).")]
Step = Annotated[str | None, Option(help="Step, and the steps it needs (default: all steps).")]
Bust = Annotated[list[str] | None, Option(help="Compute again: this, all, or a step; repeatable.")]
Skip = Annotated[
    list[str] | None, Option(help="Use the newest stored value of this step; repeatable.")
]
Param = Annotated[
    list[str] | None, Option(metavar="NAME=VALUE", help="Parameter of the flow; repeatable.")
]


def invoke(
    id: Id = None,
    flow: FlowName = None,
    step: Step = None,
    bust: Bust = None,
    skip: Skip = None,
    param: Param = None,
    cached_only: bool = False,
    engine: Engine = None,
    event_text: Annotated[str | None, Option("--event")] = None,
    asynchronous: Annotated[bool, Option("--async")] = False,
    local: bool = False,
    function: str | None = None,
    endpoint_url: str = "",
) -> None:
    """
    Run a flow, or one of its steps, for an ID; stored results are not computed again.

    Args:
        cached_only: Never compute; exit code 3 on a miss.
        event_text: The whole event: JSON, @FILE, or - for stdin.
        asynchronous: Do not wait; needs a deployed function.
        local: Run here, even if a function is deployed.
        function: Lambda function to call.
        endpoint_url: Endpoint URL of Lambda.
    """
    chosen = settings.load(engine=engine, function=function)
    refuse_together({"--local": local, "--function": function})
    target = None if local else remote.target(chosen)
    if asynchronous and target is None:
        raise InvalidRequestError(
            "--async needs a deployed function",
            why="no function was deployed from here, or --local was given",
            hint="leave --async out",
        )
    fields = event_of(
        chosen,
        id=id,
        flow=flow,
        step=step,
        bust=bust,
        skip=skip,
        param=param,
        cached_only=cached_only,
    )
    raw: Event = fields
    if event_text is not None:
        if fields:
            raise InvalidRequestError(
                f"--event and {', '.join(fields)} do not go together", hint="put all into the event"
            )
        raw = _read(event_text)
    elif engine is not None:
        fields["engine"] = engine
    if target is None:
        output.say(f"running here, store {chosen.store or chosen.home / 'store'}")
        show_reply(call_here(raw, chosen, request_id=str(uuid4()), notify=output.progress))
        return
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
        request_id = reply["request_id"]
        row = {"id": fields.get("id"), "function": target.function, "request_id": request_id}
        output.emit({"version": 1, "status": "queued", **row})
        only = f" --id {row['id']}" if row["id"] else ""
        output.say(f"queued as {request_id}; to follow it: pfl logs -f{only}")
        return
    remote.fetch(reply, chosen)
    is_current(chosen, reply.get("code"))
    show_reply(reply)


def call_here(raw: Event, chosen: Settings, **options: Any) -> Reply:
    """The reply of the handler, run in this process; *options* are those of ``entry.handle``."""
    from ..handler import entry

    with output.stdout_kept_for_data():
        return entry.handle(raw, chosen, results=objects.of(chosen), **options)


def is_current(chosen: Settings, deployed: str | None) -> bool | None:
    """Whether the deployed code is that of the project, else with a warning; None if unknown."""
    try:
        with output.stdout_kept_for_data():
            code = catalog.load(chosen).digest
    except errors.PflError:
        return None  # The flows do not exist here, or cannot be imported.
    if deployed and deployed != code:
        output.say(
            "warning: the deployed code differs from the code here; see pfl deploy --dry-run"
        )
    return deployed == code


def _mark_as_crashed(chosen: Settings, error: remote.FunctionCrashedError) -> None:
    """
    Mark the runs of a call that died in Lambda as crashed, with the cause that Lambda reports.

    The next reap would mark them too, but without the cause.
    """
    if not (error.cause and chosen.store):
        return  # Nothing is on record, or not in a store that can be read from here.
    results = objects.of(chosen)
    try:
        for row in reap.reap_failed_request(
            results, chosen, error.request_id, error.cause, error.why
        ):
            output.say(f"{row['what']}: its runs are marked as Crashed")
    except errors.PflError as exc:
        output.say(f"warning: cannot mark its runs as Crashed: {exc}; run pfl runs reap")


def plan(
    id: Id = None,
    flow: FlowName = None,
    step: Step = None,
    bust: Bust = None,
    skip: Skip = None,
    param: Param = None,
) -> None:
    """Show what an invoke would run, and why; nothing is computed or written."""
    chosen = settings.load()
    found = forecast(chosen, id=id, flow=flow, step=step, bust=bust, skip=skip, param=param)
    request = found.request
    head = {"version": 1, "id": request.id, "flow": request.flow.name}
    output.emit({**head, "steps": found.rows})
    rows = [{**row, "would": row["status"]} for row in found.rows]
    output.table(("step", "would", "why"), rows)
    computed = [row["step"] for row in found.rows if row["status"] == "compute"]
    if computed:
        for sentence in find_unstable(found.project, chosen, computed):
            output.say(f"warning: {sentence}")
    depends = sum(row["status"] == "depends" for row in found.rows)
    note = f", {depends} more may be" if depends else ""
    output.say(f"{len(computed)} of {len(found.rows)} steps would be computed{note}")


class Forecast(NamedTuple):
    """What a call would do: its request, what is stored for it, a row for each step, the flows."""

    request: Request
    finding: Finding
    rows: list[forecasts.ForecastRow]
    project: project.Project


def forecast(chosen: Settings, *, diff: bool = False, **options: Any) -> Forecast:
    """Forecast what the call of these options would do; warn about each part that is unknown."""
    request = request_of(chosen, **options)
    results = objects.of(chosen)
    finding = accept.find(request, results, [])
    with output.stdout_kept_for_data():
        loaded = project.load(chosen)
    warnings = []
    if loaded.asked_others:
        warnings.append(
            f"{loaded.asked_others} starts a process or opens a connection at import,"
            " so every pfl command imports the flows again"
        )
    rows = forecasts.steps(request, finding, results, loaded.prints, diff=diff)
    stored.explain_misses(results, request, rows)
    for row in rows:
        row["opaque"] = [
            f"{part.name} at {part.file or '?'}:{part.line}: {part.text}"
            for part in loaded.prints[row["step"]].opaque
        ]
        incomplete = f"the fingerprint of {row['step']} is incomplete"
        warnings += [f"{incomplete}: {part}" for part in row["opaque"]]
    for warning in [*finding.warnings, *warnings]:
        output.say(f"warning: {warning}")
    return Forecast(request, finding, rows, loaded)


def find_unstable(
    project: project.Project, chosen: Settings, steps: Iterable[str]
) -> Iterator[str]:
    """
    Yield a sentence on each value that differs from process to process, so that a step never hits.

    Raises:
        InvalidRequestError: The flows cannot be imported in a fresh process.
    """
    with TemporaryDirectory() as folder:
        run_python(chosen, "-m", "pfl.handler.bake", f"{folder}/manifest", PYTHONHASHSEED="1")
        fresh = records.unseal(Path(folder, "manifest.parts").read_bytes(), "manifest.parts")
    for name in steps:
        print = project.prints[name]
        digests = {part["name"]: part["digest"] for part in fresh[name]["parts"]}
        changed = [part for part in print.parts if digests.get(part.name) != part.digest]
        # A function only differs because of a value that it reads; its source cannot.
        values = [part for part in changed if part.kind not in ("function", "class")]
        for part in values or changed:
            place = f"`{part.name}` at {part.file}:{part.line}"
            yield f"{name} never hits: {place} differs in each process"


def run_python(chosen: Settings, *arguments: str, **environ: str) -> str:
    """
    The output of a fresh Python process, which imports the flows.

    Raises:
        InvalidRequestError: It failed.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PFL_PROJECT": str(chosen.root), **environ},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InvalidRequestError(
            "the flows worked in this process, but not in a fresh one",
            why="\n".join(lines[-_SHOWN_LINES:]).removeprefix("error: "),
            hint="an import must not depend on what ran before it, or on the hash seed",
        )
    return done.stdout


def request_of(chosen: Settings, **options: Any) -> Request:
    """The request that the given options describe."""
    return event.parse(event_of(chosen, **options), catalog.load(chosen))


def event_of(
    chosen: Settings,
    *,
    bust: list[str] | None = None,
    param: list[str] | None = None,
    flow: str | None = None,
    **options: object,
) -> dict[str, object]:
    """The event that the given options describe."""
    fields: dict[str, object] = {**options, "flow": flow, "bust": bust}
    if bust in (["this"], ["all"]):
        fields["bust"] = bust[0]
    if param:
        fields["params"] = _params(chosen, flow, param)
    return {name: value for name, value in fields.items() if value not in (None, [], False)}


def _read(event_text: str) -> str:
    try:
        if event_text == "-":
            return sys.stdin.read()
        return Path(event_text[1:]).read_text("utf-8") if event_text.startswith("@") else event_text
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(
            f"the event {event_text} cannot be read", why=str(exc), hint="--event @FILE"
        ) from exc


def _params(chosen: Settings, flow: str | None, texts: list[str]) -> dict[str, object]:
    flows = catalog.load(chosen)
    entry = flows.flows.get(flow or flows.default)
    known = entry.params if entry else {}
    values: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InvalidRequestError(f"--param {text!r} has no value", hint="--param rate=2")
        if name in values:
            raise InvalidRequestError(f"--param {name} is given twice", hint="give it once")
        # The check of the event reports an unknown flow or parameter.
        values[name] = known[name].parse(name, value) if name in known else value
    return values


def show_reply(reply: Reply) -> None:
    """
    Print a reply.

    Raises:
        Exit: The reply is an error.
    """
    steps = reply["steps"]
    for warning in reply.get("warnings", ()):
        output.say(f"warning: {warning}")
    output.emit(reply)
    table = output.Table(("step", "status", "value", "time>", "why"))
    for row in steps:
        has_value = row["status"] not in ("miss", "failed")
        value = output.cut(row["value"]) if has_value else None
        status = (row["status"], row["url"])
        shown = {**row, "status": status, "value": value, "time": _duration(row["ms"])}
        table.add(shown)
    table.flush()
    if "error" in reply:
        output.explain(reply["error"])
    elif not output.in_json:
        hits = sum(row["status"] == "hit" for row in steps)
        time = _duration(reply["ms"])
        output.say(f"{hits} of {len(steps)} steps from the cache, {time} in all")
    if reply.get("url"):
        output.say(f"flow run {reply['url']}")
    if "error" in reply:
        raise Exit(errors.exit_code(reply["error"]["type"]))


def _duration(ms: float) -> str:
    if ms >= 1_000:
        return f"{ms / 1e3:.1f} s"
    return f"{ms:.1f} ms" if ms >= 0.05 else "-"
