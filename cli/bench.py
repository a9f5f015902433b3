"""``pfl bench``: what Prefect costs, and what a call costs here, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.options import Json
from handler.core.errors import InvalidRequestError, NotFoundError, UnavailableError

SECTIONS = ("steps", "concurrency", "scale")


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="The essence, in two or three minutes.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="This section: steps, concurrency or scale; repeatable.")] = None,
    flow: Annotated[list[str] | None, typer.Option("--flow", help="This flow: meaning, audit, chain-1, -3, -10 or -50; repeatable.")] = None,
    engine: Annotated[list[str] | None, typer.Option("--engine", help="functions, pfl-direct, pfl-prefect or prefect, which is plain Prefect; repeatable.")] = None,
    store: Annotated[list[str] | None, typer.Option("--store", help="directory or s3; repeatable.")] = None,
    latency: Annotated[list[int] | None, typer.Option("--latency", min=0, max=10_000, metavar="MS", help="Round trip to Prefect; repeatable.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Each flow on each store at each latency, not one thing changed at a time.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=0, max=1_000, show_default=False, help="Fresh processes of each, if not the usual number.")] = 0,
    calls: Annotated[int, typer.Option("--calls", min=0, max=1_000, show_default=False, help="Warm calls of each process, if not the usual number.")] = 0,
    callers: Annotated[list[int] | None, typer.Option("--callers", min=1, max=256, help="So many at once; repeatable.")] = None,
    ids: Annotated[list[int] | None, typer.Option("--ids", min=1, max=10_000_000, help="A store of so many IDs; repeatable.")] = None,
    s3: Annotated[str, typer.Option("--s3", help="Your own s3://bucket/prefix, in place of moto; what is written is removed again.")] = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the run there, its tables and its chart beside it.")] = None,
    render: Annotated[Path | None, typer.Option("--render", metavar="FILE.json", help="Measure nothing: write tables and chart of that run.")] = None,
    readme: Annotated[Path | None, typer.Option("--readme", metavar="FILE.md", help="With --render or --out: the file whose results section to rewrite.")] = None,
    json: Json = False,
) -> None:
    """Measure the same steps as functions, with both engines and in plain Prefect, in a temporary project."""
    from cli.benchmark import report

    if render is not None:
        if quick or only or flow or engine or store or latency or every or rounds or calls or callers or ids or s3 or out:
            raise InvalidRequestError("--render measures nothing", why="it goes with --readme and --json alone", hint=f"pfl bench --render {render}")
        run = report.read(render)
        report.write(run, render, readme)
    else:
        if readme is not None and out is None:
            raise InvalidRequestError("--readme needs a run to tell of", hint="--out FILE.json or --render FILE.json")
        _check(only, flow, engine, store, s3, out, readme)
        if s3 and store and "s3" not in store:
            raise InvalidRequestError("--s3 and --store directory do not go together", hint="--store s3")
        only, flow, engine, store, latency, callers = (list(dict.fromkeys(each or ())) for each in (only, flow, engine, store, latency, callers))
        about = {"--flow": flow, "--store": store, "--latency": latency, "--all": every, "--rounds": rounds, "--calls": calls, "--s3": s3}
        for flag, given, section in (("--callers", callers, "concurrency"), ("--ids", ids, "scale"), *((flag, given, "steps") for flag, given in about.items())):
            if given and only and section not in only:
                raise InvalidRequestError(f"{flag} is about {section}, which --only leaves out", hint=f"--only {section}")
        if out is not None and not out.parent.is_dir():
            raise NotFoundError(f"there is no directory {out.parent}", hint=f"mkdir -p {out.parent}")
        run = report.new(quick)
        try:
            _measure(run, quick, only, flow, engine, store, latency, every, rounds, calls, callers, ids, s3)
        except Exception as exc:  # What was measured until then took long.
            if out is not None and (run["steps"] or run["concurrency"] or run["scale"]):
                run["left_out"].append({"what": "the rest of the run", "why": f"it failed: {exc}"})
                report.write(run, out)
                output.say(f"what was measured until then is in {out}")
            raise
        if out is not None:
            report.write(run, out, readme)
    output.emit(run if json else report.markdown(run).rstrip())


def _check(only, flow, engine, store, s3: str, out: Path | None, readme: Path | None) -> None:
    from cli.benchmark import report, rig, workloads

    known_by_flag = {"--only": (only, SECTIONS), "--flow": (flow, tuple(workloads.ALL)), "--engine": (engine, rig.ENGINES), "--store": (store, ("directory", "s3"))}
    for flag, (given, known) in known_by_flag.items():
        if unknown := [each for each in given or () if each not in known]:
            raise InvalidRequestError(f"{flag} {unknown[0]!r} is unknown", hint=f"one of {', '.join(known)}")
    if s3 and not (s3.startswith("s3://") and s3[5:].partition("/")[0]):
        raise InvalidRequestError(f"--s3 {s3!r} names no bucket", hint="--s3 s3://my-bucket/bench")
    if out is not None and out.suffix != ".json":
        raise InvalidRequestError(f"--out {str(out)!r} is no .json file", hint=f"--out {out.with_suffix('.json')}")
    if readme is not None:
        report.check_readme(readme)


def _measure(run: dict, quick, only, flow, engine, store, latency, every, rounds, calls, callers, ids, s3: str) -> None:
    import os
    import signal

    from cli.benchmark import concurrency, report, scale, steps
    from cli.benchmark.rig import ENGINES, Rig

    engines = engine or ENGINES
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Whoever ends us that way leaves no server running either.
    for name in ("no_proxy", "NO_PROXY"):  # What is measured listens on loopback, where no proxy gets to.
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    chosen = only or SECTIONS
    left_out = run["left_out"]
    left_out += ({"what": f"the section {each}", "why": "--only"} for each in SECTIONS if each not in chosen)
    with _Meter() as meter, Rig(meter.say, s3) as rig:
        stores = list(store or ())
        if not rig.has_s3():
            left_out.append({"what": "S3", "why": "moto is not installed: pip install 'moto[s3,server]', or --s3 s3://bucket/prefix"})
            if stores == ["s3"]:
                raise InvalidRequestError("there is no S3 to measure with", why="moto is not installed", hint="pip install 'moto[s3,server]', or --s3 s3://bucket/prefix")
            stores = ["directory"]
        todo = {"names": flow or (), "stores": stores, "latencies": latency or (), "rounds": rounds, "calls": calls, "every": every}
        cells = steps.plan(quick=quick, **todo) if "steps" in chosen else []
        at_once = concurrency.plan(quick=quick, callers=callers or (), engines=engines) if "concurrency" in chosen else []
        sizes = scale.plan(quick=quick, sizes=ids or ()) if "scale" in chosen else []
        meter.total = sum(cell.rounds * len(steps.CASES) for cell in cells) + len(at_once) + len(sizes)
        # Row by row into the run, so that they are kept if something fails.
        run["steps"].extend(steps.measure(rig, cells, meter.tick, left_out, engines=engines))
        run["concurrency"].extend(concurrency.measure(rig, at_once, meter.tick, left_out))
        run["scale"].extend(scale.measure(rig, sizes, 300 if quick else 3_000, meter.tick))
    failed = [each["why"] for each in left_out if "section" in each]
    if failed and not (run["steps"] or run["concurrency"] or run["scale"]):
        raise UnavailableError("nothing could be measured", why=failed[0])
    at_once = [number for number, *_ in at_once]
    report.finish(run, cells=cells, callers=at_once, sizes=sizes, engines=engines, own_s3=bool(s3))


class _Meter:
    """How far the run is, on stderr: a bar on a terminal, a line for each thing done elsewhere."""

    def __init__(self) -> None:
        self.total, self._done, self._bar, self._task = 0, 0, None, None

    def __enter__(self) -> _Meter:
        import sys

        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            console = Console(stderr=True)
            # On a narrow terminal the words give way, not the numbers.
            what = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True))
            self._bar = Progress(BarColumn(console.width // 6), MofNCompleteColumn(), TimeElapsedColumn(), what, console=console, transient=True, expand=True)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """What is being waited for."""
        self._show(text, text)

    def tick(self, text: str) -> None:
        """One more thing is done."""
        self._done += 1
        self._show(text, f"{self._done} of {self.total}: {text}")

    def _show(self, text: str, line: str) -> None:
        if self._bar is None:
            output.say(line)
        else:
            self._bar.update(self._task, description=text, completed=self._done, total=self.total or None)
