"""Finished parts of a table, each whole and checked, joined at the end."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from probing.errors import StoreCorrupt
from probing.store.files import new_file
from probing.store.plain_json import parse_json

ROW_OF_DATA = ("group", "id")
"""Columns that tell which row of the data a row of a table is of; the first of them that a table has does so."""
GROUP_ROWS = 2**16
"""Rows of a row group: so many are in memory at once while a table is written."""
GROUP_BYTES = 2**24
"""Bytes from which on a row group of texts has fewer rows."""
_FACTS = b"probing"
_HASH = b"probing_sha256"


def shard_path(folder: Path, index: int, prefix: str = "") -> Path:
    """Name of the part with this number; ``prefix`` is made of letters, digits and underscores."""
    return folder / f"{prefix}{index:06d}.parquet"


def write_shard(path: Path, rows: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write one part with what is to be remembered of its making, and the hash of both."""
    noted = json.dumps(facts).encode()
    described = rows.replace_schema_metadata({_FACTS: noted, _HASH: _hash_part(rows, noted)})
    # Given as an open file, since pyarrow takes a path with a colon for an address.
    with new_file(path) as temporary, temporary.open("wb") as file:
        pq.write_table(described, file, write_page_checksum=True)


def read_shard(path: Path, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]] | None:
    """Rows and facts of one part, or None if it is not there, is a link or not whole, and has to be made again."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        rows = pq.read_table(io.BytesIO(path.read_bytes()), page_checksum_verification=True)
        noted, hashed = rows.schema.metadata[_FACTS], rows.schema.metadata.get(_HASH)
        facts = parse_json(noted.decode())
        rows = rows.replace_schema_metadata(None)
        # The checksums of the pages do not cover the footer. Parts of earlier versions have no hash.
        changed = hashed is not None and hashed != _hash_part(rows, noted)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return (rows, facts) if rows.schema.equals(schema) and isinstance(facts, dict) and not changed else None


def summarize_shard(path: Path) -> tuple[int, dict[str, int], dict[str, Any]] | None:
    """Rows of the data, their statuses, and the facts of one part; None if it is not there, is a link, or not whole.

    Most of its values are left unread, so that it is not compared with its hash.
    """
    if path.is_symlink():
        return None
    try:
        # Given as an open file, since pyarrow takes a path with a colon for an address.
        with path.open("rb") as opened:
            file = pq.ParquetFile(opened)
            names = [name for name in (*ROW_OF_DATA, "status") if name in file.schema_arrow.names]
            rows, count = file.read(names), file.metadata.num_rows
            facts = parse_json(file.schema_arrow.metadata[_FACTS].decode())
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    of = next((name for name in ROW_OF_DATA if name in names), None)
    known = count if of is None else len(set(rows[of].to_pylist()))
    return (known, count_statuses(rows), facts) if isinstance(facts, dict) else None


def count_statuses(rows: pa.Table) -> dict[str, int]:
    """Number of rows of the data of each status; none where the table has no statuses.

    Several rows of a table that are one row of the data, such as the responses of a group, have one status.
    """
    if "status" not in rows.column_names:
        return {}
    of = next((name for name in ROW_OF_DATA if name in rows.column_names), "status")
    statuses = rows["status"].to_pylist()
    once = dict(zip(rows[of].to_pylist(), statuses, strict=True)).values() if of != "status" else statuses
    return dict(Counter(map(str, once)))


def _hash_part(rows: pa.Table, noted: bytes) -> bytes:
    """Hash of the values of a part and of the facts with it."""
    digest = hashlib.sha256(noted)
    for name in rows.column_names:
        digest.update(name.encode(errors="backslashreplace"))
        digest.update(_column_bytes(rows[name]))
    return digest.hexdigest().encode()


def _column_bytes(column: pa.ChunkedArray) -> bytes:
    """The values of a column and which are missing; the same bytes however it is chunked."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        missing = column.is_null().to_numpy().tobytes()
        return bytes(missing + column.fill_null(0).to_numpy().tobytes())
    return json.dumps(column.to_pylist(), default=str).encode()


def join_shards(parts: Iterable[pa.Table], target: Path) -> None:
    """Write all parts, in order, as one Parquet file; its bytes depend on the rows alone.

    Args:
        parts: one or more with the same schema; each is asked for when the ones before it are written.
        target: the file.
    """
    with new_file(target) as temporary, temporary.open("wb") as file:
        write_groups(file, parts)


def write_groups(
    file: BinaryIO, parts: Iterable[pa.Table], rows: int = GROUP_ROWS, most_bytes: int | None = None
) -> None:
    """Write the rows of all parts, in order, as a Parquet file whose row groups need little memory.

    Args:
        file: the opened file.
        parts: one or more tables with the same schema, without a row all of them.
        rows: number of rows of each group but the last.
        most_bytes: size of the parts from which on a group has fewer.
    """
    parts = iter(parts)
    first = next(parts)
    waiting: list[pa.Table] = []
    made = 0
    with pq.ParquetWriter(file, first.schema) as writer:

        def write() -> None:
            nonlocal made
            whole = pa.concat_tables(waiting).combine_chunks()
            # Before it is written, since these are as large.
            waiting.clear()
            writer.write_table(whole)
            made += 1

        for part in chain([first], parts):
            rest, count = part, sum(map(len, waiting))
            while count + len(rest) >= rows:
                # The group is cut out of the part, since a rest of the group would keep all of it in memory.
                waiting.append(rest.slice(0, rows - count))
                rest, count = rest.slice(rows - count), 0
                write()
            waiting.append(rest)
            if most_bytes and sum(each.nbytes for each in waiting) >= most_bytes:
                write()
        if any(map(len, waiting)) or not made:
            write()


def read_frame(path: Path) -> pd.DataFrame:
    """A Parquet file as a frame; beside it, one column at a time is in memory."""
    # Given as an open file, since pyarrow takes a path with a colon for an address.
    with path.open("rb") as file:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        names = parquet.schema_arrow.names
        columns = {name: parquet.read([name], use_threads=False).to_pandas(split_blocks=True)[name] for name in names}
    pa.default_memory_pool().release_unused()
    return pd.DataFrame(columns, copy=False)


def write_frame(frame: pd.DataFrame, target: Path) -> None:
    """Write a frame, without its index, as one Parquet file; see ``join_shards``."""
    join_shards([pa.Table.from_pandas(frame, preserve_index=False)], target)


def stream_shards(paths: Sequence[Path], schema: pa.Schema, target: Path) -> None:
    """Join shards from files, one after the other, for tables that may not fit into memory.

    Raises:
        StoreCorrupt: a part is damaged.
    """
    with new_file(target) as temporary, temporary.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
        for path in paths:
            shard = read_shard(path, schema)
            if shard is None:
                raise StoreCorrupt(f"{path}: gone or damaged; run the same command again")
            writer.write_table(shard[0])


def stream_row_groups(files: Sequence[Path], schema: pa.Schema, target: Path) -> None:
    """Join Parquet files, one row group after the other, for tables that may not fit into memory.

    Raises:
        StoreCorrupt: a file is damaged, or has other columns.
    """
    with new_file(target) as temporary, temporary.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
        for path in files:
            try:
                # Given as an open file, since pyarrow takes a path with a colon for an address.
                with path.open("rb") as source, pq.ParquetFile(source) as parts:
                    for number in range(parts.num_row_groups):
                        writer.write_table(parts.read_row_group(number).replace_schema_metadata(None))
            except (pa.ArrowException, ValueError) as error:
                raise StoreCorrupt(
                    f"{path}: damaged, or with other columns ({error}); run its command again"
                ) from error
