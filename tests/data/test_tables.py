import datetime
import gzip
import json
from contextlib import ExitStack

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probing.data.pairs import pairs_from_table
from probing.data.tables import NotJson, file_format, read_table
from probing.data.writing import write_rows as write_rows_to
from probing.errors import DataInvalid, UsageError
from probing.store.files import new_together

ROWS = [
    {"id": "a", "prompt": "Is it?", "chosen": " No\u2028or", "rejected": ' Né, "so"\nsaid', "score": 3},
    {"id": "b", "prompt": "Where?", "chosen": " Here", "rejected": " There", "score": 4},
    {"id": "c", "prompt": "Who?", "chosen": " Me", "rejected": " You", "score": 5},
]


def write_rows(table, indices, target, form, extra=()):
    with new_together([target], form == "datasets") as (path,):
        write_rows_to(table, indices, path, form, extra, zipped=target.suffix == ".gz")


def jsonl(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def save(tmp_path, name):
    path = tmp_path / name
    content = path.name.removesuffix(".gz")
    if content.endswith((".jsonl", ".ndjson")):
        data = jsonl().encode()
    elif content.endswith(".json"):
        data = json.dumps(ROWS).encode()
    elif content.endswith(".csv"):
        import csv
        import io

        text = io.StringIO()
        writer = csv.DictWriter(text, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
        data = text.getvalue().encode()
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        data = sink.getvalue().to_pybytes()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


FILES = [name + suffix for name in ("p.jsonl", "p.json", "p.csv", "p.parquet", "p.ndjson") for suffix in ("", ".gz")]


@pytest.mark.parametrize("name", FILES)
def test_every_format_reads_the_same_rows(tmp_path, name):
    table = read_table(str(save(tmp_path, name)))
    text_only = [{**row, "score": str(row["score"])} for row in ROWS]
    assert list(table.rows) == (text_only if ".csv" in name else ROWS)
    assert table.format == file_format(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target", ["out.jsonl", "out.json.gz", "out.csv", "out.parquet", "out_folder"])
def test_rows_survive_writing_in_every_format(tmp_path, name, target):
    table = read_table(str(save(tmp_path, name)))
    form = file_format(tmp_path / target) or "datasets"
    write_rows(table, [2, 0], tmp_path / target, form)
    again = read_table(str(tmp_path / target))
    expected = [table.rows[2], table.rows[0]]
    assert [dict(row) for row in again.rows] == (
        [{**row, "score": str(row["score"])} for row in expected] if "csv" in target else expected
    )


def test_a_saved_dataset_with_its_splits(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "both"))
    assert len(read_table(str(tmp_path / "both"), "test").rows) == 1
    with pytest.raises(DataInvalid, match=r"splits train, test; choose one with --split"):
        read_table(str(tmp_path / "both"))
    with pytest.raises(DataInvalid, match="no split 'dev'"):
        read_table(str(tmp_path / "both"), "dev")
    data.save_to_disk(str(tmp_path / "one"))
    table = read_table(str(tmp_path / "one"))
    assert table.format == "datasets"
    assert list(table.rows) == ROWS
    with pytest.raises(UsageError, match="single unnamed split"):
        read_table(str(tmp_path / "one"), "train")


def test_a_folder_of_other_files_is_not_called_a_dataset_of_the_hub(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataInvalid, match="the files of this folder cannot be read as one dataset"):
        read_table(str(tmp_path))


def test_a_folder_of_data_files_is_read_by_the_same_loader(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text(jsonl(ROWS[:2]), encoding="utf-8")
    assert [row["id"] for row in read_table(str(tmp_path / "folder")).rows] == ["a", "b"]


def test_jsonl_rows_are_written_byte_for_byte(tmp_path):
    odd = (
        b'{"prompt":"a",  "chosen": "\\u00e9", "rejected":"\xc3\xa9", "n": 1.10}\r\n\n'
        b'  {"prompt":"b","chosen":"x","rejected":"y"}'
    )
    (tmp_path / "odd.jsonl").write_bytes(b"\xef\xbb\xbf" + odd)
    table = read_table(str(tmp_path / "odd.jsonl"))
    assert table.lines == ["line 1", "line 3"]
    write_rows(table, [0, 1], tmp_path / "out.jsonl", "jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == odd.replace(b"\n\n", b"\n") + b"\n"


def test_parquet_keeps_its_schema(tmp_path):
    schema = pa.schema(
        [("chosen", pa.large_string()), ("rejected", pa.string()), ("n", pa.int8())], metadata={"made": "by us"}
    )
    pq.write_table(
        pa.Table.from_pylist([{"chosen": "a", "rejected": "b", "n": 1}], schema=schema), tmp_path / "p.parquet"
    )
    write_rows(read_table(str(tmp_path / "p.parquet")), [0], tmp_path / "q.parquet", "parquet")
    assert pq.read_schema(tmp_path / "q.parquet").equals(schema, check_metadata=True)


def test_gzip_output_has_no_time_in_it(tmp_path):
    table = read_table(str(save(tmp_path, "p.jsonl")))
    write_rows(table, [0], tmp_path / "x.jsonl.gz", "jsonl")
    assert (tmp_path / "x.jsonl.gz").read_bytes()[4:8] == bytes(4)


def test_further_columns_go_beside_the_rest(tmp_path):
    table = read_table(str(save(tmp_path, "p.csv")))
    write_rows(table, [1], tmp_path / "x.csv", "csv", [{"probing_ches": 0.5}])
    assert read_table(str(tmp_path / "x.csv")).rows[0] == {**table.rows[1], "probing_ches": "0.5"}


@pytest.mark.parametrize("target", ["x.parquet", "x.csv", "x"])
def test_a_column_that_the_first_row_lacks_is_kept(tmp_path, target):
    (tmp_path / "p.jsonl").write_text('{"a": "1"}\n{"a": "2", "late": "x"}\n')
    table = read_table(str(tmp_path / "p.jsonl"))
    write_rows(table, [0, 1], tmp_path / target, file_format(tmp_path / target) or "datasets")
    assert [row["late"] or None for row in read_table(str(tmp_path / target)).rows] == [None, "x"]


def test_rows_that_a_format_cannot_hold_are_told(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"a": "1"}\n{"a": {"b": 2}}\n')
    with pytest.raises(UsageError, match="cannot be written as parquet, whose columns hold one type each"):
        write_rows(read_table(str(tmp_path / "p.jsonl")), [0, 1], tmp_path / "x.parquet", "parquet")


def test_messages_in_csv_are_json(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    for order in (messages, [dict(reversed(message.items())) for message in messages]):
        text = "chosen,rejected\n" + '"' + json.dumps(order).replace('"', '""') + '",[brackets] are text\n'
        (tmp_path / "m.csv").write_text(text)
        assert read_table(str(tmp_path / "m.csv")).rows == [{"chosen": messages, "rejected": "[brackets] are text"}]
    (tmp_path / "m.csv").write_text("chosen,rejected\n\"[{'content': 'hi', 'role': 'user'}]\",\"[{1}]\"\n")
    row = read_table(str(tmp_path / "m.csv")).rows[0]
    assert isinstance(row["chosen"], NotJson)
    assert not isinstance(row["rejected"], NotJson)


def test_a_lone_carriage_return_survives_csv(tmp_path):
    rows = [{"a": "x\r", "b": "y\rz"}, {"a": "1", "b": "2"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_rows(read_table(str(tmp_path / "p.jsonl")), [0, 1], tmp_path / "x.csv", "csv")
    assert read_table(str(tmp_path / "x.csv")).rows == rows


def test_types_that_only_arrow_has_survive_their_own_format_and_turn_to_text_in_csv(tmp_path):
    day = datetime.date(2026, 1, 2)
    columns = {"m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "u": pa.array([2**63 + 1], pa.uint64())}
    columns |= {"d": pa.array([day])}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    table = read_table(str(tmp_path / "p.parquet"))
    write_rows(table, [0], tmp_path / "q.parquet", "parquet", [{"probing_ches": 1.5}])
    again = pq.read_table(tmp_path / "q.parquet")
    assert again.drop_columns("probing_ches").equals(pq.read_table(tmp_path / "p.parquet"))
    assert again["probing_ches"].to_pylist() == [1.5]
    write_rows(table, [0], tmp_path / "q.csv", "csv")
    assert read_table(str(tmp_path / "q.csv")).rows[0]["d"] == "2026-01-02"


def test_datasets_get_further_columns(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "d"))
    write_rows(
        read_table(str(tmp_path / "d")), [2, 0], tmp_path / "e", "datasets", [{"probing_x": 1.0}, {"probing_x": None}]
    )
    again = datasets.load_from_disk(str(tmp_path / "e"))
    assert (again["id"][:], again["probing_x"][:]) == (["c", "a"], [1.0, None])


def test_json_lines_under_the_name_json(tmp_path):
    (tmp_path / "p.json").write_text(jsonl(), encoding="utf-8")
    assert read_table(str(tmp_path / "p.json")).format == "jsonl"


BAD = {
    "missing": ("missing.jsonl", None, r"missing\.jsonl: no such file"),
    "empty": ("p.jsonl", b"", r"p\.jsonl: the file is empty"),
    "blank": ("p.jsonl", b"\n \n", r"the file is empty"),
    "no rows": ("p.csv", b"chosen,rejected\n", r"there are no rows"),
    "empty list": ("p.json", b"[]", r"there are no rows"),
    "broken line": ("p.jsonl", b'{"a": 1}\n{"a": \n', r"p\.jsonl, line 2: broken JSON at column 7"),
    "not an object": ("p.jsonl", b"[1, 2]\n", r"line 1: expected an object .* found list"),
    "broken json": ("p.json", b'[{"a": 1},\n {"a" 2}]', r"p\.json, line 2: broken JSON at column 7"),
    "json huge number": ("p.json", b"[" + b"1" * 5000 + b"]", r"JSON that cannot be read"),
    "deep json": ("p.json", b"[" * 100000, r"JSON that cannot be read|broken JSON"),
    "huge number": ("p.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"line 1: JSON that cannot be read"),
    "csv bom": ("p.csv", b"\xef\xbb\xbf", r"there are no rows"),
    "json of numbers": ("p.json", b"[1]", r"entry 1: expected an object, found int"),
    "deep line": ("p.jsonl", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", r"line 1: JSON that cannot be read .*nested"),
    "very deep line": ("p.jsonl", b'{"a": ' + b"[" * 100000, r"line 1: JSON that cannot be read .*nested"),
    "deep objects": ("p.json", b'[{"a": ' + b'{"a": ' * 200 + b"1" + b"}" * 202 + b"]", r"broken JSON|nested"),
    "a key twice": (
        "p.jsonl",
        b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}',
        r"line 2: .*the key 'a' stands twice in one object",
    ),
    "an inner key twice": ("p.json", b'[{"a": {"b": 1, "b": 1}}]', r"the key 'b' stands twice"),
    "strings and numbers": ("p.json", b'["a", 1]', r"entry 1: expected an object, found str"),
    "latin1": ("p.jsonl", b'{"a": "x"}\n{"a": "\xe9"}\n', r"line 2: byte 0xe9 is not UTF-8; convert"),
    "csv latin1": ("p.csv", b"a,b\n1,\xe9\n", r"line 2: byte 0xe9 is not UTF-8"),
    "csv ragged": ("p.csv", b"a,b\n1,2\n1,2,3\n", r"p\.csv, line 3: 3 fields where the header names 2"),
    "csv open quote": ("p.csv", b'a,b\n1,"2\n', r"broken CSV"),
    "csv twice": ("p.csv", b"a,a\n1,2\n", r"column name occurs twice"),
    "parquet": ("p.parquet", b"PAR1 cut short", r"not a whole Parquet file"),
    "gzip": ("p.jsonl.gz", gzip.compress(b'{"a": 1}' * 99)[:-9], r"not a whole gzip file"),
    "not gzip": ("p.jsonl.gz", b'{"a": 1}', r"not a whole gzip file"),
    "suffix": ("p.tsv", b"a\tb\n", r"the name ends in none of \.jsonl"),
}


UNREADABLE = {
    "timestamp": pa.array([2**62], pa.int64()).cast(pa.timestamp("us")),
    "duration": pa.array([2**62], pa.int64()).cast(pa.duration("s")),
    "text": pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_values_without_a_counterpart_are_named_by_their_column(tmp_path, case):
    pq.write_table(pa.table({"fine": ["a"], "odd": UNREADABLE[case]}), tmp_path / "p.parquet")
    with pytest.raises(DataInvalid, match=r"p\.parquet: column 'odd' holds a value that cannot be read \("):
        read_table(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize("content", [{"data": ROWS}, {"rows": ROWS}])
def test_the_list_of_rows_under_the_only_key_of_an_object(tmp_path, content):
    for name, indent in (("p.json", 1), ("q.json", None), ("p.json.gz", 1)):
        text = json.dumps(content, indent=indent).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        table = read_table(str(tmp_path / name))
        assert (list(table.rows), table.format) == (ROWS, "json")
        assert table.where(1).endswith(f"{name}, entry 2 of '{next(iter(content))}'")


def test_one_row_under_the_name_json_is_a_row(tmp_path):
    for row in ({"messages": [{"role": "user", "content": "hi"}]}, {"id": 1, "tools": [{"name": "f"}]}, {"text": "t"}):
        (tmp_path / "p.json").write_text(json.dumps(row))
        assert read_table(str(tmp_path / "p.json")).rows == [row]


def test_a_list_of_strings_is_texts(tmp_path):
    (tmp_path / "p.json").write_text('["a", "b"]')
    table = read_table(str(tmp_path / "p.json"))
    assert (table.rows, table.where(1)) == ([{"text": "a"}, {"text": "b"}], f"{tmp_path}/p.json, entry 2")


def test_deep_nesting_in_a_cell_is_no_traceback(tmp_path):
    for depth in (150, 100000):
        deep = '[{""role"": ' + "[" * depth + "]" * depth + "}]"
        (tmp_path / "p.csv").write_text(f'prompt,chosen,rejected\np,"{deep}",b\n')
        with pytest.raises(DataInvalid, match="line 2: 'chosen' holds messages that are no JSON"):
            pairs_from_table(read_table(str(tmp_path / "p.csv")))


def test_messages_as_text_in_parquet_are_read_and_written_as_they_were(tmp_path):
    sides = {
        name: json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": name}]) for name in "ab"
    }
    row = {"chosen": sides["a"], "rejected": sides["b"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    table = read_table(str(tmp_path / "p.parquet"))
    (pair,) = pairs_from_table(table)
    assert (pair.prompt, pair.chosen) == ([{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}])
    write_rows(table, [0], tmp_path / "q.parquet", "parquet")
    assert pq.read_table(tmp_path / "q.parquet").to_pylist() == [row]


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_the_line(tmp_path, case):
    name, content, message = BAD[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataInvalid, match=message):
        read_table(str(tmp_path / name))


def test_an_unknown_hub_id_is_explained():
    with pytest.raises(
        DataInvalid, match=r"nobody/nothing: no such file or folder, not in the cache of the datasets library, and"
    ):
        read_table("nobody/nothing")


def test_a_split_of_a_single_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no splits"):
        read_table(str(save(tmp_path, "p.jsonl")), "train")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    table = read_table(str(save(tmp_path, "p.jsonl")))
    (tmp_path / "out.jsonl").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_rows(table, [0], tmp_path / "out.jsonl", "jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "p.jsonl"]


STRANGE = (
    b'\xef\xbb\xbfid,prompt,chosen,rejected\r\n1,"a\rb"," c\r\n, d\xc3\xa9",e\r\n\r\n2,\xe2\x80\xa8,"""q""",e\n3,x,y,z'
)


@pytest.mark.parametrize("name", [*FILES, "strange.csv", "strange.csv.gz", "lines.json", "spaced.jsonl", "folder"])
def test_rows_that_stay_in_their_file_are_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    elif name.startswith("strange"):
        path.write_bytes(gzip.compress(STRANGE) if name.endswith(".gz") else STRANGE)
    elif name == "spaced.jsonl":
        path.write_bytes(b"\xef\xbb\xbf\n " + jsonl().replace("\n", "\r\n\n").rstrip().encode())
    elif name == "lines.json":
        path.write_text(jsonl())
    else:
        save(tmp_path, name)
    whole = read_table(str(path))
    with ExitStack() as held:
        table = read_table(str(path), held=held)
        assert (table.format, table.sha256, list(table.lines)) == (whole.format, whole.sha256, list(whole.lines))
        assert list(table.rows) == list(whole.rows)
        part, wanted = table.take([2, 0]), whole.take([2, 0])
        assert (list(part.rows), part.where(0), part.sha256) == (list(wanted.rows), wanted.where(0), wanted.sha256)
        for form in ("jsonl", "json", "csv", "parquet"):
            for extra in ((), [{"more": 1.5}, {"more": None}]):
                write_rows(table, [0, 2], tmp_path / "lazy", form, extra)
                write_rows(whole, [0, 2], tmp_path / "whole", form, extra)
                assert (tmp_path / "lazy").read_bytes() == (tmp_path / "whole").read_bytes()


def test_rows_are_written_as_the_libraries_write_them(tmp_path):
    whole = read_table(str(save(tmp_path, "p.csv")))
    write_rows(whole, [0, 2], tmp_path / "k.json", "json")
    wanted = json.dumps([whole.rows[0], whole.rows[2]], ensure_ascii=False, indent=2) + "\n"
    assert (tmp_path / "k.json").read_text() == wanted
    write_rows(whole, [0, 2], tmp_path / "k.json.gz", "json")
    assert (tmp_path / "k.json.gz").read_bytes() == gzip.compress(wanted.encode(), mtime=0)
    write_rows(whole, [], tmp_path / "none.json", "json")
    assert (tmp_path / "none.json").read_text() == "[]\n"


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json", "p.csv", "p.parquet", "chat.parquet", "wide.csv"])
def test_a_text_that_is_too_long_is_refused_by_name(tmp_path, name):
    path, long = tmp_path / name, "word " * (2**24 // 5 + 1)
    rows = [*ROWS[:1], {**ROWS[1], "chosen": long}]
    if name == "chat.parquet":
        turns = [{"role": role, "content": long[: 2**22]} for role in ("user", "assistant") * 2]
        short = {"chosen": [{**turns[1], "content": "a"}], "rejected": [{**turns[1], "content": "b"}]}
        rows = [{**ROWS[0], **short}, {**ROWS[1], **short, "chosen": [*turns, turns[0]]}]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.startswith("wide"):
        path.write_text("id,prompt,chosen,rejected\na,b,c,d\n1,2," + long[: 2**23] + "," + long[: 2**23 + 1] + "\n")
    elif name.endswith(".csv"):
        path.write_text('id,prompt,chosen,rejected\na,b,c,d\n1,2,"' + long.replace(" ", "\n") + '",3\n')
    else:
        text = json.dumps(rows) if name == "p.json" else jsonl(rows)
        path.write_bytes(gzip.compress(text.encode(), 1) if name.endswith(".gz") else text.encode())
    place = {"p.json": "entry 2", "p.csv": r"line \d+", "wide.csv": "line 3"}.get(
        name, "row 2" if "pa" in name else "line 2"
    )
    with pytest.raises(DataInvalid, match=rf"{name}, {place}.*: holds more than 16 MB of text"):
        pairs_from_table(read_table(str(path)))
