"""
The overhead of a miss over a network: ``python tests/benchmarks/latency.py [--rivals PYTHON]``.

Here each request to the store takes 15 ms longer. Each request to Prefect's API, and each round
trip of a WebSocket, takes 80 ms longer. A process computes three trivial steps for one ID; then
calls with new IDs are measured. The overhead is the time of a call minus the time inside its steps.

Prints tables and a line of JSON. *PYTHON* is an interpreter that has the tools of the extra
``rivals``, as in publish.py; a tool that is not installed there is left out. joblib and redun keep
their results on the local disk, where there are no requests to delay, so compare them with pfl in a
directory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [place for place in sys.path if place != _HERE]
sys.path.insert(0, str(Path(_HERE).parent))

from benchmarks import report, rivals  # noqa: E402
from benchmarks.relay import Exchange, Relay  # noqa: E402
from benchmarks.rig import Rig, Sandbox, has_moto  # noqa: E402
from pfl.handler.core.errors import UnavailableError  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- latency: made by tests/benchmarks/latency.py -->"
END = "<!-- /latency -->"
STORE_MS = 15
API_MS = 80
CALLS = 9
DISK = "local disk, no latency"
TOOLS = (
    "pfl-direct",
    "pfl-prefect",
    "pfl-directory",
    "prefect",
    "powertools",
    "joblib",
    "redun",
)

# Trivial steps. Their values hold the time inside them, so that each tool reports it.
_STEP = '''"""Step {name} of three."""

import time

from pfl import step


@step
def {name}({parameters}) -> dict:
    """A total, and the seconds inside the steps so far."""
    started = time.perf_counter()
    total = {total}
    return {{"total": total, "own_s": {own_s}time.perf_counter() - started}}
'''
_STEPS = {"a": "id: str", "b": "id: str, a: dict", "c": "id: str, b: dict"}


class Tool(NamedTuple):
    """
    A row to measure.

    Attributes:
        name: Its name in the table.
        store: Where it keeps results.
        version: Its version; empty for pfl.
        make: Starts its process, with the first order.
        store_relay: What its requests to the store pass; None: it makes none.
        api_relay: What its requests to Prefect pass; None: it makes none.
    """

    name: str
    store: str
    version: str
    make: Callable[[dict], Sandbox]
    store_relay: Relay | None
    api_relay: Relay | None


class Call(NamedTuple):
    """
    One measured call.

    Attributes:
        overhead_ms: Its time without that inside the steps.
        began_s: When it began, as a ``time.monotonic()`` reading.
        ms: Its time.
        store: Its requests to the store.
        api: Its requests to Prefect.
        opened: How many connections it opened.
        counted: Requests to the store as pfl counts them.
    """

    overhead_ms: float
    began_s: float
    ms: float
    store: list[Exchange]
    api: list[Exchange]
    opened: int
    counted: int


def measure(
    rig: Rig,
    python: str,
    *,
    calls: int,
    only: Collection[str] = TOOLS,
    store_ms: float = STORE_MS,
    api_ms: float = API_MS,
) -> dict:
    """
    The rows, what was left out, and the calls by row.

    Args:
        rig: The surroundings.
        python: The interpreter that has the tools.
        calls: Number of measured calls of each row.
        only: Rows to measure, of :data:`TOOLS`.
        store_ms: What each request to the store takes longer.
        api_ms: What each request to Prefect takes longer.
    """
    _write_steps(rig.project)
    rivals.record_runs(rig.project)
    rig.bake()
    left_out: list[dict] = []
    found: dict[str, list[Call]] = {}
    with ExitStack() as stack:
        running: dict[str, tuple[Tool, Sandbox]] = {}

        def drop(tool: Tool, exc: Exception) -> None:
            running.pop(tool.name, None)
            found.pop(tool.name, None)
            left_out.append({"what": tool.name, "why": f"it failed: {exc}"})

        tools = list(_tools(rig, python, only, store_ms, api_ms, left_out))
        for tool in tools:
            rig.report(f"starting {tool.name}")
            try:
                box = stack.enter_context(tool.make({"flow": "meaning", "id": "first"}))
                box.first()
                running[tool.name] = tool, box
            except (OSError, UnavailableError) as exc:
                drop(tool, exc)
        for number in range(calls):
            # Rows take turns, so that other work on the machine meets all of them.
            for tool, box in list(running.values()):
                try:
                    call = _call(tool, box, f"id{number:03}")
                    found.setdefault(tool.name, []).append(call)
                except UnavailableError as exc:
                    drop(tool, exc)
            rig.report(f"{number + 1} of {calls} calls")
    rows = [_row(tool, found[tool.name]) for tool in tools if tool.name in found]
    return {"rows": rows, "left_out": left_out, "calls": found}


def _write_steps(project: Path) -> None:
    before = ""
    for name, parameters in _STEPS.items():
        code = _STEP.format(
            name=name,
            parameters=parameters,
            total=f'{before}["total"] + 1' if before else "len(id)",
            own_s=f'{before}["own_s"] + ' if before else "",
        )
        (project / "flows" / f"{name}.py").write_text(code)
        plain = code.replace("from pfl import step\n", "").replace("@step\n", "")
        (project / "plain" / f"{name}.py").write_text(plain)
        before = name


def _tools(
    rig: Rig,
    python: str,
    only: Collection[str],
    store_ms: float,
    api_ms: float,
    left_out: list[dict],
) -> Iterator[Tool]:
    def slow_store() -> tuple[Relay, dict[str, str]]:
        relay = rig.slow_s3(store_ms)
        return relay, {"AWS_ENDPOINT_URL": relay.url}

    def slow_api() -> tuple[Relay, dict[str, str]]:
        relay = rig.slow_api(api_ms)
        return relay, {"PREFECT_API_URL": f"{relay.url}/api"}

    def has(python: str, package: str, name: str) -> bool:
        is_there = bool(rivals.installed(python, package))
        if not is_there:
            why = f"{package} is not installed: pip install -e '.[rivals]'"
            left_out.append({"what": name, "why": why})
        return is_there

    if "pfl-direct" in only:
        store, extra = slow_store()
        make = _sandbox(rig, "pfl-direct", "s3", extra)
        yield Tool("pfl, `direct`", "S3", "", make, store, None)
    if "pfl-prefect" in only:
        store, extra = slow_store()
        api, address = slow_api()
        make = _sandbox(rig, "pfl-prefect", "s3", extra | address)
        yield Tool("pfl, `prefect`", "S3", "", make, store, api)
    if "pfl-directory" in only:
        make = _sandbox(rig, "pfl-direct", "directory", {})
        yield Tool("pfl, `direct`, directory", DISK, "", make, None, None)
    if "prefect" in only and has(sys.executable, "prefect-aws", "plain Prefect"):
        store, extra = slow_store()
        api, address = slow_api()
        # The same Prefect with the same settings as for pfl.
        environ = rig.environ("prefect", "s3", 0) | extra | address
        make = rivals.maker(rig, sys.executable, "prefect", **environ)
        version = rivals.installed(sys.executable, "prefect")
        yield Tool("plain Prefect", "S3", version, make, store, api)
    # Each step is decorated, because its idempotency keeps what a function returns.
    name = "Powertools idempotency"
    if "powertools" in only and has(python, "aws-lambda-powertools", name):
        store, extra = slow_store()
        rivals.make_tables(rig.s3_env, "powertools_steps")
        make = rivals.maker(rig, python, "powertools_steps", **extra)
        version = rivals.installed(python, "aws-lambda-powertools")
        yield Tool(name, "DynamoDB", version, make, store, None)
    for tool in ("joblib", "redun"):
        if tool in only and has(python, tool, tool):
            make = rivals.maker(rig, python, tool)
            yield Tool(tool, DISK, rivals.installed(python, tool), make, None, None)


def _sandbox(rig: Rig, engine: str, kind: str, extra: dict[str, str]) -> Callable[[dict], Sandbox]:
    return lambda first: rig.sandbox(engine, kind, 0, first, **extra)


def _call(tool: Tool, box: Sandbox, id: str) -> Call:
    relays = [relay for relay in (tool.store_relay, tool.api_relay) if relay is not None]
    before = {relay: len(relay.exchanges) for relay in relays}
    opened = sum(relay.connections for relay in relays)
    answer = box.call({"flow": "meaning", "id": id})
    if answer["computed"] != len(_STEPS):
        raise UnavailableError(f"it computed {answer['computed']} of {len(_STEPS)} steps")
    if answer["value"]["total"] != len(id) + 2:
        raise UnavailableError(f"it answered {answer['value']}")
    store, api = (
        [] if relay is None else relay.exchanges[before[relay] :]
        for relay in (tool.store_relay, tool.api_relay)
    )
    return Call(
        answer["ms"] - answer["value"]["own_s"] * 1e3,
        answer["began"],
        answer["ms"],
        store,
        api,
        sum(relay.connections for relay in relays) - opened,
        sum(answer["store"].values()),
    )


def _row(tool: Tool, calls: Sequence[Call]) -> dict:
    overheads = [call.overhead_ms for call in calls]
    return {
        "tool": tool.name,
        "version": tool.version,
        "store": tool.store,
        "calls": len(calls),
        "median_ms": round(statistics.median(overheads), 3),
        "min_ms": round(min(overheads), 3),
        "store_requests": statistics.median(len(call.store) for call in calls),
        "api_requests": statistics.median(len(call.api) for call in calls),
        "connections": statistics.median(call.opened for call in calls),
    }


def typical(calls: Sequence[Call]) -> Call:
    """The call with the median overhead."""
    return sorted(calls, key=lambda call: call.overhead_ms)[len(calls) // 2]


def timeline(call: Call) -> list[str]:
    """The requests of a call: when each began and ended, in ms since the call began."""
    requests = [(each, "store") for each in call.store] + [(each, "API") for each in call.api]
    lines = []
    for each, kind in sorted(requests, key=lambda pair: pair[0].began_s):
        began_ms, ended_ms = (
            (moment - call.began_s) * 1e3 for moment in (each.began_s, each.ended_s)
        )
        scale = 60 / call.ms
        start = max(0, min(60, round(began_ms * scale)))
        length = max(1, min(60, round(ended_ms * scale)) - start)
        bar = (" " * start + "━" * length).ljust(61)
        lines.append(f"{began_ms:7.1f} {ended_ms:7.1f}  {bar} {kind:5} {_short(each.request)}")
    return lines


def _short(request: str) -> str:
    verb, _, path = request.partition(" ")
    parts = path.partition("?")[0].split("/")
    return f"{verb} {'/'.join(part[:12] for part in parts[-5:])}"


def tables(run: dict) -> list[str]:
    """The tables of a run as Markdown: the rows, and pfl's medians divided by the others'."""
    rows = run["rows"]
    lines = []
    for row in rows:
        name = f"{row['tool']} {row['version']}".strip()
        numbers = [report.number(row[each]) for each in ("median_ms", "min_ms")]
        counts = [report.number(row[each]) for each in ("store_requests", "api_requests")]
        lines.append((name, row["store"], *numbers, *counts))
    head = ("overhead of a miss of three steps", "store", "median, ms>", "min, ms>")
    parts = [report.table((*head, "store requests>", "API requests>"), lines)]
    ours = [row for row in rows if row["tool"].startswith("pfl")]
    others = [row for row in rows if row not in ours]
    if others:
        ratios = [
            (
                f"{row['tool']} / …",
                *(f"{report.number(row['median_ms'] / other['median_ms'])} ×" for other in others),
            )
            for row in ours
        ]
        parts.append(report.table(("median", *(f"{row['tool']}>" for row in others)), ratios))
    if run["left_out"]:
        parts.append("\n".join(f"- {each['what']}: {each['why']}" for each in run["left_out"]))
    return parts


def parted(text: str) -> tuple[str, str]:
    """
    A text before and after its latency section.

    Raises:
        ValueError: The text has no such section.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no section between {BEGIN} and {END}")
    return before + begin, end + after


def _section(run: dict) -> str:
    intro = report.prose(f"`{run['command']}`, {run['date']}: {report.where(run)}.")
    return "\n" + "\n\n".join([intro, *tables(run)]) + "\n"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument(
        "--rivals", metavar="PYTHON", default=sys.executable, help="interpreter that has the tools"
    )
    parser.add_argument("--calls", metavar="N", type=int, default=CALLS, help="calls of each row")
    parser.add_argument("--trace", action="store_true", help="print the requests of a call")
    parser.add_argument("--page", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--only", action="append", choices=TOOLS, help="row; may be repeated")
    chosen = parser.parse_args(arguments)
    if chosen.calls < 1:
        parser.error("--calls has to be at least 1")
    if shutil.which(chosen.rivals) is None:
        parser.error(f"{chosen.rivals} does not exist")
    if not has_moto():
        parser.error("moto is not installed: pip install 'moto[s3,server]'")
    # The servers listen on loopback, which no proxy can reach.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    machine = report.new(quick=False)
    with Rig(lambda text: print(text, file=sys.stderr)) as rig:
        measured = measure(rig, chosen.rivals, calls=chosen.calls, only=chosen.only or TOOLS)
    machine["machine"]["load_at_end"] = round(os.getloadavg()[0], 1)
    run = {
        "date": machine["date"],
        "command": f"python tests/benchmarks/latency.py --rivals PYTHON --calls {chosen.calls}",
        "machine": machine["machine"],
        "store_ms": STORE_MS,
        "api_ms": API_MS,
        "rows": measured["rows"],
        "left_out": measured["left_out"],
    }
    print("\n\n".join(tables(run)))
    if chosen.trace:
        for name, calls in measured["calls"].items():
            call = typical(calls)
            print(f"\n{name}: {call.overhead_ms:.1f} ms\n" + "\n".join(timeline(call)))
    print(f"\n{json.dumps(run, ensure_ascii=False)}")
    if chosen.page:
        before, after = parted(PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(before + _section(run) + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
