"""Rows written back as they were read, in the same format or another."""

import contextlib
import csv
import io
import json
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from probing.data.arrow_rows import ArrowRows
from probing.data.bars import hide_bars
from probing.data.formats import Row
from probing.data.lazy import BLOCK, LazySequence, pick
from probing.data.tables import Table
from probing.errors import UsageError
from probing.store.shards import GROUP_BYTES, write_groups
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
    with path.open("wb") as file, _zip(file) if zipped else contextlib.nullcontext(file) as sink:
        if form == table.format == "jsonl" and table.original is not None and not extra:
            for index in indices:
                sink.write(table.original[index] + b"\n")
        elif form == table.format == "parquet" and table.original is not None:
            _write_parquet(table.original, indices, extra, sink)
        elif form == "parquet":
            pq.write_table(_arrow(table, indices, extra, form), sink)
        else:
            writers = {"jsonl": _write_jsonl, "json": _write_json, "csv": _write_csv}
            writers[form](_merge_columns(table, indices, extra), table, sink)


def _write_parquet(original: ArrowRows, indices: Sequence[int], extra: Sequence[Row], sink: BinaryIO) -> None:
    """Write rows with their schema and further columns, in row groups that need little memory."""
    types = _types_of(extra)
    # Rows that were filtered before have such columns, of other scores.
    dropped = [name for name in types if name in original.schema.names]
    at = 0

    def extend(block: pa.Table) -> pa.Table:
        nonlocal at
        block, added = block.drop_columns(dropped), extra[at : at + len(block)]
        at += len(block)
        for name, kind in types.items():
            block = block.append_column(name, pa.array([row[name] for row in added], kind))
        return block

    schema = extend(original.schema.empty_table()).schema
    write_groups(sink, chain([schema.empty_table()], map(extend, original.tables(indices))), most_bytes=GROUP_BYTES)


def _types_of(rows: Sequence[Row]) -> dict[str, pa.DataType]:
    """The type of every column of rows that have the same ones, as Arrow finds it over all of them."""
    schemas: list[pa.Schema] = []
    for start in range(0, len(rows), BLOCK):
        columns = _columns_of(rows[start : start + BLOCK])
        schemas.append(pa.schema([(name, pa.array(values).type) for name, values in columns.items()]))
        schemas = [pa.unify_schemas(schemas, promote_options="permissive")]
    return {} if not schemas else dict(zip(schemas[0].names, schemas[0].types, strict=True))


def _zip(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, _Zipped(file))


class _Zipped(io.RawIOBase):
    """A stream that compresses what is written into it; the same content gives the same bytes at any time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._packed = file, zlib.compressobj(9, wbits=31)

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._file.write(self._packed.compress(content))
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.write(self._packed.flush())
        super().close()


def _merge_columns(table: Table, indices: Sequence[int], extra: Sequence[Row]) -> Sequence[Row]:
    if not extra:
        return pick(table.rows, indices)
    return LazySequence(len(indices), lambda at: {**table.rows[indices[at]], **extra[at]})


def _columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Values of every column of rows that have the same ones."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _as_dataset(table: Table, indices: Sequence[int], extra: Sequence[Row]) -> Any:
    import datasets

    if table.format != "datasets" or table.original is None:
        return datasets.Dataset(_arrow(table, indices, extra, "datasets"))
    kept, columns = table.original.select(list(indices)), _columns_of(extra)
    kept = kept.remove_columns([name for name in columns if name in kept.column_names])
    for name, values in columns.items():
        kept = kept.add_column(name, values)
    return kept


def _arrow(table: Table, indices: Sequence[int], extra: Sequence[Row], form: Format) -> pa.Table:
    """Rows as columns. Arrow takes the columns of the first row for those of all, so each row is filled up first."""
    rows = _merge_columns(table, indices, extra)
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in _names(rows, table)})
    except (pa.ArrowException, OverflowError) as error:
        raise UsageError(
            f"the rows cannot be written as {form}, whose columns hold one type each ({error}); use --format jsonl"
        ) from error


def _names(rows: Sequence[Row], table: Table) -> list[str]:
    """The table's columns, then whatever else these rows hold."""
    return list(dict.fromkeys([*table.columns, *(name for row in rows for name in row)]))


def _write_jsonl(rows: Sequence[Row], table: Table, sink: BinaryIO) -> None:
    for row in rows:
        sink.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode(errors="backslashreplace"))


def _write_json(rows: Sequence[Row], table: Table, sink: BinaryIO) -> None:
    """Write a list as ``json.dumps`` does, a row at a time; a line end within a text is written as an escape."""
    sink.write(b"[")
    for at, row in enumerate(rows):
        text = json.dumps(row, ensure_ascii=False, indent=2, default=str).replace("\n", "\n  ")
        sink.write(f"{',' if at else ''}\n  {text}".encode(errors="backslashreplace"))
    sink.write(b"\n]\n" if rows else b"]\n")


def _write_csv(rows: Sequence[Row], table: Table, sink: BinaryIO) -> None:
    # By default the writer does not quote a lone carriage return, which ends a row when the file is read again.
    returns = any("\r" in cell for row in rows for cell in map(_csv_cell, row.values()) if isinstance(cell, str))
    text = io.TextIOWrapper(sink, encoding="utf-8", errors="backslashreplace", newline="")
    writer = csv.DictWriter(
        text, _names(rows, table), lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    )
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    text.detach()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value if isinstance(value, int | float | None) else str(value)
