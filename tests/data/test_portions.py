"""Parts of a dataset, and several files as one."""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probing.data.portions import Part
from probing.data.tables import join_tables, read_table
from probing.data.writing import write_rows
from probing.errors import DataInvalid, UsageError

COUNT = 40


def rows(count=COUNT, start=0):
    return [{"id": number, "text": f"t{number}"} for number in range(start, start + count)]


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "p.parquet")
    data = datasets.Dataset.from_list(rows())
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "both"))
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "train.jsonl").write_text((tmp_path / "p.jsonl").read_text())
    return tmp_path


def ids(table):
    return [row["id"] for row in table.rows]


SLICES = {
    "[:5]": range(5),
    "[10:20]": range(10, 20),
    "[:5%]": range(2),
    "[50%:]": range(20, 40),
    "[-3:]": range(37, 40),
    "[:100]": range(40),
    "[30:]": range(30, 40),
}


@pytest.mark.parametrize("piece", SLICES)
@pytest.mark.parametrize(
    ("source", "split"),
    [("p.jsonl", ""), ("p.jsonl", "train"), ("p.parquet", "train"), ("one", ""), ("both", "train"), ("loose", "")],
)
def test_slices_of_every_source(sources, source, split, piece):
    table = read_table(str(sources / source), split + piece)
    expected = list(SLICES[piece])
    assert ids(table) == expected
    assert [table.row_of(index) for index in range(len(expected))] == expected
    assert table.lines[0].endswith(f" {expected[0] + 1}")


@pytest.mark.parametrize("source", ["p.jsonl", "p.parquet", "one"])
def test_the_first_rows_or_rows_at_random(sources, source):
    first = read_table(str(sources / source), part=Part(limit=7))
    assert ids(first) == list(range(7))
    drawn = read_table(str(sources / source), part=Part(sample=7))
    assert ids(drawn) == sorted(set(ids(drawn)))
    assert len(drawn.rows) == 7
    assert ids(drawn) != list(range(7))
    assert ids(read_table(str(sources / source), part=Part(sample=7))) == ids(drawn)
    assert [table.where(0).rpartition(" ")[2] for table in (first, drawn)] == ["1", str(drawn.row_of(0) + 1)]
    within = read_table(str(sources / source), part=Part("[20:]", sample=5))
    assert min(ids(within)) >= 20


@pytest.mark.parametrize("source", ["p.jsonl", "p.parquet", "one"])
def test_the_hash_is_of_the_rows_that_are_used(sources, source):
    path = str(sources / source)
    whole = read_table(path)
    assert read_table(path, part=Part(limit=COUNT)).sha256 == whole.sha256
    assert read_table(path, part=Part(sample=COUNT + 9)).sha256 == whole.sha256
    parts = [Part(limit=5), Part(limit=6), Part(sample=5), Part("[1:6]")]
    hashes = {read_table(path, part=part).sha256 for part in parts}
    assert len({whole.sha256, *hashes}) == 5
    assert read_table(path, part=Part(limit=5)).sha256 == read_table(path, "[:5]").sha256


@pytest.mark.parametrize("source", ["p.jsonl", "p.parquet", "one"])
def test_rows_of_a_part_are_written_as_they_were(sources, source):
    table = read_table(str(sources / source), part=Part(sample=3))
    form = table.format
    target = sources / f"out{'' if form == 'datasets' else '.' + form}"
    write_rows(table, [0, 2], target, form)
    assert ids(read_table(str(target))) == [ids(table)[0], ids(table)[2]]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "is a single file and has no splits; leave out --split, or slice it like"),
        ("train[5]", "is no slice of a split"),
        ("[a:b]", "is no slice of a split"),
        ("[7:7]", r"the slice \[7:7\] of 40 rows holds none"),
        ("[90:]", "holds none"),
    ],
)
def test_slices_that_are_none(sources, split, message):
    with pytest.raises(UsageError, match=message):
        read_table(str(sources / "p.jsonl"), split)


def test_parts_that_contradict_themselves(sources):
    with pytest.raises(ValueError, match="give at most one of limit and sample"):
        Part(limit=3, sample=3)
    for part, option in ((Part(subset="a"), "--subset"), (Part(revision="a"), "--data-revision")):
        with pytest.raises(UsageError, match=f"not a dataset of the hub; leave out {option}"):
            read_table(str(sources / "p.jsonl"), part=part)
        with pytest.raises(UsageError, match=f"not a dataset of the hub; leave out {option}"):
            read_table(str(sources / "one"), part=part)


def test_only_the_split_that_is_asked_for_is_loaded(sources, monkeypatch):
    (sources / "loose" / "test.jsonl").write_text('{"id": 99, "text": "t"}\n')
    plain, asked = datasets.load_dataset, []

    def load(*arguments, **options):
        asked.append(options["split"])
        return plain(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataInvalid, match="holds the splits train, test; choose one with --split"):
        read_table(str(sources / "loose"))
    assert asked == []
    assert ids(read_table(str(sources / "loose"), "test")) == [99]
    assert asked == ["test"]


def test_a_configuration_of_a_dataset_is_named(sources):
    folder = sources / "configured"
    folder.mkdir()
    head = "---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    (folder / "README.md").write_text(head)
    for name, number in (("a", 1), ("b", 2)):
        (folder / f"{name}.jsonl").write_text(json.dumps({"id": number, "text": "t"}) + "\n")
    assert ids(read_table(str(folder), part=Part(subset="b"))) == [2]
    with pytest.raises(DataInvalid, match="Config name is missing"):
        read_table(str(folder))


def test_several_files_are_one_table(sources):
    (sources / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3, 100)))
    names = [str(sources / name) for name in ("p.jsonl", "q.jsonl")]
    parts = [read_table(name) for name in names]
    table = join_tables(parts)
    assert ids(table) == [*range(40), 100, 101, 102]
    assert (table.file_of(41), table.row_of(41), table.where(41)) == (names[1], 1, f"{names[1]}, line 2")
    assert table.place(41) == f"{names[1]}, line 2"
    assert parts[0].place(3) == "line 4"
    assert table.sha256 not in {part.sha256 for part in parts}
    assert join_tables(parts[::-1]).sha256 != table.sha256
    assert join_tables(parts[:1]) is parts[0]
    drawn = join_tables(parts, Part(sample=20))
    assert [drawn.file_of(index) for index in range(20)] == [names[row["id"] >= 100] for row in drawn.rows]
    write_rows(table, [1, 41], sources / "out.jsonl", "jsonl")
    assert (sources / "out.jsonl").read_text() == '{"id": 1, "text": "t1"}\n{"id": 101, "text": "t101"}\n'


@pytest.mark.parametrize(
    "names", [("p.parquet", "p.parquet"), ("one", "one"), ("p.jsonl", "p.parquet"), ("one", "p.jsonl")]
)
def test_files_of_any_formats_are_joined_and_written(sources, names):
    table = join_tables([read_table(str(sources / name)) for name in names])
    target = sources / ("out" if table.format == "datasets" else f"out.{table.format}")
    write_rows(table, [3, 43], target, table.format)
    assert [dict(row) for row in read_table(str(target)).rows] == [rows()[3]] * 2


def test_parquet_files_of_other_columns_are_joined(sources):
    pq.write_table(pa.Table.from_pylist([{"id": 1, "more": 2.5}]), sources / "q.parquet")
    table = join_tables([read_table(str(sources / name)) for name in ("p.parquet", "q.parquet")])
    write_rows(table, [0, 40], sources / "out.parquet", "parquet")
    assert [row["more"] for row in read_table(str(sources / "out.parquet")).rows] == [None, 2.5]


def test_lines_on_standard_input(sources, monkeypatch):
    given = (sources / "p.jsonl").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    table = read_table("-", part=Part(limit=3))
    assert (ids(table), table.where(1)) == ([0, 1, 2], "standard input, line 2")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    with pytest.raises(DataInvalid, match="standard input, line 1: broken JSON"):
        read_table("-")


def damage_shard(folder):
    next(folder.glob("**/*.arrow")).unlink()


def damage_state(folder):
    next(folder.glob("**/state.json")).unlink()


def damage_info(folder):
    next(folder.glob("**/dataset_info.json")).unlink()


def damage_all_records(folder):
    damage_state(folder)
    damage_info(folder)


def damage_splits(folder):
    (folder / "dataset_dict.json").unlink()


def damage_text(folder):
    next(folder.glob("**/state.json")).write_text("{}")


@pytest.mark.parametrize(
    ("source", "damage"),
    [
        ("shards", damage_shard),
        ("shards", damage_state),
        ("shards", damage_all_records),
        ("shards", damage_text),
        ("one", damage_info),
        ("both", damage_splits),
        ("both", damage_state),
    ],
)
def test_a_saved_dataset_of_which_a_file_is_missing_is_refused(sources, source, damage):
    datasets.Dataset.from_list(rows()).save_to_disk(str(sources / "shards"), num_shards=4)
    damage(sources / source)
    with pytest.raises(DataInvalid, match=f"{source}: not a whole saved dataset"):
        read_table(str(sources / source), "train" if source == "both" else None)
