"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the data as JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Pool = Annotated[str | None, typer.Option("--pool", help="The work pool; PFL_WORK_POOL if not given.")]

# What to look at.
TheId = Annotated[str, typer.Option("--id", help="The ID.")]
OnlyId = Annotated[str | None, typer.Option("--id", help="Only this ID.")]
OnlyFlow = Annotated[str | None, typer.Option("--flow", help="Only this flow.")]
OnlyStep = Annotated[str | None, typer.Option("--step", help="Only this step.")]
