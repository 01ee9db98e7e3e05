import gzip
import hashlib
import json
import os
import random
import shutil
import tracemalloc
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probing import filter_pairs
from probing.data.pairs import pairs_from_rows
from probing.data.tables import read_table
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt, UsageError
from probing.report import plots
from probing.runs import filter as filtering
from probing.runs import score
from probing.runs.filter import FilterConfig, results, stages
from probing.store.files import file_sha256

ROWS = [
    {
        "id": f"r{n}",
        "prompt": "Is it ok?",
        "chosen": f" {'never ' * n}no",
        "rejected": " always",
        "source": {"n": n},
        "rank": n,
    }
    for n in range(10)
]
BAD = {"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a", "source": {"n": 99}, "rank": 99}


def spaced(row):
    """A spelling that no writer of ours would choose."""
    return json.dumps(row, separators=(" ,  ", " :")) + "\n"


@pytest.fixture(scope="module")
def scored(model_folder, tmp_path_factory):
    """A dataset of ten good pairs and a bad one, scored."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "pairs.jsonl").write_text("".join(map(spaced, [*ROWS[:5], BAD, *ROWS[5:]])))
    score.run(score.ScoreConfig(model=str(model_folder), data=str(folder / "pairs.jsonl"), out=folder / "scores"))
    return folder


@pytest.fixture
def config(scored, tmp_path):
    def make(**changes):
        values = {
            "data": str(scored / "pairs.jsonl"),
            "scores": scored / "scores",
            "by": "ches_normalized",
            "out": tmp_path / "kept.jsonl",
            "bad": "drop",
            "keep_lowest": 0.5,
        } | changes
        return FilterConfig(**values)

    return make


def lowest(scored, count):
    frame = pd.read_parquet(scored / "scores" / "scores.parquet").dropna()
    return set(frame.sort_values(["ches_normalized", "id"])["id"].head(count))


def test_kept_rows_are_the_lines_of_the_input_byte_for_byte(config, scored, tmp_path):
    report = filtering.run(config())
    written = [tmp_path / name for name in ("kept.jsonl", "kept.dropped.jsonl", "kept.jsonl.plots.html")]
    assert report.facts["sha256"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    wanted = lowest(scored, 5)
    lines = (scored / "pairs.jsonl").read_text().splitlines(keepends=True)
    assert (tmp_path / "kept.jsonl").read_text() == "".join(line for line in lines if json.loads(line)["id"] in wanted)


def test_dropped_rows_go_to_a_side_file_with_their_scores(config, scored, tmp_path):
    filtering.run(config())
    dropped = [json.loads(line) for line in (tmp_path / "kept.dropped.jsonl").read_text().splitlines()]
    assert {row["id"] for row in dropped} == {row["id"] for row in [*ROWS, BAD]} - lowest(scored, 5)
    frame = pd.read_parquet(scored / "scores" / "scores.parquet").set_index("id")
    for row in dropped:
        assert row["source"]["n"] == row["rank"]
        if row["id"] == "same":
            assert row["probing_status"] == "identical"
            assert row["probing_ches"] is None
        else:
            assert row["probing_ches"] == frame.loc[row["id"], "ches"]


def test_the_summary_counts_every_row(config):
    report = filtering.run(config())
    counts = report.tables["Pairs"].set_index("status")
    assert counts.loc["ok"].tolist() == [5, 5]
    assert counts.loc["identical"].tolist() == [0, 1]
    spread = report.tables["Quantiles: ches_normalized"].set_index("rows")
    assert spread.loc["kept", "100%"] <= spread.loc["dropped", "0%"]
    assert spread["pairs"].tolist() == [10, 5, 5]
    assert report.facts["kept"] == 5


def test_pairs_without_a_score_are_refused_unless_said_otherwise(config, tmp_path):
    with pytest.raises(
        DataInvalid, match=r"1 of 11 pairs .*\(1 identical\); first: .*line 6 \(id 'same'\): identical.*--bad"
    ):
        filtering.run(config(bad="fail"))
    assert not list(tmp_path.iterdir())
    filtering.run(config(bad="keep"))
    assert '"same"' in (tmp_path / "kept.jsonl").read_text()


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        ({"keep_lowest": None, "drop_highest": 0.3}, 7),
        ({"keep_lowest": None, "below": 1e9}, 10),
        ({"keep_lowest": None, "keep_highest": 0.2}, 2),
        ({"keep_lowest": None, "drop_lowest": 0.3}, 7),
        ({"keep_lowest": None, "above": -1e9}, 10),
    ],
)
def test_every_rule(config, tmp_path, rule, count):
    assert filtering.run(config(**rule)).facts["kept"] == count


def test_any_score_column_will_do(config, tmp_path, scored):
    filtering.run(config(by="edit_similarity", keep_lowest=0.2))
    frame = pd.read_parquet(scored / "scores" / "scores.parquet").dropna().sort_values(["edit_similarity", "id"])
    kept = {json.loads(line)["id"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()}
    assert kept == set(frame["id"].head(2))


def test_reordered_rows_and_further_columns_are_the_same_pairs(config, scored, tmp_path):
    rows = [{**row, "new": 1} for row in [*ROWS, BAD]]
    random.Random(0).shuffle(rows)
    (tmp_path / "again.jsonl").write_text("".join(map(spaced, rows)))
    filtering.run(config(data=str(tmp_path / "again.jsonl")))
    assert {json.loads(line)["id"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()} == lowest(scored, 5)


def test_other_texts_under_the_same_ids_are_refused(config, tmp_path):
    (tmp_path / "other.jsonl").write_text("".join(map(spaced, [*ROWS, {**BAD, "chosen": " b"}])))
    with pytest.raises(SourceMismatch, match=r"are not the pairs that were scored into .*11 rows of"):
        filtering.run(config(data=str(tmp_path / "other.jsonl")))


def test_a_bare_scores_file_is_joined_by_id(config, scored, tmp_path):
    frame = pd.read_parquet(scored / "scores" / "scores.parquet")
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "mine.parquet")
    filtering.run(config(scores=tmp_path / "mine.parquet"))
    assert {json.loads(line)["id"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()} == lowest(scored, 5)
    frame[:-1].to_parquet(tmp_path / "fewer.parquet")
    with pytest.raises(SourceMismatch, match="1 pairs have no score, 0 scores no pair"):
        filtering.run(config(scores=tmp_path / "fewer.parquet"))


@pytest.mark.parametrize("out", ["kept.jsonl.gz", "kept.json", "kept.csv", "kept.parquet"])
def test_the_name_of_the_output_chooses_the_format(config, tmp_path, out):
    from probing.data.tables import read_table

    filtering.run(config(out=tmp_path / out))
    stem, _, suffix = out.partition(".")
    assert len(read_table(str(tmp_path / out)).rows) == 5
    assert len(read_table(str(tmp_path / f"{stem}.dropped.{suffix}")).rows) == 6
    if out.endswith(".gz"):
        assert gzip.decompress((tmp_path / out).read_bytes()).startswith(b"{")


def test_lines_under_the_name_json_stay_lines(config, scored, tmp_path):
    (tmp_path / "lines.json").write_bytes((scored / "pairs.jsonl").read_bytes())
    filtering.run(config(data=str(tmp_path / "lines.json"), out=tmp_path / "kept.json"))
    assert len((tmp_path / "kept.json").read_text().splitlines()) == 5


def test_format_wins_over_the_name(config, tmp_path):
    filtering.run(config(out=tmp_path / "kept", format="datasets"))
    assert len(datasets.load_from_disk(str(tmp_path / "kept"))) == 5
    assert len(datasets.load_from_disk(str(tmp_path / "kept.dropped"))) == 6
    filtering.run(config(out=tmp_path / "kept.txt", format="parquet"))
    assert pq.read_table(tmp_path / "kept.txt").num_rows == 5


def test_an_unnamed_output_takes_the_format_of_the_input(config, tmp_path):
    filtering.run(config(out=tmp_path / "kept"))
    assert (tmp_path / "kept").read_text().startswith("{")


def test_nothing_is_written_over(config, tmp_path):
    (tmp_path / "kept.jsonl").write_text("mine")
    with pytest.raises(UsageError, match=r"kept\.jsonl: exists already"):
        filtering.run(config())
    (tmp_path / "kept.jsonl").rename(tmp_path / "kept.dropped.jsonl")
    with pytest.raises(UsageError, match=r"kept\.dropped\.jsonl: exists already"):
        filtering.run(config())
    assert (tmp_path / "kept.dropped.jsonl").read_text() == "mine"
    filtering.run(config(overwrite=True))


def test_when_the_disk_fills_up_neither_file_is_left(config, tmp_path, monkeypatch):
    synced, plain = [], os.fsync

    def full(handle):
        synced.append(handle)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        filtering.run(config())
    assert not [path for path in tmp_path.iterdir() if "dropped" not in path.name]
    monkeypatch.undo()
    filtering.run(config(overwrite=True))


def test_what_a_killed_filter_left_is_removed(config, tmp_path):
    (tmp_path / ".kept.jsonl.123.partial").write_text("half")
    filtering.run(config())
    names = ["kept.dropped.jsonl", "kept.jsonl", "kept.jsonl.plots.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_input_is_never_the_output(config, scored):
    for path in (scored / "pairs.jsonl", scored / "scores"):
        with pytest.raises(UsageError, match="is what is being filtered"):
            filtering.run(config(out=path, overwrite=True, format="jsonl"))


def test_a_folder_that_is_no_dataset_is_not_replaced(config, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.tex").write_text("x")
    for form in ("datasets", "jsonl"):
        with pytest.raises(UsageError, match="is a folder, and no saved dataset"):
            filtering.run(config(out=tmp_path / "project", format=form, overwrite=True))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, where a dataset would be saved"):
        filtering.run(config(out=tmp_path / "file", format="datasets", overwrite=True))
    filtering.run(config(out=tmp_path / "kept", format="datasets"))
    filtering.run(config(out=tmp_path / "kept", format="datasets", overwrite=True, keep_lowest=0.2))
    assert len(datasets.load_from_disk(str(tmp_path / "kept"))) == 2


def test_when_nothing_is_dropped_there_is_no_side_file(config, tmp_path):
    filtering.run(config(bad="keep"))
    assert (tmp_path / "kept.dropped.jsonl").exists()
    report = filtering.run(config(bad="keep", keep_lowest=1, overwrite=True))
    names = ["kept.jsonl", "kept.jsonl.plots.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert report.facts["wrote"] == [str(tmp_path / name) for name in names]


def test_a_link_stays_a_link(config, tmp_path):
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "kept.jsonl").symlink_to(tmp_path / "real.jsonl")
    with pytest.raises(UsageError, match="exists already"):
        filtering.run(config())
    filtering.run(config(overwrite=True))
    assert (tmp_path / "kept.jsonl").is_symlink()
    assert len((tmp_path / "real.jsonl").read_text().splitlines()) == 5


def test_the_scores_are_never_the_output(config, scored):
    with pytest.raises(UsageError, match="is what is being filtered"):
        filtering.run(config(out=scored / "scores" / "scores.parquet", overwrite=True))


def test_pairs_that_are_read_once_cannot_be_filtered():
    with pytest.raises(TypeError, match="not generator, which is read once"):
        filter_pairs((row for row in ROWS), FRAME, below=1.0)
    with pytest.raises(TypeError, match="not IterableDataset"):
        filter_pairs(datasets.Dataset.from_list(ROWS).to_iterable_dataset(), FRAME, below=1.0)


def test_a_score_that_is_missing_though_the_status_is_ok():
    with pytest.raises(UsageError, match="the score of 'r0' is not a finite number"):
        filter_pairs(ROWS, FRAME.assign(ches_normalized=float("nan")), below=1.0)


BAD_REQUESTS = {
    "column": ({"by": "chess"}, UsageError, r"no score column 'chess'; there are ches, ches_normalized, "),
    "place": ({"by": "row"}, UsageError, r"no score column 'row'; there are ches, "),
    "length": ({"by": "prompt_tokens"}, UsageError, r"no score column 'prompt_tokens'; there are ches, "),
    "spreadsheet": ({"out": "kept.xlsx"}, UsageError, r"the name ends in \.xlsx, but that format is not written"),
    "other format": ({"out": "kept.xlsx.gz", "format": "csv"}, UsageError, r"ends in \.xlsx, but that format is not"),
    "contradiction": ({"out": "kept.csv", "format": "parquet"}, UsageError, r"in \.csv, but the format is parquet"),
    "no lines": ({"out": "kept.jsonl", "format": "json"}, UsageError, r"in \.jsonl, but the format is json"),
    "zipped folder": ({"out": "kept.gz", "format": "datasets"}, UsageError, r"in \.gz, but the format is datasets"),
    "text column": ({"by": "status"}, UsageError, r"no score column 'status'"),
    "nothing kept": ({"keep_lowest": None, "below": -1e9}, UsageError, "no pair of 11 would be kept"),
    "no scores": ({"scores": "missing"}, UsageError, "give the output folder of 'probing score'"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_requests_that_cannot_be_met(config, tmp_path, case):
    changes, error, message = BAD_REQUESTS[case]
    changes = {name: tmp_path / value if name == "out" else value for name, value in changes.items()}
    with pytest.raises(error, match=message):
        filtering.run(config(**changes))
    assert not list(tmp_path.iterdir())


def test_a_file_beside_the_scores_is_no_table_of_scores(config, tmp_path):
    record = tmp_path / "run.json"
    record.write_text("{}")
    with pytest.raises(UsageError, match=r"run\.json: is no Parquet file; give the output folder"):
        filtering.run(config(scores=record))


def test_the_same_file_twice_is_refused_by_name(config, scored, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(scored / "pairs.jsonl")
    for other in (scored / "pairs.jsonl", tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match=r"pairs\.jsonl: is given twice"):
            filtering.run(config(data=[str(scored / "pairs.jsonl"), str(other)]))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_no_texts_are_kept_in_memory(tmp_path, monkeypatch, form):
    rows = [{"id": f"r{n}", "prompt": "p", "chosen": f"{n} " * 5000, "rejected": "b"} for n in range(1500)]
    write = pd.DataFrame(rows).to_csv if form == "csv" else pd.DataFrame(rows).to_json
    write(tmp_path / f"p.{form}", **({"index": False} if form == "csv" else {"orient": "records", "lines": True}))
    frame = pd.DataFrame({"id": [row["id"] for row in rows], "status": "ok", "ches": range(1500)})
    frame.to_parquet(tmp_path / "s.parquet")
    del rows
    # The page takes as much, whatever the number of rows: most of it is the library that draws it.
    monkeypatch.setattr(results, "draw_filter", lambda *_: [])
    for constant in ("data.aside.RUN_BYTES", "store.files.CHUNK"):
        monkeypatch.setattr(f"probing.{constant}", 2**20)
    given = {"data": str(tmp_path / f"p.{form}"), "scores": tmp_path / "s.parquet", "by": "ches", "keep_lowest": 0.5}
    filtering.run(FilterConfig(**given, out=tmp_path / "warm"))
    tracemalloc.start()
    filtering.run(FilterConfig(**given, out=tmp_path / "kept"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 35 MB of text; a run over ten times fewer rows takes 5 MB as well.
    assert (tmp_path / f"p.{form}").stat().st_size > 30e6
    assert peak < 10e6


def test_data_that_change_meanwhile_are_not_filtered(config, scored, tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_bytes((scored / "pairs.jsonl").read_bytes())
    plain = stages.choose_by_scores

    def change(*arguments):
        with (tmp_path / "mine.jsonl").open("r+b") as file:
            file.write(b" ")
        return plain(*arguments)

    monkeypatch.setattr(stages, "choose_by_scores", change)
    with pytest.raises(DataInvalid, match=r"mine\.jsonl: changed while it was read"):
        filtering.run(config(data=str(tmp_path / "mine.jsonl")))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_two_rules_or_none(config):
    with pytest.raises(ValueError, match="keep_lowest and below"):
        config(below=1.0)
    with pytest.raises(ValueError, match="given: none"):
        config(keep_lowest=None)


def test_a_damaged_scores_file(config, tmp_path):
    (tmp_path / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreCorrupt, match="not a whole Parquet file"):
        filtering.run(config(scores=tmp_path / "scores.parquet"))


def test_an_unfinished_run_is_named(config, tmp_path):
    from probing.store.manifest import claim

    with claim(tmp_path / "half", "score") as folder:
        folder.begin({}, {})
    with pytest.raises(UsageError, match="is not finished; run the same 'probing score' again"):
        filtering.run(config(scores=tmp_path / "half"))


FRAME = pd.DataFrame(
    {"id": [row["id"] for row in ROWS], "status": "ok", "ches_normalized": [float(n % 4) for n in range(10)]}
)


@pytest.mark.parametrize("hold", [list, datasets.Dataset.from_list, pd.DataFrame], ids=["list", "dataset", "frame"])
def test_filter_pairs_answers_in_kind(hold):
    pairs = hold(ROWS)
    kept = filter_pairs(pairs, FRAME.sample(frac=1, random_state=1), keep_lowest=0.5)
    assert type(kept) is type(pairs)
    kept_ids = kept["id"].tolist() if isinstance(kept, pd.DataFrame) else [row["id"] for row in kept]
    assert kept_ids == ["r0", "r1", "r4", "r5", "r8"]


def test_filter_pairs_refuses_what_it_cannot_trust():
    bad = FRAME.assign(status=["ok"] * 9 + ["truncated"], ches_normalized=[*FRAME["ches_normalized"][:9], float("nan")])
    with pytest.raises(DataInvalid, match=r"1 truncated.*\(id 'r9'\)"):
        filter_pairs(ROWS, bad, keep_lowest=0.5)
    assert len(filter_pairs(ROWS, bad, below=9.0, bad="drop")) == 9
    with pytest.raises(ValueError, match="exactly one"):
        filter_pairs(ROWS, FRAME)
    with pytest.raises(SourceMismatch, match="0 pairs have no score, 5 scores no pair"):
        filter_pairs(ROWS[:5], FRAME, below=1.0)


@pytest.mark.parametrize(
    ("by", "rule", "warned"),
    [
        ("ches_normalized", {"keep_lowest": 0.5}, False),
        ("ches_normalized", {"keep_highest": 0.5}, True),
        ("displacement_rate", {"keep_highest": 0.5}, False),
        ("displacement_rate", {"drop_highest": 0.5}, True),
        ("chosen_logprob", {"drop_highest": 0.5}, False),
    ],
)
def test_a_word_where_the_rule_keeps_the_pairs_to_be_warned_of(by, rule, warned, caplog):
    rows = [{"id": name, "prompt": "Q", "chosen": " a", "rejected": " b"} for name in "xy"]
    scores = pd.DataFrame({"id": ["x", "y"], "status": "ok", by: [1.0, 2.0]})
    filter_pairs(rows, scores, by, **rule)
    assert ("keeps the pairs whose chosen responses" in caplog.text) == warned


def test_scores_that_changed_since_the_run_ended_are_refused(config, scored, tmp_path):
    shutil.copytree(scored / "scores", tmp_path / "scores")
    file = tmp_path / "scores" / "scores.parquet"
    whole, generator = file.read_bytes(), random.Random(0)
    for _ in range(60):
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        for given in (tmp_path / "scores", file):
            with pytest.raises(StoreCorrupt, match=r"scores\.parquet: changed since the run ended"):
                filtering.run(config(scores=given))
    file.write_bytes(whole)
    filtering.run(config(scores=file))


def test_scores_without_a_record_cannot_be_checked(config, scored, tmp_path, caplog):
    shutil.copy(scored / "scores" / "scores.parquet", tmp_path / "mine.parquet")
    filtering.run(config(scores=tmp_path / "mine.parquet"))
    assert "mine.parquet: no run.json beside it tells its hash, so it cannot be checked" in caplog.text


def test_what_is_replaced_keeps_its_mode(config, tmp_path):
    (tmp_path / "kept.jsonl").write_text("old")
    (tmp_path / "kept.jsonl").chmod(0o600)
    filtering.run(config(overwrite=True))
    assert (tmp_path / "kept.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_not_replaced(config, tmp_path):
    os.mkfifo(tmp_path / "kept.jsonl")
    with pytest.raises(UsageError, match="is a device or a pipe"):
        filtering.run(config(overwrite=True))
    with pytest.raises(UsageError, match="is a device or a pipe"):
        filtering.run(config(out="/dev/null", overwrite=True))


def test_the_side_file_is_not_written_through_a_link(config, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "kept.dropped.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="is a link"):
        filtering.run(config(overwrite=True))
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_killed_filter_into_datasets_does_not_block_the_next(config, tmp_path):
    (tmp_path / ".kept.99.partial").mkdir()
    (tmp_path / ".kept.99.partial" / "data.arrow").write_text("half")
    filtering.run(config(out=tmp_path / "kept", format="datasets"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "kept.dropped", "kept.plots.html"]


@pytest.mark.parametrize("out", ["", ".", "/", "..", "a\0b", "a\ud800b", "~nobody-of-this-name/a"])
def test_outputs_that_cannot_be(config, out):
    with pytest.raises(UsageError, match="--out"):
        config(out=out)


def test_the_picture_shows_what_was_kept_and_dropped(config, scored, tmp_path, monkeypatch):
    drawn = []
    make = plots.draw_filter
    monkeypatch.setattr(
        "probing.runs.filter.results.draw_filter", lambda *given: drawn.append(make(*given)) or drawn[-1]
    )
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "100000")
    report = filtering.run(config())
    path = tmp_path / "kept.jsonl.plots.html"
    assert report.facts["wrote"][-1] == str(path)
    kept, dropped = drawn[0][0]["data"]
    layout = drawn[0][0]["layout"]
    assert (sum(kept["y"]), sum(dropped["y"])) == (5, 5)
    scores = pd.read_parquet(scored / "scores" / "scores.parquet")["ches_normalized"].dropna().sort_values().tolist()
    assert layout["shapes"][0]["x0"] == pytest.approx((scores[4] + scores[5]) / 2)
    assert layout["annotations"][0]["text"] == "--keep-lowest 0.5"
    page = path.read_text()
    assert "Pairs that were kept and dropped by ches_normalized; 1 pairs have no score" in page
    assert "<dd>probing filter --data " in page
    assert "<dt>model</dt>" in page
    assert "<dt>date</dt><dd>1970-01-02 (UTC)</dd>" in page
    filtering.run(config(keep_lowest=None, below=0.123, overwrite=True))
    assert drawn[1][0]["layout"]["shapes"][0]["x0"] == 0.123


def test_a_picture_of_another_run_does_not_stand_beside_the_kept_rows(config, tmp_path, monkeypatch):
    page = tmp_path / "kept.jsonl.plots.html"
    page.write_text("somebody's")
    with pytest.raises(UsageError, match=r"plots\.html: exists already"):
        filtering.run(config())
    assert [path.name for path in tmp_path.iterdir()] == [page.name]
    monkeypatch.setattr(results, "draw_filter", lambda *_: [])
    filtering.run(config(overwrite=True))
    assert not page.exists()
    page.symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match="is a link"):
        filtering.run(config(overwrite=True))
    page.unlink()
    page.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        filtering.run(config(overwrite=True))


def test_a_picture_beside_a_dataset_is_a_file(config, tmp_path):
    for _ in range(2):
        filtering.run(config(out=tmp_path / "kept", format="datasets", overwrite=True))
        assert (tmp_path / "kept.plots.html").is_file()


def make_case(folder, ids=True):
    """2,500 pairs, of which some have no score, and their scores."""
    rows = [{"prompt": f"p{n}", "chosen": f"c{n}\u2028", "rejected": "r", "n": n} for n in range(2500)]
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(rows)] if ids else rows
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pd.DataFrame(rows).to_parquet(folder / "p.parquet", index=False)
    read = pairs_from_rows(rows)
    scores = pd.DataFrame({"id": [pair.id for pair in read], "status": "ok", "ches": np.arange(2500) % 1250 / 7})
    scores["chosen_tokens"], scores["regime"] = 3, "falls"
    scores.loc[[7, 2000], ["status", "ches", "chosen_tokens"]] = ["too_long", float("nan"), None]
    return rows, scores


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("ids", [True, False])
def test_scores_in_any_order_give_the_same_bytes(tmp_path, form, ids):
    rows, scores = make_case(tmp_path, ids)
    pq.write_table(
        pa.Table.from_pandas(scores, preserve_index=False), tmp_path / "scores-straight.parquet", row_group_size=700
    )
    scores[::-1].to_parquet(tmp_path / "scores-turned.parquet")
    given = {"data": str(tmp_path / f"p.{form}"), "by": "ches", "drop_highest": 0.3, "bad": "drop"}
    for name in ("straight", "turned"):
        filtering.run(
            FilterConfig(**given, scores=tmp_path / f"scores-{name}.parquet", out=tmp_path / f"{name}.{form}")
        )
    for suffix in ("", ".dropped"):
        one, other = (tmp_path / f"{name}{suffix}.{form}" for name in ("straight", "turned"))
        assert one.read_bytes() == other.read_bytes()
    kept, dropped = (read_table(str(tmp_path / f"straight{part}.{form}")).rows for part in ("", ".dropped"))
    # Of equal scores those with the lowest ids are kept.
    good = scores[scores["status"] == "ok"].sort_values(["ches", "id"])["id"].tolist()
    wanted = {*good[: round(0.7 * len(good))]}
    assert list(kept) == [row for row, id in zip(rows, scores["id"], strict=True) if id in wanted]
    assert len(kept) + len(dropped) == 2500
    [bad] = [row for row in dropped if row["n"] == 2000]
    assert (bad["probing_ches"], bad["probing_chosen_tokens"], bad["probing_status"]) == (None, None, "too_long")
    # A column in which a number is missing is of floats.
    assert {type(row["probing_chosen_tokens"]) for row in dropped} == {float, type(None)}


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "draw_filter", lambda *_: [])
    monkeypatch.setattr("probing.data.aside.RUN_BYTES", 2**18)
    peaks = {}
    for count in (4000, 40000):
        rows = ({"id": f"r{n}", "prompt": f"p{n}", "chosen": f"c{n}", "rejected": "r"} for n in range(count))
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        frame = pd.DataFrame({"id": [f"r{n}" for n in range(count)], "status": "ok", "ches": np.arange(count) / 7})
        frame.to_parquet(tmp_path / "s.parquet", index=False)
        given = {"data": str(tmp_path / "p.jsonl"), "scores": tmp_path / "s.parquet", "by": "ches"}
        del frame, rows
        tracemalloc.start()
        filtering.run(FilterConfig(**given, keep_lowest=0.5, out=tmp_path / f"kept-{count}"))
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A pair as a Python object alone takes 500 bytes.
    assert peaks[40000] - peaks[4000] < 100 * 36000


def test_kept_rows_are_written_to_an_address(config, scored):
    system = fsspec.filesystem("memory")
    report = filtering.run(config(out="memory://out/kept.jsonl"))
    local = config()
    filtering.run(local)
    assert system.cat("/out/kept.jsonl") == Path(local.out).read_bytes()
    assert "memory://out/kept.jsonl" in report.facts["wrote"]
    assert report.facts["sha256"]["memory://out/kept.jsonl"] == file_sha256(Path(local.out))
    with pytest.raises(UsageError, match=r"memory://out/kept\.jsonl: exists already"):
        filtering.run(config(out="memory://out/kept.jsonl"))
    filtering.run(config(out="memory://out/kept.jsonl", keep_lowest=1.0, bad="keep", overwrite=True))
    names = [name.rpartition("/")[2] for name in system.find("/out")]
    assert "kept.dropped.jsonl" not in names
    filtering.run(config(out="memory://out/folder/"))
    assert "memory://out/folder/" in system.cat("/out/folder/README.md").decode()
    with pytest.raises(UsageError, match=r"nothing can be written to a web server"):
        filtering.run(config(out="http://127.0.0.1/kept.jsonl"))
    system.rm("/out", recursive=True)
