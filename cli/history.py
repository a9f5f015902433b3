"""``pfl history``: what became of each step, what differs between two runs, and since when."""

from __future__ import annotations

import json as js
import re
import time
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer

from cli import output, settings
from cli.invoke import Json
from handler.core.errors import CorruptRecordError, InvalidRequestError, NotFoundError, PflError

app = typer.Typer(help="What became of each step, what differs between two runs, and since when.", no_args_is_help=True)
Id = Annotated[str | None, typer.Option("--id", help="Only this ID.")]
FlowName = Annotated[str | None, typer.Option("--flow", help="Only this flow.")]
Step = Annotated[str | None, typer.Option("--step", help="Only this step.")]
Since = Annotated[str | None, typer.Option("--since", metavar="WHEN", help="Not older than 7d, 12h, 30m, or a moment such as 2026-11-01.")]
Status = Annotated[str | None, typer.Option("--status", help="Only computed, failed, crashed, busted, restored or accepted.")]
Path = Annotated[str, typer.Option("--path", help="Where in the value, such as $.rows[0].total.")]
Plot = Annotated[bool, typer.Option("--plot", help="Draw the value over time.")]
PlotTo = Annotated[str | None, typer.Option("--plot-to", metavar="FILE", help="Draw it to an .svg or .png file.")]
Key = Annotated[str, typer.Option("--key", help="The column that names the rows of a table.")]
_LINE = "{:<8}  {:<19}  {:<16}  {:<12}  {:<9}  {:>9}  {}"


class _Log:
    """Tells of damaged records as they are met, and how many there were."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, exc: CorruptRecordError) -> None:
        self.count += 1
        output.say(f"warning: {output.printable(str(exc))}")

    def end(self, text: str = "") -> None:
        told = [text] if text else []
        if self.count:
            told.append(f"{self.count} {'record was' if self.count == 1 else 'records were'} damaged or of another version, and passed over")
        if told:
            output.say("; ".join(told))


def _store():
    from handler.core import store

    return store.of(settings.load())


def _found(store, log: _Log, id, flow, step, since, status):
    from handler.core import event, history

    if id is not None:
        event.check_id(id)
    if status is not None and status not in history.STATUSES:
        raise InvalidRequestError(f"unknown status {status!r}", hint=f"one of {', '.join(history.STATUSES)}")
    since_ns = None if since is None else _moment_ns(since, "--since")
    return history.ls(store, id=id, flow=flow, step=step, since_ns=since_ns, status=status, warn=log)


def _moment_ns(text: str, flag: str) -> int:
    from handler.core import history

    if match := re.fullmatch(r"([0-9]{1,9})([smhdw])", text):
        return time.time_ns() - int(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}[match[2]] * 10**9
    try:
        return history.ns_of(text)
    except (ValueError, OverflowError) as exc:
        why = "it has to be a number with s, m, h, d or w, or a moment in ISO 8601"
        raise InvalidRequestError(f"{flag} is {text!r}", why=why, hint=f"{flag} 7d or {flag} 2026-11-01") from exc


def _row(name, body: dict) -> dict:
    from handler.core import records

    head = {"record": name.path, "short": name.short, "written_at": records.now_iso(name.time_ns / 1e9), "status": name.status}
    return head | {field: said for field, said in body.items() if field not in head}


def _whole(store, name, body: dict) -> dict:
    """A row with its value, wherever that is."""
    from handler.core import history

    row = _row(name, body)
    if name.status == history.COMPUTED and "value" not in row:
        try:
            row["value"] = history.value(store, name, body)
        except PflError as exc:
            row["value_missing"] = str(exc)
    return row


def _emit_line(name, body: dict) -> None:
    from handler.core import records

    shown = output.cut(body["value"], 40) if "value" in body else f"{body['size_bytes']} bytes" if body.get("size_bytes") else ""
    told = shown or (body.get("error") or {}).get("what") or body.get("why") or ""
    cells = (name.short, records.now_iso(name.time_ns / 1e9)[:19], body.get("id") or "*", body.get("step") or "*", name.status)
    took = f"{body['ms']:.1f} ms" if isinstance(body.get("ms"), int | float) else ""
    output.emit(output.printable(_LINE.format(*cells, took, told)))


def _one_of(plot: bool, json: bool) -> None:
    if plot and json:
        raise InvalidRequestError("--plot and --json do not go together", hint="--plot-to FILE")


@app.command("ls")
def ls(
    id: Id = None, flow: FlowName = None, step: Step = None, since: Since = None, status: Status = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    path: Path = "$", plot: Plot = False, plot_to: PlotTo = None, json: Json = False,
) -> None:  # fmt: skip
    """List records, newest first, as they are found."""
    _one_of(plot, json)
    store, log, count, drawn = _store(), _Log(), 0, []
    for name, body in islice(_found(store, log, id, flow, step, since, status), limit):
        if plot or plot_to:
            drawn.append(_whole(store, name, body))
        elif json:
            output.emit(_row(name, body))
        else:
            if not count:
                output.emit(_LINE.format("RECORD", "TIME", "ID", "STEP", "STATUS", "TOOK", "VALUE"))
            _emit_line(name, body)
        count += 1
    if plot or plot_to:
        from cli import draw

        draw.draw(drawn, path, plot_to)
    log.end(f"{count} {'record' if count == 1 else 'records'}" + (f", more with --limit {limit * 10}" if count == limit else ""))


@app.command("show")
def show(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="Its first digits, or its whole key.")],
    id: Id = None, path: Path = "$", plot: Plot = False, plot_to: PlotTo = None, json: Json = False,
) -> None:  # fmt: skip
    """Show one record whole: value, inputs, key, fingerprint and its parts, run, timings, and the record before it."""
    from handler.core import history
    from handler.engine import why

    _one_of(plot, json)
    store, log = _store(), _Log()
    name, body = _record(store, record, id)
    if plot or plot_to:
        from cli import draw

        earlier = (row for row in history.ls(store, id=body["id"], step=name.step, status=history.COMPUTED, warn=log) if row[0].order >= name.order)
        return draw.draw([_whole(store, *each) for each in islice(earlier, 1_000)], path, plot_to)
    row = _whole(store, name, body)
    if body.get("fingerprint"):
        row["parts"] = [part.to_json() for part in why.parts(store, name.step, body["fingerprint"]) or ()]
    if json:
        output.emit(row)
    else:
        row["parts"] = ", ".join(f"{part['name']}" for part in row.get("parts", ())) or None
        output.pairs(row)


def _record(store, short: str, id: str | None):
    """The record that a person calls *short*; damaged, it is an error here."""
    from handler.core import history, keys

    troubles: list[CorruptRecordError] = []
    name = history.find(store, short, folder=None if id is None else keys.encode_id(id))
    if (body := history.read(store, name, troubles.append)) is None:
        raise troubles[0] if troubles else NotFoundError(f"there is no record {name.path}", hint="pfl history ls")
    return name, body


@app.command("tail")
def tail(
    id: Id = None, step: Step = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="So many of the newest.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Show the newest records, the newest last; with -f, each as it is written."""
    from handler.core import event, history, keys

    store, log, near_ns = _store(), _Log(), 300 * 10**9
    folder = None if id is None else keys.encode_id(event.check_id(id))
    seen: dict[str, int] = {}
    is_first = True
    while True:
        # Clocks differ by less than this, so what is older than the newest by more is not new.
        fresh, horizon_ns = [], max(seen.values(), default=time.time_ns()) - near_ns
        for number, name in enumerate(history.names(store, folder=folder, step=step)):
            if name.time_ns < horizon_ns and not (is_first and number < lines):
                break
            if name.path not in seen and (not is_first or number < lines):
                fresh.append(name)
            elif is_first:
                seen[name.path] = name.time_ns
        for name in reversed(fresh):
            before = log.count
            if (body := history.read(store, name, log)) is None and log.count == before:
                continue  # Its index entry is there, and it itself not yet.
            seen[name.path] = name.time_ns
            if body is not None and (id is None or body["id"] in (id, None)):
                output.emit(_row(name, body)) if json else _emit_line(name, body)
        if not follow:
            return log.end()
        horizon_ns = max(seen.values(), default=0) - 2 * near_ns
        seen, is_first = {path: at for path, at in seen.items() if at >= horizon_ns}, False
        time.sleep(1)


@app.command("diff")
def diff(
    records: Annotated[list[str] | None, typer.Argument(metavar="[RECORD RECORD]", help="Two records.")] = None,
    id: Annotated[list[str] | None, typer.Option("--id", help="The last two of this ID; given twice, one ID against another.")] = None,
    run: Annotated[list[str] | None, typer.Option("--run", help="A run, by the start of its request or flow run ID; give two.")] = None,
    step: Step = None,
    within: Annotated[str | None, typer.Option("--tolerance", help="How far numbers may differ: 0.01, or 1% of the larger.")] = None,
    key: Key = "id",
    json: Json = False,
) -> None:
    """Show what differs between two records, two runs or two IDs, and why. Exit code 0: nothing; 1: something."""
    from cli import compare

    store, log, allowed = _store(), _Log(), compare.tolerance(within)
    rows, is_equal, shown = [], True, 0
    for name, old, new in _pairs(store, log, records or [], id or [], run or [], step):
        row = {"step": name, **_difference(store, old, new, allowed, key)}
        is_equal = is_equal and row["equal"]
        shown += 1
        if json:
            rows.append(row)
        elif not row["equal"]:
            _emit_difference(row)
    if json:
        output.emit({"version": 1, "equal": is_equal, "steps": rows})
    log.end(f"{shown} {'step' if shown == 1 else 'steps'} compared, " + ("no difference" if is_equal else "different"))
    if not is_equal:
        raise typer.Exit(1)


def _pairs(store, log: _Log, records: list[str], ids: list[str], runs: list[str], step: str | None) -> Iterator[tuple]:
    """What to compare: step, old and new record; None where there is none."""
    from handler.core import event, history, keys

    folders = [keys.encode_id(event.check_id(each)) for each in ids]
    if len(records) == 2 and not runs and len(ids) < 2:
        old, new = (_record(store, each, ids[0] if ids else None) for each in records)
        yield new[1].get("step"), old, new
    elif len(runs) == 2 and not records and len(ids) < 2:
        sides = [history.run(store, each, folder=folders[0] if folders else None, warn=log) for each in runs]
        for name in sorted({**sides[0], **sides[1]}) if step is None else [step]:
            # A step that a run did not compute had the value that stood there then.
            yield name, *(side.get(name) or _standing(store, side, name, log) for side in sides)
    elif ids and len(ids) <= 2 and not records and not runs:
        names = {name for folder in folders for name in store.folders(f"history/{folder}")} if step is None else {step}
        pairs = [(name, *_newest(store, folders, name, log)) for name in sorted(names - {history.ALL})]
        pairs = [pair for pair in pairs if (pair[1] and pair[2]) or (len(ids) == 2 and (pair[1] or pair[2]))]
        if not pairs:
            raise NotFoundError("there are no two records to compare", why=f"of {' and '.join(ids)}" + (f", step {step}" if step else ""), hint=f"pfl history ls --id {ids[0]}")
        yield from pairs
    else:
        raise InvalidRequestError("nothing says what to compare", why="it takes two records, one or two --id, or two --run", hint="pfl history diff --id abc")


def _standing(store, side: dict, step: str, log: _Log):
    from handler.core import history

    last = min((name for name, _ in side.values()), key=lambda name: name.order)
    return history.standing(store, last.folder, step, last.time_ns, log)


def _newest(store, folders: list[str], step: str, log: _Log) -> list:
    from handler.core import history

    found = []
    for folder in folders:
        computed = (name for name in history.names(store, folder=folder, step=step) if name.status == history.COMPUTED)
        found.append(list(islice(history.bodies(store, computed, log), 2 if len(folders) == 1 else 1)))
    if len(folders) == 2:
        return [each[0] if each else None for each in found]
    return found[0][::-1] if len(found[0]) == 2 else [None, None]


def _difference(store, old, new, allowed, key: str) -> dict:
    """How two records differ: in value, code, inputs and parameters."""
    from cli import compare
    from handler.core import history
    from handler.core import why as sentences
    from handler.engine import why

    row = {"old": old and old[0].path, "new": new and new[0].path, "equal": False, "changes": [], "code": [], "inputs": [], "params": [], "trouble": None}
    if not (old and new):
        return row | {"trouble": f"only the {'first' if old else 'second'} has it"}
    (a_name, a), (b_name, b) = old, new
    if a_name.status == b_name.status == history.COMPUTED and a["sha256"] == b["sha256"]:
        row["equal"] = True
    else:
        try:
            row["changes"] = compare.changes(history.value(store, *old), history.value(store, *new), within=allowed, key=key)
            row["equal"] = not row["changes"]
        except (NotFoundError, CorruptRecordError) as exc:
            row["trouble"] = f"it cannot be compared: {exc}"
    if a.get("fingerprint") != b.get("fingerprint"):
        parts = [why.parts(store, each.get("step"), each.get("fingerprint") or "-") for each in (a, b)]
        row["code"] = (sentences.explain(*parts) if all(parts) else []) or ["its code changed"]
    for field, digest in (("inputs", "sha256"), ("params", None)):
        left, right = a.get(field) or {}, b.get(field) or {}
        for name in sorted({**left, **right}):
            one, other = left.get(name), right.get(name)
            if (js.dumps(one) != js.dumps(other)) if digest is None or not (one and other) else one[digest] != other[digest]:
                shown = [output.cut(side.get("value", f"sha256 {side['sha256'][:12]}") if digest and side else side) for side in (one, other)]
                row[field].append(f"`{name}`: {' → '.join(shown)}")
    return row


def _emit_difference(row: dict) -> None:
    short = [(row[side] or "").removesuffix(".json").rpartition("-")[2] or "none" for side in ("old", "new")]
    output.emit(output.printable(f"{row['step']}  {short[0]} → {short[1]}"))
    for change in row["changes"]:
        by = f"  ({change['by']:+g}" + (f", {change['ratio']:+.2%}" if "ratio" in change else "") + ")" if "by" in change else ""
        said = " → ".join(output.cut(change[side]) for side in ("old", "new") if side in change)
        text = f"{change['path']}: " + (f"{change['change']} {said}" if change["change"] != "changed" else said) + by
        output.emit("  " + output.printable(f"{change['path']}:" if "diff" in change else text))
        for line in change.get("diff", ()):
            output.emit("    " + output.printable(line))
    for what in ("trouble", "code", "inputs", "params"):
        for line in [row[what]] if isinstance(row[what], str) else row[what] or ():
            output.emit(f"  {what.removesuffix('s')}: {output.printable(line)}" if what != "trouble" else f"  {output.printable(line)}")


@app.command("bisect")
def bisect(
    id: Annotated[str, typer.Option("--id", help="The ID.")],
    step: Annotated[str, typer.Option("--step", help="The step.")],
    path: Path = "$",
    when: Annotated[str | None, typer.Option("--when", help="Where this became true, such as 'value > 100'.")] = None,
    since: Since = None, key: Key = "id", json: Json = False,
) -> None:  # fmt: skip
    """Find the first record where a value changed, or where a condition became true, and what else changed with it."""
    from cli import compare
    from handler.core import event, history, keys

    passes, store, log = compare.condition(when) if when else None, _store(), _Log()
    compare.at(None, path)
    since_ns = None if since is None else _moment_ns(since, "--since")
    listed = history.since(history.names(store, folder=keys.encode_id(event.check_id(id)), step=step), since_ns)
    names = [name for name in listed if name.status == history.COMPUTED]
    # All are read from the oldest on: a value may change and change back, and halving would step over that.
    before, count, there = None, 0, 0
    for name, body in history.bodies(store, reversed(names), log):
        if body["id"] != id:
            continue
        try:
            value = history.value(store, name, body)
        except (NotFoundError, CorruptRecordError) as exc:
            log(exc)
            continue
        found = compare.at(value, path)
        count, there = count + 1, there + (found is not compare.ABSENT)
        if before is not None and (passes(found) and not passes(before[1]) if passes else _differ(before[1], found)):
            row = {"step": step, **_difference(store, before[0], (name, body), compare.Tolerance(), key)}
            told = [None if each is compare.ABSENT else each for each in (before[1], found)]
            output.emit({"version": 1, "id": id, "path": path, "records": count, "from": told[0], "to": told[1], **row}) if json else _emit_found(name, path, told, row)
            return log.end(f"{count} of {len(names)} records read")
        before = ((name, body), found)
    log.end()
    where = f"{len(names)} records of step {step} of {id!r}"
    if not there:
        raise NotFoundError(f"{path} is in none of {where}" if names else f"there are no records of step {step} of {id!r}", hint=f"pfl history ls --id {id} --step {step}")
    raise NotFoundError(f"{path} never changed" if not when else f"{when!r} never became true", why=f"in {where}")


def _differ(old: object, new: object) -> bool:
    from cli import compare
    from handler.core import keys

    if old is compare.ABSENT or new is compare.ABSENT:
        return old is not new
    return keys.canonical(old) != keys.canonical(new)


def _emit_found(name, path: str, told: list, row: dict) -> None:
    from handler.core import records

    output.emit(f"{name.short}  {records.now_iso(name.time_ns / 1e9)[:19]}  {path}: {output.cut(told[0])} → {output.cut(told[1])}")
    _emit_difference(row)


@app.command("export")
def export(
    format: Annotated[str, typer.Option("--format", help="jsonl, csv or parquet.")] = "jsonl",
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Where to; stdout if not given.")] = None,
    id: Id = None, flow: FlowName = None, step: Step = None, since: Since = None, status: Status = None,
) -> None:  # fmt: skip
    """Write all records, or those chosen, to a file, as they are read."""
    import csv
    import sys
    from contextlib import nullcontext

    from cli import query

    if format not in ("jsonl", "csv", "parquet"):
        raise InvalidRequestError(f"unknown format {format!r}", hint="--format jsonl, csv or parquet")
    if format == "parquet" and out is None:
        raise InvalidRequestError("parquet cannot go to stdout", hint="--out history.parquet")
    store, log, count = _store(), _Log(), 0
    rows = (_whole(store, name, body) for name, body in _found(store, log, id, flow, step, since, status))
    if format == "parquet":
        with query.table(rows) as database:
            path = out.replace("'", "''")
            count = database.execute(f"copy history to '{path}' (format parquet)").fetchone()[0]
        return log.end(f"{count} records")
    with nullcontext(sys.stdout) if out is None else open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if format == "csv":
            writer.writerow(query.COLUMNS)
        for row in rows:
            count += 1
            if format == "csv":
                cells = (row.get(column) for column in query.COLUMNS)
                writer.writerow([cell if cell is None or isinstance(cell, str) and column != "value" else js.dumps(cell) for column, cell in zip(query.COLUMNS, cells, strict=True)])
            else:
                file.write(js.dumps(row) + "\n")
    log.end(f"{count} records")


@app.command("sql")
def sql(
    select: Annotated[str, typer.Argument(metavar="QUERY", help="SQL over the table history.")],
    id: Id = None, flow: FlowName = None, step: Step = None, since: Since = None, status: Status = None, json: Json = False,
) -> None:  # fmt: skip
    """Ask with SQL: a row for each record in the table history. Needs DuckDB: pip install 'pfl[query]'."""
    from cli import query

    if not select.strip():
        raise InvalidRequestError("the query is empty", hint="pfl history sql 'select status, count(*) from history group by 1'")
    store, log = _store(), _Log()
    rows = (_whole(store, name, body) for name, body in _found(store, log, id, flow, step, since, status))
    with query.table(rows) as database:
        found = database.execute(select)
        columns = [column[0] for column in found.description or ()]
        nested = {column[0] for column in found.description or () if str(column[1]) == "JSON"}
        if json:
            while some := found.fetchmany(1_000):
                for row in some:
                    cells = dict(zip(columns, row, strict=True))
                    cells |= {name: js.loads(cells[name]) for name in nested if cells[name] is not None}
                    plain = (int, float, bool, str, list, dict, type(None))
                    output.emit({name: cell if isinstance(cell, plain) else str(cell) for name, cell in cells.items()})
        elif columns:
            output.table(columns, [["" if cell is None else cell for cell in row] for row in found.fetchall()])
    log.end()


@app.command("prune")
def prune(
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help="What is older, such as 90d, or than a moment.")],
    id: Id = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete old records for good; the newest value of each step of each ID stays. Nothing else ever deletes one."""
    from handler.core import event, history, keys, store_format

    store, before_ns = _store(), _moment_ns(older_than, "--older-than")
    folder = None if id is None else keys.encode_id(event.check_id(id))
    count = sum(1 for _ in history.prune(store, before_ns, folder=folder))
    output.say(f"{count} {'record is' if count == 1 else 'records are'} older than {older_than} and not the newest value of a step")
    if count and not dry_run:
        output.confirm(f"Delete {count} {'record' if count == 1 else 'records'} for good?", yes=yes)
        store_format.check(store)
        history.delete(store, history.prune(store, before_ns, folder=folder))
        output.say("deleted; pfl cache verify --repair sets large values aside that no record leads to any more")
    output.emit({"version": 1, "pruned": count, "dry_run": dry_run} if json else f"{count}")
