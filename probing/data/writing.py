"""Rows written back as they were read, in the same format or another."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from probing.data.bars import hide_bars
from probing.data.formats import Row
from probing.data.tables import Table
from probing.errors import UsageError
from probing.types import Format


def write_rows(
    table: Table, indices: Sequence[int], path: Path, form: Format, extra: Sequence[Row] = (), zipped: bool = False
) -> None:
    """Write the rows at ``indices``, in that order, to a path that ``store.files`` gave.

    Rows that stay in their format stay as they were: JSONL byte for byte, Parquet and datasets with their schema.

    Args:
        table: table that the rows come from.
        indices: numbers of the rows to write, in order.
        path: the file (or folder, for ``datasets``).
        form: the format to write.
        extra: further columns, one mapping an index; these rows are written anew.
        zipped: whether the file is gzipped.

    Raises:
        OSError: the disk is full or not writable.
        UsageError: the format cannot hold these rows.
    """
    if form == "datasets":
        with hide_bars():
            _as_dataset(table, indices, extra).save_to_disk(str(path))
        return
    if form == table.format == "jsonl" and table.original is not None and not extra:
        content = b"".join(table.original[index] + b"\n" for index in indices)
    elif form == table.format == "parquet" and table.original is not None:
        kept = table.original.take(pa.array(indices, pa.int64()))
        for name in extra[0] if extra else ():
            kept = kept.append_column(name, pa.array([more[name] for more in extra]))
        content = _parquet_bytes(kept)
    else:
        content = _encode(_merge_columns(table, indices, extra), table.columns, form)
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)


def _merge_columns(table: Table, indices: Sequence[int], extra: Sequence[Row]) -> list[Row]:
    if not extra:
        return [table.rows[index] for index in indices]
    return [{**table.rows[index], **more} for index, more in zip(indices, extra, strict=True)]


def _as_dataset(table: Table, indices: Sequence[int], extra: Sequence[Row]) -> Any:
    import datasets

    if table.format != "datasets" or table.original is None:
        return datasets.Dataset(_arrow(_merge_columns(table, indices, extra), table.columns, "datasets"))
    kept = table.original.select(indices)
    for name in extra[0] if extra else ():
        kept = kept.add_column(name, [more[name] for more in extra])
    return kept


def _arrow(rows: Sequence[Row], columns: Iterable[str], form: Format) -> pa.Table:
    """Rows as columns. Arrow takes the columns of the first row for those of all, so each row is filled up first."""
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in _names(rows, columns)})
    except (pa.ArrowException, OverflowError) as error:
        raise UsageError(
            f"the rows cannot be written as {form}, whose columns hold one type each ({error}); use --format jsonl"
        ) from error


def _names(rows: Sequence[Row], columns: Iterable[str]) -> list[str]:
    """The table's columns, then whatever else these rows hold."""
    return list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))


def _encode(rows: Sequence[Row], columns: Iterable[str], form: Format) -> bytes:
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode(
            errors="backslashreplace"
        )
    if form == "json":
        return (json.dumps(rows, ensure_ascii=False, indent=2, default=str) + "\n").encode(errors="backslashreplace")
    if form == "csv":
        cells = [{name: _csv_cell(value) for name, value in row.items()} for row in rows]
        # By default the writer does not quote a lone carriage return, which ends a row when the file is read again.
        returns = any(isinstance(cell, str) and "\r" in cell for row in cells for cell in row.values())
        text = io.StringIO(newline="")
        writer = csv.DictWriter(
            text, _names(rows, columns), lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        )
        writer.writeheader()
        writer.writerows(cells)
        return text.getvalue().encode(errors="backslashreplace")
    return _parquet_bytes(_arrow(rows, columns, form))


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value if isinstance(value, int | float | None) else str(value)


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
