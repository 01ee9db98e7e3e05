"""Rows of Arrow tables, of which one block at a time is in memory: what a copy of single rows is made from."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import PurePath
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from probing.data.lazy import BLOCK, make_in_blocks
from probing.errors import DataInvalid

CHUNK = 2**20


class ArrowRows:
    """Rows with a schema, read a block at a time.

    Args:
        schema: their schema.
        count: number of rows.
        read: the rows from one number to the one before another, in order.
    """

    def __init__(self, schema: pa.Schema, count: int, read: Callable[[int, int], pa.Table]) -> None:
        self.schema, self._count = schema, count
        # The latest block is kept, since rows are mostly taken one after the other.
        self._blocks = make_in_blocks(
            -(-count // BLOCK), lambda at, _: [read(at * BLOCK, min((at + 1) * BLOCK, count))], size=1
        )

    @classmethod
    def of(cls, table: pa.Table) -> "ArrowRows":
        """The rows of a table that is in memory."""
        return cls(table.schema, len(table), lambda start, stop: table.slice(start, stop - start))

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows from one number to the one before another."""
        return pa.concat_tables(self.tables(range(start, stop))) if stop > start else self.schema.empty_table()

    def tables(self, indices: Sequence[int]) -> Iterator[pa.Table]:
        """The rows with these numbers, in the order given, in tables of one block at most."""
        start = 0
        while start < len(indices):
            block, stop = indices[start] // BLOCK, start + 1
            while stop < len(indices) and stop - start < BLOCK and indices[stop] // BLOCK == block:
                stop += 1
            within = pa.array([index - block * BLOCK for index in indices[start:stop]], pa.int64())
            yield self._blocks[block].take(within)
            start = stop

    def take(self, indices: Sequence[int]) -> "ArrowRows":
        """The rows with these numbers, in the order given."""

        def read(start: int, stop: int) -> pa.Table:
            return pa.concat_tables(self.tables(indices[start:stop]))

        return ArrowRows(self.schema, len(indices), read)


def chain_arrow_rows(parts: Sequence[ArrowRows]) -> ArrowRows:
    """The rows of several with one schema, one behind the other."""
    ends = list(accumulate(map(len, parts)))

    def read(start: int, stop: int) -> pa.Table:
        tables = []
        while start < stop:
            part = bisect_right(ends, start)
            before = ends[part] - len(parts[part])
            end = min(stop, ends[part])
            tables.append(parts[part].read(start - before, end - before))
            start = end
        return pa.concat_tables(tables)

    return ArrowRows(parts[0].schema, ends[-1], read)


def open_parquet(file: BinaryIO, name: str | PurePath) -> ArrowRows:
    """The rows of a Parquet file, which are decoded when they are asked for.

    Rows that follow one another are decoded once. A row before the latest one is found by decoding its row group anew.

    Args:
        file: the opened file.
        name: its name, for messages.

    Raises:
        DataInvalid: the file is damaged; also when a damaged part is read later.
    """
    try:
        # Without a buffer of the whole column of a row group: many files are a single group.
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK)
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise _explain_damage(name, error) from error
    return ArrowRows(schema, parquet.metadata.num_rows, _Cursor(parquet, name).read)


def _explain_damage(name: str | PurePath, error: Exception) -> DataInvalid:
    return DataInvalid(f"{name}: not a whole Parquet file ({error})")


class _Cursor:
    """A place in a Parquet file, which moves forward as rows are read."""

    def __init__(self, parquet: pq.ParquetFile, name: str | PurePath) -> None:
        self._parquet, self._name = parquet, name
        groups = (parquet.metadata.row_group(number).num_rows for number in range(parquet.metadata.num_row_groups))
        self._ends = list(accumulate(groups))
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        # Number of the first row of the present batch.
        self._first = 0

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows from one number to the one before another."""
        try:
            return pa.Table.from_batches(list(self._slices(start, stop)), self._parquet.schema_arrow)
        except (pa.ArrowException, OSError) as error:
            self._batch = None
            raise _explain_damage(self._name, error) from error

    def _slices(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        if self._batch is None or start < self._first or self._group_of(start) > self._group_of(self._first):
            self._move(self._group_of(start))
        while start < stop:
            batch = self._batch
            if batch is None:
                raise OSError(f"it holds fewer rows than the {self._ends[-1]} that it tells of")
            after = self._first + len(batch)
            if start < after:
                end = min(stop, after)
                yield batch.slice(start - self._first, end - start)
                start = end
            if start < stop:
                self._first, self._batch = after, next(self._batches, None)

    def _group_of(self, row: int) -> int:
        return bisect_right(self._ends, row)

    def _move(self, group: int) -> None:
        groups = range(group, len(self._ends))
        self._batches = self._parquet.iter_batches(BLOCK, row_groups=groups, use_threads=False)
        self._first = self._ends[group - 1] if group else 0
        self._batch = next(self._batches, None)
