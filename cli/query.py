"""History as a table of DuckDB, for SQL and for Parquet."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pfl.cli import output
from pfl.handler.core.errors import InvalidRequestError

COLUMNS = {
    "record": "VARCHAR", "written_at": "TIMESTAMP", "status": "VARCHAR", "flow": "VARCHAR", "id": "VARCHAR", "step": "VARCHAR",
    "value": "JSON", "params": "JSON", "inputs": "JSON", "key": "VARCHAR", "fingerprint": "VARCHAR", "sha256": "VARCHAR",
    "size_bytes": "BIGINT", "computed_at": "TIMESTAMP", "expires_at": "TIMESTAMP", "started_at": "TIMESTAMP", "ms": "DOUBLE",
    "why": "VARCHAR", "engine": "VARCHAR", "flow_run_id": "VARCHAR", "task_run_id": "VARCHAR", "url": "VARCHAR",
    "request_id": "VARCHAR", "cold_start": "BOOLEAN", "memory_peak_bytes": "BIGINT", "code": "VARCHAR", "previous": "VARCHAR",
    "error": "JSON",
}  # fmt: skip


@contextmanager
def table(rows: Iterable[dict]) -> Iterator:
    """
    A connection to DuckDB that has the view ``history``, a row for each record; they pass through a temporary file.

    Raises:
        InvalidRequestError: DuckDB is not installed, or refused what it was asked.
    """
    duckdb = output.optional("duckdb", "query")
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in COLUMNS.items())
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        for row in rows:
            text = json.dumps({name: row.get(name) for name in COLUMNS}, ensure_ascii=False)
            # JSON may hold half a character, which UTF-8 and so DuckDB cannot.
            file.write(text.encode("utf-8", "replace").decode() + "\n")
        file.flush()
        path = file.name.replace("'", "''")
        options = f"format = 'newline_delimited', maximum_object_size = 1073741824, columns = {{{columns}}}"
        try:
            with duckdb.connect() as database:
                database.execute(
                    f"create view history as select * from read_json('{path}', {options})"
                )
                yield database
        except duckdb.Error as exc:
            raise InvalidRequestError(
                "DuckDB refused it", why=str(exc).strip(), hint="pfl history sql 'describe history'"
            ) from exc
