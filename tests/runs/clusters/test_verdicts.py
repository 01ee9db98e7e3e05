"""What is said of the labels, where it is known of the states how they differ."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from harness import notes, phrase, write
from sklearn.metrics import silhouette_score

from probing.report.columns import name_columns
from probing.runs import clusters as job
from probing.runs.clusters.config import ClustersConfig
from probing.store.activations import ActivationStore

ROWS, WIDTH = 60, 12


def noise(seed=0):
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    """Run the job with other states in place of those that the model gives; labels "a", "b", ... take turns."""
    generator, plain = random.Random(0), ActivationStore.read

    def make(states, labels="ab", **changes):
        rows = [
            {"id": f"r{n}", "text": phrase(generator, 3, 9) + f" {n}", "label": labels[n % len(labels)]}
            for n in range(ROWS)
        ]

        def replaced(store, place, *rest):
            read = plain(store, place, *rest)
            found = read.new_zeros(read.shape).float()
            found[:, :WIDTH] = states
            return found

        monkeypatch.setattr(ActivationStore, "read", replaced)
        options = {"folds": 3, "permutations": 199, "resamples": 100, "tsne": False, "places": "resid_post:0"}
        data = write(tmp_path / "rows.jsonl", rows)
        options |= {"model": str(model_folder), "data": str(data), "out": tmp_path / "out"} | changes
        return job.run(ClustersConfig(**options)), pd.read_parquet(tmp_path / "out" / "results.parquet")

    return make


def of(results, metric, column="value"):
    (value,) = results.loc[(results["set"] == "all") & (results["metric"] == metric), column]
    return value


def held_out(report):
    return next(table for title, table in report.tables.items() if title.startswith("Held out"))


def test_a_difference_of_spread_is_none_of_place(run):
    """A common centre, standard deviations 1 and 3: the silhouette is far above that of permuted labels."""
    report, results = run(noise(4) * torch.tensor([1.0, 3.0]).repeat(ROWS // 2)[:, None])
    assert of(results, "silhouette", "p_labels") == 1 / 200
    assert of(results, "welch", "p_labels") > 0.05
    assert "the labels lie further apart" not in notes(report)
    assert "what differs is how far the rows of a label spread" in notes(report)


def test_centres_that_lie_apart(run):
    states = noise()
    states[1::2, 0] += 3
    report, results = run(states)
    assert of(results, "welch", "p_labels") == 1 / 200
    assert "the labels lie further apart than permuted ones" in notes(report)
    assert "centres p 0.005" in notes(report)
    assert held_out(report)["centres p"].tolist() == pytest.approx([1 / 200] * 3)


def test_p_values_at_their_floor_say_so(run):
    """With 19 permutations none can be below .05, and .05 is not what the test found."""
    states = noise()
    states[1::2, 0] += 6
    report, _ = run(states, permutations=19)
    by_place = next(table for title, table in report.tables.items() if title.startswith("By place"))
    marked = "<= 0.050"
    assert held_out(report)["silhouette p"].tolist() == held_out(report)["centres p"].tolist() == [marked] * 3
    assert by_place["silhouette p over places"].tolist() == by_place["centres p over places"].tolist() == [marked]
    assert "No p-value can be below 0.050 with 19 permutations" in notes(report)


def test_nothing(run):
    report, _ = run(noise(1))
    assert "the labels lie no further apart than permuted ones" in notes(report)


def test_a_small_distance_has_one_verdict_beside_its_interval(run):
    """The centres are apart by the test, and the interval of their distance reaches 0: the note says both."""
    states = noise(2)
    states[1::2, 0] += 1.1
    report, results = run(states, folds=20)  # too few rows of each label in a fold, so there are no folds
    assert of(results, "welch", "p_labels") <= 0.05
    assert of(results, "calinski_harabasz", "low") == 0
    assert "How far cannot be said with so few rows: the interval of the corrected distance reaches 0" in notes(report)


def test_a_row_of_extreme_norm_is_named_with_the_value_without_it(run):
    states = 10 * noise()
    states[1::2, 0] += 60
    states[6] *= 24_000 / states[6].norm()
    report, _ = run(states)
    table = report.tables["Places where some rows have a norm far above the others"]
    assert table["ids"].tolist() == ["r6"]
    named = "model place rows ids largest_norm median_norm silhouette silhouette_without".split()
    assert list(name_columns(table.columns)) == [*named, "aqi_size_free", "aqi_size_free_without"]
    assert table["largest norm"].tolist() == pytest.approx([24_000])
    others, labels = np.arange(ROWS) != 6, np.arange(ROWS) % 2
    assert table["silhouette without"].tolist() == pytest.approx([silhouette_score(states[others], labels[others])])
    assert table["silhouette"].tolist() == pytest.approx([silhouette_score(states, labels)], rel=1e-5)
    assert "1 row has a norm of up to 2.4e+04" in notes(report)


def test_three_clusters_have_no_interval_of_the_indices_of_one_pair(run):
    report, results = run(noise(), labels="abc")
    for metric in ("davies_bouldin", "xie_beni", "aqi", "aqi_size_free"):
        assert np.isnan(of(results, metric, "low"))
        assert np.isnan(of(results, metric, "high"))
        assert np.isfinite(of(results, metric))
    assert np.isfinite(of(results, "calinski_harabasz", "low"))
    assert "have no interval here: they are of one pair of clusters" in notes(report)
    assert set(held_out(report)["corrected 95 %"]) == {"-"}
