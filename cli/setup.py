"""``pfl setup``: what pfl needs in Prefect, made again as often as you like, and removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import DryRun, Json, Pool, Yes
from pfl.handler.core.errors import InvalidRequestError

app = typer.Typer(
    help="What pfl needs in Prefect: storage block, deployments, automations.", no_args_is_help=True
)
Name = Annotated[str, typer.Option("--name", help="The name of the block.")]
Keys = Annotated[
    bool, typer.Option("--with-keys", help="Store the AWS keys of this environment in the block.")
]
Kind = StrEnum("Kind", ["blocks", "deployments", "automations"])


@app.command("blocks")
def blocks(
    name: Name = "cache", with_keys: Keys = False, dry_run: DryRun = False, json: Json = False
) -> None:
    """Make the storage block that results go to, and prove that it works."""
    _make(("blocks",), name=name, with_keys=with_keys, dry_run=dry_run, json=json)


@app.command("deployments")
def deployments(pool: Pool = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Make the work pool and a deployment per flow, so that Run in Prefect's UI calls the function."""
    _make(("deployments",), pool=pool, dry_run=dry_run, json=json)


@app.command("automations")
def automations(dry_run: DryRun = False, json: Json = False) -> None:
    """Have Prefect mark runs Crashed whose heartbeats stop: a second line of defence."""
    _make(("automations",), dry_run=dry_run, json=json)


@app.command("all")
def all_of_it(
    name: Name = "cache",
    with_keys: Keys = False,
    pool: Pool = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make all of it."""
    _make(tuple(Kind), name=name, with_keys=with_keys, pool=pool, dry_run=dry_run, json=json)


@app.command("rm")
def rm(
    what: Annotated[
        list[Kind] | None,
        typer.Argument(
            metavar="[KIND]...", help="Of blocks, deployments, automations; all if not given."
        ),
    ] = None,
    name: Name = "cache",
    pool: Pool = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove it again; results and runs stay."""
    chosen = settings.load()
    with connected(chosen) as api:
        from pfl.serverless import prefect_setup

        found = prefect_setup.removals(
            api, chosen, set(what or Kind), name=name, pool=pool or chosen.work_pool
        )
        todo = [] if dry_run else [(change, path) for change, path in found if path]
        if todo:
            output.confirm(
                f"Remove {', '.join(f'{change.kind} {change.name}' for change, _ in todo)}?",
                yes=yes,
            )
        for change, path in todo:
            prefect_setup.delete(api, change, path)
    _show([change for change, _ in found], dry_run, json)


@contextmanager
def connected(chosen) -> Iterator:
    """Prefect's API, set up in this process; while the embedded server starts, that is told."""
    from pfl.handler.engine.prefect import session

    with session.session(chosen, output.progress) as api:
        output.clear_progress()
        yield api


def _make(
    kinds: tuple[str, ...],
    *,
    name: str = "cache",
    with_keys: bool = False,
    pool: str | None = None,
    dry_run: bool,
    json: bool,
) -> None:
    import re

    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise InvalidRequestError(
            f"a block cannot be named {name!r}",
            why="Prefect allows lowercase letters, digits and dashes",
            hint="--name cache",
        )
    chosen = settings.load()
    with connected(chosen) as api, output.stdout_kept_for_data():
        from pfl.serverless import prefect_setup, remote

        def deployments() -> Iterable:
            target = remote.target(chosen)
            return prefect_setup.deployments(
                api,
                chosen,
                pool=pool or chosen.work_pool,
                function=target.function if target else "pfl",
                dry_run=dry_run,
            )

        makers = {
            "blocks": lambda: prefect_setup.blocks(
                api, chosen, name=name, with_keys=with_keys, dry_run=dry_run
            ),
            "deployments": deployments,
            "automations": lambda: prefect_setup.automations(api, dry_run=dry_run),
        }
        made = [change for kind in kinds for change in makers[kind]()]
    _show(made, dry_run, json)


def _show(changes: Iterable, dry_run: bool, json: bool) -> None:
    rows, counts = [], {}
    for change in changes:
        counts[change.action] = counts.get(change.action, 0) + 1
        if json:
            fields = {
                field: {"before": before, "after": after}
                for field, (before, after) in change.fields.items()
            }
            output.emit(change._asdict() | {"fields": fields, "dry_run": dry_run})
            continue
        rows.append((change.kind, change.name, change.action, "", "", ""))
        rows += [
            ("", "", "", field, _cell(before), _cell(after))
            for field, (before, after) in change.fields.items()
        ]
        if change.note:
            output.say(f"{change.kind} {change.name}: {change.note}")
    if rows:
        output.table(["kind", "name", "action", "field", "before", "value"], rows)
    said = ", ".join(f"{count} {action}" for action, count in counts.items()) or "nothing to do"
    output.say(said + (" (not done: --dry-run)" if dry_run else ""))


def _cell(value: object) -> str:
    text = "-" if value is None else str(value).splitlines()[0] if value else ""
    return text if len(text) <= 72 else text[:71] + "…"
