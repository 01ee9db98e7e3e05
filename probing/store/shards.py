"""Finished parts of a table, each whole and checked, joined at the end."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from probing.store.files import new_file

_FACTS = b"probing"


def shard_path(folder: Path, index: int) -> Path:
    """Name of the part with this number."""
    return folder / f"{index:06d}.parquet"


def write_shard(path: Path, rows: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write one part with what is to be remembered of its making."""
    described = rows.replace_schema_metadata({_FACTS: json.dumps(facts).encode()})
    # An open file, since pyarrow takes a path with a colon in it for an address.
    with new_file(path) as temporary, temporary.open("wb") as file:
        pq.write_table(described, file, write_page_checksum=True)


def read_shard(path: Path, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]] | None:
    """Rows and facts of one part, or None if it is not there or not whole, and has to be made again."""
    if not path.is_file():
        return None
    try:
        rows = pq.read_table(io.BytesIO(path.read_bytes()), page_checksum_verification=True)
        facts = json.loads(rows.schema.metadata[_FACTS])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    rows = rows.replace_schema_metadata(None)
    return (rows, facts) if rows.schema.equals(schema) else None


def join_shards(parts: Sequence[pa.Table], target: Path) -> None:
    """Write all parts, in order, as one Parquet file; its bytes depend on the rows alone."""
    with new_file(target) as temporary, temporary.open("wb") as file:
        pq.write_table(pa.concat_tables(parts).combine_chunks(), file)
