"""Rows of Parquet files, read a block at a time: in any order they are those of the whole table."""

import io
import random
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probing.data.arrow_rows import ArrowRows, chain_arrow_rows, open_parquet
from probing.data.pair_units import pair_units
from probing.data.pairs import LazyPairs, content_sha256, pairs_from_table
from probing.data.tables import read_table
from probing.errors import DataInvalid
from probing.store.shards import join_shards, write_groups

COUNT = 5000
TABLE = pa.table({"id": [f"r{n}" for n in range(COUNT)], "n": range(COUNT), "list": [[n % 7] for n in range(COUNT)]})


def stored(**how):
    file = io.BytesIO()
    pq.write_table(TABLE, file, **how)
    return open_parquet(file, "x.parquet")


@pytest.mark.parametrize("rows", [stored(), stored(row_group_size=700), ArrowRows.of(TABLE)])
def test_rows_are_those_of_the_table_in_any_order(rows):
    assert (len(rows), rows.schema) == (COUNT, TABLE.schema)
    for start, stop in ((0, 10), (4990, COUNT), (690, 3000), (20, 30), (1400, 1401), (0, COUNT), (5, 5)):
        assert rows.read(start, stop).equals(TABLE.slice(start, stop - start))
    draw = random.Random(0)
    taken = [draw.randrange(COUNT) for _ in range(60)]
    assert pa.concat_tables(rows.tables(taken)).equals(TABLE.take(taken))
    picked = rows.take(taken).take([59, 0, 7])
    assert picked.read(0, 3).equals(TABLE.take([taken[59], taken[0], taken[7]]))
    both = chain_arrow_rows([rows, picked, rows])
    assert both.read(COUNT - 1, COUNT + 5).equals(
        pa.concat_tables([TABLE.slice(COUNT - 1), picked.read(0, 3), TABLE.slice(0, 2)])
    )


def test_what_is_no_parquet_is_refused():
    with pytest.raises(DataInvalid, match=r"x\.parquet: not a whole Parquet file"):
        open_parquet(io.BytesIO(b"PAR1"), "x.parquet")


def test_row_groups_are_of_whole_tables(tmp_path):
    parts = [TABLE.slice(start, 300) for start in range(0, COUNT, 300)]

    def groups_of(parts, **how):
        file = io.BytesIO()
        write_groups(file, iter(parts), **how)
        stored = pq.ParquetFile(file)
        assert stored.read().equals(pa.concat_tables(parts).combine_chunks())
        return [stored.metadata.row_group(number).num_rows for number in range(stored.metadata.num_row_groups)]

    assert groups_of(parts, rows=1000) == [1000] * 5
    assert groups_of([TABLE], rows=1500) == [1500, 1500, 1500, 500]
    assert groups_of(parts, most_bytes=parts[0].nbytes * 3)[:2] == [900, 900]
    assert groups_of([TABLE.slice(0, 0)] * 3) == [0]
    # A table that is one group has the bytes that it has when it is written whole.
    join_shards(iter(parts), tmp_path / "joined.parquet")
    pq.write_table(TABLE, tmp_path / "whole.parquet")
    assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_pairs_are_the_same_whether_they_are_in_memory_or_not(tmp_path, form, named):
    draw = random.Random(0)
    rows = [
        {"prompt": f"p{draw.randrange(900)}", "chosen": f"c{draw.randrange(9)}", "rejected": f"r{draw.randrange(2)}"}
        for _ in range(3000)
    ]
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(rows)] if named else rows
    frame = pa.Table.from_pylist(rows).to_pandas()
    if form == "jsonl":
        frame.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    else:
        getattr(frame, f"to_{form}")(tmp_path / f"p.{form}", index=False)
    with ExitStack() as held:
        lazy = pairs_from_table(read_table(str(tmp_path / f"p.{form}"), held=held))
        whole = pairs_from_table(read_table(str(tmp_path / f"p.{form}")))
        assert isinstance(lazy, LazyPairs)
        assert list(lazy) == whole
        assert list(lazy.ids) == [pair.id for pair in whole]
        assert len({*lazy.ids}) == 3000
        assert content_sha256(lazy) == content_sha256(whole)
        assert content_sha256(lazy.take(range(10, 400))) == content_sha256(whole[10:400])
        assert pair_units(lazy).tolist() == pair_units(whole).tolist()
