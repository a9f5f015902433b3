"""``pfl limits``: how many computations of a step may run at once, as limits on tags in Prefect."""

from collections.abc import Iterator
from typing import Annotated

from typer import Argument, Option, Typer

from ..handler.core.declare import catalog
from ..handler.core.errors import InvalidRequestError, unknown
from ..handler.core.store import objects, records
from ..handler.core.store.values import JsonObject
from ..handler.core.tags import limit_tag
from ..handler.engine.prefect import environment, limits
from . import output, settings
from .options import Yes, moment_ns, refuse_together
from .runs import running_api

app = Typer(help="Limit how many computations of a step run at once.")
Id = Annotated[str | None, Option(help="Limit of this ID; needs --step.")]
Step = Annotated[str | None, Option(help="Limit of this step; across all IDs without --id.")]
Tag = Annotated[str | None, Option(help="Limit of this tag.")]


@app.command("ls")
def list_limits() -> None:
    """List limits, with the holders of their slots and leaked slots."""
    chosen = settings.load()
    results = objects.of(chosen)
    api = running_api(chosen, "the limits set by pfl")
    rows = list(_recorded(results) if api is None else limits.list_limits(api, results))
    # A line for each limit, and below it one for each holder of a slot.
    table = output.Table(("slots", "tag", "holder", "since", "note"))
    for row in rows:
        output.emit(row)
        notes = [f"{row['leaked']} leaked"] if row["leaked"] else []
        if not row["set_by_pfl"]:
            notes.append("not set by pfl: steps use it only if their code or PFL_TAG_LIMITS does")
        slots = f"{row['taken']} of {row['limit']}"
        table.add({"slots": slots, "tag": row["tag"], "note": "; ".join(notes)})
        for holder in row["holders"]:
            name = (holder["name"] or holder["task_run_id"], holder["url"])
            note = "leaked: its process is dead" if holder["is_dead"] else None
            table.add({"holder": name, "since": holder["since"], "note": note})
    table.flush()
    leaked = sum(row["leaked"] for row in rows)
    note = f", {leaked} slots leaked; to free them: pfl limits reset" if leaked else ""
    output.say(f"{output.counted(len(rows), 'limit')}{note}")


def _recorded(results: objects.Store) -> Iterator[JsonObject]:
    """The limits recorded in the store; without a server, nothing holds their slots."""
    for entry in results.list("limits"):
        data = results.get(entry.key)
        # Otherwise it has just been removed.
        if data is not None:
            body = records.unseal(data, entry.key)
            yield {
                "tag": body["tag"],
                "limit": body["limit"],
                "taken": 0,
                "limit_id": None,
                "updated_at": None,
                "set_by_pfl": True,
                "holders": [],
                "leaked": 0,
            }


@app.command("set")
def set_limit(
    limit: Annotated[int, Argument(min=0, max=2**31 - 1)],
    id: Id = None,
    step: Step = None,
    tag: Tag = None,
    dry_run: bool = False,
) -> None:
    """
    Set a limit; running computations continue.

    Args:
        limit: How many may run at once; 0 for none.
    """
    name = _tag(id, step, tag)
    if not dry_run:
        limits.set_limit(*_connect(), name, limit)
    _show({"tag": name, "limit": limit, "dry_run": dry_run}, f"{limit} at once")


@app.command("rm")
def remove_limits(
    id: Id = None,
    step: Step = None,
    tag: Tag = None,
    idle: Annotated[str | None, Option(metavar="AGE")] = None,
    yes: Yes = False,
    dry_run: bool = False,
) -> None:
    """
    Remove a limit, or the idle limits of single IDs.

    Args:
        idle: All limits of single IDs unused for, say, 7d.
    """
    if idle is not None:
        refuse_together({"--idle": True, "--id, --step or --tag": id or step or tag})
        before_s = moment_ns(idle, "--idle") / 1e9
        api, results = _connect()
        names = limits.idle_tags(api, results, before_s)
    else:
        names = [_tag(id, step, tag)]
        api, results = _connect()
        limits.get_limit(api, results, names[0])  # It exists.
        waiting = limits.count_waiting(api, names[0])
        if waiting and not dry_run:
            runs = output.counted(waiting, "waiting task run")
            question = f"{runs} would run at once. Remove the limit on {names[0]}?"
            output.confirm(question, yes=yes)
    for name in names:
        if not dry_run:
            limits.remove_limit(api, results, name)
        _show({"tag": name, "dry_run": dry_run}, "removed")
    done = "would be removed" if dry_run else "removed"
    output.say(f"{output.counted(len(names), 'limit')} {done}")


@app.command("reset")
def reset_limit(id: Id = None, step: Step = None, tag: Tag = None, dry_run: bool = False) -> None:
    """Free the slots of a limit whose holders are dead, and list them; others keep their slots."""
    name = _tag(id, step, tag)
    api, results = _connect()
    row = limits.get_limit(api, results, name)
    freed = [] if dry_run else limits.reset(api, row)
    taken = limits.get_limit(api, results, name)["taken"]
    output.emit(
        {"tag": name, "leaked": row["leaked"], "freed": freed, "taken": taken, "dry_run": dry_run}
    )
    for line in freed:
        output.show(f"freed: {line}")
    done = f"{row['leaked']} would be freed" if dry_run else f"{len(freed)} freed"
    output.say(f"{name}: {done}, {taken} of {row['limit']} taken")


def _connect() -> tuple[environment.Api, objects.Store]:
    """Prefect, which is started if necessary, and the store."""
    chosen = settings.load()
    return environment.choose(chosen, output.progress), objects.of(chosen)


def _tag(id: str | None, step: str | None, tag: str | None) -> str:
    if bool(tag) == bool(step) or (tag and id):
        raise InvalidRequestError(
            "no limit is selected",
            why="the command needs --tag, or --step with or without --id",
            hint="--id abc --step b",
        )
    if tag:
        return limits.check_tag(tag)
    flows = catalog.load(settings.load()).flows.values()
    steps = set().union(*(flow.steps for flow in flows))
    if step not in steps:
        raise unknown("step", step, sorted(steps))
    return limit_tag(id, step)


def _show(row: dict[str, object], text: str) -> None:
    output.emit(row)
    not_done = " (not done: --dry-run)" if row["dry_run"] else ""
    output.show(f"{row['tag']}: {text}{not_done}")
