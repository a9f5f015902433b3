"""``pfl cache``: what is stored, for which IDs, and what it rests on."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.invoke import FlowName, Param, Step, event_of, forecast
from pfl.cli.options import DryRun, Json, OnlyId, OnlyStep, TheId, Yes, age_s, checked
from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError, NotFoundError, PflError
from pfl.handler.core.store import records

app = typer.Typer(help="What is stored, for which IDs, and what it rests on.", no_args_is_help=True)


@app.command("ls")
def ls(
    id: OnlyId = None,
    flow: FlowName = None,
    step: OnlyStep = None,
    json: Json = False,
) -> None:
    """List what a call can be answered from, one line per stored plan: of one ID in order of step, else as it is found."""
    from pfl.handler.core.cache import inspection
    from pfl.handler.core.store import objects

    count = 0
    for row in inspection.entries(
        objects.of(settings.load()), id=id, flow=flow, step=step, warn=_warn
    ):
        if json:
            output.emit(row)
        else:
            if not count:
                output.emit(_LINE.format("ID", "FLOW", "STEP", "KEY", "BYTES", "COMPUTED"))
            shown = output.printable(row["id"])
            output.emit(
                _LINE.format(
                    shown,
                    row["flow"],
                    row["step"],
                    row["key"][:12],
                    row["size_bytes"],
                    row["computed_at"][:19],
                )
            )
        count += 1
    output.say(f"{count} stored")


_LINE = "{:<24} {:<12} {:<12} {:<12} {:>9}  {}"


@app.command("inspect")
def inspect(
    id: TheId,
    flow: FlowName = None,
    step: Step = None,
    param: Param = None,
    json: Json = False,
) -> None:
    """Show what is stored for an ID: key, fingerprint, real inputs, value, run, and whether it is current."""
    from pfl.handler.core import event
    from pfl.handler.core.cache import inspection
    from pfl.handler.core.declare import catalog
    from pfl.handler.core.store import objects

    chosen = settings.load()
    raw = event_of(chosen, id=id, flow=flow, step=step, params=param)
    request = event.parse(raw, catalog.load(chosen))
    rows = list(inspection.inspect(request, objects.of(chosen), warn=_warn))
    if not rows:
        what = f"nothing is stored for {id!r}" + (f", step {step}" if step else "")
        raise NotFoundError(
            what, hint=f"pfl invoke --id {shlex.quote(id)}" + (f" --step {step}" if step else "")
        )
    for number, row in enumerate(rows):
        if json:
            output.emit(row)
            continue
        if number:
            output.emit("")
        # As JSON: "1" is not 1; and what is long is cut, also a text.
        output.pairs(
            row if row["value"] is None else row | {"value": output.cut(row["value"], 200)}
        )


@app.command("why")
def why(
    id: TheId,
    flow: FlowName = None,
    step: Step = None,
    param: Param = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show changed source as a unified diff.")
    ] = False,
    json: Json = False,
) -> None:
    """Say why a call would compute a step, naming each changed constant, function, input and parameter."""
    chosen = settings.load()
    _, finding, rows, _ = forecast(
        chosen, event_of(chosen, id=id, flow=flow, step=step, params=param), diff=diff
    )
    for row in rows:
        found = finding.found.get(row["step"])
        if json:
            output.emit(row)
            continue
        if row["status"] == "hit" and found is not None:
            row["reasons"] = [
                f"computed at {found.computed_at}" if found.computed_at else "found by its inputs"
            ]
        word = {"hit": "hit", "depends": "depends"}.get(row["status"], "miss, because")
        if len(row["reasons"]) == 1 and "\n" not in row["reasons"][0]:
            output.emit(
                f"{row['step']}: {word} {row['reasons'][0]}"
                if row["status"] != "hit"
                else f"{row['step']}: hit, {row['reasons'][0]}"
            )
        else:
            output.emit(f"{row['step']}: {word}")
            for reason in row["reasons"]:
                output.emit("  " + reason.replace("\n", "\n  "))


@app.command("accept")
def accept(
    step: Annotated[str, typer.Option("--step", help="The step whose edit changes no result.")],
    since: Annotated[
        str | None,
        typer.Option("--from", help="Start of the older fingerprint; the latest if not given."),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the acceptance of the present code back.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Declare the last edit of a step harmless: the results of its older code stay valid."""
    import getpass

    from pfl.handler.core.cache import accept as accepting
    from pfl.handler.core.cache.reasons import parts
    from pfl.handler.core.declare import project
    from pfl.handler.core.fingerprint.changes import explain
    from pfl.handler.core.store import objects

    chosen = settings.load()
    with output.stdout_kept_for_data():
        prints = project.load(chosen).prints
    if step not in prints:
        raise InvalidRequestError(
            f"unknown step {step!r}", hint=f"the steps are {', '.join(prints)}"
        )
    results, now = objects.of(chosen), prints[step]
    if undo:
        told = accepting.undo(results, step, now.digest, dry_run=dry_run)
        output.say(
            f"the edit of {step} accepted by {told['by']} at {told['at']} {'would be' if dry_run else 'is'} an edit again"
        )
        if json:
            output.emit({"step": step, "fingerprint": now.digest, "undone": not dry_run})
        return
    older = [
        each
        for each in accepting.known_codes(results, step)
        if each != now.digest and each.startswith(since or "")
    ]
    if not older:
        raise NotFoundError(
            f"no older code of step {step} has results here", hint=f"pfl cache ls --step {step}"
        )
    changes = explain(parts(results, step, older[0]), now.parts)
    for change in changes:
        output.say(f"{step}: {change}")
    if not dry_run:
        output.confirm(f"Keep the results of {step} from before?", yes=yes)
        told = accepting.accept(
            results, step, now.digest, older[0], by=getpass.getuser(), changes=changes
        )
        output.say(f"accepted; pfl cache accept --step {step} --undo takes it back")
    else:
        told = {
            "step": step,
            "fingerprint": now.digest,
            "stands_for": older[:1],
            "changes": changes,
        }
    if json:
        output.emit(told)


def _warn(exc: CorruptRecordError) -> None:
    output.say(f"warning: {output.printable(str(exc))}")


@app.command("bust")
def bust(
    id: Annotated[
        str | None, typer.Option("--id", callback=checked, help="Of this ID; of all if not given.")
    ] = None,
    step: Annotated[str | None, typer.Option("--step", help="This step; all if not given.")] = None,
    dependents: Annotated[
        bool, typer.Option("--dependents", help="And all steps that need it.")
    ] = False,
    upstream: Annotated[
        bool, typer.Option("--upstream", help="And all steps that it needs.")
    ] = False,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="What is older, such as 7d.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Of all IDs that begin so.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Have steps computed again: what is stored of them is not served any more. pfl cache restore undoes it."""
    import time

    from pfl.handler.core import event
    from pfl.handler.core.cache import bust, inspection
    from pfl.handler.core.store import keys, layout, objects

    if prefix == "" or step == "~":  # A variable that is not set, in a script that says --yes.
        raise InvalidRequestError(
            "--prefix is empty" if prefix == "" else "there is no step '~'",
            hint="--older-than 0s busts everything",
        )
    if id is None and step is None and older_than is None and prefix is None:
        raise InvalidRequestError(
            "nothing says what to bust", hint="--id, --step, --older-than or --prefix"
        )
    if id is not None and prefix is not None:
        raise InvalidRequestError(
            "--id and --prefix do not go together", hint="leave one of the two out"
        )
    if dependents and upstream:
        raise InvalidRequestError(
            "--dependents and --upstream do not go together", hint="bust twice"
        )
    if (dependents or upstream) and step is None:
        raise InvalidRequestError(
            f"--{'dependents' if dependents else 'upstream'} needs a step", hint="--step b"
        )
    chosen = settings.load()
    flows = _flows(chosen, needed=step is not None)
    steps, reach = _reach(flows, step, dependents, upstream)
    folder = bust.ALL if id is None else keys.encode_id(id)
    old_s = 0 if older_than is None else age_s(older_than, "--older-than")
    # Of no age is everything, also what is being computed now and will be younger than this bust.
    before = time.time() - old_s if old_s else None
    scope = bust.Scope(folder, keys.coded(event.check_id(prefix) if prefix else ""), steps, before)
    results = objects.of(chosen)
    nothing = {"results": 0, "bytes": 0, "oldest": None, "newest": None}
    rows = {each: {"step": each, **nothing} for each in steps if each != bust.ALL}
    for found in bust.results(results, scope):
        name = found.key.split("/")[2]
        inspection.add(rows.setdefault(name, {"step": name, **nothing}), found, "results")
    count = sum(row["results"] for row in rows.values())
    if not json:
        cells = [
            (
                r["step"],
                r["results"],
                r["bytes"],
                (r["oldest"] or "")[:19],
                (r["newest"] or "")[:19],
            )
            for r in rows.values()
        ]
        output.table(["step", "results>", "bytes>", "oldest", "newest"], cells)
    said = {
        "version": 1,
        "bust": None,
        "steps": list(rows.values()),
        "plans": 0,
        "restorable_until": None,
        "dry_run": dry_run,
    }
    if not dry_run:
        output.confirm(f"Bust {output.counted(count, 'result')}?", yes=yes)
        layout.check(results)
        retention_s = chosen.retention_days * 86_400
        name = bust.new_name()
        plans = bust.bust(
            results, scope, name, dependents=reach, known=_steps(flows), retention_s=retention_s
        )
        until = records.now_iso(time.time() + retention_s)
        said |= {"bust": name, "plans": plans, "restorable_until": until}
        output.say(f"busted; until {until[:10]} this undoes it: pfl cache restore {name}")
    if json:
        output.emit(said)


@app.command("restore")
def restore(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[BUST]...", help="Busts, as pfl cache bust named them."),
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", callback=checked, help="All busts of this ID.")
    ] = None,
    step: Annotated[str | None, typer.Option("--step", help="All busts of this step.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Undo busts: what was stored is served again, and replaces what was computed since. With --dry-run, list them."""
    import time

    from pfl.handler.core.cache import bust
    from pfl.handler.core.store import keys, layout, objects

    if not (names or id or step or dry_run):
        raise InvalidRequestError(
            "nothing says what to restore", hint="pfl cache restore --dry-run lists what can be"
        )
    chosen = settings.load()
    results, flows = objects.of(chosen), _flows(chosen)
    folder = None if id is None else keys.encode_id(id)
    asked = [
        m
        for m in sorted(bust.marks(results, folder), key=lambda m: (m.name, m.key))
        if not m.by_call
        and (not names or m.name in names)
        and (folder is None or m.folder == folder)
        and (step is None or m.step == step)
    ]
    undone = [m for m in asked if m.at + chosen.retention_days * 86_400 > time.time()]
    if not undone and not (dry_run and not (names or id or step)):
        why = f"they were kept for {chosen.retention_days} days" if asked else ""
        raise NotFoundError(
            "there is no such bust to restore",
            why=why,
            hint="pfl cache restore --dry-run lists them",
        )
    if not json:
        rows = [
            (
                m.name,
                m.shown_id,
                m.step.replace(bust.ALL, "all"),
                m.before or "",
                records.now_iso(m.at)[:19],
            )
            for m in undone
        ]
        output.table(["bust", "id", "step", "before", "busted at"], rows)
    counts = {"back": 0, "replaced": 0, "plans": 0}
    if not dry_run:
        output.confirm(f"Restore {output.counted(len(undone), 'bust')}?", yes=yes)
        layout.check(results)
        reach = frozenset().union(
            *(_reach(flows, m.step, True, False, strict=False)[1] for m in undone)
        )
        counts = bust.restore(results, undone, dependents=reach, known=_steps(flows))
        are = "is" if counts["back"] == 1 else "are"
        output.say(
            f"{output.counted(counts['back'], 'result')} {are} back, {counts['replaced']} in place of what was computed since"
        )
    if json:
        output.emit(
            {"version": 1, "restored": [m.to_json() for m in undone], **counts, "dry_run": dry_run}
        )


@app.command("verify")
def verify(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set aside what nobody can use, below aside/ in the store."),
    ] = False,
    after: Annotated[
        str, typer.Option("--after", metavar="KEY", help="Go on behind this key.")
    ] = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Read and check every object of the store; exit 6 if some are damaged and were not set aside."""
    import signal
    from collections import Counter

    from pfl.handler.core.cache import verify as checks
    from pfl.handler.core.store import layout, objects

    if after and after.split("/")[0] not in checks.KINDS:
        raise InvalidRequestError(
            f"--after {after!r} is no key of the store",
            hint=f"it begins with {', '.join(checks.KINDS)}",
        )
    chosen, repair = settings.load(), repair and not dry_run
    results = objects.of(chosen)
    if repair:
        layout.check(results)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # Whoever ends us that way is told how to go on, too.
    counts, last = Counter(), after
    try:
        for checked in checks.walk(
            results, repair=repair, retention_s=chosen.retention_days * 86_400, after=after
        ):
            last = checked.key
            counts["checked"] += 1
            if counts["checked"] % 1_000 == 0:
                output.progress("", f"{counts['checked']} checked, at {last}")
            if (problem := checked.problem) is None:
                continue
            counts[problem.problem] += 1
            counts["aside"] += problem.aside is not None
            counts["left"] += problem.problem == "damaged" and problem.aside is None
            if json:
                output.emit(problem._asdict())
            else:
                output.emit(
                    f"{problem.problem:<9} {output.printable(problem.key)}: {output.printable(problem.why)}"
                )
    except BaseException:
        if last:
            output.say(
                f"stopped; this goes on from here: pfl cache verify{' --repair' if repair else ''} --after '{last}'"
            )
        raise
    found = ", ".join(
        f"{counts[name]} {name}" for name in ("damaged", "orphaned", "expired", "stale")
    )
    output.say(
        f"{counts['checked']} checked: {found}"
        + (f"; {counts['aside']} set aside" if repair else "")
    )
    if counts["left"]:
        raise typer.Exit(CorruptRecordError.exit_code)


@app.command("stats")
def stats(
    id: OnlyId = None,
    json: Json = False,
) -> None:
    """Count what is stored per flow and step: results, plans, history, bytes, and the age of the results."""
    from pfl.handler.core.cache import inspection
    from pfl.handler.core.store import keys, objects

    chosen = settings.load()
    folder = None if id is None else keys.encode_id(id)
    of_step = {name: flow.name for flow in _flows(chosen).values() for name in flow.steps}
    rows = inspection.count(objects.of(chosen), of_step, folder=folder)
    if json:
        for row in rows:
            output.emit(row)
        return
    cells = [
        (
            r["flow"] or "-",
            r["step"],
            r["results"],
            r["plans"],
            r["history"],
            r["bytes"],
            (r["oldest"] or "")[:19],
            (r["newest"] or "")[:19],
        )
        for r in rows
    ]
    output.table(
        ["flow", "step", "results>", "plans>", "history>", "bytes>", "oldest", "newest"], cells
    )


def _flows(chosen: settings.Settings, *, needed: bool = False) -> dict:
    """The flows; where they cannot be imported and are not needed, none: what is stored is there all the same."""
    from pfl.handler.core.declare import catalog

    try:
        return catalog.load(chosen).flows
    except PflError as exc:
        if needed:
            raise
        output.say(
            f"warning: which step is of which flow is not known: {output.printable(str(exc))}"
        )
        return {}


def _steps(flows: dict) -> frozenset[str]:
    return frozenset(name for flow in flows.values() for name in flow.steps)


def _reach(
    flows: dict, step: str | None, dependents: bool, upstream: bool, *, strict: bool = True
) -> tuple[tuple[str, ...], frozenset[str]]:
    """The steps to bust, and all those whose plans rest on one of them."""
    from pfl.handler.core.cache.bust import ALL

    if step is None or step == ALL:
        return (ALL,), frozenset()
    within = [flow for flow in flows.values() if step in flow.steps]
    if not within and strict:
        raise InvalidRequestError(
            f"unknown step {step!r}", hint=f"the steps are {', '.join(sorted(_steps(flows)))}"
        )
    busted = {step}
    for flow in within:
        busted |= (
            flow.dependents([step]) if dependents else flow.closure([step]) if upstream else set()
        )
    return tuple(sorted(busted)), frozenset().union(
        {step}, *(flow.dependents(busted & set(flow.steps)) for flow in within)
    )
