import contextlib
import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from probing import Capture, Place, capture, cli, load
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt, UsageError
from probing.probes.prompts import PROBES
from probing.runs import capture as capturing
from probing.runs import probe as job
from probing.runs import probe_layers
from probing.runs.capture import CaptureConfig
from probing.runs.probe import ProbeConfig
from probing.store.probes import open_probes

WORDS = "near nearer never no yes always sorry help boat wood glue string paper answer".split()
FILES = {"results.parquet", "predictions.parquet", "probes.safetensors", "summary.json", "plots.html"}
QUICK = {"folds": 3, "refits": 3, "resamples": 50}


def make_rows(count, seed=0, first=0, words=(3, 9)):
    """Texts of random words; no label can be read from them."""
    generator = random.Random(seed)
    return [
        {
            "id": f"r{n}",
            "text": " ".join(generator.choice(WORDS) for _ in range(generator.randint(*words))) + f" {n}",
            "label": "ab"[n % 2],
            "category": f"c{n % 4}",
        }
        for n in range(first, first + count)
    ]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def shipped(count, split="train", first=0):
    rows = [json.loads(line) for line in Path(bundled_data("prompts")).read_text().splitlines()]
    rows = [row for row in rows if row["split"] == split]
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
    assert sum(report.facts["folds"]) == 40
    shown = pd.DataFrame(summary["tables"]["AUROC by place, held out"]).set_index("place")
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


def test_a_text_that_was_trained_on_is_not_fresh(bundled, caplog):
    folder, config, report = bundled
    rows = read(folder / "out", "predictions").set_index(["set", "id"])
    assert rows.loc[("fresh", "again"), "status"] == "not_fresh"
    assert rows.loc[("fresh", "none"), "status"] == "no_label"
    assert np.isnan(rows.loc[("fresh", "again"), "logistic"])
    assert report.facts["fresh"]["rows_by_status"] == {"ok": 20, "no_label": 1, "not_fresh": 1}


def test_saved_probes_say_the_same_of_fresh_rows(bundled):
    folder, config, report = bundled
    probes = open_probes(folder / "out" / "probes.safetensors")
    rows = [json.loads(line) for line in (folder / "fresh.jsonl").read_text().splitlines()]
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
    monkeypatch.setattr(probe_layers, "read_prompts", None)
    monkeypatch.setattr(probe_layers, "capture_into", None)
    again = job.run(config)
    assert {title: table.to_dict() for title, table in again.tables.items()}.keys() == report.tables.keys()
    assert content(folder / "out") == before
