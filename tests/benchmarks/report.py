"""A run as a file: its fields, and the Markdown that is made from them."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import chart, concurrency, scale, steps
from benchmarks.rig import ENGINES
from benchmarks.steps import CASES

VERSION = 1
_HOW_TO_READ = (
    "Cold: a fresh process, from its start to its reply; modules are compiled, and pfl has a "
    "manifest of the code, as in an image. Warm: a later call of that process, for another ID. "
    "Each number is a median, with the 95th percentile in brackets. Processor time and requests "
    "are those of a warm call and, in brackets, of a cold one; modules are those of a cold one. "
    "Reads and writes are requests to the store, or, for plain Prefect in a directory, opened "
    "files. Engines took turns, call by call. The last two columns compare a row with plain "
    "Prefect (`@task(cache_policy=INPUTS + TASK_SOURCE, result_storage=…)`, a tag with a limit of "
    "1, heartbeats by default). Where the code changed, each call is in a fresh process, or a warm "
    "one for an ID that was stored before the change."
)
NAMES = {
    "functions": "plain functions",
    "pfl-direct": "pfl, `direct`",
    "pfl-prefect": "pfl, `prefect`",
    "prefect": "plain Prefect",
}
_PACKAGES = ("prefect-lambda", "prefect", "prefect-aws", "obstore", "moto", "boto3")


def new(quick: bool) -> dict:
    """A run that begins: its date, machine and command."""
    return {
        "version": VERSION,
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "tests/benchmarks/bench.py", *sys.argv[1:]]),
        "quick": quick,
        "machine": _machine(),
        "steps": [],
        "concurrency": [],
        "scale": [],
        "left_out": [],
    }


def finish(
    run: dict,
    *,
    cells: Sequence[steps.Cell],
    callers: Iterable[int],
    sizes: Iterable[int],
    engines: Sequence[str],
    own_s3: bool,
) -> None:
    """
    Record in a run what was left out, and how busy the machine was.

    Args:
        run: The measured run.
        cells: The planned cells of the section *steps*.
        callers: The planned numbers of callers.
        sizes: The planned sizes of stores.
        engines: The engines that were chosen.
        own_s3: Whether the S3 is the user's.
    """
    left_out = run["left_out"]
    measured = {cell[:3] for cell in cells}
    names, stores, latencies = (
        list(dict.fromkeys(each[column] for each in measured)) for column in range(3)
    )
    combinations = itertools.product(sorted(names), sorted(stores), sorted(latencies))
    absent = [
        f"{each[0]} on {each[1]} at {each[2]} ms" for each in combinations if each not in measured
    ]
    if absent:
        why = "one thing at a time is changed; --all takes them too"
        left_out.append({"what": ", ".join(absent), "why": why})
    # What was given, the defaults, and a unit. A whole section that was left out is listed already.
    usual: list[tuple] = []
    if measured:
        usual.append((names, steps.FLOWS, ""))
        usual.append((stores, steps.STORES, ""))
        usual.append((latencies, steps.LATENCIES, " ms to Prefect"))
    if callers:
        usual.append((set(callers), concurrency.CALLERS, " callers"))
    if sizes:
        usual.append((set(sizes), scale.SIZES, " IDs"))
    if measured or callers:
        usual.append((engines, ENGINES[1:], ""))  # Functions always run.
    labels = NAMES | {"s3": "S3"}
    listed = {each["what"] for each in left_out}
    absent = []
    for given, defaults, unit in usual:
        for each in defaults:
            label = f"{each:,}{unit}" if unit else labels.get(each, each)
            if each not in given and label not in listed:
                absent.append(label)
    if absent:
        why = "--quick" if run["quick"] else "not asked for"
        left_out.append({"what": ", ".join(absent), "why": why})
    why = "they store nothing, so each call is a miss"
    left_out.append({"what": "hits of plain functions", "why": why})
    if own_s3:
        why = "nothing between it and your bucket could count them"
        left_out.append({"what": "requests of plain Prefect to S3", "why": why})
        why = "a sandbox is a process of this machine"
        left_out.append({"what": "Lambda itself", "why": why})
    else:
        why = (
            "S3 is moto on loopback, and a sandbox a process of this machine; requests are the "
            "same, times are not"
        )
        left_out.append({"what": "AWS itself", "why": why})
    run["machine"]["load_at_end"] = round(os.getloadavg()[0], 1)


def write(run: dict, path: Path, extra: Sequence[str] = ()) -> None:
    """Write a run, its tables (``.md``, with *extra* sections) and its chart (``.svg``)."""
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tables = markdown(run, chart_file=path.with_suffix(".svg").name, extra=extra)
    path.with_suffix(".md").write_text(tables, encoding="utf-8")
    path.with_suffix(".svg").write_text(chart.svg(run), encoding="utf-8")


def markdown(run: dict, *, chart_file: str = "", extra: Sequence[str] = ()) -> str:
    """The page of a run."""
    parts = [f"# Benchmark, {run['date']}", f"`{run['command']}`: {where(run)}."]
    if chart_file:
        parts.append(f"![hits, and the cost of commands as a store grows]({chart_file})")
    cells = dict.fromkeys(map(cell_of, run["steps"]))
    if cells:
        parts.append(_HOW_TO_READ)
    for cell in cells:
        parts += [f"## {cell[0]}, {cell[1]}, {cell[2]} ms to Prefect", _cell(run, cell)]
    parts += filter(None, [_chains(run), *extra, *sections(run)])
    parts += [
        "## Left out",
        "\n".join(f"- {each['what']}: {each['why']}" for each in run["left_out"]),
    ]
    return "\n\n".join(parts) + "\n"


def sections(run: dict) -> list[str]:
    """The sections on concurrent callers and on growing stores, if they were measured."""
    return [text for text in (_concurrency(run), _scale(run)) if text]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns whose heading ends in ``>`` are aligned to the right."""
    marks = ["---:" if name.endswith(">") else "---" for name in head]
    lines = [
        [name.rstrip(">") for name in head],
        marks,
        *([str(cell) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """A number with three significant digits."""
    if value is None:
        return ""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    if abs(value) >= 1:
        return f"{value:.2f}"
    return f"{value:#.3g}"


def _ratio(value: float, base: float) -> str:
    return f"1/{number(base / value)}" if value < base / 2 else f"{number(value / base)} ×"


def cell_of(row: dict) -> tuple[str, str, int]:
    """The cell of a row: flow, kind of store, milliseconds to Prefect."""
    return row["workload"], row["store"], row["latency_ms"]


def pick(run: dict, cell: tuple, **wanted: str) -> dict | None:
    """The first row of a cell that matches *wanted*."""
    for row in run["steps"]:
        if cell_of(row) == cell and all(row[name] == value for name, value in wanted.items()):
            return row
    return None


def _cell(run: dict, cell: tuple) -> str:
    rows = []
    for case, words in CASES.items():
        for engine in ENGINES:
            cold, warm = (
                pick(run, cell, case=case, engine=engine, start=start) for start in ("cold", "warm")
            )
            if not (cold and warm):
                continue
            plain = [
                pick(run, cell, case=case, engine="prefect", start=start)
                for start in ("cold", "warm")
            ]
            ratios = [
                _ratio(row["median_ms"], base["median_ms"]) if base and engine != "prefect" else ""
                for row, base in zip((cold, warm), plain, strict=True)
            ]
            both = [
                f"{number(warm[name])} ({number(cold[name])})"
                for name in ("cpu_ms", "reads", "writes", "api_requests")
            ]
            times = [
                f"{number(row['median_ms'])} ({number(row['p95_ms'])})" for row in (cold, warm)
            ]
            rows.append(
                (
                    words,
                    NAMES[engine],
                    answer(cold, warm),
                    *times,
                    number(warm["per_step_ms"]),
                    *both,
                    number(cold["modules"]),
                    *ratios,
                )
            )
    counts = {
        start: min(
            row["calls"] for row in run["steps"] if cell_of(row) == cell and row["start"] == start
        )
        for start in ("cold", "warm")
    }
    head = (
        "",
        "",
        "answer",
        "cold, ms>",
        "warm, ms>",
        "warm, a step>",
        "CPU, ms>",
        "reads>",
        "writes>",
        "API requests>",
        "modules>",
    )
    return (
        f"{counts['cold']} cold and {counts['warm']} warm calls of each.\n\n"
        + table((*head, "cold, to plain Prefect>", "warm, to plain Prefect>"), rows)
        + refused(run, cell)
    )


def _chains(run: dict) -> str:
    """The cost of each further step of a chain: the slope from the shortest to the longest."""
    lengths = sorted({row["steps"] for row in run["steps"] if row["workload"].startswith("chain")})
    if len(lengths) < 2:
        return ""
    rows = []
    for case in ("miss", "hit"):
        for engine in ENGINES:
            ends = [
                pick(
                    run, (f"chain-{length}", "directory", 0), case=case, engine=engine, start="warm"
                )
                for length in (lengths[0], lengths[-1])
            ]
            if all(ends):
                slope = [
                    (ends[1][name] - ends[0][name]) / (lengths[-1] - lengths[0])
                    for name in ("median_ms", "cpu_ms", "api_requests")
                ]
                rows.append((CASES[case], NAMES[engine], *map(number, slope)))
    head = ("", "", "ms>", "CPU, ms>", "API requests>")
    if not rows:
        return ""
    title = (
        f"## Each further step of a chain\n\nWarm, from {lengths[0]} to {lengths[-1]} steps.\n\n"
    )
    return title + table(head, rows)


def _concurrency(run: dict) -> str:
    if not run["concurrency"]:
        return ""
    rows = []
    for row in run["concurrency"]:
        keys = "one key" if row["keys"] == 1 else f"{row['keys']} keys"
        rows.append(
            (
                f"{row['callers']} for {keys}",
                NAMES[row["engine"]],
                row["computations"],
                number(row["last_ms"] / 1e3),
                row.get("unanswered", 0),
                row["api_requests"],
                row["store_requests"],
            )
        )
    head = (
        "callers at once",
        "",
        "computations>",
        "last reply, s>",
        "without an answer>",
        "API requests>",
        "store requests>",
    )
    parts = [
        "Each caller is a process that has imported everything; the only step takes half a second.",
        table(head, rows),
    ]
    for each in run["left_out"]:
        if each.get("section") == "concurrency":
            parts.append(f"Not in the table: {each['what']} ({each['why']}).")
    for row in run["concurrency"]:
        if row.get("why"):
            name = f"{row['callers']} for {row['keys']}, {NAMES[row['engine']]}"
            parts.append(f"{name}: {row['why']}.")
    return "\n\n".join(parts)


def _scale(run: dict) -> str:
    if not run["scale"]:
        return ""
    names = list(run["scale"][0]["operations"])
    rows = []
    for row in run["scale"]:
        cells = [f"{row['ids']:,}", number(row["hits_per_s"]), number(row["hits_per_s_8"])]
        for name in names:
            operation = row["operations"][name]
            cells.append(f"{number(operation['median_ms'])} ({number(operation['requests'])})")
        rows.append(cells)
    head = (
        "IDs in the directory>",
        "hits a second>",
        "with 8 sandboxes>",
        *(f"`{name}`>" for name in names),
    )
    kinds = {"memory": "in memory (/dev/shm)", "disk": "on the disk"}
    places = " and ".join(sorted({kinds[row["disk"]] for row in run["scale"]}))
    intro = (
        "Hits over random IDs, and the time of commands in ms (with requests to the store). "
        f"The directories are {places}."
    )
    return f"{intro}\n\n{table(head, rows)}"


def prose(text: str) -> str:
    """A paragraph in lines of 120 columns."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def answer(*rows: dict) -> str:
    """The answer; both, cold and warm, where they differ."""
    return ", ".join(
        f"**{each}**" if each == "stale" else each
        for each in dict.fromkeys(row["answer"] for row in rows)
    )


def refused(run: dict, cell: tuple) -> str:
    """How many requests a busy Prefect refused; the waiting is included in the times."""
    counts = []
    for engine in ("pfl-prefect", "prefect"):
        rows = [
            row
            for row in run["steps"]
            if cell_of(row) == cell and row["engine"] == engine and "api_refused" in row
        ]
        requests = sum(row["api_refused"] for row in rows)
        calls = sum(row["calls"] for row in rows)
        if requests:
            counts.append(f"{requests} requests in {calls} calls of {NAMES[engine]}")
    if not counts:
        return ""
    return "\n\n" + prose(
        f"Prefect's server on SQLite was busy and refused (503) {' and '.join(counts)}; its client "
        "waits a second or more before it tries again, and these times include that."
    )


def where(run: dict) -> str:
    """The machine of a run, and the software on it."""
    machine = run["machine"]
    software = [f"{machine['system']}", f"Python {machine['python']}"]
    software += [f"{name} {version}" for name, version in machine["packages"].items()]
    at_end = machine.get("load_at_end", "?")
    load = f"load {machine['load_at_start']} at the start and {at_end} at the end"
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    return f"{hardware}, {', '.join(software)}; {load}"


def _machine() -> dict:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = re.findall(r"^model name\s*: (.*)", text, flags=re.MULTILINE)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
