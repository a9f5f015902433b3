"""``pfl cache``: what is stored, for which IDs, and what it rests on."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from cli import output, settings
from cli.invoke import FlowName, Json, Param, Step
from handler.core.errors import CorruptRecordError, InvalidRequestError, NotFoundError

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
        raise NotFoundError(what, hint=f"pfl invoke --id {shlex.quote(id)}" + (f" --step {step}" if step else ""))
    for number, row in enumerate(rows):
        if json:
            output.emit(row)
            continue
        if number:
            output.emit("")
        output.pairs(row)


@app.command("why")
def why(
    id: Annotated[str, typer.Option("--id", help="The ID.")],
    flow: FlowName = None,
    step: Step = None,
    param: Param = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show changed source as a unified diff.")] = False,
    json: Json = False,
) -> None:
    """Say why a call would compute a step, naming each changed constant, function, input and parameter."""
    from cli.invoke import _event, foresee

    chosen = settings.load()
    _, finding, rows, loaded = foresee(chosen, _event(chosen, None, id, flow, step, None, None, param, False), diff=diff)
    for row in rows:
        found, doubts = finding.found.get(row["step"]), loaded.prints[row["step"]].opaque
        row |= {"opaque": [f"{part.name} at {part.file}:{part.line}: {part.text}" for part in doubts]}
        if json:
            output.emit(row)
            continue
        if row["status"] == "hit" and found is not None:
            row["reasons"] = [f"computed at {found.computed_at}" if found.computed_at else "found by its inputs"]
        word = {"hit": "hit", "depends": "depends"}.get(row["status"], "miss, because")
        if len(row["reasons"]) == 1 and "\n" not in row["reasons"][0]:
            output.emit(f"{row['step']}: {word} {row['reasons'][0]}" if row["status"] != "hit" else f"{row['step']}: hit, {row['reasons'][0]}")
        else:
            output.emit(f"{row['step']}: {word}")
            for reason in row["reasons"]:
                output.emit("  " + reason.replace("\n", "\n  "))
        for doubt in row["opaque"]:
            output.say(f"warning: {row['step']} cannot be known whole: {doubt}")


@app.command("accept")
def accept(
    step: Annotated[str, typer.Option("--step", help="The step whose edit changes no result.")],
    since: Annotated[str | None, typer.Option("--from", help="Start of the older fingerprint; the latest if not given.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the acceptance of the present code back.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    json: Json = False,
) -> None:
    """Declare the last edit of a step harmless: the results of its older code stay valid."""
    import getpass

    from handler.core import accept as accepting
    from handler.core import project, store
    from handler.core.why import explain
    from handler.engine.why import parts

    chosen = settings.load()
    with output.stdout_kept_for_data():
        prints = project.load(chosen).prints
    if step not in prints:
        raise InvalidRequestError(f"unknown step {step!r}", hint=f"the steps are {', '.join(prints)}")
    results, now = store.of(chosen), prints[step]
    if undo:
        if not dry_run:
            told = accepting.undo(results, step, now.digest)
            output.say(f"the edit of {step} accepted by {told['by']} at {told['at']} is an edit again")
        if json:
            output.emit({"step": step, "fingerprint": now.digest, "undone": not dry_run})
        return
    older = [each for each in accepting.known_codes(results, step) if each != now.digest and each.startswith(since or "")]
    if not older:
        raise NotFoundError(f"no older code of step {step} has results here", hint=f"pfl cache ls --step {step}")
    changes = explain(parts(results, step, older[0]), now.parts)
    for change in changes:
        output.say(f"{step}: {change}")
    if not dry_run:
        output.confirm(f"Keep the results of {step} from before?", yes=yes)
        told = accepting.accept(results, step, now.digest, older[0], by=getpass.getuser(), changes=changes)
        output.say(f"accepted; pfl cache accept --step {step} --undo takes it back")
    else:
        told = {"step": step, "fingerprint": now.digest, "stands_for": older[:1], "changes": changes}
    if json:
        output.emit(told)


def _warn(exc: CorruptRecordError) -> None:
    output.say(f"warning: {output.printable(str(exc))}")
