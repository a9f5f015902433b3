"""A run as a file: what it holds, and the Markdown that is made of it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cli.benchmark import chart, concurrency, scale, steps
from cli.benchmark.rig import ENGINES
from handler.core.errors import CorruptRecordError, InvalidRequestError, NotFoundError

VERSION = 1
BEGIN, END = "<!-- results: made by pfl bench --render -->", "<!-- /results -->"
NAMES = {"functions": "plain functions", "pfl-direct": "pfl, `direct`", "pfl-prefect": "pfl, `prefect`", "prefect": "plain Prefect"}
CASES = {"miss": "miss", "hit": "hit", "cosmetic": "hit, after a comment", "helper": "call, after a helper changed"}
_PACKAGES = ("pfl", "prefect", "prefect-aws", "obstore", "moto", "boto3")


def new(quick: bool) -> dict:
    """A run that begins: when, where and by which command."""
    words = ["pfl", *sys.argv[1:]]
    return {
        "version": VERSION, "date": datetime.now(UTC).date().isoformat(), "command": shlex.join(words), "quick": quick,
        "machine": _machine(), "steps": [], "concurrency": [], "scale": [], "rivals": [], "stale": [], "left_out": [],
    }  # fmt: skip


def finish(run: dict, *, cells: Sequence[steps.Cell], callers: Iterable[int], sizes: Iterable[int], engines: Sequence[str], own_s3: bool) -> dict:
    """
    The run that ends: what was left out, and how busy the machine was.

    Args:
        run: What was measured, and so far left out.
        cells: What the steps were to be measured with.
        callers: How many at once were planned.
        sizes: Of stores that were planned.
        engines: Which were asked for.
        own_s3: Whether the S3 is the user's.
    """
    taken = {cell[:3] for cell in cells}
    names, stores, latencies = (list(dict.fromkeys(each[column] for each in taken)) for column in range(3))
    absent = [f"{name} on {store} at {ms} ms" for name in sorted(names) for store in sorted(stores) for ms in sorted(latencies) if (name, store, ms) not in taken]
    if absent:
        run["left_out"].append({"what": ", ".join(absent), "why": "one thing at a time is changed; --all takes them too"})
    # A section that is not there is told as one.
    usual = [(names, steps.FLOWS, ""), (stores, steps.STORES, ""), (latencies, steps.LATENCIES, " ms to Prefect")] if taken else []
    usual += [(set(callers), concurrency.CALLERS, " callers")] if callers else []
    usual += [(set(sizes), scale.SIZES, " IDs")] if sizes else []
    usual += [(engines, ENGINES[1:], "")] if taken or callers else []  # Functions always run.
    words = NAMES | {"s3": "S3"}
    known = {each["what"] for each in run["left_out"]}
    absent = [f"{each:,}{unit}" if unit else words.get(each, each) for given, all_of_it, unit in usual for each in all_of_it if each not in given]
    if absent := [each for each in absent if each not in known]:
        run["left_out"].append({"what": ", ".join(absent), "why": "--quick" if run["quick"] else "not asked for"})
    run["left_out"].append({"what": "hits of plain functions", "why": "they keep nothing: each call computes, so their miss is all there is"})
    if own_s3:
        run["left_out"].append({"what": "requests of plain Prefect to S3", "why": "nothing stands between it and your bucket that could count"})
    where = "a sandbox is a process of this machine" if own_s3 else "S3 is moto on loopback, and a sandbox a process of this machine; requests are the same, times are not"
    run["left_out"].append({"what": "Lambda itself" if own_s3 else "AWS itself", "why": where})
    run["machine"]["load_at_end"] = round(os.getloadavg()[0], 1)
    return run


def read(path: Path) -> dict:
    """
    A run that was written.

    Raises:
        NotFoundError: There is no such file.
        CorruptRecordError: It is no run.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise NotFoundError(f"{path} cannot be read", why=exc.strerror or str(exc), hint="pfl bench --out FILE.json makes one") from exc
    except ValueError as exc:
        raise CorruptRecordError(f"{path} is no run of pfl bench", why=str(exc)) from exc
    if not isinstance(run, dict) or run.get("version") != VERSION or not {"machine", "steps", "concurrency", "scale", "left_out"} <= run.keys():
        raise CorruptRecordError(f"{path} is no run of pfl bench", why=f"it is not of version {VERSION}")
    return run


def write(run: dict, path: Path, readme: Path | None = None) -> None:
    """
    Write a run, its tables (``.md``) and its chart (``.svg``), and the results section of a file that has one.

    Raises:
        InvalidRequestError: *readme* has no such section.
    """
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(run, chart_file=path.with_suffix(".svg").name), encoding="utf-8")
    path.with_suffix(".svg").write_text(chart.svg(run), encoding="utf-8")
    if readme is not None:
        before, after = check_readme(readme)
        where = os.path.relpath(path.resolve().with_suffix(""), readme.resolve().parent)
        readme.write_text(before + section(run, Path(where).as_posix()) + after, encoding="utf-8")


def check_readme(readme: Path) -> tuple[str, str]:
    """
    What stands before and after the results section of a file.

    Raises:
        InvalidRequestError: It has none.
    """
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise InvalidRequestError(f"{readme} has no results section", why="it is what stands between two marks", hint=f"put {BEGIN} and {END} into it")
    return before + begin, end + after


def section(run: dict, where: str) -> str:
    """The results section of the README: *where* is the run's path in the repository, without its ending."""
    first = next(map(_cell_of, run["steps"]), None)
    parts = [
        _prose(
            f"`{run['command']}`, {run['date']}: {_where(run)}. Median milliseconds; p95, processor time, what else was measured and what was "
            f"left out are in [{where}.md]({where}.md), all numbers in [{where}.json]({where}.json)."
        ),
        f"![hits, and what commands cost as a store grows]({where}.svg)",
    ]
    if first:
        parts.append(_headline(run, first))
    parts += [text for text in (_rivals(run), _concurrency(run), _scale(run)) if text]
    return "\n" + "\n\n".join(parts) + "\n"


def markdown(run: dict, *, chart_file: str = "") -> str:
    """All of a run."""
    parts = [f"# pfl bench, {run['date']}", f"`{run['command']}`: {_where(run)}."]
    if chart_file:
        parts.append(f"![hits, and what commands cost as a store grows]({chart_file})")
    cells = dict.fromkeys(map(_cell_of, run["steps"]))
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
    parts += [text for text in (_chains(run), _rivals(run), _concurrency(run), _scale(run)) if text]
    parts += ["## Left out", "\n".join(f"- {each['what']}: {each['why']}" for each in run["left_out"])]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns whose heading ends in ``>`` are aligned to the right."""
    marks = ["---:" if name.endswith(">") else "---" for name in head]
    lines = [[name.rstrip(">") for name in head], marks, *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:#.3g}"


def _ratio(value: float, base: float) -> str:
    return f"1/{number(base / value)}" if value < base / 2 else f"{number(value / base)} ×"


def _cell_of(row: dict) -> tuple[str, str, int]:
    return row["workload"], row["store"], row["latency_ms"]


def _pick(run: dict, cell: tuple, **wanted: str) -> dict | None:
    for row in run["steps"]:
        if _cell_of(row) == cell and all(row[name] == value for name, value in wanted.items()):
            return row
    return None


def _headline(run: dict, cell: tuple) -> str:
    rows = []
    for case, words in CASES.items():
        for engine in ENGINES:
            cold, warm = (_pick(run, cell, case=case, engine=engine, start=start) for start in ("cold", "warm"))
            if cold and warm:
                rows.append((words, NAMES[engine], _answer(cold, warm), number(cold["median_ms"]), number(warm["median_ms"]), number(warm["reads"]),
                             number(warm["writes"]), number(warm["api_requests"]), number(cold["modules"])))  # fmt: skip
    count = next(row["steps"] for row in run["steps"] if row["workload"] == cell[0])
    head = (f"{cell[0]}: {count} steps, {cell[1]}", "", "answer", "cold, ms>", "warm, ms>", "reads>", "writes>", "API requests>", "modules>")
    return table(head, rows) + _refused(run, cell)


def _cell(run: dict, cell: tuple) -> str:
    rows = []
    for case, words in CASES.items():
        for engine in ENGINES:
            cold, warm = (_pick(run, cell, case=case, engine=engine, start=start) for start in ("cold", "warm"))
            if not (cold and warm):
                continue
            plain = [_pick(run, cell, case=case, engine="prefect", start=start) for start in ("cold", "warm")]
            ratios = [_ratio(row["median_ms"], base["median_ms"]) if base and engine != "prefect" else "" for row, base in zip((cold, warm), plain, strict=True)]
            both = [f"{number(warm[name])} ({number(cold[name])})" for name in ("cpu_ms", "reads", "writes", "api_requests")]
            times = [f"{number(row['median_ms'])} ({number(row['p95_ms'])})" for row in (cold, warm)]
            rows.append((words, NAMES[engine], _answer(cold, warm), *times, number(warm["per_step_ms"]), *both, number(cold["modules"]), *ratios))
    counts = {start: min(row["calls"] for row in run["steps"] if _cell_of(row) == cell and row["start"] == start) for start in ("cold", "warm")}
    head = ("", "", "answer", "cold, ms>", "warm, ms>", "warm, a step>", "CPU, ms>", "reads>", "writes>", "API requests>", "modules>")
    return f"Of each {counts['cold']} cold and {counts['warm']} warm.\n\n" + table((*head, "cold, of plain Prefect>", "warm, of plain Prefect>"), rows) + _refused(run, cell)


def _chains(run: dict) -> str:
    """What each further step of a chain costs: the slope between the shortest and the longest."""
    lengths = sorted({row["steps"] for row in run["steps"] if row["workload"].startswith("chain")})
    if len(lengths) < 2:
        return ""
    rows = []
    for case in ("miss", "hit"):
        for engine in ENGINES:
            ends = [_pick(run, (f"chain-{length}", "directory", 0), case=case, engine=engine, start="warm") for length in (lengths[0], lengths[-1])]
            if all(ends):
                slope = [(ends[1][name] - ends[0][name]) / (lengths[-1] - lengths[0]) for name in ("median_ms", "cpu_ms", "api_requests")]
                rows.append((CASES[case], NAMES[engine], *map(number, slope)))
    head = ("", "", "ms>", "CPU, ms>", "API requests>")
    return f"## Each further step of a chain\n\nWarm, from {lengths[0]} to {lengths[-1]} steps.\n\n" + table(head, rows) if rows else ""


def _concurrency(run: dict) -> str:
    if not run["concurrency"]:
        return ""
    rows = [
        (f"{row['callers']} for {'one key' if row['keys'] == 1 else str(row['keys']) + ' keys'}", NAMES[row["engine"]], row["computations"],
         number(row["last_ms"] / 1e3), row.get("unanswered", 0), row["api_requests"], row["store_requests"])
        for row in run["concurrency"]
    ]  # fmt: skip
    head = ("callers at once", "", "computations>", "last reply, s>", "without an answer>", "API requests>", "store requests>")
    said = ["Each caller is a process that has imported everything; the one step takes half a second.", table(head, rows)]
    said += [f"Not in the table: {each['what']} ({each['why']})." for each in run["left_out"] if each.get("section") == "concurrency"]
    said += [f"{row['callers']} for {row['keys']}, {NAMES[row['engine']]}: {row['why']}." for row in run["concurrency"] if row.get("why")]
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
    head = ("IDs in the directory>", "hits a second>", "of 8 sandboxes>", *(f"`{name}`>" for name in names))
    places = " and ".join(sorted({"in memory (/dev/shm)" if row["disk"] == "memory" else "on the disk" for row in run["scale"]}))
    return f"Hits over IDs at random; and what commands take, in ms (requests to the store). The directories are {places}.\n\n" + table(head, rows)


def _rivals(run: dict) -> str:
    if not run.get("rivals"):
        return ""
    stale = {row["tool"]: row for row in run["stale"]}
    rows = []
    for row in run["rivals"]:
        judged = stale.get(row["tool"].partition(",")[0])
        failed = judged.get("failed", 0) if judged else 0
        says = f"{judged['changes'] - judged['noticed'] - failed} of {judged['changes']}" + (f", {failed} failed" if failed else "") if judged else ""
        rows.append((row["tool"], row["version"], row["store"], number(row["cold_ms"]), number(row["warm_ms"]), number(row["modules"]), says))
    head = ("a hit of the same three steps", "version", "store", "cold, ms>", "warm, ms>", "modules>", "stale answers after a change>")
    return table(head, rows) + "\n\n" + _prose(
        "Powertools keeps the reply of the whole handler, the others each step; with its local cache, which is off unless asked for, a warm process answers "
        "from memory and looks at no store, as no other here does. pfl's manifest is made beforehand, as an image's is; plain Prefect asks its server. The changes are cases of `tests/fingerprint`, which were written along with pfl's "
        "fingerprint: its own count says that nothing known fails, those of the others what each tool looks at. Failed: it hashed no such function, or took over 4 s."
    )


def _prose(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _answer(*rows: dict) -> str:
    """The answer, cold and warm where they are not the same."""
    return ", ".join(f"**{each}**" if each == "stale" else each for each in dict.fromkeys(row["answer"] for row in rows))


def _refused(run: dict, cell: tuple) -> str:
    """Whose requests a busy Prefect refused, which is waiting in the times of that row."""
    said = []
    for engine in ("pfl-prefect", "prefect"):
        rows = [row for row in run["steps"] if _cell_of(row) == cell and row["engine"] == engine and "api_refused" in row]
        if any(row["api_refused"] for row in rows):
            said.append(f"{sum(row['api_refused'] for row in rows)} requests in {sum(row['calls'] for row in rows)} calls of {NAMES[engine]}")
    if not said:
        return ""
    return "\n\n" + _prose(f"Prefect's server on SQLite was busy and refused (503) {' and '.join(said)}; its client waits a second or more and asks again, which is in these times.")


def _where(run: dict) -> str:
    machine = run["machine"]
    packages = ", ".join(f"{name} {each}" for name, each in machine["packages"].items())
    load = f"load {machine['load_at_start']} at the start and {machine.get('load_at_end', '?')} at the end"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}, {packages}; {load}"


def _machine() -> dict:
    cpu = platform.machine()
    try:
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30), "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(), "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "load_at_start": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
