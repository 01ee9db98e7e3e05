"""A filtered dataset in a folder with a card: what load_dataset makes of it, and what is never replaced."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys

import datasets
import pandas as pd
import pytest
import yaml
from huggingface_hub import DatasetCard

from probing.data.tables import read_table
from probing.errors import UsageError
from probing.report.card import write_block, write_code, write_table
from probing.report.filter_card import is_filtered_dataset
from probing.runs import filter as filtering
from probing.runs.filter import FilterConfig

HOSTILE = (
    '---\nconfigs: []\n---\n</details><script>alert(1)</script> | `` ` ``` ~~~ \x1b[31m \u202e # [a](b) "x" \\| é 🙂'
)


def message(role, content):
    return {"role": role, "content": content}


ROWS = [
    {
        "id": f"r{n}",
        "prompt": [message("user", f"Is {n} ok? {HOSTILE if n == 7 else 'ü'}")],
        "chosen": [message("assistant", f"yes {n}")],
        "rejected": [message("assistant", "None" if n == 2 else f"no {n}")],
        "note": None if n < 3 else f"late {n}",
        "empty": None,
        "source": {"n": n, "tags": ["a"] * (n % 2)},
    }
    for n in range(8)
]
# Tables of text have no nested columns, and text that is empty there is nothing.
FLAT = [{**row, **{name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}} for row in ROWS]
FLAT = [{name: row[name] for name in ("id", "prompt", "chosen", "rejected", "note")} for row in FLAT]
KEPT, DROPPED = range(6), range(6, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own, so that the user's is not touched."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))


@pytest.fixture
def scores(tmp_path):
    frame = pd.DataFrame(
        {"id": [row["id"] for row in ROWS], "status": "ok", "ches_normalized": [float(n) for n in range(8)]}
    )
    frame.to_parquet(tmp_path / "mine.parquet")
    return tmp_path / "mine.parquet"


def write(path, rows):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".saved":
        datasets.Dataset.from_list(rows, split="test").save_to_disk(path)
    else:
        path.write_bytes(lines)
    return path


@pytest.fixture
def go(tmp_path, scores):
    def run(data=None, **changes):
        data = data or write(tmp_path / "pairs.jsonl", ROWS)
        values = {"data": str(data), "scores": scores, "by": "ches_normalized", "out": f"{tmp_path}/kept/"}
        rule = {} if {"below", "above", "keep_lowest"} & changes.keys() else {"drop_highest": 0.25}
        return filtering.run(FilterConfig(**(values | rule | changes)))

    return run


def card_of(folder):
    return (folder / "README.md").read_text()


def facts_of(folder):
    return yaml.safe_load(card_of(folder).split("---\n")[1])


def rows_of(loaded):
    """Rows without the columns of scores."""
    return [{name: value for name, value in row.items() if not name.startswith("probing_")} for row in loaded]


FORMATS = {
    "pairs.jsonl": ("train.jsonl", "train"),
    "pairs.jsonl.gz": ("train.jsonl.gz", "train"),
    "pairs.json": ("train.json", "train"),
    "pairs.csv": ("train.csv", "train"),
    "pairs.parquet": ("train.parquet", "train"),
    "pairs.saved": ("test.parquet", "test"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_library_loads_the_kept_and_the_dropped_rows(go, tmp_path, name):
    rows = FLAT if name.endswith(".csv") else ROWS
    file, split = FORMATS[name]
    # A dot in the name of a folder stands for no format.
    out = tmp_path / "kept.v1.jsonl"
    report = go(write(tmp_path / name, rows), out=f"{out}/")
    assert report.facts["wrote"][0] == str(out / file)
    loaded = datasets.load_dataset(str(out))
    assert list(loaded) == [split]
    assert loaded[split].to_list() == [rows[n] for n in KEPT]
    dropped = datasets.load_dataset(str(out), "dropped", split=split)
    assert rows_of(dropped) == [rows[n] for n in DROPPED]
    assert dropped["probing_ches_normalized"][:] == [6.0, 7.0]
    assert dropped["probing_status"][:] == ["ok", "ok"]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "pairs.saved"])
def test_dropped_rows_that_are_filtered_again_carry_their_new_scores(go, tmp_path, name):
    before = [{**row, "probing_ches_normalized": -1.0} for row in ROWS]
    go(write(tmp_path / name, before))
    split = "test" if name == "pairs.saved" else "train"
    dropped = datasets.load_dataset(str(tmp_path / "kept"), "dropped", split=split)
    assert dropped["probing_ches_normalized"][:] == [6.0, 7.0]


def test_the_kept_file_has_the_bytes_that_it_has_without_a_folder(go, tmp_path):
    go()
    go(out=tmp_path / "plain.jsonl")
    for one, other in (("train", "plain"), ("dropped", "plain.dropped")):
        assert (tmp_path / "kept" / f"{one}.jsonl").read_bytes() == (tmp_path / f"{other}.jsonl").read_bytes()
    assert not (tmp_path / "README.md").exists()


def test_a_column_that_begins_late_is_loaded_all_the_same(go, tmp_path):
    long = [{**row, "padding": "x" * (4_000_000 if row["note"] is None else 1)} for row in ROWS]
    go(write(tmp_path / "pairs.jsonl.gz", long))
    [kept, dropped] = facts_of(tmp_path / "kept")["configs"]
    assert kept["chunksize"] > 12e6
    assert "chunksize" not in dropped
    # The library takes the types of all rows from the first 10 MiB, unless the card tells it to take more.
    file = str(tmp_path / "kept" / "train.jsonl.gz")
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        datasets.load_dataset("json", data_files=file, split="train")
    loaded = datasets.load_dataset(str(tmp_path / "kept"), split="train")
    assert loaded["note"][:] == [ROWS[n]["note"] for n in KEPT]


def test_large_tables_of_text_are_read_as_a_whole(go, tmp_path, monkeypatch):
    monkeypatch.setattr("probing.runs.filter.files.CSV_CHUNK", 5)
    go(write(tmp_path / "pairs.csv", FLAT))
    [kept, dropped] = facts_of(tmp_path / "kept")["configs"]
    assert (kept["chunksize"], kept["low_memory"]) == (6, False)
    assert "chunksize" not in dropped
    assert datasets.load_dataset(str(tmp_path / "kept"), split="train").to_list() == [FLAT[n] for n in KEPT]


def test_when_nothing_is_dropped_there_is_no_second_configuration(go, tmp_path):
    go(drop_highest=0.0)
    assert [config["config_name"] for config in facts_of(tmp_path / "kept")["configs"]] == ["default"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["README.md", "plots.html", "train.jsonl"]
    assert "0 dropped" in card_of(tmp_path / "kept")
    assert len(datasets.load_dataset(str(tmp_path / "kept"), split="train")) == 8


@pytest.mark.parametrize(
    ("split", "wanted"), [("test[:8]", "test"), ("dropped[:8]", "dropped"), ("all[:8]", "train"), ("a-b[:8]", "train")]
)
def test_the_split_keeps_its_name_where_it_can(go, tmp_path, split, wanted):
    whole = datasets.DatasetDict({split.partition("[")[0]: datasets.Dataset.from_list(ROWS)})
    if wanted != "train":
        whole.save_to_disk(tmp_path / "saved")
        data = tmp_path / "saved"
    else:
        # The library refuses to save such a split; a slice of a file may be called anything.
        data, split = write(tmp_path / "pairs.jsonl", ROWS), "[:8]"
    go(data, split=split)
    [kept, dropped] = facts_of(tmp_path / "kept")["configs"]
    assert kept["data_files"][0]["split"] == dropped["data_files"][0]["split"] == wanted
    assert kept["data_files"] != dropped["data_files"]
    assert rows_of(datasets.load_dataset(str(tmp_path / "kept"), split=wanted)) == [ROWS[n] for n in KEPT]


def test_a_saved_dataset_gets_a_card_that_says_how_to_load_it(go, tmp_path):
    go(format="datasets")
    assert len(datasets.load_from_disk(str(tmp_path / "kept"))) == 6
    card = card_of(tmp_path / "kept")
    assert "kept = load_from_disk('kept')\ndropped = load_from_disk('kept.dropped')" in card
    assert "configs" not in facts_of(tmp_path / "kept")
    assert not is_filtered_dataset(tmp_path / "kept")
    go(format="datasets", overwrite=True)


def test_the_card_says_what_was_removed_and_why(go, tmp_path):
    bad = [{**ROWS[0], "id": "bad"}]
    frame = pd.read_parquet(tmp_path / "mine.parquet")
    worse = pd.DataFrame({"id": ["bad"], "status": ["truncated"], "ches_normalized": [float("nan")]})
    pd.concat([frame, worse]).to_parquet(tmp_path / "with-bad.parquet")
    report = go(write(tmp_path / "pairs.jsonl", ROWS + bad), scores=tmp_path / "with-bad.parquet", bad="drop")
    card = card_of(tmp_path / "kept")
    for wanted in (
        "# `pairs.jsonl`, filtered by `ches_normalized`",
        "9 preference pairs: 6 kept, 3 dropped",
        "the 25 % with the highest `ches_normalized` are dropped. Higher means",
        "a threshold of 5.5,",
        "1 pair without a score is dropped (`--bad drop`)",
        "| `truncated` | 0 | 1 |",
        "| `kept` | 6 | 0 |",
        "Model: not known",
        "rows `9`; sha256 of the file `",
        f"probing filter --data {tmp_path / 'pairs.jsonl'} --scores",
        f"--drop-highest 0.25 --bad drop --out {tmp_path}/kept/\n",
    ):
        assert wanted in card
    assert report.facts["sha256"][str(tmp_path / "kept" / "train.jsonl")] in card
    examples = card[card.index("### Dropped") : card.index("## What the filter does not")]
    at = [examples.index(f"`r{n}`") for n in (7, 6, 5, 4, 3)]
    assert at == sorted(at)
    assert "`r2`" not in examples
    assert "`bad`" not in examples


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"below": 2.5}, "Pairs whose `ches_normalized` is below 2.5 are kept."),
        ({"keep_lowest": 0.5}, "the 50 % with the lowest `ches_normalized` are kept."),
    ],
)
def test_every_rule_is_said_in_words(go, tmp_path, rule, said):
    go(**rule)
    assert said in card_of(tmp_path / "kept")


def test_no_text_of_any_origin_is_markup(go, tmp_path):
    record = {
        "schema_version": 1,
        "command": "score",
        "status": "done",
        "config": {"model": HOSTILE},
        "identity": {"versions": {"torch": HOSTILE}},
        "model": {"model": HOSTILE, "revision": HOSTILE},
        "data": {},
        "rows_by_status": {"ok": 8},
        "problems": [],
        "scores_sha256": hashlib.sha256((tmp_path / "mine.parquet").read_bytes()).hexdigest(),
    }
    (tmp_path / "scores").mkdir()
    (tmp_path / "mine.parquet").rename(tmp_path / "scores" / "scores.parquet")
    (tmp_path / "scores" / "run.json").write_text(json.dumps(record))
    name = "a: [---] # <b>`|.jsonl"
    go(write(tmp_path / name, ROWS), scores=tmp_path / "scores")
    card = card_of(tmp_path / "kept")
    assert card.count("\n---\n") == 1
    assert not {"\x1b", "\u202e"} & set(card)
    loaded = DatasetCard.load(tmp_path / "kept" / "README.md")
    assert loaded.data.to_dict()["pretty_name"] == f"{name}, filtered by ches_normalized"
    assert [config["config_name"] for config in loaded.data.to_dict()["configs"]] == ["default", "dropped"]
    page = render(loaded.text)
    assert "<script" not in page
    assert "</details>" not in page
    assert page.count("<pre>") == 7
    assert page.count("<table>") == 2
    assert "alert(1)" in page


def render(text):
    markdown = pytest.importorskip("markdown_it", reason="renders Markdown as the hub does; comes with rich")
    return markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.mark.parametrize("text", ["", "`", "``a`", " a ", "a|b", "\\|", "<i>", "a\nb", "&amp;", HOSTILE])
def test_code_and_cells_show_the_text_itself(text):
    from html import unescape

    from probing.shown import to_message

    shown = to_message(text)
    inner = unescape(render(f"x {write_code(text)} y").removeprefix("<p>x ").removesuffix(" y</p>\n"))
    assert inner.removeprefix("<code>").removesuffix("</code>").strip() == shown.strip()
    block = unescape(render("\n".join(write_block([text]))))
    assert block == f'<pre><code class="language-text">{shown}\n</code></pre>\n'
    table = unescape(render("\n".join(write_table(pd.DataFrame({"a": [text], "b": [1]})))))
    assert table.count("<td") == 2
    assert shown.strip() in table


def test_only_a_folder_of_its_own_is_replaced(go, tmp_path):
    go()
    with pytest.raises(UsageError, match="kept: exists already"):
        go()
    go(drop_highest=0.5, overwrite=True)
    assert len((tmp_path / "kept" / "train.jsonl").read_text().splitlines()) == 4
    # It is known without the slash too.
    go(drop_highest=0.0, overwrite=True, out=tmp_path / "kept")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["README.md", "plots.html", "train.jsonl"]
    assert f"--overwrite --out {tmp_path}/kept/\n" in card_of(tmp_path / "kept")
    (tmp_path / "kept" / "thesis.tex").write_text("mine")
    for out in (f"{tmp_path}/kept/", tmp_path / "kept"):
        with pytest.raises(UsageError, match="kept: is a folder, and n"):
            go(overwrite=True, out=out)
    assert (tmp_path / "kept" / "thesis.tex").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def make_foreign(path):
    path.mkdir()
    (path / "README.md").write_text("---\ntags: [model-probing-filter]\nconfigs: [{}]\n---\n")


def make_other_dataset(path):
    path.mkdir()
    (path / "train.jsonl").write_text("{}")
    (path / "README.md").write_text("---\ntags: [x]\nconfigs: [{data_files: [{path: train.jsonl}]}]\n---\n")


def make_recursive(path):
    path.mkdir()
    (path / "README.md").write_text("---\ntags: " + "[" * 5000 + "\n---\n")


BAD_PLACES = {
    "folder": (lambda path: (path / "inner").mkdir(parents=True), "is a folder, and not one"),
    "like ours": (make_foreign, "is a folder, and not one"),
    "other dataset": (make_other_dataset, "is a folder, and not one"),
    "broken card": (make_recursive, "is a folder, and not one"),
    "file": (lambda path: path.write_text("x"), "is a file, where a folder"),
    "link to a folder": (lambda path: path.symlink_to(path.parent), "no folder is replaced through it"),
    "link to a file": (lambda path: path.symlink_to(path.parent / "pairs.jsonl"), "no folder is replaced through it"),
    "pipe": (os.mkfifo, "is a device or a pipe"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_what_stands_there_is_not_replaced(go, tmp_path, case):
    make, said = BAD_PLACES[case]
    write(tmp_path / "pairs.jsonl", ROWS)
    make(tmp_path / "kept")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=said):
        go(overwrite=True)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("saved/kept/", "is what is being filtered"),
        ("saved/", "is what is being filtered"),
        ("kept[1]/", "for a pattern"),
        ("../", "is no name"),
        ("pairs.jsonl/", "is a file"),
    ],
)
def test_places_that_cannot_be(go, tmp_path, out, said):
    write(tmp_path / "pairs.jsonl", ROWS)
    data = write(tmp_path / "test.saved", ROWS).rename(tmp_path / "saved")
    with pytest.raises(UsageError, match=said):
        go(data, out=f"{tmp_path}/{out}", overwrite=True)


def test_the_folder_of_the_input_is_not_replaced(go, tmp_path):
    go()
    frame = pd.read_parquet(tmp_path / "mine.parquet")[:6]
    frame.to_parquet(tmp_path / "six.parquet")
    with pytest.raises(UsageError, match="kept: holds what is being filtered"):
        go(tmp_path / "kept" / "train.jsonl", scores=tmp_path / "six.parquet", overwrite=True)
    assert (tmp_path / "kept" / "train.jsonl").exists()


def test_an_empty_folder_is_filled_when_asked(go, tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        go()
    go(overwrite=True)
    assert is_filtered_dataset(tmp_path / "kept")


@pytest.mark.parametrize("at", range(1, 6))
def test_when_it_is_interrupted_the_old_folder_stays(go, tmp_path, monkeypatch, at):
    go()
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    synced, plain = [], os.fsync

    def interrupt(handle):
        synced.append(handle)
        if len(synced) == at:
            raise KeyboardInterrupt
        plain(handle)

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(drop_highest=0.5, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "mine.parquet", "pairs.jsonl"]


KILLED = """
import os, signal, sys
from probing.runs import filter as filtering
from probing.store import files
calls, plain = [], os.replace
def replace(*names):
    calls.append(names)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    plain(*names)
files.os.replace = replace
folder = sys.argv[2]
paths = {"data": f"{folder}/pairs.jsonl", "scores": f"{folder}/mine.parquet", "out": f"{folder}/kept/"}
filtering.run(filtering.FilterConfig(**paths, by="ches_normalized", drop_highest=0.5, overwrite=True))
"""


@pytest.mark.parametrize(("at", "left"), [(1, 6), (2, None), (3, 4)])
def test_killed_at_any_step_it_leaves_a_whole_folder_or_none(go, tmp_path, at, left):
    go()
    done = subprocess.run([sys.executable, "-c", KILLED, str(at), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if at < 3 else 0), done.stderr
    kept = tmp_path / "kept"
    if left is None:
        assert not kept.exists()
    else:
        assert is_filtered_dataset(kept)
        assert len(read_table(str(kept / "train.jsonl")).rows) == left
    go(drop_highest=0.5, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "mine.parquet", "pairs.jsonl"]


def test_without_permission_nothing_is_left(go, tmp_path, monkeypatch):
    plain = os.mkdir

    # The superuser, as whom tests may run, may write anywhere.
    def refuse(path, *arguments):
        if str(path).endswith(".partial"):
            raise PermissionError(13, "Permission denied", path)
        plain(path, *arguments)

    monkeypatch.setattr("os.mkdir", refuse)
    with pytest.raises(PermissionError):
        go()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.parquet", "pairs.jsonl"]


def test_a_parent_that_is_a_file(go, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        go(out=f"{tmp_path}/file/kept/")
