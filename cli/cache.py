"""``pfl cache``: show, explain, invalidate, restore and check what is stored."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from ..handler.core import event
from ..handler.core.cache import accept as acceptance
from ..handler.core.cache import bust as busts
from ..handler.core.cache import inspection
from ..handler.core.cache import verify as verification
from ..handler.core.cache.reasons import parts
from ..handler.core.declare import catalog, project
from ..handler.core.declare.manifest import FlowEntry
from ..handler.core.errors import (
    CorruptRecordError,
    InvalidRequestError,
    NotFoundError,
    PflError,
    unknown,
)
from ..handler.core.fingerprint.changes import explain
from ..handler.core.settings import Settings
from ..handler.core.store import keys, layout, objects, records
from . import output, settings, stored
from .command import DatedCommand
from .invoke import FlowName, Param, Step, event_of, forecast
from .options import (
    DryRun,
    OnlyId,
    OnlyStep,
    TheId,
    Yes,
    age_s,
    checked,
    refuse_together,
)

app = Typer(help="List, explain, bust, restore and verify stored results.")
_COUNT_COLUMNS = ("results>", "bytes>", "oldest", "newest")
_PROBLEMS = ("damaged", "orphaned", "expired", "stale")


def _warn(warning: str) -> None:
    output.say(f"warning: {warning}")


@app.command("ls", cls=DatedCommand)
def list_entries(
    id: OnlyId = None,
    flow: FlowName = None,
    step: OnlyStep = None,
) -> None:
    """List the stored results that answer calls; those of one ID in the order of steps."""

    store = objects.of(settings.load())
    found = inspection.entries(store, id=id, flow=flow, step=step, warn=_warn)
    count = output.print_rows(
        output.while_read(map(stored.as_json, found)),
        ("id", "flow", "step", "key", "bytes>", "computed"),
        lambda row: [
            row["id"],
            row["flow"],
            row["step"],
            row["key"][:12],
            row["size_bytes"],
            output.local_time(row["computed_at"]),
        ],
    )
    output.say(f"{count} stored")
    if id and not count:
        output.say(stored.elsewhere(store, id, flow, "pfl cache ls"))


@app.command(cls=DatedCommand)
def inspect(
    id: TheId,
    flow: FlowName = None,
    step: Step = None,
    param: Param = None,
) -> None:
    """Show each result of an ID: value, inputs, key, fingerprint, run, whether it is current."""
    chosen = settings.load()
    raw = event_of(chosen, id=id, flow=flow, step=step, param=param)
    request = event.parse(raw, catalog.load(chosen))
    store = objects.of(chosen)
    rows = [stored.as_json(row) for row in inspection.inspect(request, store, warn=_warn)]
    if not rows:
        only = f" --step {step}" if step else ""
        name = request.flow.name
        raise NotFoundError(
            f"nothing is stored for --id {id!r} --flow {name}{only}",
            why=stored.elsewhere(store, id, name, "pfl cache inspect"),
            hint=f"pfl invoke --id {shlex.quote(id)}{only}",
        )
    for number, row in enumerate(rows):
        output.emit(row)
        if number:
            output.show("")
        # As JSON, where "1" is not 1, and cut to a short line, even if it is a text.
        value = None if row["value"] is None else output.cut(row["value"], 200)
        output.pairs(stored.for_people(row) | {"value": value})


@app.command(cls=DatedCommand)
def why(
    id: TheId,
    flow: FlowName = None,
    step: Step = None,
    param: Param = None,
    diff: Annotated[bool, Option("--diff", help="Show changed source as a unified diff.")] = False,
) -> None:
    """Explain why a call would compute a step: changed functions, constants, inputs, parameters."""
    chosen = settings.load()
    raw = event_of(chosen, id=id, flow=flow, step=step, param=param)
    found = forecast(chosen, raw, diff=diff)
    for row in found.rows:
        output.emit(row)
        reasons = row["reasons"]
        if row["status"] == "hit":
            entry = found.finding.found.get(row["step"])
            at = entry.computed_at if entry else None
            reasons = [f"computed at {output.local_time(at)}" if at else "found by its inputs"]
        label = {"hit": "hit,", "depends": "depends"}.get(row["status"], "miss, because")
        lines = "\n".join(reasons).split("\n")
        separator = " " if len(lines) == 1 else "\n  "
        output.show(separator.join([f"{row['step']}: {label}", *lines]))


@app.command(cls=DatedCommand)
def accept(
    step: Annotated[str, Option(help="Step whose last edit changes no result.")],
    since: Annotated[
        str | None,
        Option("--from", help="First digits of the older fingerprint (default: the latest)."),
    ] = None,
    undo: Annotated[
        bool, Option("--undo", help="Undo the acceptance of the current code.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Declare the last edit of a step harmless: results of its older code stay valid."""
    import getpass

    refuse_together({"--undo": undo, "--from": since})
    chosen = settings.load()
    with output.stdout_kept_for_data():
        prints = project.load(chosen).prints
    if step not in prints:
        raise unknown("step", step, sorted(prints))
    store = objects.of(chosen)
    now = prints[step]
    reply: stored.Row = {"step": step, "fingerprint": now.digest}
    if undo:
        body = acceptance.undo(store, step, now.digest, dry_run=dry_run)
        when = output.local_time(body["at"])
        verb = "would no longer be" if dry_run else "is no longer"
        output.say(f"the edit of {step} that {body['by']} accepted at {when} {verb} accepted")
        reply["undone"] = not dry_run
    else:
        known = acceptance.known_codes(store, step)
        older = [code for code in known if code != now.digest and code.startswith(since or "")]
        if not older:
            raise NotFoundError(
                f"no results of older code of step {step} found", hint=f"pfl cache ls --step {step}"
            )
        changes = explain(parts(store, step, older[0]), now.parts)
        for change in changes:
            output.say(f"{step}: {change}")
        reply |= {"stands_for": older[:1], "changes": changes}
        if not dry_run:
            output.confirm(f"Keep the existing results of {step}?", yes=yes)
            by = getpass.getuser()
            reply |= acceptance.accept(store, step, now.digest, older[0], by=by, changes=changes)
            output.say(f"accepted; to undo: pfl cache accept --step {step} --undo")
    output.emit(stored.as_json(reply))


@app.command(cls=DatedCommand)
def bust(
    id: OnlyId = None,
    step: OnlyStep = None,
    dependents: Annotated[
        bool, Option("--dependents", help="Also bust all steps that need it.")
    ] = False,
    upstream: Annotated[
        bool, Option("--upstream", help="Also bust all steps that it needs.")
    ] = False,
    older_than: Annotated[
        str | None, Option(metavar="AGE", help="Minimum age, such as 7d.")
    ] = None,
    prefix: Annotated[
        str | None, Option(callback=checked, help="Only IDs that start with this.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Make stored results void, so that steps compute again. Undo: pfl cache restore."""
    if {id, step, older_than, prefix} == {None}:
        raise InvalidRequestError(
            "no results to bust are selected", hint="use --id, --step, --older-than or --prefix"
        )
    refuse_together({"--id": id, "--prefix": prefix})
    refuse_together({"--dependents": dependents, "--upstream": upstream})
    if step is None and (dependents or upstream):
        raise InvalidRequestError(
            f"--{'dependents' if dependents else 'upstream'} needs --step", hint="--step b"
        )
    chosen = settings.load()
    flows = _flows(chosen)
    known = _flow_names(flows)
    busted = {step or busts.ALL}
    if step is not None and step not in known:
        raise unknown("step", step, sorted(known))
    if dependents:
        busted = _dependents(flows, busted)
    elif upstream:
        needed = (flow.closure(busted & flow.steps.keys()) for flow in flows.values())
        busted = busted.union(*needed)
    age = 0 if older_than is None else age_s(older_than, "--older-than")
    # Age 0 means everything, including what is being computed now and will be newer than this bust.
    before = time.time() - age if age else None
    starts_with = keys.escape_id(prefix) if prefix else ""
    folder = stored.folder_of(id) or busts.ALL
    scope = busts.Scope(folder, starts_with, tuple(sorted(busted)), before)
    store = objects.of(chosen)
    rows = {name: inspection.no_totals(name) for name in scope.steps if name != busts.ALL}
    for found in busts.list_results(store, scope):
        inspection.add(rows, found, "results")
    output.table(("step", *_COUNT_COLUMNS), ([r["step"], *_counts(r)] for r in rows.values()))
    reply: stored.Row = {
        "version": 1,
        "bust": None,
        "steps": list(rows.values()),
        "plans": 0,
        "restorable_until": None,
        "dry_run": dry_run,
    }
    if not dry_run:
        count = sum(row["results"] for row in rows.values())
        output.confirm(f"Bust {output.counted(count, 'result')}?", yes=yes)
        layout.check(store)
        retention_s = chosen.retention_days * 86_400
        name = busts.new_name()
        reached = _dependents(flows, busted)
        plans = busts.bust(
            store, scope, name, dependents=reached, known=known, retention_s=retention_s
        )
        until = records.now_iso(time.time() + retention_s)
        reply |= {"bust": name, "plans": plans, "restorable_until": until}
        day = output.local_time(until)[:10]
        output.say(f"busted; to undo this until {day}: pfl cache restore {name}")
    output.emit(reply)


def _counts(row: Mapping[str, Any]) -> list[object]:
    moments = [output.local_time(row["oldest"]), output.local_time(row["newest"])]
    return [row["results"], row["bytes"], *moments]


@app.command(cls=DatedCommand)
def restore(
    names: Annotated[
        list[str] | None,
        Argument(metavar="[BUST]...", help="Names of busts, as printed by pfl cache bust."),
    ] = None,
    id: OnlyId = None,
    step: OnlyStep = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Undo busts: old results become valid again and replace newer ones. --dry-run lists busts."""
    if not (names or id or step or dry_run):
        raise InvalidRequestError(
            "no bust is selected", hint="to list the busts: pfl cache restore --dry-run"
        )
    chosen = settings.load()
    store = objects.of(chosen)
    flows = _flows(chosen)
    undone = _restorable(chosen, store, names or [], id, step)
    restored = [mark.to_json() for mark in undone]
    output.table(
        ("bust", "id", "step", "before", "busted"),
        (
            [
                mark.name,
                mark.id_pattern,
                row["step"] or "all",
                output.local_time(row["before"]),
                output.local_time(row["busted_at"]),
            ]
            for mark, row in zip(undone, restored, strict=True)
        ),
    )
    counts: busts.Restored = {"back": 0, "replaced": 0, "plans": 0}
    if not dry_run:
        output.confirm(f"Restore {output.counted(len(undone), 'bust')}?", yes=yes)
        layout.check(store)
        reached = _dependents(flows, {mark.step for mark in undone})
        known = _flow_names(flows)
        counts = busts.restore(store, undone, dependents=reached, known=known)
        back = output.counted(counts["back"], "result")
        output.say(f"{back} restored, {counts['replaced']} in place of newer ones")
    output.emit({"version": 1, "restored": restored, **counts, "dry_run": dry_run})


def _restorable(
    chosen: Settings, store: objects.Store, names: list[str], id: str | None, step: str | None
) -> list[busts.Mark]:
    """
    The marks of the selected busts, all if none is selected.

    Raises:
        NotFoundError: A selected bust cannot be restored.
    """
    folder = stored.folder_of(id)
    marks = [
        mark
        for mark in sorted(busts.list_marks(store, folder), key=lambda mark: (mark.name, mark.key))
        if not mark.is_from_call
        and (not names or mark.name in names)
        and folder in (None, mark.folder)
        and step in (None, mark.step)
    ]
    oldest = time.time() - chosen.retention_days * 86_400
    kept = [mark for mark in marks if mark.at > oldest]
    missing = ", ".join(sorted({*names} - {mark.name for mark in kept}))
    if missing or ((id or step) and not kept):
        why = f"busts are kept for {chosen.retention_days} days" if marks else "it does not exist"
        raise NotFoundError(
            f"bust {missing} cannot be restored" if missing else "no bust can be restored",
            why=why,
            hint="to list the busts: pfl cache restore --dry-run",
        )
    return kept


@app.command()
def verify(
    repair: Annotated[
        bool,
        Option("--repair", help="Move unusable objects to aside/ in the store."),
    ] = False,
    after: Annotated[str, Option(metavar="KEY", help="Continue after this key.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Read and check every object in the store; exit code 6 if damaged ones remain."""
    import signal

    if after and after.split("/")[0] not in verification.KINDS:
        raise InvalidRequestError(
            f"invalid --after {after!r}",
            why=f"keys in the store start with {', '.join(verification.KINDS)}",
            hint="leave --after out",
        )
    if dry_run and not repair:
        raise InvalidRequestError("--dry-run has no effect without --repair", hint="add --repair")
    chosen = settings.load()
    repair = repair and not dry_run
    store = objects.of(chosen)
    if repair:
        layout.check(store)
    # On SIGTERM, too, the command has to print how to continue.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    counts: Counter[str] = Counter()
    last = after
    retention_s = chosen.retention_days * 86_400
    try:
        for found in verification.walk(store, repair=repair, retention_s=retention_s, after=after):
            last = found.key
            counts["checked"] += 1
            if counts["checked"] % 1_000 == 0:
                output.progress("", f"{counts['checked']} checked, at {last}")
            problem = found.problem
            if problem is None:
                continue
            counts[problem.problem] += 1
            counts["aside"] += problem.aside is not None
            counts["left"] += problem.problem == "damaged" and problem.aside is None
            row = problem._asdict()
            output.emit({"object": row.pop("key"), **row})
            output.show(f"{problem.problem:<9} {problem.key}: {problem.why}")
    except BaseException:
        if last:
            options = f"{' --repair' if repair else ''} --after '{last}'"
            output.say(f"stopped; to continue: pfl cache verify{options}")
        raise
    summary = ", ".join(f"{counts[name]} {name}" for name in _PROBLEMS)
    moved = f"; {counts['aside']} set aside" if repair else ""
    output.say(f"{counts['checked']} checked: {summary}{moved}")
    if counts["left"]:
        raise Exit(CorruptRecordError.exit_code)


@app.command(cls=DatedCommand)
def stats(id: OnlyId = None) -> None:
    """Count results, plans, history records and bytes, per flow and step."""

    chosen = settings.load()
    flow_names = _flow_names(_flows(chosen))
    rows = inspection.count(objects.of(chosen), flow_names, folder=stored.folder_of(id))
    output.print_rows(
        rows,
        ("flow", "step", "plans>", "history>", *_COUNT_COLUMNS),
        lambda row: [
            row["flow"] or "-",
            row["step"],
            row["plans"],
            row["history"],
            *_counts(row),
        ],
    )


def _flows(chosen: Settings) -> Mapping[str, FlowEntry]:
    """The flows; none if they cannot be imported: the store exists anyway."""
    try:
        return catalog.load(chosen).flows
    except PflError as exc:
        output.say(f"warning: the flows cannot be loaded: {exc}")
        return {}


def _flow_names(flows: Mapping[str, FlowEntry]) -> dict[str, str]:
    """The name of the flow of each step."""
    return {name: flow.name for flow in flows.values() for name in flow.steps}


def _dependents(flows: Mapping[str, FlowEntry], steps: set[str]) -> set[str]:
    """These steps, and all steps of any flow that need one of them."""
    return steps.union(*(flow.dependents(steps) for flow in flows.values()))
