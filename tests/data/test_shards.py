"""Folders of shards and patterns: the rows of many files as one dataset, in the order of their names."""

import json
from contextlib import ExitStack

import pandas as pd
import pytest

from probing.data import tables
from probing.data.pairs import pairs_from_table
from probing.data.portions import Part
from probing.data.tables import list_files, read_table
from probing.errors import DataInvalid, UsageError


def pair(number, **further):
    return {"prompt": f"p{number}", "chosen": f"c{number}", "rejected": "r", **further}


@pytest.fixture
def folder(tmp_path):
    """Three files of two pairs each, written in another order than that of their names; and files of no rows."""
    inside = tmp_path / "shards"
    inside.mkdir()
    for number in (2, 0, 1):
        rows = [pair(2 * number), pair(2 * number + 1)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (inside / f"part-{number}.jsonl").write_text(text, encoding="utf-8")
    for name in ("_SUCCESS", ".part-0.jsonl.crc"):
        (inside / name).write_text("")
    return inside


@pytest.mark.parametrize("most_open", [100, 2])
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("named", ["{}", "{}/", "{}/*.jsonl", "{}/../*/part-[012].jsonl"])
def test_rows_follow_one_another_in_the_order_of_the_names(folder, monkeypatch, named, lazy, most_open):
    monkeypatch.setattr(tables, "MOST_OPEN", most_open)
    with ExitStack() as held:
        table = read_table(named.format(folder), held=held if lazy else None)
        assert [row["prompt"] for row in table.rows] == [f"p{number}" for number in range(6)]
        assert table.where(3).endswith("part-1.jsonl, line 2")
        assert (table.format, table.row_of(3)) == ("jsonl", 1)
        assert table.original[5] == json.dumps(pair(5)).encode()
        assert table.rows[4] == table.rows[-2] == pair(4)
        assert table.columns == ["prompt", "chosen", "rejected"]


def test_a_part_is_taken_of_all_files_together(folder):
    table = read_table(str(folder), part=Part(split="[1:5]", limit=3))
    assert [row["prompt"] for row in table.rows] == ["p1", "p2", "p3"]
    assert table.where(2).endswith("part-1.jsonl, line 2")
    with pytest.raises(UsageError, match="not a dataset of the hub; leave out --subset"):
        read_table(f"{folder}/*.jsonl", part=Part(subset="x"))


def test_parquet_shards_are_as_one_file(tmp_path):
    frame = pd.DataFrame([pair(number, id=number) for number in range(3000)])
    frame.to_parquet(tmp_path / "whole.parquet", index=False)
    (tmp_path / "shards").mkdir()
    for start in range(0, 3000, 700):
        frame[start : start + 700].to_parquet(tmp_path / "shards" / f"{start:05d}.parquet", index=False)
    with ExitStack() as held:
        shards, whole = (read_table(str(tmp_path / name), held=held) for name in ("shards", "whole.parquet"))
        assert list(shards.rows) == list(whole.rows)
        assert shards.original.read(650, 1500).equals(whole.original.read(650, 1500))
        taken = [2999, 0, 699, 700, 1400, 1]
        assert list(shards.take(taken).rows) == [whole.rows[at] for at in taken]
        picked, plain = (list(table.original.take(taken).tables(range(6))) for table in (shards, whole))
        assert [row for part in picked for row in part.to_pylist()] == [whole.rows[at] for at in taken]
        assert [row for part in plain for row in part.to_pylist()] == [whole.rows[at] for at in taken]


def test_ids_are_unique_over_all_files(folder):
    with (folder / "part-1.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(pair(0)) + "\n")
    with ExitStack() as held:
        ids = pairs_from_table(read_table(str(folder), held=held)).ids
        assert len({*ids}) == 7
        assert [identity for identity in ids if identity.endswith("-2")] == [f"{ids[0]}-2"]
        for number in range(3):
            text = (folder / f"part-{number}.jsonl").read_text(encoding="utf-8")
            text = text.replace('"prompt"', f'"id": "{number % 2}", "prompt"', 1)
            text = text.replace('{"prompt"', f'{{"id": "more {number}", "prompt"', 1)
            (folder / f"part-{number}.jsonl").write_text("\n".join(text.splitlines()[:2]) + "\n", encoding="utf-8")
        named = read_table(str(folder), held=held)
        with pytest.raises(DataInvalid, match=r"part-2.jsonl, line 1: id '0' in .* used at .*part-0.jsonl, line 1"):
            pairs_from_table(named)


def test_what_is_wrong_is_said_of_the_file(folder, tmp_path):
    (folder / "part-1.jsonl").write_text('{"prompt": \n', encoding="utf-8")
    with pytest.raises(DataInvalid, match=r"part-1\.jsonl, line 1: broken JSON"):
        read_table(str(folder))
    (folder / "part-1.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataInvalid, match=r"part-1\.jsonl: the file is empty"):
        read_table(str(folder))
    with pytest.raises(DataInvalid, match=r"none-\*\.jsonl: no file matches this pattern"):
        read_table(str(folder / "none-*.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataInvalid, match="empty: the files of this folder cannot be read as one dataset"):
        read_table(str(tmp_path / "empty"))


def test_a_damaged_parquet_shard_is_named(tmp_path):
    frame = pd.DataFrame([pair(number) for number in range(3000)])
    for name in ("a", "b"):
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[100:3000] = bytes(2900)
    (tmp_path / "b.parquet").write_bytes(content)
    with ExitStack() as held:
        table = read_table(str(tmp_path), held=held)
        with pytest.raises(DataInvalid, match=r"b\.parquet: not a whole Parquet file"):
            pairs_from_table(table)


def test_rows_of_two_formats_may_be_the_same_rows(folder):
    pd.DataFrame([pair(0)]).to_parquet(folder / "part-0.parquet")
    with pytest.raises(DataInvalid, match=r"holds JSONL and Parquet files.*such as .*shards/\*\.parquet"):
        read_table(str(folder))
    assert len(read_table(f"{folder}/*.parquet").rows) == 1
    # Named one by one they are meant.
    assert len(read_table(f"{folder}/part-*").rows) == 7


def test_a_folder_of_splits_is_left_to_the_datasets_library(folder):
    (folder / "part-0.jsonl").rename(folder / "train.jsonl")
    assert list_files(str(folder)) == [folder]
    assert len(list_files(f"{folder}/*.jsonl")) == 3
