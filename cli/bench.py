"""``pfl bench``: what Prefect costs, and what a call costs here, measured on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.options import Json
from handler.core.errors import InvalidRequestError, NotFoundError

SECTIONS = ("steps", "concurrency", "scale")
Section = StrEnum("Section", SECTIONS)
Flow = StrEnum("Flow", ("meaning", "audit", "chain-1", "chain-3", "chain-10", "chain-50"))
Engine = StrEnum("Engine", ("functions", "pfl-direct", "pfl-prefect", "prefect"))
Kind = StrEnum("Kind", ("directory", "s3"))


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="The essence, in two or three minutes.")] = False,
    only: Annotated[list[Section] | None, typer.Option("--only", help="This section; repeatable.")] = None,
    flow: Annotated[list[Flow] | None, typer.Option("--flow", help="This flow; repeatable.")] = None,
    engine: Annotated[list[Engine] | None, typer.Option("--engine", help="This engine; prefect is plain Prefect; repeatable.")] = None,
    store: Annotated[list[Kind] | None, typer.Option("--store", help="This kind of store; repeatable.")] = None,
    latency: Annotated[list[int] | None, typer.Option("--latency", min=0, max=10_000, metavar="MS", help="Round trip to Prefect; repeatable.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Each flow on each store at each latency, not one thing changed at a time.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=0, max=1_000, show_default=False, help="Fresh processes of each, if not the usual number.")] = 0,
    calls: Annotated[int, typer.Option("--calls", min=0, max=1_000, show_default=False, help="Warm calls of each process, if not the usual number.")] = 0,
    callers: Annotated[list[int] | None, typer.Option("--callers", min=1, max=256, help="So many at once; repeatable.")] = None,
    ids: Annotated[list[int] | None, typer.Option("--ids", min=1, max=10_000_000, help="A store of so many IDs; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the run there, its tables and its chart beside it.")] = None,
    json: Json = False,
) -> None:
    """Measure the same steps as functions, with both engines and in plain Prefect, in a temporary project."""
    import signal

    from cli.benchmark import concurrency, report, scale, steps
    from cli.benchmark.rig import ENGINES, Rig, has_moto

    for flag, given, section in (("--callers", callers, "concurrency"), ("--ids", ids, "scale")):
        if given and only and section not in only:
            raise InvalidRequestError(f"{flag} is about {section}, which --only leaves out", hint=f"--only {section}")
    if out is not None and out.suffix != ".json":
        raise InvalidRequestError(f"--out {str(out)!r} is no .json file", hint=f"--out {out.with_suffix('.json')}")
    if out is not None and not out.parent.is_dir():
        raise NotFoundError(f"there is no directory {out.parent}", hint=f"mkdir -p {out.parent}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Whoever ends us that way leaves no server running either.
    chosen, engines, stores, run = only or SECTIONS, engine or ENGINES, list(store or ()), report.new(quick)
    left_out = [{"what": f"the section {each}", "why": "--only"} for each in SECTIONS if each not in chosen]
    if not has_moto():
        why, hint = "moto is not installed", "pip install 'moto[s3,server]'"
        left_out.append({"what": "S3", "why": f"{why}: {hint}"})
        if stores == ["s3"]:
            raise InvalidRequestError("there is no S3 to measure with", why=why, hint=hint)
        stores = ["directory"]
    todo = {"names": flow or (), "stores": stores, "latencies": latency or (), "rounds": rounds, "calls": calls, "every": every}
    cells = steps.plan(quick=quick, **todo) if "steps" in chosen else []
    at_once = concurrency.plan(quick=quick, callers=callers or (), engines=engines) if "concurrency" in chosen else []
    sizes = scale.plan(quick=quick, sizes=ids or ()) if "scale" in chosen else []
    total = sum(cell.rounds * len(steps.CASES) for cell in cells) + len(at_once) + len(sizes)
    with _Meter(total) as meter, Rig(meter.say) as rig:
        run["steps"] = steps.measure(rig, cells, meter.tick, engines=engines)
        run["concurrency"] = concurrency.measure(rig, at_once, meter.tick, left_out)
        run["scale"] = scale.measure(rig, sizes, 300 if quick else 3_000, meter.tick)
    report.finish(run, left_out)
    if out is not None:
        report.write(run, out)
    output.emit(run if json else report.markdown(run).rstrip())


class _Meter:
    """How far the run is, on stderr: a bar on a terminal, a line for each thing done elsewhere."""

    def __init__(self, total: int) -> None:
        import sys

        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task, self.total, self._done = self._bar.add_task("starting", total=total), total, 0

    def __enter__(self) -> _Meter:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """What is being waited for."""
        self._show(text, text)

    def tick(self, text: str) -> None:
        """One more thing is done."""
        self._done += 1
        self._show(text, f"{self._done} of {self.total}: {text}")

    def _show(self, text: str, line: str) -> None:
        if self._bar.disable:
            output.say(line)
        else:
            self._bar.update(self._task, description=text, completed=self._done)
