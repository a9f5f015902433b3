"""``pfl bench``: what Prefect costs, and what a call costs here, measured on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pfl.cli import output
from pfl.cli.options import Json
from pfl.handler.core.errors import InvalidRequestError, NotFoundError, UnavailableError

SECTIONS = ("steps", "concurrency", "scale")
Section = StrEnum("Section", SECTIONS)
Flow = StrEnum("Flow", ("meaning", "audit", "chain-1", "chain-3", "chain-10", "chain-50"))
Engine = StrEnum("Engine", ("functions", "pfl-direct", "pfl-prefect", "prefect"))
Kind = StrEnum("Kind", ("directory", "s3"))


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="The essence, in two or three minutes.")
    ] = False,
    only: Annotated[
        list[Section] | None, typer.Option("--only", help="This section; repeatable.")
    ] = None,
    flow: Annotated[
        list[Flow] | None, typer.Option("--flow", help="This flow; repeatable.")
    ] = None,
    engine: Annotated[
        list[Engine] | None,
        typer.Option("--engine", help="This engine; prefect is plain Prefect; repeatable."),
    ] = None,
    store: Annotated[
        list[Kind] | None, typer.Option("--store", help="This kind of store; repeatable.")
    ] = None,
    latency: Annotated[
        list[int] | None,
        typer.Option(
            "--latency", min=0, max=10_000, metavar="MS", help="Round trip to Prefect; repeatable."
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Each flow on each store at each latency, not one thing changed at a time.",
        ),
    ] = False,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            min=0,
            max=1_000,
            show_default=False,
            help="Fresh processes of each, if not the usual number.",
        ),
    ] = 0,
    calls: Annotated[
        int,
        typer.Option(
            "--calls",
            min=0,
            max=1_000,
            show_default=False,
            help="Warm calls of each process, if not the usual number.",
        ),
    ] = 0,
    callers: Annotated[
        list[int] | None,
        typer.Option("--callers", min=1, max=256, help="So many at once; repeatable."),
    ] = None,
    ids: Annotated[
        list[int] | None,
        typer.Option("--ids", min=1, max=10_000_000, help="A store of so many IDs; repeatable."),
    ] = None,
    s3: Annotated[
        str,
        typer.Option(
            "--s3",
            help="Your own s3://bucket/prefix, in place of moto; what is written is removed again.",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.json",
            help="Write the run there, its tables and its chart beside it.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the same steps as functions, with both engines and in plain Prefect, in a temporary project."""
    import os
    import signal

    from pfl.cli.benchmark import concurrency, report, scale, steps
    from pfl.cli.benchmark.rig import ENGINES, Rig, has_moto

    only, flow, engine, store, latency, callers = (
        list(dict.fromkeys(each or ())) for each in (only, flow, engine, store, latency, callers)
    )
    about = {
        "--flow": flow,
        "--store": store,
        "--latency": latency,
        "--all": every,
        "--rounds": rounds,
        "--calls": calls,
        "--s3": s3,
    }
    for flag, given, section in (
        ("--callers", callers, "concurrency"),
        ("--ids", ids, "scale"),
        *((flag, given, "steps") for flag, given in about.items()),
    ):
        if given and only and section not in only:
            raise InvalidRequestError(
                f"{flag} is about {section}, which --only leaves out", hint=f"--only {section}"
            )
    if s3 and not (s3.startswith("s3://") and s3[5:].partition("/")[0]):
        raise InvalidRequestError(f"--s3 {s3!r} names no bucket", hint="--s3 s3://my-bucket/bench")
    if s3 and store and "s3" not in store:
        raise InvalidRequestError(
            "--s3 and --store directory do not go together", hint="--store s3"
        )
    if out is not None and out.suffix != ".json":
        raise InvalidRequestError(
            f"--out {str(out)!r} is no .json file", hint=f"--out {out.with_suffix('.json')}"
        )
    if out is not None and not out.parent.is_dir():
        raise NotFoundError(f"there is no directory {out.parent}", hint=f"mkdir -p {out.parent}")
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # Whoever ends us that way leaves no server running either.
    for name in (
        "no_proxy",
        "NO_PROXY",
    ):  # What is measured listens on loopback, where no proxy gets to.
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    chosen, engines, run = only or SECTIONS, engine or ENGINES, report.new(quick)
    left_out = run["left_out"]
    left_out += (
        {"what": f"the section {each}", "why": "--only"} for each in SECTIONS if each not in chosen
    )
    if not (s3 or has_moto()):
        why, hint = (
            "moto is not installed",
            "pip install 'moto[s3,server]', or --s3 s3://bucket/prefix",
        )
        left_out.append({"what": "S3", "why": f"{why}: {hint}"})
        if store == ["s3"]:
            raise InvalidRequestError("there is no S3 to measure with", why=why, hint=hint)
        store = ["directory"]
    todo = {
        "names": flow,
        "stores": store,
        "latencies": latency,
        "rounds": rounds,
        "calls": calls,
        "every": every,
    }
    cells = steps.plan(quick=quick, **todo) if "steps" in chosen else []
    at_once = (
        concurrency.plan(quick=quick, callers=callers, engines=engines)
        if "concurrency" in chosen
        else []
    )
    sizes = scale.plan(quick=quick, sizes=ids or ()) if "scale" in chosen else []
    total = sum(cell.rounds * len(steps.CASES) for cell in cells) + len(at_once) + len(sizes)
    try:
        with _Meter(total) as meter, Rig(meter.say, s3) as rig:
            if s3:  # Whether it is there is told before anything is measured.
                rig.wipe("s3")
            # Row by row into the run, so that they are kept if something fails.
            run["steps"].extend(steps.measure(rig, cells, meter.tick, left_out, engines=engines))
            run["concurrency"].extend(concurrency.measure(rig, at_once, meter.tick, left_out))
            run["scale"].extend(scale.measure(rig, sizes, 300 if quick else 3_000, meter.tick))
    except Exception as exc:  # What was measured until then took long.
        if out is not None and (run["steps"] or run["concurrency"] or run["scale"]):
            left_out.append({"what": "the rest of the run", "why": f"it failed: {exc}"})
            report.write(run, out)
            output.say(f"what was measured until then is in {out}")
        raise
    failed = [each["why"] for each in left_out if "section" in each]
    if failed and not (run["steps"] or run["concurrency"] or run["scale"]):
        raise UnavailableError("nothing could be measured", why=failed[0])
    report.finish(
        run,
        cells=cells,
        callers=[number for number, *_ in at_once],
        sizes=sizes,
        engines=engines,
        own_s3=bool(s3),
    )
    if out is not None:
        report.write(run, out)
    output.emit(run if json else report.markdown(run).rstrip())


class _Meter:
    """How far the run is, on stderr: a bar on a terminal, a line for each thing done elsewhere."""

    def __init__(self, total: int) -> None:
        import sys

        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.table import Column

        console = Console(stderr=True)
        # On a narrow terminal the words give way, not the numbers.
        what = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True))
        columns = (BarColumn(console.width // 6), MofNCompleteColumn(), TimeElapsedColumn(), what)
        self._bar = Progress(
            *columns, console=console, transient=True, expand=True, disable=not sys.stderr.isatty()
        )
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
