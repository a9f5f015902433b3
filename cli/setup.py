"""``pfl setup``: create, update and remove what pfl needs in Prefect."""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Typer

from ..handler.core.errors import InvalidRequestError
from ..serverless import remote
from . import output, settings
from .options import Yes

if TYPE_CHECKING:
    from ..serverless.prefect_setup import Change

app = Typer(help="Set up Prefect for pfl: storage block, deployments, automations.")
Kind = StrEnum("Kind", ["blocks", "deployments", "automations"])


@app.command("blocks")
def make_blocks(name: str = "cache", with_keys: bool = False, dry_run: bool = False) -> None:
    """
    Create the storage block for the results, and check that it works.

    Args:
        name: Name of the block.
    """
    _make([Kind.blocks], dry_run, name, with_keys)


@app.command("deployments")
def make_deployments(pool: str | None = None, dry_run: bool = False) -> None:
    """Make the work pool and a deployment per flow: *Run* in Prefect's UI calls the function."""
    _make([Kind.deployments], dry_run, pool=pool)


@app.command("automations")
def make_automations(dry_run: bool = False) -> None:
    """Have Prefect mark runs without heartbeats as crashed, as a second safeguard."""
    _make([Kind.automations], dry_run)


@app.command("all")
def make_all(
    name: str = "cache", with_keys: bool = False, pool: str | None = None, dry_run: bool = False
) -> None:
    """
    Make the storage block, the deployments and the automations.

    Args:
        name: Name of the block.
    """
    _make(list(Kind), dry_run, name, with_keys, pool)


@app.command("rm")
def remove(
    kinds: Annotated[list[Kind] | None, Argument(metavar="[KIND]...")] = None,
    name: str = "cache",
    pool: str | None = None,
    yes: Yes = False,
    dry_run: bool = False,
) -> None:
    """
    Remove what pfl created; keep results and runs.

    Args:
        name: Name of the block.
        kinds: blocks, deployments, automations (default: all).
    """
    chosen_kinds = set(kinds or Kind)
    for option, kind, value in (
        ("name", Kind.blocks, name != "cache"),
        ("pool", Kind.deployments, pool),
    ):
        if value and kind not in chosen_kinds:
            raise InvalidRequestError(
                f"--{option} has no effect without {kind}", hint=f"pfl setup rm {kind}"
            )
    from ..handler.engine.prefect import session
    from ..serverless import prefect_setup

    chosen = settings.load()
    with session.session(chosen, output.progress) as api:
        pool = pool or chosen.work_pool
        planned = list(prefect_setup.removals(api, chosen, chosen_kinds, name=name, pool=pool))
        names = [f"{each.kind} {each.name}" for each in planned if each.action == "remove"]
        if names and not dry_run:
            output.confirm(f"Remove {', '.join(names)}?", yes=yes)
        _carry_out(planned, dry_run)


def _make(
    kinds: list[Kind],
    dry_run: bool,
    name: str = "cache",
    with_keys: bool = False,
    pool: str | None = None,
) -> None:
    from ..handler.engine.prefect import session
    from ..serverless import prefect_setup

    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise InvalidRequestError(
            f"a block cannot be named {name!r}",
            why="Prefect allows lowercase letters, digits and dashes",
            hint="--name cache",
        )
    chosen = settings.load()
    if with_keys and not chosen.store.startswith("s3://"):
        raise InvalidRequestError(
            "--with-keys has no effect: the store is not in S3", hint="leave --with-keys out"
        )
    with session.session(chosen, output.progress) as api:
        planned: list[Change] = []
        if Kind.blocks in kinds:
            planned.append(prefect_setup.block(api, chosen, name=name, with_keys=with_keys))
        if Kind.deployments in kinds:
            target = remote.target(chosen)
            function = target.function if target else "pfl"
            pool = pool or chosen.work_pool
            with output.stdout_kept_for_data():
                planned += prefect_setup.deployments(api, chosen, pool=pool, function=function)
        if Kind.automations in kinds:
            planned.append(prefect_setup.automation(api))
        _carry_out(planned, dry_run)


def _carry_out(planned: list[Change], dry_run: bool) -> None:
    """Make the changes, unless *dry_run*, and print them."""
    if not dry_run:
        for change in planned:
            change.make()
    table = output.Table(("kind", "name", "action", "field", "before", "value"))
    for change in planned:
        fields = {field: {"old": old, "new": new} for field, (old, new) in change.fields.items()}
        row = change._asdict()
        del row["make"]
        output.emit({**row, "fields": fields, "dry_run": dry_run})
        table.add(row)
        for field, values in change.fields.items():
            table.add(("", "", "", field, *map(output.cut, values)))
        if change.note and not output.in_json:
            output.say(f"{change.kind} {change.name}: {change.note}")
    table.flush()
    counts = Counter(change.action for change in planned)
    summary = ", ".join(f"{count} {action}" for action, count in counts.items()) or "nothing to do"
    output.say(summary + (" (not done: --dry-run)" if dry_run else ""))
