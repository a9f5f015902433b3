"""``pfl history``: what became of each step, what differs between two runs, and since when."""

from __future__ import annotations

import json as js
import time
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from itertools import islice, takewhile
from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import DryRun, Json, OnlyFlow, OnlyId, OnlyStep, TheId, Yes, age_s
from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError, NotFoundError, PflError

app = typer.Typer(
    help="What became of each step, what differs between two runs, and since when.",
    no_args_is_help=True,
)
_SINCE = "Not older than 7d, 12h, 30m, or a moment such as 2026-11-01."
Since = Annotated[str | None, typer.Option("--since", metavar="WHEN", help=_SINCE)]
_STATUSES = StrEnum("Status", ["computed", "failed", "crashed", "busted", "restored", "accepted"])
Status = Annotated[_STATUSES | None, typer.Option("--status", help="Only these.")]
_FORMATS = StrEnum("Format", ["jsonl", "csv", "parquet"])
Path = Annotated[str, typer.Option("--path", help="Where in the value, such as $.rows[0].total.")]
Plot = Annotated[bool, typer.Option("--plot", help="Draw the value over time.")]
PlotTo = Annotated[
    str | None, typer.Option("--plot-to", metavar="FILE", help="Draw it to an .svg or .png file.")
]
Key = Annotated[str, typer.Option("--key", help="The column that names the rows of a table.")]
_LINE = "{:<8}  {:<19}  {:<16}  {:<12}  {:<9}  {:>9}  {}"


class _Log:
    """Tells of damaged records as they are met, and how many there were."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, exc: PflError | str) -> None:
        self.count += 1
        output.say(f"warning: {output.printable(str(exc))}")

    def end(self, *told: str) -> None:
        if self.count:
            were = "was" if self.count == 1 else "were"
            told += (
                f"{output.counted(self.count, 'record')} {were} damaged or of another version, and passed over",
            )
        if told:
            output.say("; ".join(told))


def _store():
    from pfl.handler.core.store import objects

    return objects.of(settings.load())


def _folder(id: str | None) -> str | None:
    from pfl.handler.core.store import keys

    return None if id is None else keys.encode_id(id)


def _found(store, log: _Log, id, flow, step, since, status) -> Iterator[tuple]:
    from pfl.handler.core.cache import history

    since_ns = None if since is None else _moment_ns(since, "--since")
    return history.list_records(
        store, id=id, flow=flow, step=step, since_ns=since_ns, status=status, warn=log
    )


def _moment_ns(text: str, flag: str) -> int:
    from pfl.handler.core.cache import history

    with suppress(InvalidRequestError):
        return time.time_ns() - age_s(text, flag) * 10**9
    try:
        return history.parse_time_ns(text)
    except (ValueError, OverflowError) as exc:
        why = "it has to be a number with s, m, h, d or w, or a moment in ISO 8601"
        raise InvalidRequestError(
            f"{flag} is {text!r}", why=why, hint=f"{flag} 7d or {flag} 2026-11-01"
        ) from exc


def _row(name, body: dict) -> dict:
    head = {
        "record": name.path,
        "short": name.short,
        "written_at": name.written_at,
        "status": name.status,
    }
    return head | {field: said for field, said in body.items() if field not in head}


def _whole(store, name, body: dict) -> dict:
    """A row with its value, wherever that is."""
    from pfl.handler.core.cache import history

    row = _row(name, body)
    if name.status == history.COMPUTED and "value" not in row:
        try:
            row["value"] = history.value(store, name, body)
        except PflError as exc:
            row["value_missing"] = str(exc)
    return row


def _emit(name, body: dict, json: bool) -> None:
    if json:
        return output.emit(_row(name, body))
    told = (body.get("error") or {}).get("what") or body.get("why") or ""
    if "value" in body or body.get("size_bytes"):
        told = output.cut(body["value"], 40) if "value" in body else f"{body['size_bytes']} bytes"
    took = f"{body['ms']:.1f} ms" if isinstance(body.get("ms"), int | float) else ""
    cells = (
        name.short,
        name.written_at[:19],
        body.get("id") or "*",
        body.get("step") or "*",
        name.status,
        took,
        told,
    )
    output.emit(output.printable(_LINE.format(*cells)))


def _one_of(plot: bool, json: bool) -> None:
    if plot and json:
        raise InvalidRequestError("--plot and --json do not go together", hint="--plot-to FILE")


@app.command("ls")
def ls(
    id: OnlyId = None, flow: OnlyFlow = None, step: OnlyStep = None, since: Since = None, status: Status = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    path: Path = "$", plot: Plot = False, plot_to: PlotTo = None, json: Json = False,
) -> None:  # fmt: skip
    """List records, newest first, as they are found."""
    _one_of(plot, json)
    store, log, count, drawn = _store(), _Log(), 0, []
    for name, body in islice(_found(store, log, id, flow, step, since, status), limit):
        if plot or plot_to:
            drawn.append(_whole(store, name, body))
        else:
            if not (count or json):
                output.emit(_LINE.format("RECORD", "TIME", "ID", "STEP", "STATUS", "TOOK", "VALUE"))
            _emit(name, body, json)
        count += 1
    if plot or plot_to:
        from pfl.cli import draw

        draw.draw(drawn, path, plot_to)
    log.end(
        output.counted(count, "record")
        + (f", more with --limit {limit * 10}" if count == limit else "")
    )


@app.command("show")
def show(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="Its first digits, or its whole key.")],
    id: OnlyId = None, path: Path = "$", plot: Plot = False, plot_to: PlotTo = None, json: Json = False,
) -> None:  # fmt: skip
    """Show one record whole: value, inputs, key, fingerprint and its parts, run, timings, and the record before it."""
    from pfl.handler.core.cache import history, reasons

    _one_of(plot, json)
    store, log = _store(), _Log()
    name, body = _record(store, record, id)
    if plot or plot_to:
        from pfl.cli import draw

        earlier = history.list_computed(store, name.folder, name.step, log, until_ns=name.time_ns)
        return draw.draw([_whole(store, *each) for each in islice(earlier, 1_000)], path, plot_to)
    row = _whole(store, name, body)
    if body.get("fingerprint"):
        row["parts"] = [
            part.to_json() for part in reasons.parts(store, name.step, body["fingerprint"]) or ()
        ]
    if json:
        return output.emit(row)
    output.pairs(row | {"parts": ", ".join(part["name"] for part in row.get("parts", ())) or None})


def _record(store, short: str, id: str | None) -> tuple:
    """The record that a person calls *short*; damaged, it is an error here."""
    from pfl.handler.core.cache import history

    name = history.find(store, short, folder=_folder(id))
    if (body := history.read(store, name)) is None:
        raise NotFoundError(f"record {name.path} does not exist", hint="pfl history ls")
    return name, body


@app.command("tail")
def tail(
    id: OnlyId = None, step: OnlyStep = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="So many of the newest.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Show the newest records, the newest last; with -f, each as it is written."""
    from pfl.handler.core.cache import history

    store, log, folder, near_ns = _store(), _Log(), _folder(id), 300 * 10**9
    seen: dict[str, int] = {}
    is_first = True
    while True:
        # Clocks differ by less than this, so what is older than the newest by more is not new.
        fresh, horizon_ns = [], max(seen.values(), default=time.time_ns()) - near_ns
        for number, name in enumerate(history.list_names(store, folder=folder, step=step)):
            if name.time_ns < horizon_ns and not (is_first and number < lines):
                break
            if name.path not in seen and (not is_first or number < lines):
                fresh.append(name)
            elif is_first:
                seen[name.path] = name.time_ns
        for name in reversed(fresh):
            try:
                body = history.read(store, name)
            except CorruptRecordError as exc:
                log(exc)
            else:
                if body is None:
                    continue  # What points to it exists, and it itself does not yet.
                if id is None or body["id"] in (id, None):
                    _emit(name, body, json)
            seen[name.path] = name.time_ns
        if not follow:
            return log.end()
        horizon_ns = max(seen.values(), default=0) - 2 * near_ns
        seen, is_first = {path: at for path, at in seen.items() if at >= horizon_ns}, False
        time.sleep(1)


_TWO = "The last two of this ID; given twice, one ID against another."
_RUN = "A run, by the start of its request or flow run ID; give two."
_APART = "How far numbers may differ: 0.01, or 1% of the larger."


@app.command("diff")
def diff(
    records: Annotated[
        list[str] | None, typer.Argument(metavar="[RECORD RECORD]", help="Two records.")
    ] = None,
    id: Annotated[list[str] | None, typer.Option("--id", help=_TWO)] = None,
    run: Annotated[list[str] | None, typer.Option("--run", help=_RUN)] = None,
    step: OnlyStep = None,
    within: Annotated[str | None, typer.Option("--tolerance", help=_APART)] = None,
    key: Key = "id",
    json: Json = False,
) -> None:
    """Show what differs between two records, two runs or two IDs, and why. Exit code 0: nothing; 1: something."""
    from pfl.cli import compare

    store, log, allowed, rows = _store(), _Log(), compare.tolerance(within), []
    for name, old, new in _pairs(store, log, records or [], id or [], run or [], step):
        rows.append({"step": name, **_difference(store, old, new, allowed, key)})
        if not (json or rows[-1]["equal"]):
            _emit_difference(rows[-1])
    is_equal = all(row["equal"] for row in rows)
    if json:
        output.emit({"version": 1, "equal": is_equal, "steps": rows})
    log.end(
        f"{output.counted(len(rows), 'step')} compared, {'no difference' if is_equal else 'different'}"
    )
    if not is_equal:
        raise typer.Exit(1)


def _pairs(
    store, log: _Log, records: list[str], ids: list[str], runs: list[str], step: str | None
) -> Iterator[tuple]:
    """What to compare: step, old and new record; None where there is none."""
    from pfl.handler.core import event
    from pfl.handler.core.cache import history
    from pfl.handler.core.store import keys

    folders = [keys.encode_id(event.check_id(each)) for each in ids]
    if len(records) == 2 and not runs and len(ids) < 2:
        old, new = (_record(store, each, ids[0] if ids else None) for each in records)
        yield new[1].get("step"), old, new
    elif len(runs) == 2 and not records and len(ids) < 2:
        sides = [
            history.find_run(store, each, folder=folders[0] if folders else None, warn=log)
            for each in runs
        ]
        for name in sorted({**sides[0], **sides[1]}) if step is None else [step]:
            # A step that a run did not compute had the value that stood there then.
            yield name, *(side.get(name) or _standing(store, side, name, log) for side in sides)
    elif ids and len(ids) <= 2 and not records and not runs:
        names = (
            {name for folder in folders for name in store.folders(f"history/{folder}")}
            if step is None
            else {step}
        )
        is_none = True
        for name in sorted(names - {history.ALL}):
            found = [history.list_computed(store, folder, name, log) for folder in folders]
            # Of one ID the newest comes first, and then the one before it.
            new, old = next(found[-1], None), next(found[0], None)
            if old or (new and len(ids) == 2):
                is_none = False
                yield name, old, new
        if is_none:
            why = f"of {' and '.join(ids)}" + (f", step {step}" if step else "")
            raise NotFoundError(
                "there are no two records to compare", why=why, hint=f"pfl history ls --id {ids[0]}"
            )
    else:
        why = "it takes two records, one or two --id, or two --run"
        raise InvalidRequestError(
            "nothing says what to compare", why=why, hint="pfl history diff --id abc"
        )


def _standing(store, side: dict, step: str, log: _Log) -> tuple | None:
    from pfl.handler.core.cache import history

    last = min((name for name, _ in side.values()), key=lambda name: name.file)
    return next(history.list_computed(store, last.folder, step, log, until_ns=last.time_ns), None)


def _difference(store, old, new, allowed, key: str) -> dict:
    """How two records differ: in value, code, inputs and parameters."""
    from pfl.cli import compare
    from pfl.handler.core.cache import history, reasons
    from pfl.handler.core.fingerprint import changes as sentences

    row = {
        "old": old and old[0].path,
        "new": new and new[0].path,
        "equal": False,
        "changes": [],
        "code": [],
    }
    row |= {"inputs": [], "params": [], "trouble": None}
    if not (old and new):
        return row | {"trouble": f"only the {'first' if old else 'second'} has it"}
    (a_name, a), (b_name, b) = old, new
    if a_name.status == b_name.status == history.COMPUTED and a["sha256"] == b["sha256"]:
        row["equal"] = True
    else:
        try:
            values = (history.value(store, *each) for each in (old, new))
            row["changes"] = compare.changes(*values, within=allowed, key=key)
            row["equal"] = not row["changes"]
        except (NotFoundError, CorruptRecordError) as exc:
            row["trouble"] = f"it cannot be compared: {exc}"
    if a.get("fingerprint") != b.get("fingerprint"):
        parts = [
            reasons.parts(store, each.get("step"), each.get("fingerprint") or "-")
            for each in (a, b)
        ]
        row["code"] = (sentences.explain(*parts) if all(parts) else []) or ["its code changed"]
    for field in ("inputs", "params"):
        left, right = (
            {name: _told(field, said) for name, said in (side.get(field) or {}).items()}
            for side in (a, b)
        )
        for name in sorted(left | right):
            (one, before), (other, after) = (
                side.get(name, ("null", "null")) for side in (left, right)
            )
            if one != other:
                row[field].append(f"`{name}`: {before} → {after}")
    return row


def _told(field: str, said) -> tuple[str, str]:
    """What an input or a parameter is known by, and its text; a large input is in its record by its digest alone."""
    if field == "params":
        return js.dumps(said), output.cut(said)
    return said["sha256"], output.cut(said.get("value", f"sha256 {said['sha256'][:12]}"))


def _emit_difference(row: dict) -> None:
    short = [
        (row[side] or "").removesuffix(".json").rpartition("-")[2] or "none"
        for side in ("old", "new")
    ]
    lines = [f"{row['step']}  {short[0]} → {short[1]}"]
    for change in row["changes"]:
        said = " → ".join(output.cut(change[side]) for side in ("old", "new") if side in change)
        if "by" in change:
            said += (
                f"  ({change['by']:+g}"
                + (f", {change['ratio']:+.2%}" if "ratio" in change else "")
                + ")"
            )
        elif "diff" in change:
            said = ""
        word = "" if change["change"] == "changed" else change["change"]
        lines.append(" ".join(filter(None, (f"  {change['path']}:", word, said))))
        lines += ["    " + line for line in change.get("diff", ())]
    lines += [f"  {row['trouble']}"] if row["trouble"] else []
    lines += [
        f"  {what.removesuffix('s')}: {line}"
        for what in ("code", "inputs", "params")
        for line in row[what]
    ]
    for line in lines:
        output.emit(output.printable(line))


@app.command("bisect")
def bisect(
    id: TheId,
    step: Annotated[str, typer.Option("--step", help="The step.")],
    path: Path = "$",
    when: Annotated[str | None, typer.Option("--when", help="Where this became true, such as 'value > 100'.")] = None,
    since: Since = None, key: Key = "id", json: Json = False,
) -> None:  # fmt: skip
    """Find the first record where a value changed, or where a condition became true, and what else changed with it."""
    from pfl.cli import compare
    from pfl.handler.core.cache import history

    passes, store, log = compare.condition(when) if when else None, _store(), _Log()
    compare.at(None, path)
    since_ns = 0 if since is None else _moment_ns(since, "--since")
    listed = takewhile(
        lambda name: name.time_ns >= since_ns,
        history.list_names(store, folder=_folder(id), step=step),
    )
    names = [name for name in listed if name.status == history.COMPUTED]
    # All are read from the oldest on: a value may change and change back, and halving would step over that.
    before, count, there = None, 0, 0
    for name, body in history.read_all(store, reversed(names), log):
        try:
            found = compare.at(history.value(store, name, body), path)
        except (NotFoundError, CorruptRecordError) as exc:
            log(exc)
            continue
        count, there = count + 1, there + (found is not compare.ABSENT)
        if before is not None and (
            passes(found) and not passes(before[1]) if passes else _differ(before[1], found)
        ):
            row = {"step": step, **_difference(store, before[0], (name, body), compare.EXACT, key)}
            old, new = (None if each is compare.ABSENT else each for each in (before[1], found))
            if json:
                output.emit(
                    {
                        "version": 1,
                        "id": id,
                        "path": path,
                        "records": count,
                        "from": old,
                        "to": new,
                        **row,
                    }
                )
            else:
                output.emit(
                    f"{name.short}  {name.written_at[:19]}  {path}: {output.cut(old)} → {output.cut(new)}"
                )
                _emit_difference(row)
            return log.end(f"{count} of {len(names)} records read")
        before = ((name, body), found)
    log.end()
    where = f"{output.counted(len(names), 'record')} of step {step} of {id!r}"
    if not there:
        what = (
            f"{path} is in none of {where}"
            if names
            else f"there are no records of step {step} of {id!r}"
        )
        raise NotFoundError(what, hint=f"pfl history ls --id {id} --step {step}")
    raise NotFoundError(
        f"{path} never changed" if not when else f"{when!r} never became true", why=f"in {where}"
    )


def _differ(old: object, new: object) -> bool:
    from pfl.cli import compare
    from pfl.handler.core.store import keys

    if old is compare.ABSENT or new is compare.ABSENT:
        return old is not new
    return keys.canonical(old) != keys.canonical(new)


@app.command("export")
def export(
    format: Annotated[_FORMATS, typer.Option("--format", help="What kind of file.")] = _FORMATS.jsonl,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Where to; stdout if not given.")] = None,
    id: OnlyId = None, flow: OnlyFlow = None, step: OnlyStep = None, since: Since = None, status: Status = None,
) -> None:  # fmt: skip
    """Write all records, or those chosen, to a file, as they are read."""
    import csv
    import shlex
    import sys
    from contextlib import nullcontext
    from pathlib import Path as FilePath

    from pfl.cli import query

    if format == "parquet" and out is None:
        raise InvalidRequestError("parquet cannot go to stdout", hint="--out history.parquet")
    if out is not None and not (folder := FilePath(out).parent).is_dir():
        raise InvalidRequestError(
            f"{out} cannot be written",
            why=f"No such file or directory: {folder}",
            hint=f"mkdir -p {shlex.quote(str(folder))}",
        )
    store, log, count = _store(), _Log(), 0
    rows = (_whole(store, *each) for each in _found(store, log, id, flow, step, since, status))
    if format == "parquet":
        with query.table(rows) as database:
            path = out.replace("'", "''")
            count = database.execute(f"copy history to '{path}' (format parquet)").fetchone()[0]
        return log.end(output.counted(count, "record"))
    try:
        opened = (
            nullcontext(sys.stdout) if out is None else open(out, "w", encoding="utf-8", newline="")
        )
    except OSError as exc:
        raise InvalidRequestError(
            f"{out} cannot be written", why=exc.strerror or str(exc), hint=f"--out history.{format}"
        ) from exc
    with opened as file:
        table = csv.writer(file)
        if format == "csv":
            table.writerow(query.COLUMNS)
        for row in rows:
            count += 1
            if format == "jsonl":
                file.write(js.dumps(row) + "\n")
                continue
            table.writerow(_csv_cell(row.get(column), column) for column in query.COLUMNS)
    log.end(output.counted(count, "record"))


def _csv_cell(cell: object, column: str) -> str | None:
    return cell if cell is None or (isinstance(cell, str) and column != "value") else js.dumps(cell)


@app.command("sql")
def sql(
    select: Annotated[str, typer.Argument(metavar="QUERY", help="SQL over the table history.")],
    id: OnlyId = None, flow: OnlyFlow = None, step: OnlyStep = None, since: Since = None, status: Status = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Ask with SQL: a row for each record in the table history. Needs DuckDB: pip install 'prefect-lambda[query]'."""
    from pfl.cli import query

    if not select.strip():
        raise InvalidRequestError(
            "the query is empty",
            hint="pfl history sql 'select status, count(*) from history group by 1'",
        )
    store, log = _store(), _Log()
    rows = (_whole(store, *each) for each in _found(store, log, id, flow, step, since, status))
    with query.table(rows) as database:
        found = database.execute(select)
        kinds = {column[0]: str(column[1]) for column in found.description or ()}
        while json and (some := found.fetchmany(1_000)):
            for row in some:
                output.emit(
                    {
                        name: _cell(cell, kind)
                        for (name, kind), cell in zip(kinds.items(), row, strict=True)
                    }
                )
        if kinds and not json:
            output.table(
                list(kinds),
                [["" if cell is None else cell for cell in row] for row in found.fetchall()],
            )
    log.end()


def _cell(cell: object, kind: str) -> object:
    if kind == "JSON" and cell is not None:
        return js.loads(cell)
    return cell if isinstance(cell, int | float | bool | str | list | dict | None) else str(cell)


_OLD = "What is older, such as 90d, or than a moment."


@app.command("prune")
def prune(
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help=_OLD)],
    id: OnlyId = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete old records for good; the newest value of each step of each ID stays. Nothing else ever deletes one."""
    from pfl.handler.core.cache import history
    from pfl.handler.core.store import layout

    store, before_ns, folder = _store(), _moment_ns(older_than, "--older-than"), _folder(id)
    count = sum(1 for _ in history.list_prunable(store, before_ns, folder=folder))
    records = output.counted(count, "record")
    output.say(
        f"{records} {'is' if count == 1 else 'are'} older than {older_than} and not the newest value of a step"
    )
    if count and not dry_run:
        output.confirm(f"Delete {records} for good?", yes=yes)
        layout.check(store)
        history.delete(store, history.list_prunable(store, before_ns, folder=folder))
        output.say(
            "deleted; pfl cache verify --repair sets large values aside that no record leads to any more"
        )
    output.emit({"version": 1, "pruned": count, "dry_run": dry_run} if json else f"{count}")
