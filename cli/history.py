"""``pfl history``: list, compare, search and export the records of each step."""

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TextIO

from typer import Argument, Exit, Option, Typer

from ..handler.core import event
from ..handler.core.cache import history, reasons
from ..handler.core.errors import CorruptRecordError, InvalidRequestError, NotFoundError, PflError
from ..handler.core.store import keys, layout, objects
from . import compare, output, settings, stored
from .options import (
    OnlyFlow,
    OnlyId,
    OnlyStep,
    Since,
    TheId,
    Yes,
    moment_ns,
    refuse_together,
)
from .stored import Row

app = Typer(help="List, compare, search and export the records of each step.")


Status = Annotated[
    Literal["computed", "failed", "crashed", "busted", "restored", "accepted"] | None,
    Option(help="Only this status."),
]

Body = history.Record | history.ComputedRecord
Found = tuple[history.Name, Body]
Fields = Mapping[str, Any]
Pair = tuple[str, Found | None, Found | None]
# A record, and the part of its value that is compared.
Version = tuple[Found, object]

_COLUMNS = ("record", "written_at", "id", "step", "status", "compute_ms>", "value")
# The columns of a CSV file.
_EXPORTED = """
record written_at status flow id step value params inputs key fingerprint sha256 size_bytes
computed_at expires_at started_at compute_ms why engine flow_run_id task_run_id url request_id
cold_start code previous error
""".split()
_NEAR_NS = 300 * 10**9


class _Reader:
    """Reads records, and warns once about each damaged one, which is skipped."""

    def __init__(self) -> None:
        self.store = objects.of(settings.load())
        self._warnings: set[str] = set()

    def warn(self, warning: str) -> None:
        """Print a warning, unless it was printed already."""
        if warning not in self._warnings:
            output.say(f"warning: {warning}")
        self._warnings.add(warning)

    def list(self, **selected: Any) -> Iterator[Found]:
        """The records that ``history.list_records`` selects, newest first."""
        return history.list_records(self.store, **selected, warn=self.warn)

    def record(self, short: str, id: str | None = None) -> Found:
        """
        The record with this short name or key.

        Raises:
            NotFoundError: It does not exist, or not for this ID.
            CorruptRecordError: It is damaged.
        """
        folder = stored.folder_of(id)
        name = history.find(self.store, short, folder=folder)
        body = history.read(self.store, name)
        if body is None or folder not in (None, name.folder):
            of_id = "" if id is None else f" for {id!r}"
            raise NotFoundError(f"record {name.path} does not exist{of_id}", hint="pfl history ls")
        return name, body

    def row(self, name: history.Name, body: Body, *, with_value: bool = True) -> Row:
        """A record as JSON; *with_value* also reads a value that is stored separately."""
        head = {
            "record": name.path,
            "short": name.short,
            "written_at": name.written_at,
            "status": name.status,
        }
        row = {**head, **body, **head}
        if with_value and name.status == history.COMPUTED and "value" not in row:
            try:
                row["value"] = history.value(self.store, name, body)
            except PflError as exc:
                row["value_missing"] = str(exc)
        return stored.as_json(row)


def _print(reader: _Reader, table: output.Table, name: history.Name, body: Body) -> None:
    """Print a record: as a line of JSON, or as a row of the table."""
    row = reader.row(name, body, with_value=False)
    output.emit(row)
    error = row.get("error") or {}
    summary = error.get("what") or row.get("why")
    if "value" in row:
        summary = output.cut(row["value"], 40)
    elif row.get("size_bytes"):
        summary = f"{row['size_bytes']} bytes"
    table.add(row | {"record": row["short"], "value": summary})


@app.command("ls")
def list_records(
    id: OnlyId = None,
    flow: OnlyFlow = None,
    step: OnlyStep = None,
    since: Since = None,
    status: Status = None,
    limit: Annotated[int, Option(min=1)] = 20,
    follow: Annotated[bool, Option("--follow", "-f")] = False,
) -> None:
    """
    List records, newest first; with -f newest last, and then each new one as it is written.

    Args:
        limit: Maximum number of records; with -f, of those that exist already.
        follow: Keep printing new records until Ctrl-C.
    """
    reader = _Reader()
    table = output.Table(_COLUMNS)
    listed = partial(reader.list, id=id, flow=flow, step=step, status=status)
    if follow:
        _follow(reader, table, listed, since or 0, limit)
    count = 0
    for found in output.while_read(islice(listed(since_ns=since), limit)):
        count += 1
        _print(reader, table, *found)
    table.flush()
    more = f", more with --limit {limit * 10}" if count == limit else ""
    output.say(output.counted(count, "record") + more)
    if id and not count:
        output.say(stored.elsewhere(reader.store, id, flow, "pfl history ls"))


def _follow(
    reader: _Reader,
    table: output.Table,
    listed: Callable[..., Iterator[Found]],
    since_ns: int,
    limit: int,
) -> NoReturn:
    """Print the newest records, newest last, and then each new one, without end."""
    seen: set[history.Name] = set()
    most: int | None = limit
    while True:
        found = list(islice(listed(since_ns=since_ns, seen=seen), most))
        if found and most:
            # What is older stays out.
            since_ns = found[-1][0].time_ns
        for name, body in output.while_read(reversed(found)):
            # Clocks differ by less than this: a record that is older by more is not new.
            since_ns = max(since_ns, name.time_ns - _NEAR_NS)
            _print(reader, table, name, body)
        table.flush()
        most = None
        time.sleep(1)


@app.command()
def show(record: str, id: OnlyId = None) -> None:
    """
    Show one record: value, inputs, key, fingerprint and its parts, run, timings.

    Args:
        record: First digits of its name, or its whole key.
    """
    reader = _Reader()
    name, body = reader.record(record, id)
    row = reader.row(name, body)
    parts = reasons.parts(reader.store, name.step, body.get("fingerprint") or "-")
    row["parts"] = [part.to_json() for part in parts]
    names = ", ".join(part.name for part in parts)
    stored.show(row, parts=names or None)


@app.command()
def diff(
    records: Annotated[list[str] | None, Argument(metavar="[RECORD RECORD]")] = None,
    id: list[str] | None = None,
    step: OnlyStep = None,
    tolerance: str | None = None,
    key: str = "id",
) -> None:
    """
    Show what differs between two records or IDs, and why; exit code 1 if they differ.

    Args:
        records: Two records.
        id: Compare the last two of this ID, or (given twice) two IDs.
        tolerance: Allowed difference between numbers, such as 0.01 or 1%.
    """
    reader = _Reader()
    within = compare.tolerance(tolerance) if tolerance else None
    records = records or []
    ids = id or []
    if (len(records), len(ids)) not in {(2, 0), (2, 1), (0, 1), (0, 2)}:
        raise InvalidRequestError(
            "nothing to compare",
            why="give two records, or one or two --id",
            hint="pfl history diff --id abc",
        )
    refuse_together({"two records": records, "--step": step})
    rows = []
    for pair in _pairs(reader, records, ids, step):
        row = _difference(reader, *pair, key, within)
        rows.append(row)
        if not row["equal"]:
            _show_difference(row)
    if not rows:
        raise NotFoundError(
            "nothing to compare",
            why=f"no step has two records; {stored.elsewhere(reader.store, ids[0])}",
            hint=f"pfl history ls --id {ids[0]}",
        )
    is_equal = all(row["equal"] for row in rows)
    output.emit({"version": 1, "equal": is_equal, "steps": rows})
    result = "no difference" if is_equal else "different"
    output.say(f"{output.counted(len(rows), 'step')} compared, {result}")
    if not is_equal:
        raise Exit(1)


def _pairs(reader: _Reader, records: list[str], ids: list[str], step: str | None) -> Iterator[Pair]:
    """What to compare, a pair for each step."""
    if records:
        first, second = (reader.record(each, *ids) for each in records)
        yield second[0].step, first, second
        return
    folders = [keys.encode_id(event.check_id(id)) for id in ids]
    steps = set().union(*(history.steps(reader.store, folder) for folder in folders))
    for name in [step] if step else sorted(steps):
        found = [
            history.list_computed(reader.store, folder, name, reader.warn) for folder in folders
        ]
        # For a single ID both are one iterator: its newest record, and the one before.
        new = next(found[-1], None)
        old = next(found[0], None)
        if old or (new and len(folders) == 2):
            yield name, old, new


def _difference(
    reader: _Reader,
    step: str,
    old: Found | None,
    new: Found | None,
    key: str,
    within: compare.Closeness | None = None,
) -> Row:
    """How two records differ: in value, code, inputs and parameters."""
    row: Row = {
        "step": step,
        "old_record": old[0].path if old else None,
        "new_record": new[0].path if new else None,
        "equal": False,
        "value_changes": [],
        "code_changes": [],
        "input_changes": [],
        "param_changes": [],
        "trouble": None,
    }
    if not (old and new):
        row["trouble"] = f"only the {'first' if old else 'second'} has a record"
        return row
    before: Fields = old[1]
    after: Fields = new[1]
    # Only what was computed has a digest.
    if "sha256" in before and before["sha256"] == after.get("sha256"):
        row["equal"] = True
    else:
        try:
            values = [history.value(reader.store, *each) for each in (old, new)]
            row["value_changes"] = compare.changes(*values, within=within, key=key)
            row["equal"] = not row["value_changes"]
        except (NotFoundError, CorruptRecordError) as exc:
            row["trouble"] = f"the values cannot be compared: {exc}"
    old_print, new_print = (side.get("fingerprint") or "-" for side in (before, after))
    if old_print != new_print:
        now = reasons.parts(reader.store, step, new_print)
        row["code_changes"] = reasons.code_changes(reader.store, step, old_print, now)
    row["input_changes"] = _field_changes(before, after, "inputs")
    row["param_changes"] = _field_changes(before, after, "params")
    return row


def _field_changes(before: Fields, after: Fields, field: str) -> list[str]:
    """Sentences such as ```rate`: 2 → 3`` about inputs or parameters."""
    old, new = (stored.for_people(body).get(field) or {} for body in (before, after))
    return [
        f"`{name}`: {output.cut(old.get(name))} → {output.cut(new.get(name))}"
        for name in sorted({**old, **new})
        if keys.canonical(old.get(name)) != keys.canonical(new.get(name))
    ]


def _show_difference(row: Row) -> None:
    paths = [row[side] or "none" for side in ("old_record", "new_record")]
    old, new = (path.rpartition("-")[2].removesuffix(".json") for path in paths)
    output.show(f"{row['step']}  {old} → {new}")
    for change in row["value_changes"]:
        output.show(_change_text(change))
    if row["trouble"]:
        output.show(f"  {row['trouble']}")
    for label in ("code", "input", "param"):
        for sentence in row[f"{label}_changes"]:
            output.show(f"  {label}: {sentence}")


def _change_text(change: compare.Change) -> str:
    lines = change.get("diff")
    if lines:
        return "\n    ".join([f"  {change['path']}:", *lines])
    old, new = (output.cut(change[x]) if x in change else "nothing" for x in ("old", "new"))
    text = f"  {change['path']}: {old} → {new}"
    if "delta" in change:
        ratio = f", {change['ratio']:+.2%}" if "ratio" in change else ""
        text += f"  ({change['delta']:+g}{ratio})"
    return text


@app.command()
def bisect(
    id: TheId,
    step: Annotated[str, Option()],
    path: str = "$",
    since: Since = None,
    key: str = "id",
) -> None:
    """
    Find the first record where a value changed, and why.

    Args:
        step: Step name.
        path: Path into the value, such as $.rows[0].total; a missing part is null.
    """
    compare.at(None, path)  # A mistake in the path is reported before anything is read.
    reader = _Reader()
    change: tuple[Version, Version] | None = None
    newer: Version | None = None
    count = 0
    # All of them: a value may change and change back, and halving would miss that.
    for found in reader.list(id=id, step=step, status=history.COMPUTED, since_ns=since):
        try:
            value = compare.at(history.value(reader.store, *found), path, key)
        except (NotFoundError, CorruptRecordError) as exc:
            reader.warn(str(exc))
            continue
        count += 1
        version = found, value
        if newer is not None and keys.canonical(value) != keys.canonical(newer[1]):
            change = version, newer
        newer = version
    searched = f"searched {output.counted(count, 'record')}"
    if change is None:
        why = f"{searched} of step {step}; {stored.elsewhere(reader.store, id)}"
        if newer is not None:
            why = f"{searched} of step {step} of {id!r}; in each, {path} is {output.cut(newer[1])}"
        hint = f"pfl history ls --id {shlex.quote(id)}"
        raise NotFoundError(f"{path} never changed", why=why, hint=hint)
    (old, was), (new, now) = change
    row = _difference(reader, step, old, new, key)
    head = {"version": 1, "id": id, "path": path, "records": count}
    output.emit({**head, "from": was, "to": now, **row})
    moment = output.local_time(new[0].written_at)
    output.show(f"{new[0].short}  {moment}  {path}: {output.cut(was)} → {output.cut(now)}")
    _show_difference(row)
    output.say(searched)


@app.command()
def export(
    format: Literal["jsonl", "csv"] = "jsonl",
    out: Annotated[Path | None, Option(metavar="FILE")] = None,
    id: OnlyId = None,
    flow: OnlyFlow = None,
    step: OnlyStep = None,
    since: Since = None,
    status: Status = None,
) -> None:
    """
    Write all or selected records to a file.

    Args:
        format: File format. In csv, a quote (') precedes text that a spreadsheet would run.
        out: File to write; stdout if not given.
    """
    reader = _Reader()
    found = reader.list(id=id, flow=flow, step=step, since_ns=since, status=status)
    rows = (reader.row(*each) for each in output.while_read(found))
    if out is None:
        count = _write(output.Data(), format, rows)
    else:
        try:
            with out.open("w", encoding="utf-8", newline="") as file:
                count = _write(file, format, rows)
        except OSError as exc:
            why = exc.strerror or str(exc)
            hint = "write to another folder"
            raise InvalidRequestError(f"{out} cannot be written", why=why, hint=hint) from exc
    output.say(output.counted(count, "record"))


def _write(file: TextIO | output.Data, format: str, rows: Iterable[Row]) -> int:
    """Write rows in a format; returns how many."""
    import csv

    table = csv.writer(file)
    if format == "csv":
        table.writerow(_EXPORTED)
    count = 0
    for row in rows:
        count += 1
        if format == "csv":
            table.writerow(_csv_cell(row.get(column), column) for column in _EXPORTED)
        else:
            file.write(json.dumps(row) + "\n")
    return count


def _csv_cell(cell: object, column: str) -> str | None:
    if cell is None:
        return None
    if column == "value" or not isinstance(cell, str):
        return json.dumps(cell)
    # A spreadsheet runs such text as a formula.
    quote = "'" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else ""
    return quote + output.printable(cell)


@app.command()
def prune(
    older_than: Annotated[str, Option(metavar="AGE")],
    id: OnlyId = None,
    dry_run: bool = False,
    yes: Yes = False,
) -> None:
    """
    Delete old records permanently, but keep the newest value of each step and ID.

    Args:
        older_than: Minimum age, such as 90d, or a time.
    """
    reader = _Reader()
    before_ns = moment_ns(older_than, "--older-than")
    names = list(history.list_prunable(reader.store, before_ns, folder=stored.folder_of(id)))
    count = len(names)
    counted = output.counted(count, "record")
    output.say(f"{counted} older than {older_than} and not the newest value of a step")
    if names and not dry_run:
        output.confirm(f"Delete {counted} for good?", yes=yes)
        layout.check(reader.store)
        history.delete(reader.store, names)
        output.say(
            "deleted; pfl cache verify --repair sets aside large values that no record refers to"
        )
    output.emit({"version": 1, "pruned": count, "dry_run": dry_run})
    output.show(str(count))
