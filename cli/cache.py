"""``pfl cache``: what is stored, for which IDs, and what it rests on."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import output, settings
from cli.invoke import FlowName, Json, Param, Step
from handler.core.errors import CorruptRecordError, NotFoundError

app = typer.Typer(help="What is stored, for which IDs, and what it rests on.", no_args_is_help=True)


@app.command("ls")
def ls(
    id: Annotated[str | None, typer.Option("--id", help="Only this ID.")] = None,
    flow: FlowName = None,
    step: Annotated[str | None, typer.Option("--step", help="Only this step.")] = None,
    json: Json = False,
) -> None:
    """List what a call can be answered from, one line per stored plan, as it is found."""
    from handler.core import event, inspection, store

    if id is not None:
        event.check_id(id)
    count = 0
    for row in inspection.entries(store.of(settings.load()), id=id, flow=flow, step=step, warn=_warn):
        if json:
            output.emit(row)
        else:
            if not count:
                output.emit(_LINE.format("ID", "FLOW", "STEP", "KEY", "BYTES", "COMPUTED"))
            shown = output.printable(row["id"])
            output.emit(
                _LINE.format(shown, row["flow"], row["step"], row["key"][:12], row["size_bytes"], row["computed_at"][:19])
            )
        count += 1
    output.say(f"{count} stored")


_LINE = "{:<24} {:<12} {:<12} {:<12} {:>9}  {}"


@app.command("inspect")
def inspect(
    id: Annotated[str, typer.Option("--id", help="The ID.")],
    flow: FlowName = None,
    step: Step = None,
    param: Param = None,
    json: Json = False,
) -> None:
    """Show what is stored for an ID: key, fingerprint, real inputs, value, run, and whether it is current."""
    from cli.invoke import _event
    from handler.core import event, inspection, manifest, store

    chosen = settings.load()
    raw = _event(chosen, None, id, flow, step, None, None, param, False)
    request = event.parse(raw, manifest.load(chosen), allow_pickle=chosen.allow_pickle)
    rows = list(inspection.inspect(request, store.of(chosen), warn=_warn))
    if not rows:
        what = f"nothing is stored for {id!r}" + (f", step {step}" if step else "")
        raise NotFoundError(what, hint=f"pfl invoke --id {id}" + (f" --step {step}" if step else ""))
    for number, row in enumerate(rows):
        if json:
            output.emit(row)
            continue
        if number:
            output.emit("")
        output.pairs(row)


def _warn(exc: CorruptRecordError) -> None:
    output.say(f"warning: {output.printable(str(exc))}")
