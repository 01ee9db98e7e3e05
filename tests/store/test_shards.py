"""Parts of a table, joined from files without having them all in memory."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import damage_end, note_calls

from probing.errors import StoreCorrupt
from probing.store.shards import shard_path, stream_row_groups, stream_shards, write_shard

SCHEMA = pa.schema([("id", pa.string()), ("pull", pa.float64())])


def make_part(first, count):
    rows = range(first, first + count)
    return pa.table({"id": [f"r{n // 3}" for n in rows], "pull": [n / 7 for n in rows]}, schema=SCHEMA)


@pytest.fixture
def parts(tmp_path):
    """Files of five parts, of which one is empty."""
    paths = [shard_path(tmp_path / "parts", number) for number in range(5)]
    for number, path in enumerate(paths):
        write_shard(path, make_part(100 * number, 0 if number == 2 else 40 + number), {})
    return paths


def test_joined_files_are_the_bytes_of_all_their_parts_joined(tmp_path, parts, monkeypatch):
    stream_shards(parts, SCHEMA, tmp_path / "whole.parquet")
    files = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for file, some in zip(files, (parts[:3], parts[3:]), strict=True):
        stream_shards(some, SCHEMA, file)
    written = note_calls(monkeypatch, pq.ParquetWriter, "write_table")
    stream_row_groups(files, SCHEMA, tmp_path / "joined.parquet")
    assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    # One part at a time, however many a file holds.
    assert [len(table) for _, table in written] == [40, 41, 0, 43, 44]


def test_a_damaged_file_or_one_of_other_columns_is_named_and_nothing_is_left(tmp_path, parts):
    stream_shards(parts, SCHEMA, tmp_path / "whole.parquet")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    damage_end(tmp_path / "whole.parquet")
    for file in (other, tmp_path / "whole.parquet"):
        with pytest.raises(StoreCorrupt, match=rf"{file.name}: damaged, or with other columns"):
            stream_row_groups([file], SCHEMA, tmp_path / "joined.parquet")
    assert not (tmp_path / "joined.parquet").exists()
