"""
What Prefect costs, and what a call costs here: ``python tests/benchmarks/bench.py [--quick]``.

The same steps run as plain functions, with both engines, and as the plain Prefect flow that a user
would write, in a temporary project with servers of its own. Errors, exit codes and streams are
those of the ``pfl`` command.
"""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from unittest import mock

# This folder gives way to the one above: modules here are `benchmarks.steps`, not `steps`.
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [place for place in sys.path if place != _HERE]
sys.path.insert(0, str(Path(_HERE).parent))

import typer  # noqa: E402

from benchmarks import concurrency, report, scale, steps  # noqa: E402
from benchmarks.rig import ENGINES, Rig, has_moto  # noqa: E402
from pfl.cli import main as command  # noqa: E402
from pfl.cli import output  # noqa: E402
from pfl.cli.command import Command  # noqa: E402
from pfl.handler.core.errors import (  # noqa: E402
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)

SECTIONS = ("steps", "concurrency", "scale")
Section = StrEnum("Section", SECTIONS)
Flow = StrEnum("Flow", ("meaning", "audit", "chain-1", "chain-3", "chain-10", "chain-50"))
Engine = StrEnum("Engine", ("functions", "pfl-direct", "pfl-prefect", "prefect"))
Kind = StrEnum("Kind", ("directory", "s3"))

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str]) -> None:
    """Run the benchmark and exit, with the streams and exit codes of the ``pfl`` command."""
    with mock.patch.object(command, "app", app):
        command.main(arguments)


@app.command(cls=Command)
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="The essentials, in two or three minutes.")
    ] = False,
    only: Annotated[
        list[Section] | None, typer.Option("--only", help="Section to run; repeatable.")
    ] = None,
    flow: Annotated[
        list[Flow] | None, typer.Option("--flow", help="Flow to measure; repeatable.")
    ] = None,
    engine: Annotated[
        list[Engine] | None,
        typer.Option("--engine", help="Engine; prefect is plain Prefect; repeatable."),
    ] = None,
    store: Annotated[
        list[Kind] | None, typer.Option("--store", help="Kind of store; repeatable.")
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
            help="Each flow on each store at each latency; by default only one of them varies.",
        ),
    ] = False,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            min=0,
            max=1_000,
            show_default=False,
            help="Fresh processes of each; the default depends on the flow.",
        ),
    ] = 0,
    calls: Annotated[
        int,
        typer.Option(
            "--calls",
            min=0,
            max=1_000,
            show_default=False,
            help="Warm calls of each process; the default depends on the flow.",
        ),
    ] = 0,
    callers: Annotated[
        list[int] | None,
        typer.Option("--callers", min=1, max=256, help="Simultaneous callers; repeatable."),
    ] = None,
    ids: Annotated[
        list[int] | None,
        typer.Option("--ids", min=1, max=10_000_000, help="Number of IDs in a store; repeatable."),
    ] = None,
    s3: Annotated[
        str,
        typer.Option(
            "--s3",
            help="Your own s3://bucket/prefix instead of moto; the run removes what it writes.",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.json",
            help="File for the run; its tables and its chart go next to it.",
        ),
    ] = None,
) -> None:
    """Measure the same steps as functions, with both engines and in plain Prefect."""
    sections = _unique(only)
    flows = _unique(flow)
    engines = _unique(engine) or ENGINES
    stores = _unique(store)
    latencies = _unique(latency)
    callers_at_once = _unique(callers)
    by_section = {
        "concurrency": {"--callers": callers_at_once},
        "scale": {"--ids": ids},
        "steps": {
            "--flow": flows,
            "--store": stores,
            "--latency": latencies,
            "--all": every,
            "--rounds": rounds,
            "--calls": calls,
            "--s3": s3,
        },
    }
    _check_sections(sections, by_section)
    _check_s3(s3, stores)
    _check_out(out)
    # When another process ends us with SIGTERM, the servers are stopped as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The servers listen on loopback, which no proxy can reach.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))

    chosen = sections or SECTIONS
    run = report.new(quick)
    left_out = run["left_out"]
    for section in SECTIONS:
        if section not in chosen:
            left_out.append({"what": f"the section {section}", "why": "--only"})
    if not (s3 or has_moto()):
        why = "moto is not installed"
        hint = "pip install 'moto[s3,server]', or --s3 s3://bucket/prefix"
        left_out.append({"what": "S3", "why": f"{why}: {hint}"})
        if stores == ["s3"]:
            raise InvalidRequestError("no S3 to measure with", why=why, hint=hint)
        stores = ["directory"]
    cells = []
    if "steps" in chosen:
        cells = steps.plan(
            quick=quick,
            names=flows,
            stores=stores,
            latencies=latencies,
            rounds=rounds,
            calls=calls,
            every=every,
        )
    at_once = []
    if "concurrency" in chosen:
        at_once = concurrency.plan(quick=quick, callers=callers_at_once, engines=engines)
    sizes = scale.plan(quick=quick, sizes=ids or ()) if "scale" in chosen else []
    total = sum(cell.rounds * len(steps.CASES) for cell in cells) + len(at_once) + len(sizes)
    try:
        with _Meter(total) as meter, Rig(meter.say, s3) as rig:
            if s3:  # A bucket that cannot be reached is reported before anything is measured.
                rig.wipe("s3")
            # Rows are added as they are measured, so that a failure keeps them.
            run["steps"].extend(steps.measure(rig, cells, meter.tick, left_out, engines=engines))
            run["concurrency"].extend(concurrency.measure(rig, at_once, meter.tick, left_out))
            run["scale"].extend(scale.measure(rig, sizes, 300 if quick else 3_000, meter.tick))
    except Exception as exc:
        if out is not None and _has_rows(run):
            left_out.append({"what": "the rest of the run", "why": f"it failed: {exc}"})
            report.write(run, out)
            output.say(f"what was measured until then is in {out}")
        raise
    failed = [each["why"] for each in left_out if "section" in each]
    if failed and not _has_rows(run):
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
    output.emit(run)
    output.show(report.markdown(run).rstrip())


def _unique(given: list | None) -> list:
    return list(dict.fromkeys(given or ()))


def _check_sections(sections: list, by_section: dict[str, dict[str, object]]) -> None:
    """Refuse an option of a section that ``--only`` leaves out."""
    for section, flags in by_section.items():
        for flag, given in flags.items():
            if given and sections and section not in sections:
                raise InvalidRequestError(
                    f"{flag} belongs to {section}, which --only leaves out",
                    hint=f"--only {section}",
                )


def _check_s3(s3: str, stores: list) -> None:
    bucket = s3.removeprefix("s3://").partition("/")[0]
    if s3 and not (s3.startswith("s3://") and bucket):
        raise InvalidRequestError(f"--s3 {s3!r} has no bucket", hint="--s3 s3://my-bucket/bench")
    if s3 and stores and "s3" not in stores:
        raise InvalidRequestError(
            "--s3 and --store directory cannot be used together", hint="--store s3"
        )


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.suffix != ".json":
        raise InvalidRequestError(
            f"--out {str(out)!r} is not a .json file", hint=f"--out {out.with_suffix('.json')}"
        )
    if not out.parent.is_dir():
        raise NotFoundError(
            f"the directory {out.parent} does not exist", hint=f"mkdir -p {out.parent}"
        )


def _has_rows(run: dict) -> bool:
    return bool(run["steps"] or run["concurrency"] or run["scale"])


class _Meter:
    """The progress of a run on stderr: a bar on a terminal, otherwise a line for each part."""

    def __init__(self, total: int) -> None:
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
        # On a narrow terminal the text is cut, not the numbers.
        text = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True))
        self._bar = Progress(
            BarColumn(console.width // 6),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            text,
            console=console,
            transient=True,
            expand=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("starting", total=total)
        self.total = total
        self._done = 0

    def __enter__(self) -> _Meter:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Show what the run is waiting for."""
        self._show(text, text)

    def tick(self, text: str) -> None:
        """Count one more part as done."""
        self._done += 1
        self._show(text, f"{self._done} of {self.total}: {text}")

    def _show(self, text: str, line: str) -> None:
        if self._bar.disable:
            output.say(line)
        else:
            self._bar.update(self._task, description=text, completed=self._done)


if __name__ == "__main__":
    main(sys.argv[1:])
