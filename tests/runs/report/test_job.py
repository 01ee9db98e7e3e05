"""probing report: reads finished runs of any commands, joins those of the same pairs, judges, and writes one page."""

import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from harness import read_lines, write

from probing.data.bundled import bundled_data
from probing.report.parts import number_anchors
from probing.runs import capture, displacement, score
from probing.runs.capture.config import CaptureConfig
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.report.data import label_runs
from probing.runs.score.config import ScoreConfig
from probing.store.files import file_sha256
from probing.store.records import SEAL, seal

PAIRS = 60


def take_pairs(count, start=0, step=5):
    """Some of the bundled pairs, of every kind."""
    return read_lines(bundled_data("pairs"))[start : start + step * count : step]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a scoring, of a comparison with a displaced and with the same model, and of another dataset."""
    folder = tmp_path_factory.mktemp("report")
    data = write(folder / "pairs.jsonl", take_pairs(PAIRS))
    other = write(folder / "other.jsonl", take_pairs(20, start=1))
    score.run(ScoreConfig(model="bundled", data=str(data), out=folder / "scores"))
    given = {"reference": "bundled", "data": str(data), "group_column": "kind"}
    displacement.run(DisplacementConfig(policy="bundled-displaced", out=folder / "moved", **given))
    displacement.run(DisplacementConfig(policy="bundled", out=folder / "healthy", top=0, **given))
    given["data"] = str(other)
    displacement.run(DisplacementConfig(policy="bundled-displaced", out=folder / "elsewhere", **given))
    capture.run(CaptureConfig(model="bundled", data="bundled", limit=6, places="final_norm", out=folder / "states"))
    return folder


def read_data(page):
    """The rows that a page carries, by table: (ids, columns by name)."""
    embedded = json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.S)[1])
    return {
        table["name"]: (table["ids"], {column["name"]: column["values"] for column in table["columns"]})
        for table in embedded["tables"]
    }


def test_a_displaced_run_fails_the_check_in_words_and_a_healthy_one_does_not(runs, tmp_path, probing):
    status, out, _ = probing("report", runs / "moved", "--check", "--out", tmp_path / "r.html")
    assert status == 1
    told = " ".join(out.split())
    assert re.search(
        r"WARN moved ln p\(chosen\) fell while the margin rose in \d.*?WARN above 20 % \(share_displaced\)", told
    )
    status, out, _ = probing("report", runs / "healthy", "--check", "--out", tmp_path / "r.html")
    assert status == 0
    assert not re.search("^WARN", out, re.MULTILINE)
    assert probing("report", runs / "moved", "--out", tmp_path / "r.html")[0] == 0


def test_a_run_whose_chosen_answers_fall_with_their_margin_fails_too(runs, tmp_path, probing):
    """None of its pairs is displaced, and no accuracy changes."""
    folder = tmp_path / "ruined"
    shutil.copytree(runs / "moved", folder)
    frame = pd.read_parquet(folder / "displacement.parquet")
    frame["displaced"], frame["ranking_correct_after"] = False, frame["ranking_correct_before"]
    frame.to_parquet(folder / "displacement.parquet")
    record = json.loads((folder / "run.json").read_text())
    record["sha256"]["displacement.parquet"] = file_sha256(folder / "displacement.parquet")
    record[SEAL] = seal(record)
    (folder / "run.json").write_text(json.dumps(record))
    status, out, _ = probing("report", folder, "--check", "--json", "--out", tmp_path / "r.html")
    warned = {check["name"] for check in json.loads(out)["checks"] if check["state"] == "WARN"}
    assert (status, warned) == (1, {"chosen_change_per_token"})


def test_json_has_the_checks_under_stable_names(runs, tmp_path, probing):
    status, out, _ = probing("report", runs / "moved", "--check", "--json", "--out", tmp_path / "r.html")
    answer = json.loads(out)
    assert status == 1
    names = ["name", "run", "state", "sentence", "value", "low", "high", "n", "threshold", "side"]
    assert all(list(check) == names for check in answer["checks"])
    frame = pd.read_parquet(runs / "moved/displacement.parquet")
    found = next(check for check in answer["checks"] if check["name"] == "share_displaced")
    assert found["value"] == frame["displaced"].mean()
    assert (found["state"], found["n"], found["threshold"], found["side"]) == ("WARN", PAIRS, 0.2, "above")
    rows = next(check for check in answer["checks"] if check["name"] == "rows_left_out")
    assert (rows["value"], rows["low"], rows["high"]) == (0.0, None, None)
    assert answer["states"]["WARN"] == sum(check["state"] == "WARN" for check in answer["checks"])


def test_numbers_of_the_page_are_those_of_the_files(runs, tmp_path, probing):
    page = tmp_path / "r.html"
    assert probing("report", runs / "scores", runs / "moved", "--out", page)[0] == 0
    text = page.read_text("utf-8")
    [(ids, columns)] = read_data(text).values()
    scores = pd.read_parquet(runs / "scores/scores.parquet").set_index("id").loc[ids]
    moved = pd.read_parquet(runs / "moved/displacement.parquet").set_index("id").loc[ids]
    # Every cell of both files.
    for frame in (scores, moved):
        for name in frame.select_dtypes("float"):
            shown = np.array([np.nan if value is None else value for value in columns[name]], dtype=float)
            np.testing.assert_allclose(shown, frame[name], rtol=1e-4, atol=1e-12)
    assert [bool(value) for value in columns["displaced"]] == moved["displaced"].tolist()
    # What sentences and static tables say, recomputed in the dumbest form.
    fell, displaced = int((moved["chosen_change"] < 0).sum()), int(moved["displaced"].sum())
    ranked = [moved[f"ranking_correct_{time}"].mean() for time in ("before", "after")]
    for expected in (
        f"{100 * moved['displaced'].mean():.3g} % [",
        f"{100 * (moved['displaced'] & (moved['chosen_change'] < -np.log(2))).mean():.3g} % [",
        f"ranking accuracy changed by {ranked[1] - ranked[0]:.3g} [",
        f"ln p(chosen) changed by {moved['chosen_change'].mean():.4g} [",
        f"it fell in {fell:,} of them, and in {displaced:,} of these",
        f"{moved['rejected_change'].mean():.4g}",
        f"{moved['margin_change'].mean():.4g}",
        f"{ranked[0]:.4g}",
        f"{scores['ches_normalized'].median():.4g}",
        f"{scores['ches_normalized'].quantile(0.95):.4g}",
        f"{scores['edit_similarity'].min():.4g}",
    ):
        assert expected in text, expected


def test_runs_of_the_same_pairs_are_joined_and_told_apart_by_their_labels(runs, tmp_path, probing):
    page = tmp_path / "r.html"
    given = ("report", runs / "healthy", runs / "scores", runs / "moved", "--out", page)
    assert probing(*given)[0] == 0
    [(ids, columns)] = read_data(page.read_text("utf-8")).values()
    assert len(ids) == PAIRS
    frame = pd.read_parquet(runs / "moved/displacement.parquet").set_index("id").loc[ids]
    np.testing.assert_allclose(columns["chosen_change moved"], frame["chosen_change"], rtol=1e-4)
    assert set(columns["chosen_change healthy"]) == {0}
    # What they have alike stands there once, also where a comparison has a score of the scoring.
    assert {"ches", "chosen_tokens", "row", "chosen_logprob_before", "status", "group"} < set(columns)
    assert not {"chosen_change", "chosen_tokens moved"} & set(columns)


def test_a_folder_of_runs_stands_for_the_finished_ones(runs, tmp_path, probing, caplog):
    folder = tmp_path / "all"
    for name in ("scores", "moved", "states"):
        shutil.copytree(runs / name, folder / name)
    record = json.loads((folder / "scores/run.json").read_text())
    record["status"] = "running"
    record[SEAL] = seal(record)
    (folder / "scores/run.json").write_text(json.dumps(record))
    status, out, _ = probing("report", folder, "--out", tmp_path / "r.html")
    assert status == 0
    assert "scores: the run in it is not finished, and is left out of the report" in caplog.text
    assert "moved" in out


def test_texts_of_data_that_moved_are_found_by_data_and_else_are_left_out(runs, tmp_path, probing, caplog):
    moved = tmp_path / "moved"
    shutil.copytree(runs / "moved", moved)
    (runs / "pairs.jsonl").rename(runs / "gone.jsonl")
    try:
        assert probing("report", moved, "--out", tmp_path / "without.html")[0] == 0
        assert "moved: the texts of its rows are not shown" in caplog.text
        assert "the texts of its rows are not shown" in (tmp_path / "without.html").read_text("utf-8")
        caplog.clear()
        # One of several datasets that have moved.
        given = ("--data", runs / "other.jsonl", "--data", runs / "gone.jsonl")
        assert probing("report", moved, *given, "--out", tmp_path / "with.html")[0] == 0
        assert "not shown" not in caplog.text
    finally:
        (runs / "gone.jsonl").rename(runs / "pairs.jsonl")
    text = take_pairs(1)[0]["prompt"]
    prompt = text if isinstance(text, str) else text[-1]["content"]
    assert prompt in (tmp_path / "with.html").read_text("utf-8")
    assert prompt not in (tmp_path / "without.html").read_text("utf-8")


def test_what_was_left_out_to_keep_the_size_is_told_to_programs_too(runs, tmp_path, probing, caplog):
    status, out, _ = probing("report", runs / "moved", "--most-megabytes", 0.1, "--json", "--out", tmp_path / "r.html")
    [remark, *_] = json.loads(out)["remarks"]
    assert status == 0
    assert "were left out to keep the page under 0.1 MB" in remark
    assert remark in caplog.text
    assert (tmp_path / "r.html").stat().st_size < 100_000


def test_thresholds_can_be_given_and_checks_left_out(runs, tmp_path, probing):
    given = ("report", runs / "moved", "--check", "--json", "--out", tmp_path / "r.html")
    loose = ("--threshold", "share_displaced=0.99", "--threshold", "share_halved=off")
    strict = ("--threshold", "ranking_accuracy_change=-1", "--threshold", "chosen_change_per_token=off")
    status, out, _ = probing(*given, *loose, *strict)
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert status == 0
    assert checks["share_displaced"]["threshold"] == 0.99
    assert set(checks) == {"share_displaced", "ranking_accuracy_change", "rows_left_out"}


def refuse(probing, *arguments):
    status, out, err = probing("report", *arguments)
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    return err


def test_mistakes_are_told_in_a_line_and_nothing_is_written(runs, tmp_path, probing):
    page = tmp_path / "r.html"
    mine = tmp_path / "notes.html"
    mine.write_text("my notes")
    (tmp_path / "empty").mkdir()
    for arguments, said in [
        ([], "FOLDERS is required"),
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path / "empty"], "holds no finished run"),
        ([runs / "pairs.jsonl"], "is no folder"),
        ([runs / "moved", runs / "moved"], "is named twice"),
        ([runs / "moved", runs / "scores" / ".." / "moved"], f"is named twice, the first time as {runs / 'moved'}"),
        ([runs / "moved", runs / "elsewhere"], "on different data"),
        ([runs / "moved", "--threshold", "share_displaced"], "write it as share_displaced=0.2"),
        ([runs / "moved", "--threshold", "share_displaced=much"], "write it as share_displaced=0.2"),
        ([runs / "moved", "--threshold", "shares=0.2"], "there is no check 'shares'"),
        ([runs / "moved", "--most-megabytes", "0"], "must be above 0.05"),
    ]:
        assert said in refuse(probing, *arguments, "--out", page), said
    assert "is a folder" in refuse(probing, runs / "moved", "--out", tmp_path)
    assert "is no report" in refuse(probing, runs / "moved", "--out", mine)
    for name in ("moved", "scores"):
        assert "would lie in the folder of a run" in refuse(probing, runs / "moved", "--out", runs / name / "r.html")
    assert "is a device or a pipe" in refuse(probing, runs / "moved", "--out", "/dev/null")
    assert mine.read_text() == "my notes"
    assert not page.exists()


def test_a_file_that_is_no_report_is_replaced_only_where_asked_and_a_report_always(runs, tmp_path, probing):
    page = tmp_path / "r.html"
    page.write_text("my notes")
    assert probing("report", runs / "healthy", "--overwrite", "--out", page)[0] == 0
    first = page.read_bytes()
    assert probing("report", runs / "healthy", "--out", page)[0] == 0
    assert page.read_bytes() == first


def damage(runs, folder, change):
    """A copy of a run whose record was changed and sealed again."""
    shutil.copytree(runs / "moved", folder)
    record = json.loads((folder / "run.json").read_text())
    change(record)
    record[SEAL] = seal(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_damaged_unfinished_and_newer_runs_are_refused(runs, tmp_path, probing):
    page = tmp_path / "r.html"
    newer = damage(runs, tmp_path / "newer", lambda record: record.update(schema_version=2))
    status, _, err = probing("report", newer, "--out", page)
    assert (status, "written by a newer version of probing (schema 2, this one reads 1)" in err) == (1, True)
    running = damage(runs, tmp_path / "running", lambda record: record.update(status="running"))
    assert "is not finished" in refuse(probing, running, "--out", page)
    changed = damage(runs, tmp_path / "changed", lambda record: None)
    content = bytearray((changed / "displacement.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (changed / "displacement.parquet").write_bytes(content)
    status, _, err = probing("report", changed, "--out", page)
    assert (status, "gone or changed since the run ended" in err) == (1, True)
    unknown = damage(runs, tmp_path / "unknown", lambda record: record.update(command="divination"))
    assert "no report is made of 'probing divination'" in refuse(probing, unknown, "--out", page)
    assert not page.exists()


def test_folders_whose_names_give_the_same_link_stand_side_by_side(runs, tmp_path, probing):
    names = ["a b", "a-b", "\u65e5\u672c", "\u4e2d\u6587", "controls-a b"]
    for name in names:
        shutil.copytree(runs / "scores", tmp_path / name)
    page = tmp_path / "r.html"
    assert probing("report", *(tmp_path / name for name in names), "--out", page)[0] == 0
    found = re.findall(r'<section [^>]*id="(score-[^"]*)"', page.read_text("utf-8"))
    assert found == ["score-a-b", "score-a-b-2", "score-run", "score-run-2", "score-controls-a-b"]


def test_numbers_of_labels_give_names_that_none_before_has():
    assert number_anchors(["s", "s!", "s-2", "s 2", "t"]) == [1, 2, 2, 3, 1]


def test_tables_without_what_is_read_from_them_are_told_with_their_run(runs, tmp_path, probing):
    folder = tmp_path / "old"
    shutil.copytree(runs / "moved", folder)
    table = folder / "displacement.parquet"
    pd.read_parquet(table).drop(columns="margin_change").to_parquet(table)
    record = json.loads((folder / "run.json").read_text())
    record["sha256"]["displacement.parquet"] = hashlib.sha256(table.read_bytes()).hexdigest()
    record[SEAL] = seal(record)
    (folder / "run.json").write_text(json.dumps(record))
    status, _, err = probing("report", folder, "--out", tmp_path / "r.html")
    assert status == 1
    assert "old: its tables are not as this version writes and reads them (KeyError: 'margin_change')" in err
    assert not (tmp_path / "r.html").exists()


def test_a_scoring_without_finite_scores_has_no_suggested_filter(runs, tmp_path, probing):
    folder = tmp_path / "infinite"
    shutil.copytree(runs / "scores", folder)
    table = folder / "scores.parquet"
    pd.read_parquet(table).assign(ches_normalized=np.inf).to_parquet(table)
    record = json.loads((folder / "run.json").read_text())
    record["scores_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    record[SEAL] = seal(record)
    (folder / "run.json").write_text(json.dumps(record))
    assert probing("report", folder, "--out", tmp_path / "r.html")[0] == 0
    assert "--drop-highest" not in (tmp_path / "r.html").read_text("utf-8")


def test_labels_are_as_short_as_tells_runs_apart(tmp_path):
    assert label_runs([tmp_path / "a/moved", tmp_path / "b/moved"]) == ["a/moved", "b/moved"]
    assert label_runs([tmp_path / "moved"]) == ["moved"]
