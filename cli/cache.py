"""``pfl cache``: show, explain, invalidate, restore and check what is stored."""

import shlex
import time
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from ..handler.core.cache import accept as acceptance
from ..handler.core.cache import bust as busts
from ..handler.core.cache import inspection
from ..handler.core.cache import verify as verification
from ..handler.core.cache.reasons import code_changes
from ..handler.core.declare import catalog, project
from ..handler.core.declare.manifest import FlowEntry
from ..handler.core.errors import (
    CorruptRecordError,
    InvalidRequestError,
    NotFoundError,
    PflError,
    unknown,
)
from ..handler.core.settings import Settings
from ..handler.core.store import keys, layout, objects, records
from . import output, settings, stored
from .invoke import FlowName, Param, Step, forecast, request_of
from .options import OnlyId, OnlyStep, TheId, Yes, refuse_together

app = Typer(help="List, explain, bust, restore and verify stored results.")
_COUNTED = ("results>", "bytes>", "oldest", "newest")
_PROBLEMS = ("damaged", "orphaned", "expired", "stale")


def _warn(warning: str) -> None:
    output.say(f"warning: {warning}")


@app.command("ls")
def list_entries(id: OnlyId = None, flow: FlowName = None, step: OnlyStep = None) -> None:
    """List the stored results that answer calls; those of one ID in the order of steps."""
    store = objects.of(settings.load())
    found = inspection.entries(store, id=id, flow=flow, step=step, warn=_warn)
    rows = output.while_read(map(stored.as_json, found))
    count = output.print_rows(rows, ("id", "flow", "step", "size_bytes>", "computed_at", "key"))
    output.say(f"{count} stored")
    if id and not count:
        output.say(stored.elsewhere(store, id, flow, "pfl cache ls"))


@app.command()
def inspect(id: TheId, flow: FlowName = None, step: Step = None, param: Param = None) -> None:
    """Show each result of an ID: value, inputs, key, fingerprint, run, whether it is current."""
    chosen = settings.load()
    store = objects.of(chosen)
    request = request_of(chosen, id=id, flow=flow, step=step, param=param)
    rows = [stored.as_json(row) for row in inspection.inspect(request, store, warn=_warn)]
    if not rows:
        name = request.flow.name
        only = f" --step {step}" if step else ""
        raise NotFoundError(
            f"nothing is stored for --id {id!r} --flow {name}{only}",
            why=stored.elsewhere(store, id, name, "pfl cache inspect"),
            hint=f"pfl invoke --id {shlex.quote(id)}{only}",
        )
    for number, row in enumerate(rows):
        if number:
            output.show("")
        stored.show(row)


@app.command()
def why(
    id: TheId, flow: FlowName = None, step: Step = None, param: Param = None, diff: bool = False
) -> None:
    """
    Explain why a call would compute a step: changed functions, constants, inputs, parameters.

    Args:
        diff: Show changed source as a unified diff.
    """
    found = forecast(settings.load(), diff=diff, id=id, flow=flow, step=step, param=param)
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


@app.command()
def accept(
    step: Annotated[str, Option()],
    since: Annotated[str | None, Option("--from")] = None,
    undo: bool = False,
    yes: Yes = False,
    dry_run: bool = False,
) -> None:
    """
    Declare the last edit of a step harmless: results of its older code stay valid.

    Args:
        step: Step whose last edit changes no result.
        since: First digits of the older fingerprint (default: the latest).
        undo: Undo the acceptance of the current code.
    """
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
        reply["undone"] = not dry_run
        verb = "would no longer be" if dry_run else "is no longer"
        edit = f"the edit of {step} that {body['by']} accepted at {output.local_time(body['at'])}"
        output.say(f"{edit} {verb} accepted")
    else:
        known = acceptance.known_codes(store, step)
        older = [code for code in known if code != now.digest and code.startswith(since or "")]
        if not older:
            raise NotFoundError(
                f"no results of older code of step {step} found", hint=f"pfl cache ls --step {step}"
            )
        changes = code_changes(store, step, older[0], now.parts)
        for change in changes:
            output.say(f"{step}: {change}")
        reply |= {"stands_for": older[:1], "changes": changes}
        if not dry_run:
            output.confirm(f"Keep the existing results of {step}?", yes=yes)
            by = getpass.getuser()
            reply |= acceptance.accept(store, step, now.digest, older[0], by=by, changes=changes)
            output.say(f"accepted; to undo: pfl cache accept --step {step} --undo")
    output.emit(stored.as_json(reply))


@app.command()
def bust(
    id: OnlyId = None,
    step: OnlyStep = None,
    dependents: bool = False,
    upstream: bool = False,
    prefix: str | None = None,
    dry_run: bool = False,
    yes: Yes = False,
) -> None:
    """
    Make stored results void, so that steps compute again. Undo: pfl cache restore.

    Args:
        dependents: Also bust all steps that need it.
        upstream: Also bust all steps that it needs.
        prefix: Only IDs that start with this.
    """
    if {id, step, prefix} == {None}:
        raise InvalidRequestError(
            "no results to bust are selected", hint="use --id, --step or --prefix"
        )
    refuse_together({"--id": id, "--prefix": prefix})
    refuse_together({"--dependents": dependents, "--upstream": upstream})
    if step is None and (dependents or upstream):
        raise InvalidRequestError("--dependents or --upstream needs --step", hint="--step b")
    chosen = settings.load()
    store = objects.of(chosen)
    flows = _Flows(chosen)
    if step is not None and step not in flows.by_step:
        raise unknown("step", step, sorted(flows.by_step))
    steps = {step or busts.ALL}
    if dependents:
        steps = flows.dependents(steps)
    elif upstream:
        steps = flows.upstream(steps)
    folder = stored.folder_of(id) or busts.ALL
    scope = busts.Scope(folder, keys.escape_id(prefix or ""), tuple(sorted(steps)))
    rows = {name: inspection.no_totals(name) for name in scope.steps if name != busts.ALL}
    for found in busts.list_results(store, scope):
        inspection.add(rows, found)
    output.table(("step", *_COUNTED), rows.values())
    reply: stored.Row = {"bust": None, "plans": 0, "restorable_until": None}
    if not dry_run:
        count = sum(row["results"] for row in rows.values())
        output.confirm(f"Bust {output.counted(count, 'result')}?", yes=yes)
        layout.check(store)
        retention_s = chosen.retention_days * 86_400
        name = busts.new_name()
        plans = busts.bust(
            store,
            scope,
            name,
            dependents=flows.dependents(steps),
            known=flows.by_step,
            retention_s=retention_s,
        )
        until = records.now_iso(time.time() + retention_s)
        reply = {"bust": name, "plans": plans, "restorable_until": until}
        day = output.local_time(until)[:10]
        output.say(f"busted; to undo this until {day}: pfl cache restore {name}")
    output.emit({"version": 1, "steps": list(rows.values()), **reply, "dry_run": dry_run})


@app.command()
def restore(
    names: Annotated[list[str] | None, Argument(metavar="[BUST]...")] = None,
    id: OnlyId = None,
    step: OnlyStep = None,
    dry_run: bool = False,
    yes: Yes = False,
) -> None:
    """
    Undo busts: old results become valid again and replace newer ones. --dry-run lists busts.

    Args:
        names: Names of busts, as printed by pfl cache bust.
    """
    if not (names or id or step or dry_run):
        raise InvalidRequestError(
            "no bust is selected", hint="to list the busts: pfl cache restore --dry-run"
        )
    chosen = settings.load()
    store = objects.of(chosen)
    flows = _Flows(chosen)
    undone = _restorable(chosen, store, names or [], id, step)
    restored = [mark.to_json() for mark in undone]
    output.table(("bust", "id", "prefix", "step", "busted_at"), restored)
    plans = 0
    if not dry_run:
        output.confirm(f"Restore {output.counted(len(undone), 'bust')}?", yes=yes)
        layout.check(store)
        reached = flows.dependents({mark.step for mark in undone})
        plans = busts.restore(store, undone, dependents=reached, known=flows.by_step)
        output.say("restored: the earlier results are valid again")
    output.emit({"version": 1, "restored": restored, "plans": plans, "dry_run": dry_run})


def _restorable(
    chosen: Settings, store: objects.Store, names: list[str], id: str | None, step: str | None
) -> list[busts.Mark]:
    """
    The marks of the selected busts, all if none is selected.

    Raises:
        NotFoundError: A selected bust cannot be restored.
    """
    folder = stored.folder_of(id)
    oldest = time.time() - chosen.retention_days * 86_400
    kept = [
        mark
        for mark in sorted(busts.list_marks(store, folder), key=attrgetter("name", "key"))
        if not mark.is_from_call
        and mark.at > oldest
        and (not names or mark.name in names)
        and folder in (None, mark.folder)
        and step in (None, mark.step)
    ]
    missing = ", ".join(sorted({*names} - {mark.name for mark in kept}))
    if missing or ((id or step) and not kept):
        raise NotFoundError(
            f"bust {missing} cannot be restored" if missing else "no bust can be restored",
            why=f"it does not exist any more: busts are kept for {chosen.retention_days} days",
            hint="to list the busts: pfl cache restore --dry-run",
        )
    return kept


@app.command()
def verify(repair: bool = False, dry_run: bool = False) -> None:
    """
    Read and check every object in the store; exit code 6 if damaged ones remain.

    Args:
        repair: Move unusable objects to aside/ in the store.
    """
    if dry_run and not repair:
        raise InvalidRequestError("--dry-run has no effect without --repair", hint="add --repair")
    chosen = settings.load()
    repair = repair and not dry_run
    store = objects.of(chosen)
    if repair:
        layout.check(store)
    counts: Counter[str] = Counter()
    retention_s = chosen.retention_days * 86_400
    for problem in verification.walk(store, repair=repair, retention_s=retention_s):
        counts["checked"] += 1
        if counts["checked"] % 1_000 == 0:
            output.progress("", f"{counts['checked']} checked")
        if problem is None:
            continue
        counts[problem.problem] += 1
        counts["aside"] += problem.aside is not None
        counts["left"] += problem.problem == "damaged" and problem.aside is None
        row = problem._asdict()
        output.emit({"object": row.pop("key"), **row})
        output.show(f"{problem.problem:<9} {problem.key}: {problem.why}")
    summary = ", ".join(f"{counts[name]} {name}" for name in _PROBLEMS)
    moved = f"; {counts['aside']} set aside" if repair else ""
    output.say(f"{counts['checked']} checked: {summary}{moved}")
    if counts["left"]:
        raise Exit(CorruptRecordError.exit_code)


@app.command()
def stats(id: OnlyId = None) -> None:
    """Count results, plans, history records and bytes, per flow and step."""
    chosen = settings.load()
    known = _Flows(chosen).by_step
    rows = inspection.count(objects.of(chosen), known, folder=stored.folder_of(id))
    output.print_rows(rows, ("flow", "step", "plans>", "history>", *_COUNTED))


class _Flows:
    """How the steps of all flows need one another."""

    def __init__(self, chosen: Settings) -> None:
        self._flows: Mapping[str, FlowEntry] = {}
        try:
            self._flows = catalog.load(chosen).flows
        except PflError as exc:  # The store exists anyway.
            _warn(f"the flows cannot be loaded: {exc}")
        # The name of the flow of each step.
        self.by_step = {step: flow.name for flow in self._flows.values() for step in flow.steps}

    def dependents(self, steps: set[str]) -> set[str]:
        """These steps, and all steps of any flow that need one of them."""
        return steps.union(*(flow.dependents(steps) for flow in self._flows.values()))

    def upstream(self, steps: set[str]) -> set[str]:
        """These steps, and all steps of any flow that they need."""
        needed = (flow.closure(steps & flow.steps.keys()) for flow in self._flows.values())
        return steps.union(*needed)
