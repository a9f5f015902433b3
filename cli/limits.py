"""``pfl limits``: how many computations of a step may run at once, as limits on tags in Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import DryRun, Json, Yes, age_s, checked
from pfl.handler.core.errors import InvalidRequestError

app = typer.Typer(help="How many computations of a step may run at once.", no_args_is_help=True)
Id = Annotated[str | None, typer.Option("--id", callback=checked, help="Of this ID; with --step.")]
Step = Annotated[
    str | None, typer.Option("--step", help="Of this step; across IDs where no --id is given.")
]
Tag = Annotated[str | None, typer.Option("--tag", help="Of this tag.")]


@app.command("ls")
def ls(json: Json = False) -> None:
    """List limits: slots taken, by whom, since when, and which are leaked."""
    with _prefect() as (limits, api, results):
        count = leaked = 0
        for row in limits.ls(api, results):
            count, leaked = count + 1, leaked + row["leaked"]
            if json:
                output.emit(row)
                continue
            output.emit(
                f"{row['taken']} of {row['limit']}  {output.printable(row['tag'])}" + _note(row)
            )
            for each in row["holders"]:
                who = each["name"] or each["task_run_id"]
                dead = "  leaked: its process is dead" if each["is_dead"] else ""
                output.emit(
                    output.printable(
                        f"    {who}  since {(each['since'] or '?')[:19]}  {each['url'] or ''}{dead}"
                    )
                )
    output.say(
        output.counted(count, "limit")
        + (f", {leaked} slots leaked: pfl limits reset" if leaked else "")
    )


@app.command("set")
def set_limit(
    limit: Annotated[int, typer.Argument(min=0, max=2**31 - 1, help="How many at once; 0 lets none run.")],
    id: Id = None, step: Step = None, tag: Tag = None, dry_run: DryRun = False, json: Json = False,
) -> None:  # fmt: skip
    """Set a limit; those that run go on."""
    name = _tag(id, step, tag)
    with _prefect() as (limits, api, results):
        if not dry_run:
            limits.put(api, results, name, limit)
    _done({"tag": name, "limit": limit, "dry_run": dry_run}, json, f"{name}: {limit} at once")


@app.command("rm")
def rm(
    id: Id = None, step: Step = None, tag: Tag = None,
    idle: Annotated[str | None, typer.Option("--idle", help="All of single IDs that nobody used for so long, as 7d.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False, json: Json = False,
) -> None:  # fmt: skip
    """Remove a limit, or those made for single IDs that are idle."""
    if idle is not None and (id or step or tag):
        raise InvalidRequestError("--idle goes with no other selection")
    seconds, named = (age_s(idle, "--idle"), "") if idle is not None else (0, _tag(id, step, tag))
    with _prefect() as (limits, api, results):
        if idle is not None:
            names = limits.idle(api, results, seconds)
        else:
            names = [limits.one(api, results, named)["tag"]]
            waiting = limits.waiting(api, names[0])
            if waiting:
                wait = "waits" if waiting == 1 else "wait"
                question = f"{output.counted(waiting, 'task run')} {wait} for {names[0]}, and would all run at once. Remove it?"
                output.confirm(question, yes=yes or dry_run)
        for name in names:
            if not dry_run:
                limits.rm(api, results, name)
            _done({"tag": name, "dry_run": dry_run}, json, f"{name}: removed")
    output.say(
        output.counted(len(names), "limit") + " " + ("would be removed" if dry_run else "removed")
    )


@app.command("reset")
def reset(
    id: Id = None, step: Step = None, tag: Tag = None, dry_run: DryRun = False, json: Json = False
) -> None:
    """Free the slots of a limit whose holders are no more, and say which; what runs keeps its slot."""
    named = _tag(id, step, tag)
    with _prefect() as (limits, api, results):
        row = limits.one(api, results, named)
        freed = [] if dry_run else limits.reset(api, row)
        taken = limits.one(api, results, row["tag"])["taken"]
    if json:
        output.emit(
            {
                "tag": row["tag"],
                "leaked": row["leaked"],
                "freed": freed,
                "taken": taken,
                "dry_run": dry_run,
            }
        )
    else:
        for line in freed:
            output.emit(output.printable(f"freed: {line}"))
    done = f"{row['leaked']} would be freed" if dry_run else f"{len(freed)} freed"
    output.say(f"{row['tag']}: {done}, {taken} of {row['limit']} taken")


@contextmanager
def _prefect() -> Iterator[tuple]:
    from pfl.handler.core.store import objects
    from pfl.handler.engine.prefect import environment, limits

    chosen = settings.load()
    api = environment.choose(chosen, lambda text: output.progress("", text))
    yield limits, api, objects.of(chosen)


def _tag(id: str | None, step: str | None, tag: str | None) -> str:
    from pfl.handler.core.declare import catalog
    from pfl.handler.engine.prefect import limits

    if (tag is None) == (step is None) or (id is not None and step is None) or tag == "":
        raise InvalidRequestError(
            "which limit?",
            why="it is named by --tag, --step, or --id and --step",
            hint="--id abc --step b",
        )
    if tag is not None:
        return limits.check_tag(tag)
    known = {name for flow in catalog.load(settings.load()).flows.values() for name in flow.steps}
    if step not in known:
        raise InvalidRequestError(
            f"unknown step {step!r}", hint=f"the steps are {', '.join(sorted(known))}"
        )
    return limits.tag_of(id, step)


def _done(row: dict, json: bool, words: str) -> None:
    if json:
        output.emit(row)
    else:
        output.emit(output.printable(words) + (" (not done: --dry-run)" if row["dry_run"] else ""))


def _note(row: dict) -> str:
    leaked = f"  {row['leaked']} leaked" if row["leaked"] else ""
    return leaked + (
        ""
        if row["set_by_pfl"]
        else "  (not set by pfl: steps heed it only if their code or PFL_TAG_LIMITS says so)"
    )
