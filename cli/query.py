"""History as a DuckDB table, for SQL and Parquet."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..handler.core.errors import InvalidRequestError

_NAMES = """
record written_at status flow id step value params inputs key fingerprint sha256 size_bytes
computed_at expires_at started_at compute_ms why engine flow_run_id task_run_id url request_id
cold_start code previous error
"""
COLUMNS = dict.fromkeys(_NAMES.split(), "VARCHAR") | {
    "written_at": "TIMESTAMP",
    "value": "JSON",
    "params": "JSON",
    "inputs": "JSON",
    "size_bytes": "BIGINT",
    "computed_at": "TIMESTAMP",
    "expires_at": "TIMESTAMP",
    "started_at": "TIMESTAMP",
    "compute_ms": "DOUBLE",
    "cold_start": "BOOLEAN",
    "error": "JSON",
}


@contextmanager
def table(rows: Iterable[Mapping[str, object]]) -> Iterator[Any]:
    """
    A DuckDB connection whose view ``history`` has a row for each record.

    Raises:
        InvalidRequestError: DuckDB is not installed, or refuses the query.
    """
    try:
        import duckdb
    except ImportError as exc:
        raise InvalidRequestError(
            "duckdb is not installed",
            why="it comes with the extra query",
            hint="pip install 'prefect-lambda[query]'",
        ) from exc
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in COLUMNS.items())
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        for row in rows:
            text = json.dumps({name: row.get(name) for name in COLUMNS}, ensure_ascii=False)
            # JSON may have half a surrogate pair, which DuckDB refuses: it has no UTF-8.
            file.write(text.encode("utf-8", "replace").decode() + "\n")
        file.flush()
        path = file.name.replace("'", "''")
        options = "format = 'newline_delimited', maximum_object_size = 1073741824"
        try:
            with duckdb.connect() as database:
                database.execute(
                    "create view history as select * from"
                    f" read_json('{path}', {options}, columns = {{{columns}}})"
                )
                yield database
        except duckdb.Error as exc:
            raise InvalidRequestError(
                "DuckDB rejected the query",
                why=str(exc).strip(),
                hint="pfl history sql 'describe history'",
            ) from exc
