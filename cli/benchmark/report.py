"""A run as a file: what it holds, and the Markdown that is made of it."""

from __future__ import annotations

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

from pfl.cli.benchmark import chart, concurrency, scale, steps
from pfl.cli.benchmark.rig import ENGINES
from pfl.cli.benchmark.steps import CASES

VERSION = 1
NAMES = {
    "functions": "plain functions",
    "pfl-direct": "pfl, `direct`",
    "pfl-prefect": "pfl, `prefect`",
    "prefect": "plain Prefect",
}
_PACKAGES = ("pfl", "prefect", "prefect-aws", "obstore", "moto", "boto3")


def new(quick: bool) -> dict:
    """A run that begins: when, where and by which command."""
    words = ["pfl", *sys.argv[1:]]
    return {
        "version": VERSION, "date": datetime.now(UTC).date().isoformat(), "command": shlex.join(words), "quick": quick,
        "machine": _machine(), "steps": [], "concurrency": [], "scale": [], "left_out": [],
    }  # fmt: skip


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
    Put down with a run that ends what was left out, and how busy the machine was.

    Args:
        run: What was measured, and so far left out.
        cells: What the steps were to be measured with.
        callers: How many at once were planned.
        sizes: Of stores that were planned.
        engines: Which were asked for.
        own_s3: Whether the S3 is the user's.
    """
    taken = {cell[:3] for cell in cells}
    names, stores, latencies = (
        list(dict.fromkeys(each[column] for each in taken)) for column in range(3)
    )
    absent = [
        f"{name} on {store} at {ms} ms"
        for name in sorted(names)
        for store in sorted(stores)
        for ms in sorted(latencies)
        if (name, store, ms) not in taken
    ]
    if absent:
        run["left_out"].append(
            {
                "what": ", ".join(absent),
                "why": "one thing at a time is changed; --all takes them too",
            }
        )
    # A section that is not there is told as one.
    usual = (
        [
            (names, steps.FLOWS, ""),
            (stores, steps.STORES, ""),
            (latencies, steps.LATENCIES, " ms to Prefect"),
        ]
        if taken
        else []
    )
    usual += [(set(callers), concurrency.CALLERS, " callers")] if callers else []
    usual += [(set(sizes), scale.SIZES, " IDs")] if sizes else []
    usual += [(engines, ENGINES[1:], "")] if taken or callers else []  # Functions always run.
    words = NAMES | {"s3": "S3"}
    known = {each["what"] for each in run["left_out"]}
    absent = [
        f"{each:,}{unit}" if unit else words.get(each, each)
        for given, all_of_it, unit in usual
        for each in all_of_it
        if each not in given
    ]
    if absent := [each for each in absent if each not in known]:
        run["left_out"].append(
            {"what": ", ".join(absent), "why": "--quick" if run["quick"] else "not asked for"}
        )
    run["left_out"].append(
        {
            "what": "hits of plain functions",
            "why": "they keep nothing: each call computes, so their miss is all there is",
        }
    )
    if own_s3:
        run["left_out"].append(
            {
                "what": "requests of plain Prefect to S3",
                "why": "nothing stands between it and your bucket that could count",
            }
        )
    where = (
        "a sandbox is a process of this machine"
        if own_s3
        else "S3 is moto on loopback, and a sandbox a process of this machine; requests are the same, times are not"
    )
    run["left_out"].append({"what": "Lambda itself" if own_s3 else "AWS itself", "why": where})
    run["machine"]["load_at_end"] = round(os.getloadavg()[0], 1)


def write(run: dict, path: Path, more: Sequence[str] = ()) -> None:
    """Write a run, its tables (``.md``, with *more* of Markdown) and its chart (``.svg``)."""
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(
        markdown(run, chart_file=path.with_suffix(".svg").name, more=more), encoding="utf-8"
    )
    path.with_suffix(".svg").write_text(chart.svg(run), encoding="utf-8")


def markdown(run: dict, *, chart_file: str = "", more: Sequence[str] = ()) -> str:
    """All of a run."""
    parts = [f"# pfl bench, {run['date']}", f"`{run['command']}`: {where(run)}."]
    if chart_file:
        parts.append(f"![hits, and what commands cost as a store grows]({chart_file})")
    cells = dict.fromkeys(map(cell_of, run["steps"]))
    if cells:
        parts.append(
            "Cold: a fresh process, from its start to its reply; modules are compiled, and pfl has its manifest of the code, as in an image. Warm: a later call of "
            "it, for another ID. Each number is a median, with the 95th percentile in brackets; "
            "processor time and requests are those of a warm call and, in brackets, of a cold one, modules those of a cold one. Reads and writes are requests "
            "to the store; of plain Prefect in a directory, files opened. Engines took turns, call by call. The last two columns set a row beside "
            "plain Prefect (`@task(cache_policy=INPUTS + TASK_SOURCE, result_storage=…)`, a tag with a limit of 1, heartbeats as they come). Where the code changed, "
            "each call is a fresh process or a warm one of an ID that was stored before the change."
        )
    for cell in cells:
        parts += [f"## {cell[0]}, {cell[1]}, {cell[2]} ms to Prefect", _cell(run, cell)]
    parts += filter(None, [_chains(run), *more, *sections(run)])
    parts += [
        "## Left out",
        "\n".join(f"- {each['what']}: {each['why']}" for each in run["left_out"]),
    ]
    return "\n\n".join(parts) + "\n"


def sections(run: dict) -> list[str]:
    """What a run says of callers at once, and of stores that grow; of those that it measured."""
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
    """Three digits that count."""
    if value is None:
        return ""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return (
        f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
        if abs(value) >= 1
        else f"{value:#.3g}"
    )


def _ratio(value: float, base: float) -> str:
    return f"1/{number(base / value)}" if value < base / 2 else f"{number(value / base)} ×"


def cell_of(row: dict) -> tuple[str, str, int]:
    """What a row was measured with: flow, kind of store, milliseconds to Prefect."""
    return row["workload"], row["store"], row["latency_ms"]


def pick(run: dict, cell: tuple, **wanted: str) -> dict | None:
    """The row of a cell that is as *wanted*."""
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
        f"Of each {counts['cold']} cold and {counts['warm']} warm.\n\n"
        + table((*head, "cold, of plain Prefect>", "warm, of plain Prefect>"), rows)
        + refused(run, cell)
    )


def _chains(run: dict) -> str:
    """What each further step of a chain costs: the slope between the shortest and the longest."""
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
    return (
        f"## Each further step of a chain\n\nWarm, from {lengths[0]} to {lengths[-1]} steps.\n\n"
        + table(head, rows)
        if rows
        else ""
    )


def _concurrency(run: dict) -> str:
    if not run["concurrency"]:
        return ""
    rows = [
        (f"{row['callers']} for {'one key' if row['keys'] == 1 else str(row['keys']) + ' keys'}", NAMES[row["engine"]], row["computations"],
         number(row["last_ms"] / 1e3), row.get("unanswered", 0), row["api_requests"], row["store_requests"])
        for row in run["concurrency"]
    ]  # fmt: skip
    head = (
        "callers at once",
        "",
        "computations>",
        "last reply, s>",
        "without an answer>",
        "API requests>",
        "store requests>",
    )
    said = [
        "Each caller is a process that has imported everything; the one step takes half a second.",
        table(head, rows),
    ]
    said += [
        f"Not in the table: {each['what']} ({each['why']})."
        for each in run["left_out"]
        if each.get("section") == "concurrency"
    ]
    said += [
        f"{row['callers']} for {row['keys']}, {NAMES[row['engine']]}: {row['why']}."
        for row in run["concurrency"]
        if row.get("why")
    ]
    return "\n\n".join(said)


def _scale(run: dict) -> str:
    if not run["scale"]:
        return ""
    names = list(run["scale"][0]["operations"])
    rows = [
        (f"{row['ids']:,}", number(row["hits_per_s"]), number(row["hits_per_s_8"]),
         *(f"{number(row['operations'][name]['median_ms'])} ({number(row['operations'][name]['requests'])})" for name in names))
        for row in run["scale"]
    ]  # fmt: skip
    head = (
        "IDs in the directory>",
        "hits a second>",
        "of 8 sandboxes>",
        *(f"`{name}`>" for name in names),
    )
    places = " and ".join(
        sorted(
            {
                "in memory (/dev/shm)" if row["disk"] == "memory" else "on the disk"
                for row in run["scale"]
            }
        )
    )
    return (
        f"Hits over IDs at random; and what commands take, in ms (requests to the store). The directories are {places}.\n\n"
        + table(head, rows)
    )


def prose(text: str) -> str:
    """A paragraph, in lines as a README has them."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def answer(*rows: dict) -> str:
    """The answer, cold and warm where they are not the same."""
    return ", ".join(
        f"**{each}**" if each == "stale" else each
        for each in dict.fromkeys(row["answer"] for row in rows)
    )


def refused(run: dict, cell: tuple) -> str:
    """Whose requests a busy Prefect refused, which is waiting in the times of that row."""
    said = []
    for engine in ("pfl-prefect", "prefect"):
        rows = [
            row
            for row in run["steps"]
            if cell_of(row) == cell and row["engine"] == engine and "api_refused" in row
        ]
        if any(row["api_refused"] for row in rows):
            said.append(
                f"{sum(row['api_refused'] for row in rows)} requests in {sum(row['calls'] for row in rows)} calls of {NAMES[engine]}"
            )
    if not said:
        return ""
    return "\n\n" + prose(
        f"Prefect's server on SQLite was busy and refused (503) {' and '.join(said)}; its client waits a second or more and asks again, which is in these times."
    )


def where(run: dict) -> str:
    """The machine of a run, and what ran on it."""
    machine = run["machine"]
    packages = ", ".join(f"{name} {each}" for name, each in machine["packages"].items())
    load = f"load {machine['load_at_start']} at the start and {machine.get('load_at_end', '?')} at the end"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}, {packages}; {load}"


def _machine() -> dict:
    info = Path("/proc/cpuinfo")
    names = re.findall(
        r"^model name\s*: (.*)", info.read_text() if info.exists() else "", flags=re.MULTILINE
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": (names or [platform.machine()])[0], "cores": os.cpu_count(), "memory_gib": round(memory / 2**30), "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(), "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "load_at_start": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
