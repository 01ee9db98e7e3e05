import csv
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from harness import (
    WORDS,
    as_options,
    count_shards,
    interrupt_when,
    note_calls,
    notes,
    override,
    phrase,
    read_lines,
    write,
)
from sklearn.metrics import roc_auc_score

from probing import Capture, capture, load
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt, UsageError
from probing.probes.prompts import PROBES
from probing.runs import capture as capturing
from probing.runs import probe as job
from probing.runs.capture import within
from probing.runs.capture.config import CaptureConfig
from probing.runs.common.datasets import read_labelled
from probing.runs.probe import data as probe_data
from probing.runs.probe import parts
from probing.runs.probe.config import ProbeConfig
from probing.store.activations import ActivationStore
from probing.store.probes import open_probes

FILES = {"results.parquet", "predictions.parquet", "probes.safetensors", "summary.json", "plots.html"}
QUICK = {"folds": 3, "refits": 3, "resamples": 50}


def make_rows(count, seed=0, first=0, words=(3, 9)):
    """Texts of random words; no label can be read from them."""
    generator = random.Random(seed)
    return [
        {
            "id": f"r{n}",
            "text": phrase(generator, *words) + f" {n}",
            "label": "ab"[n % 2],
            "category": f"c{n // 2 % 4}",
        }
        for n in range(first, first + count)
    ]


def shipped(count, split="train", first=0):
    rows = [row for row in read_lines(Path(bundled_data("prompts"))) if row["split"] == split]
    kinds = ([row for row in rows if row["label"] == label] for label in ("harmful", "harmless"))
    return [row for kind in kinds for row in random.Random(0).sample(kind, len(kind))[first : first + count // 2]]


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "texts.jsonl", make_rows(36))


@pytest.fixture
def config(model_folder, data, tmp_path):
    def make(**changes):
        values = {"model": str(model_folder), "data": str(data), "out": tmp_path / "out", "places": "resid_post:0..1"}
        if changes.get("store"):
            values.pop("model")
        return ProbeConfig(**(values | QUICK | changes))

    return make


def read(folder, name):
    return pd.read_parquet(folder / f"{name}.parquet")


def auroc(results, place, probe="logistic", name="held out"):
    where = (results["place"] == place) & (results["probe"] == probe) & (results["metric"] == "auroc")
    (value,) = results.loc[where & (results["set"] == name), "value"]
    return value


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """A run on the model that comes with the package, with fresh prompts, one of which is not."""
    folder = tmp_path_factory.mktemp("bundled")
    data = shipped(40)
    write(folder / "data.jsonl", data)
    again = {**data[0], "id": "again", "text": f"  {data[0]['text']} "}
    write(folder / "fresh.jsonl", [*shipped(20, "test"), again, {"id": "none", "text": "near", "label": None}])
    config = ProbeConfig(
        model="bundled",
        data=str(folder / "data.jsonl"),
        fresh=str(folder / "fresh.jsonl"),
        out=folder / "out",
        places="resid_post:all,final_norm,attn_out:1",
        over="template",
        chat=True,
        **QUICK,
    )
    return folder, config, job.run(config)


def test_all_files_say_the_same(bundled):
    folder, _, report = bundled
    results, summary = read(folder / "out", "results"), json.loads((folder / "out" / "summary.json").read_text())
    assert set(report.facts["sha256"]) == FILES
    assert {Path(path).name for path in report.facts["wrote"]} == {*FILES, "run.json"}
    places = summary["places"]
    assert set(results["place"]) == {*places, "chosen inside folds", "surface"}
    assert set(results["set"]) == {"held out", "fresh"}
    held = results[results["set"] == "held out"]
    assert len(held) == 2 * (3 * (len(places) + 1) + 1)
    assert len(results) - len(held) == 2 * (3 * len(places) + 1)
    assert (results["low"] <= results["value"]).all()
    assert (results["value"] <= results["high"]).all()
    assert set(report.facts["chosen"]) == set(PROBES)
    assert set(report.facts["best"].values()) <= set(places)
    assert report.facts["rows"] == sum(report.facts["folds"]) == 40
    assert report.facts["rows_positive"] == 20
    assert report.facts["positive"] == "harmless"
    assert report.facts["how"] == "packed (a sequence at a time), prompts shared"
    assert sum(report.facts["folds"]) == 40
    shown = pd.DataFrame(summary["tables"]["By place: AUROC, held out, positive = harmless"]).set_index("place")
    for place in places:
        assert shown.loc[place, "logistic"] == auroc(results, place)
        assert shown.loc[place, "lda fresh"] == auroc(results, place, "lda", "fresh")
    assert auroc(results, "chosen inside folds") > 0.95
    assert auroc(results, report.facts["best"]["logistic"], name="fresh") > 0.9
    assert (held["p_labels"] >= 0.25).all()


def test_the_area_follows_from_the_predictions(bundled):
    folder, _, report = bundled
    results, rows = read(folder / "out", "results"), read(folder / "out", "predictions")
    ok = rows[rows["status"] == "ok"]
    held, fresh = ok[ok["set"] == "held out"], ok[ok["set"] == "fresh"]
    assert fresh["fold"].isna().all()
    assert sorted(held["fold"].value_counts().tolist()) == sorted(report.facts["folds"])
    for probe in (*PROBES, "surface"):
        place = "surface" if probe == "surface" else "chosen inside folds"
        known = "logistic" if probe == "surface" else probe
        won = fought = 0.0
        for _, fold in held.groupby("fold"):
            fights = fold["label"].sum() * (~fold["label"]).sum()
            won += roc_auc_score(fold["label"].astype(bool), fold[probe]) * fights
            fought += fights
        assert auroc(results, place, known) == pytest.approx(won / fought)
        place = "surface" if probe == "surface" else report.facts["best"][probe]
        expected = roc_auc_score(fresh["label"].astype(bool), fresh[probe])
        assert auroc(results, place, known, "fresh") == pytest.approx(expected)


def test_a_text_that_was_trained_on_is_not_fresh(bundled):
    folder, _, report = bundled
    rows = read(folder / "out", "predictions").set_index(["set", "id"])
    assert rows.loc[("fresh", "again"), "status"] == "not_fresh"
    assert rows.loc[("fresh", "none"), "status"] == "no_label"
    assert np.isnan(rows.loc[("fresh", "again"), "logistic"])
    assert report.facts["fresh"]["rows_by_status"] == {"ok": 20, "no_label": 1, "not_fresh": 1}


def test_saved_probes_say_the_same_of_fresh_rows(bundled):
    folder, _, report = bundled
    probes = open_probes(folder / "out" / "probes.safetensors")
    rows = read_lines(folder / "fresh.jsonl")
    acts = capture(load("bundled"), rows, Capture(list(probes.places), "last", "template", chat=True))
    logits = read(folder / "out", "predictions")
    logits = logits[(logits["set"] == "fresh") & (logits["status"] == "ok")].set_index("id")
    for probe in PROBES:
        found = probes.probabilities(acts, probe)[:, list(map(str, probes.places)).index(report.facts["best"][probe])]
        found = pd.Series(found.numpy(), acts.ids)[logits.index]
        expected = torch.sigmoid(torch.tensor(logits[probe].to_numpy(dtype=float))).numpy()
        assert found.to_numpy() == pytest.approx(expected, abs=1e-4)


def content(folder):
    return {name: (folder / name).read_bytes() for name in FILES - {"plots.html"}}


def test_a_finished_run_is_not_made_again(bundled, monkeypatch):
    folder, config, report = bundled
    before = content(folder / "out")
    monkeypatch.setattr(parts, "fit_prompts", None)
    monkeypatch.setattr(within, "capture_into", None)
    again = job.run(config)
    assert {title: table.to_dict() for title, table in again.tables.items()}.keys() == report.tables.keys()
    assert content(folder / "out") == before


def test_other_options_or_rows_are_refused(config, data):
    job.run(config())
    with pytest.raises(SourceMismatch, match=r"options\.refits"):
        job.run(config(refits=4))
    with pytest.raises(SourceMismatch, match=r"options\.over"):
        job.run(config(over="content"))
    write(data, [{**row, "label": "ba"[at % 2]} for at, row in enumerate(make_rows(36))][:-1])
    with pytest.raises(SourceMismatch, match="prompts"):
        job.run(config())


def test_a_lost_file_is_named(config, tmp_path):
    job.run(config())
    (tmp_path / "out" / "predictions.parquet").unlink()
    with pytest.raises(StoreCorrupt, match=r"predictions\.parquet: gone or changed"):
        job.run(config())


def stored(model_folder, data, out, **changes):
    options = {"model": str(model_folder), "data": str(data), "out": out, "places": "resid_post:0..1"}
    capturing.run(CaptureConfig(**(options | changes)))
    return out


def test_a_store_gives_the_same(config, data, model_folder, tmp_path):
    fresh = write(tmp_path / "fresh.jsonl", make_rows(12, seed=1, first=100))
    stores = [stored(model_folder, path, tmp_path / name) for path, name in ((data, "seen"), (fresh, "new"))]
    job.run(config(fresh=str(fresh)))
    report = job.run(config(store=stores[0], fresh=str(fresh), fresh_store=stores[1], out=tmp_path / "other"))
    for name in ("results.parquet", "predictions.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert report.facts["fresh"]["rows_by_status"] == {"ok": 12}
    assert not (tmp_path / "other" / "states").exists()


def test_a_store_of_something_else(config, data, model_folder, tmp_path):
    store = stored(model_folder, data, tmp_path / "seen")
    rows = make_rows(36)
    turned = write(tmp_path / "turned.jsonl", [{**row, "label": "ba"[at % 2]} for at, row in enumerate(rows)])
    with pytest.raises(SourceMismatch, match=r"row 'r0' of .*turned.jsonl is not in it, .*36 of 36"):
        job.run(config(store=store, data=str(turned)))
    more = write(tmp_path / "more.jsonl", make_rows(37))
    with pytest.raises(SourceMismatch, match=r"row 'r3\d' of .*more.jsonl is not in it, .*1 of 37"):
        job.run(config(store=store, data=str(write(more, [*rows, {**rows[0], "id": "r37"}]))))
    tokens = stored(model_folder, data, tmp_path / "tokens", pooling="tokens")
    with pytest.raises(SourceMismatch, match="holds the states of every token"):
        job.run(config(store=tokens))
    fresh = write(tmp_path / "fresh.jsonl", make_rows(12, seed=1, first=100))
    mean = stored(model_folder, fresh, tmp_path / "mean", pooling="mean")
    with pytest.raises(SourceMismatch, match=r"mean: request .*'mean'"):
        job.run(config(store=store, fresh=str(fresh), fresh_store=mean))
    fewer = job.run(config(store=store, data=str(write(more, rows[:30]))))  # a store may hold more
    assert fewer.facts["rows_by_status"] == {"ok": 30}


def test_fresh_rows_of_one_label(config, data, tmp_path):
    rows = [row for row in make_rows(12, seed=1, first=100) if row["label"] == "a"]
    with pytest.raises(DataInvalid, match=r"fresh\.jsonl: 6 rows are fresh, and they must hold both labels"):
        job.run(config(fresh=str(write(tmp_path / "fresh.jsonl", rows))))
    with pytest.raises(DataInvalid, match="0 rows are fresh"):
        job.run(config(fresh=str(data), out=tmp_path / "again"))


def test_fresh_labels_are_those_of_the_data(config, data, tmp_path):
    """Another name for one of them would be taken for a no."""
    fresh = write(
        tmp_path / "fresh.jsonl", [{**row, "label": "bc"[n % 2]} for n, row in enumerate(make_rows(12, 1, 100))]
    )
    with pytest.raises(DataInvalid, match=r"fresh\.jsonl: row 'r101' has the label 'c', .*\('a', 'b'\)"):
        job.run(config(fresh=str(fresh)))
    assert job.run(config(fresh=str(fresh), positive="b")).facts["fresh"]["rows_by_status"] == {"ok": 12}


def test_a_label_that_goes_with_the_length(config, data, tmp_path):
    """Everything is right on held-out rows, the baseline too; not so on rows where length says nothing."""

    def rows(count, seed, first, long):
        short, far = make_rows(count, seed, first, (2, 5)), make_rows(count, seed, first, (12, 20))
        return [far[at] if long(at) else short[at] for at in range(count)]

    write(data, rows(36, 0, 0, lambda at: at % 2))
    fresh = write(tmp_path / "fresh.jsonl", rows(40, 1, 100, lambda at: at % 4 < 2))
    report = job.run(config(fresh=str(fresh), pooling="sum"))
    results = read(tmp_path / "out", "results")
    assert auroc(results, "surface") == 1
    assert auroc(results, "chosen inside folds") > 0.9
    assert auroc(results, "surface", name="fresh") == pytest.approx(0.5, abs=0.15)
    assert auroc(results, report.facts["best"]["logistic"], name="fresh") == pytest.approx(0.5, abs=0.2)
    assert "It is not clearly above what lengths and punctuation alone give (1.000)" in notes(report)
    assert "On fresh prompts it cannot be told from guessing." in notes(report)


def test_one_of_three_labels_is_yes(config, data, tmp_path):
    write(data, [{**row, "label": n % 3} for n, row in enumerate(make_rows(36))])
    report = job.run(config(positive="2"))
    assert report.facts["rows_positive"] == 12
    rows = read(tmp_path / "out", "predictions").set_index("id")
    assert [bool(rows.loc[f"r{n}", "label"]) for n in range(36)] == [n % 3 == 2 for n in range(36)]


@pytest.mark.parametrize(
    ("labels", "positive"), [((False, True), True), ((0, 1), 1), ((0.0, 1.0), 1), (("n", "y"), "y")]
)
def test_which_of_two_labels_is_yes(config, data, labels, positive):
    prompts = read_labelled(
        config(data=str(write(data, [{**row, "label": labels[n % 2]} for n, row in enumerate(make_rows(6))]))),
        str(data),
    )[1]
    found = probe_data.positive_label(config(), "data", prompts)
    assert (found, type(found)) == (labels[1], type(labels[1]))
    assert found == positive


def test_a_truth_value_is_named_as_json_spells_it(config, data):
    rows = [{**row, "label": n % 2 == 0} for n, row in enumerate(make_rows(6))]
    named = config(data=str(write(data, rows)), positive="false")
    assert probe_data.positive_label(named, "data", read_labelled(named, str(data))[1]) is False


def test_too_few_groups_are_found_before_anything_is_captured(config, data, tmp_path):
    rows = [{**row, "text": f"near {n % 2}"} for n, row in enumerate(make_rows(36))]
    with pytest.raises(DataInvalid, match="make 2 groups"):
        job.run(config(data=str(write(data, rows))))
    assert not (tmp_path / "out").exists()


def test_categories_stay_whole(config, tmp_path):
    report = job.run(config(split_by="category"))
    assert report.facts["groups"] == 4
    rows = read(tmp_path / "out", "predictions")
    assert (rows.groupby("category")["fold"].nunique() == 1).all()


def test_any_column_can_be_split_by(config, data, tmp_path):
    write(data, [{**row, "who": n // 5} for n, row in enumerate(make_rows(36))])
    job.run(config(split_by="who"))
    folds = read(tmp_path / "out", "predictions").set_index("id")["fold"]
    assert all(len({folds[f"r{n}"] for n in range(36) if n // 5 == who}) == 1 for who in range(8))


def test_equal_texts_stay_together_whatever_their_labels(config, data, tmp_path):
    rows = make_rows(36)
    twice = [{**row, "id": f"d{n}", "label": "ba"[n % 2], "text": f" {row['text']}"} for n, row in enumerate(rows[:6])]
    write(data, [*rows, *twice])
    report = job.run(config())
    assert report.facts["groups"] == 36
    folds = read(tmp_path / "out", "predictions").set_index("id")["fold"]
    assert all(folds[f"r{n}"] == folds[f"d{n}"] for n in range(6))
    null = read(tmp_path / "out", "results").query("place == 'resid_post:0' and metric == 'auroc'")
    assert (null["labels_low"] < null["labels_high"]).all()


def test_the_two_responses_of_a_pair_are_rows_of_one_unit(config, data, tmp_path, monkeypatch):
    seen = []
    plain = parts.fit_prompts

    def spied(states, rows, *rest, **options):
        seen.append(rows)
        return plain(states, rows, *rest, **options)

    monkeypatch.setattr(parts, "fit_prompts", spied)
    generator = random.Random(0)
    write(
        data,
        [
            {"id": f"p{n}", "prompt": f"Is it ok {n}?", "chosen": f" {generator.choice(WORDS)}", "rejected": " x y z"}
            for n in range(15)
        ],
    )
    report = job.run(config(positive="chosen"))
    assert report.facts["rows"] == 30
    assert report.facts["groups"] == 15
    folds = read(tmp_path / "out", "predictions").set_index("id")["fold"]
    assert all(folds[f"p{n}#chosen"] == folds[f"p{n}#rejected"] for n in range(15))
    drawn = seen[0].labelings(20, 0)
    assert (drawn[:, 0::2] != drawn[:, 1::2]).all()
    assert (drawn[1:] != drawn[0]).any()
    with pytest.raises(UsageError, match="preference pairs can be split by text only"):
        job.run(config(split_by="prompt", out=tmp_path / "other"))


def test_rows_without_a_label_are_left_out_and_counted(config, data, tmp_path):
    rows = make_rows(36)
    for n, label in ((0, None), (1, float("nan")), (2, "")):
        rows[n]["label"] = label
    report = job.run(config(data=str(write(data, [*rows, {"id": "blank", "text": " ", "label": "a"}]))))
    assert report.facts["rows_by_status"] == {"ok": 33, "empty_text": 1, "no_label": 3}
    found = read(tmp_path / "out", "predictions").set_index("id")
    assert found["status"][["r0", "r1", "r2", "blank", "r3"]].tolist() == [*["no_label"] * 3, "empty_text", "ok"]
    assert found["logistic"].isna().sum() == 4


def test_a_place_where_all_rows_are_the_same(config, data, caplog):
    write(data, [{**row, "text": row["text"] + " boat."} for row in make_rows(36)])
    report = job.run(config(places="resid_pre:0,resid_post:0"))
    assert report.facts["places"] == ["resid_post:0"]
    assert list(report.facts["skipped_places"]) == ["resid_pre:0"]
    assert "resid_pre:0 is left out: the states of all rows are the same there" in caplog.text


def test_a_row_of_extreme_norm_is_named(config, monkeypatch):
    plain = ActivationStore.read

    def stretched(store, place, *rest):
        states = plain(store, place, *rest).clone()
        states[6] *= 24_000 / 42
        return states

    assert "norm" not in notes(job.run(config(places="resid_post:1"))).lower()
    monkeypatch.setattr(ActivationStore, "read", stretched)
    report = job.run(config(places="resid_post:1", seed=1, out=config().out.parent / "other"))
    (row,) = report.tables["Places where some rows have a norm far above the others"].to_dict("records")
    assert (row["place"], row["rows"], row["ids"]) == ("resid_post:1", 1, "r6")
    assert row["largest norm"] > 100 * row["median norm"]
    assert "resid_post:1: 1 row has a norm of up to" in notes(report)
    assert "and can decide where a probe lies" in notes(report)


def test_texts_that_all_look_the_same(config, data, tmp_path):
    """Lengths and punctuation tell nothing then: a half."""
    generator = random.Random(0)
    letters = ["".join(generator.choice("abcdefgh") for _ in range(12)) for _ in range(30)]
    fresh = write(tmp_path / "fresh.jsonl", make_rows(8, first=100))
    write(data, [{"text": text, "label": n % 2} for n, text in enumerate(letters)])
    write(fresh, [{**row, "label": n % 2} for n, row in enumerate(make_rows(8, first=100))])
    job.run(config(fresh=str(fresh)))
    results = read(tmp_path / "out", "results")
    assert auroc(results, "surface") == auroc(results, "surface", name="fresh") == 0.5
    assert np.isfinite(auroc(results, "chosen inside folds"))


def test_one_text_that_looks_different(config, data, tmp_path):
    generator = random.Random(0)
    letters = ["".join(generator.choice("abcdefgh") for _ in range(12)) for _ in range(30)]
    write(data, [{"text": text + (".!" if n == 3 else ""), "label": n % 2} for n, text in enumerate(letters)])
    job.run(config())
    assert 0.3 < auroc(read(tmp_path / "out", "results"), "surface") < 0.7


def test_rare_labels(config, data):
    write(data, [{**row, "label": n % 9 == 0} for n, row in enumerate(make_rows(36))])
    report = job.run(config(seed=1))
    assert report.facts["rows_positive"] == 4
    assert sum("positive = True" in title for title in report.tables) == 2


def test_folds_of_one_label_each_cannot_be_compared(config, data):
    write(data, [{**row, "label": n < 18, "category": n // 6} for n, row in enumerate(make_rows(36))])
    with pytest.raises(DataInvalid, match="every fold holds rows of one label only"):
        job.run(config(split_by="category", folds=6))


def test_as_few_rows_as_there_can_be(config, data, tmp_path):
    write(data, make_rows(6))
    for seed in range(5):
        report = job.run(config(seed=seed, out=tmp_path / str(seed)))
        assert report.facts["folds"] == [2, 2, 2]


def test_folds_hold_the_labels_alike(config, data, tmp_path):
    write(data, [{**row, "label": n % 4 == 0} for n, row in enumerate(make_rows(36))])
    for seed in range(3):
        job.run(config(seed=seed, out=tmp_path / str(seed)))
        found = read(tmp_path / str(seed), "predictions")
        assert found.groupby("fold")["label"].sum().tolist() == [3, 3, 3]


def test_an_unfinished_run_with_other_folds_is_refused_and_a_finished_one_is_read(config, tmp_path):
    """Folds of earlier versions paid no heed to labels; their records do not say how folds were made."""
    report = job.run(config())
    record = tmp_path / "out" / "run.json"
    facts = json.loads(record.read_text())
    assert facts["identity"].pop("folds") == "stratified by label"
    del facts["record_sha256"]
    record.write_text(json.dumps(facts))
    assert job.run(config()).tables.keys() == report.tables.keys()
    record.write_text(json.dumps(facts | {"status": "running"}))
    with pytest.raises(SourceMismatch, match="folds was None, is stratified by label"):
        job.run(config())


def test_strange_texts_and_ids(config, tmp_path):
    rows = [
        {
            "id": f"{'ü☃' * 2000}{n}",
            "text": f"日本語 ☃ {n} \u0000",
            "label": ["да", "нет"][n % 2],
            "category": "\U0001f600",
        }
        for n in range(30)
    ]
    report = job.run(config(data=str(write(tmp_path / "x.jsonl.gz", rows)), places="final_norm,attn_out:1"))
    assert report.facts["positive"] == "нет"
    assert read(tmp_path / "out", "predictions")["id"].tolist() == [row["id"] for row in rows]


def test_a_table_of_conversations_in_csv(config, tmp_path):
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text", "label", "category"])
        writer.writeheader()
        for row in make_rows(30):
            writer.writerow({**row, "text": json.dumps([{"role": "user", "content": row["text"]}])})
        writer.writerow({"id": "x", "text": "near", "label": ""})
    report = job.run(config(data=str(path), pooling="mean"))
    assert report.facts["rows_by_status"] == {"ok": 30, "no_label": 1}


BAD_DATA = {
    "one label": (
        [{**row, "label": "a"} for row in make_rows(36)],
        [],
        "a probe tells two apart",
    ),
    "one label, named": ([{**row, "label": "a"} for row in make_rows(36)], ["--positive", "a"], "a probe needs two"),
    "three labels": ([{**row, "label": n % 3} for n, row in enumerate(make_rows(36))], [], "(0, 1, 2)"),
    "no label": ([{"text": row["text"]} for row in make_rows(36)], [], "no row has a label; name their column with"),
    "groups": (
        [{**row, "text": f"near {n % 2}"} for n, row in enumerate(make_rows(36))],
        [],
        "make 2 groups that share",
    ),
    "categories": (
        make_rows(36),
        ["--split-by", "category", "--folds", "5"],
        "4 groups that share neither a text nor a category",
    ),
    "all too long": (make_rows(36), ["--max-length", "2"], "no row could be read"),
    "one read": (
        [{**row, "text": f"{row['text'] if n % 2 else ' '}"} for n, row in enumerate(make_rows(36))],
        [],
        "all 18 rows that could be read have the same label",
    ),
    "same states": (
        [{**row, "text": row["text"] + " boat."} for row in make_rows(36)],
        ["--places", "resid_pre:0"],
        "no place can be probed; resid_pre:0: the states of all rows are the same there",
    ),
    "blank to split by": (
        [{**row, "object": "o" if n else " "} for n, row in enumerate(make_rows(36))],
        ["--split-by", "object"],
        "row 'r0' has no object to split by",
    ),
    "no category": (
        [{**row, "category": "c" if n else None} for n, row in enumerate(make_rows(36))],
        ["--split-by", "category"],
        "row 'r0' has no category to split by",
    ),
    "unknown positive": (make_rows(36), ["--positive", "c"], "no row has the label 'c'; there are a, b"),
    "unknown column": (make_rows(36), ["--split-by", "who"], "there is no column 'who' to split by; give 'text' or"),
    "label column": (make_rows(36), ["--label-column", "kind"], "there is no column 'kind'"),
    "span": (make_rows(36), ["--over", "span"], "give its folder as --store"),
    "model and store": (make_rows(36), ["--store", "x"], "give one of --model and --store"),
    "fresh store": (make_rows(36), ["--fresh-store", "x"], "--fresh-store belongs to --store and --fresh together"),
    "folds": (make_rows(36), ["--folds", "2"], "folds must be at least 3"),
    "refits": (make_rows(36), ["--refits", "0"], "refits must be at least 1"),
    "penalty": (make_rows(36), ["--inverse-penalty", "0"], "--inverse-penalty must be above 0"),
    "place": (make_rows(36), ["--places", "resid_mid:1"], "'resid_mid' is no place in a model"),
    "layer": (make_rows(36), ["--places", "resid_post:7"], "has 3 layers, 0 to 2"),
    "missing file": (make_rows(36), ["--data", "missing.jsonl"], "no such file"),
    "missing fresh": (make_rows(36), ["--fresh", "missing.jsonl"], "no such file"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_input_leaves_with_2_and_a_reason(probing, model_folder, data, tmp_path, case):
    rows, arguments, message = BAD_DATA[case]
    values = {"model": model_folder, "data": write(data, rows), "out": tmp_path / "out", "places": "resid_post:0"}
    options = as_options(values | QUICK)
    status, _, errors = probing("probe", *override(options, arguments))
    assert status == 2
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors


def test_neither_model_nor_store(probing, data, tmp_path):
    status, _, errors = probing("probe", "--data", data, "--out", tmp_path / "out")
    assert status == 2
    assert "give one of --model and --store" in errors
    status, _, errors = probing("probe", "--data", data, "--out", tmp_path / "out", "--store", tmp_path / "none")
    assert status == 2


def test_an_interrupted_run_ends_in_the_same_bytes(config, tmp_path, monkeypatch):
    options = {"places": "resid_post:all,attn_out:all"}
    out = tmp_path / "stopped"
    job.run(config(**options))
    with monkeypatch.context() as patch:
        interrupt_when(patch, lambda: count_shards(out) == 2)
        with pytest.raises(KeyboardInterrupt):
            job.run(config(out=out, **options))
    assert count_shards(out) == 2
    made = note_calls(monkeypatch, parts, "fit_prompts")
    job.run(config(out=out, **options))
    assert len(made) == 6 + 1 - 2  # of six places and of the surface of the texts
    assert content(out) == content(tmp_path / "out")
    assert count_shards(out) == 0
