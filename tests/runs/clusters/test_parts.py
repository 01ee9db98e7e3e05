from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probing.metrics.clusters import ALL_INDICES, aqi, cluster_indices
from probing.metrics.clusters.readings import DriftReadings, HeldOutReadings, PlaceReadings
from probing.runs.clusters import parts as clusters_parts
from probing.runs.clusters.parts import EQUAL, LEARNED, SPACES
from probing.runs.clusters.results import average_folds
from probing.runs.clusters.rows import Material, Rows, View
from probing.runs.common.results import CHOSEN

FOLDS = 3


class Given(Material):
    """States without a store behind them."""

    def __init__(self, layers, labels, units, folds):
        view = View("all", "", np.arange(len(labels)), labels.astype(np.int16), ["0", "1"])
        self.rows = Rows([], len(labels), labels.astype(str), units, folds, "", [view], {}, {}, {})
        self.config = SimpleNamespace(
            folds=FOLDS, permutations=19, resamples=30, seed=0, metric="euclidean", scaling="none", weight=0.5
        )
        self.layers, self.controls, self.device = layers, [], torch.device("cpu")
        self._relabelings = {}
        self.names, self.places = ["model"], [[str(number) for number in range(len(layers))]]

    def states(self, model, place, control=True):
        return self.layers[int(place)]


def given(layers, units=None):
    rows = np.arange(60)
    return Given(layers, rows % 2, rows if units is None else units, rows // 2 % FOLDS)


def parts_of(material):
    """Of every place, and of what is held out, by the names in part files."""
    places = [clusters_parts.describe_place(material, states, lambda share: None) for states in material.layers]
    held = clusters_parts.hold_out(material, 0, places)
    return [place.to_arrays() for place in places], held.to_arrays()


def constant(*odd):
    """One place for every label, but for some rows."""
    states = torch.ones(60, 8) * (torch.arange(60) % 2)[:, None]
    states[list(odd)] += 0.5
    return states


def test_a_place_whose_rows_differ_in_one_fold_alone_is_not_chosen_for_the_others():
    """Without that fold nothing lies within its clusters: no better index can be."""
    places, held = parts_of(given([torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), constant(0)]))
    assert np.isfinite(places[0]["train"]).all()
    assert np.isnan(places[1]["train"]).all()
    assert held["chosen"].tolist() == [0] * FOLDS
    assert held["layer_weights"][:, 1].tolist() == [0] * FOLDS


def test_a_place_whose_rows_differ_in_no_pair_that_was_drawn(monkeypatch):
    drawn = torch.tensor([[20, 22], [21, 23], [20, 21], [22, 23]]), torch.tensor([True, True, False, False])
    monkeypatch.setattr(clusters_parts, "sample_pairs", lambda *arguments: drawn)
    random = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    same = torch.ones(60, 8)
    same[[0, 2, 4]] += torch.arange(3.0)[:, None] + 1
    found = parts_of(given([random, same]))[1]
    alone = parts_of(given([random]))[1]
    assert found["layer_weights"].tolist() == [[1, 0]] * FOLDS
    for space in (LEARNED, EQUAL):
        # The scale of a space has no bearing on any index.
        assert found[f"{space}.values"] == pytest.approx(alone[f"{space}.values"], rel=1e-9)


def test_rows_of_one_unit_have_no_interval():
    """In every resample they come as often as each other: an interval of no width would say that all is certain."""
    points = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    for units, known in ((np.arange(60) // 30, True), (np.arange(60) % 2, False), (np.zeros(60, dtype=int), False)):
        material = given([points], units)
        arrays = clusters_parts.describe_place(material, points, lambda share: None).to_arrays()
        assert arrays["0.draws"].shape == (len(ALL_INDICES), 30)
        assert np.isfinite(arrays["0.draws"]).any() == known
        assert np.isfinite(arrays["0.values"]).all()
        assert np.isfinite(arrays["0.null"]).all()


def test_what_is_held_out_is_the_mean_of_the_folds():
    material = given([torch.randn(60, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    places, held = parts_of(material)
    folds = material.rows.folds
    series = average_folds(material, HeldOutReadings.from_arrays(held))
    for space in SPACES:
        assert np.isfinite(series["held out", "", space]["silhouette"].null).all()
    expected, indices = [], []
    for fold in range(FOLDS):
        scores = [place["train"][fold] for place in places]
        assert held["chosen"][fold] == int(np.argmax(scores))
        rows = np.flatnonzero(folds == fold)
        part = material.layers[int(np.argmax(scores))][rows]
        values = cluster_indices(part, material.rows.views[0].codes[rows], ALL_INDICES)
        expected.append([float(values[name]) for name in ALL_INDICES])
        indices.append(float(aqi(part, material.rows.views[0].codes[rows], "size_free")))
        rest = np.flatnonzero(folds != fold)
        for place, score in enumerate(scores):
            alone = aqi(material.layers[place][rest], material.rows.views[0].codes[rest], "size_free")
            assert score == pytest.approx(float(alone), rel=1e-5)
    assert held[f"{CHOSEN}.values"] == pytest.approx(np.array(expected), rel=1e-9)
    assert series["held out", "", CHOSEN]["aqi_size_free"].value == pytest.approx(np.mean(indices), rel=1e-9)


def test_the_names_in_a_part_file_are_those_of_folders_that_are_there():
    """A run that was interrupted under an earlier version goes on: its part files are read by these names."""
    places, held = parts_of(given([torch.randn(60, 8, generator=torch.Generator().manual_seed(0))]))
    kinds = ("values", "null", "draws", "sizes")
    assert set(places[0]) == {"silhouettes", "train", "norms", "without", *(f"0.{kind}" for kind in kinds)}
    assert set(held) == {"chosen", "layer_weights", "rows", *(f"{name}.{kind}" for name in SPACES for kind in kinds)}
    drift = {name: np.zeros(1) for name in ("shifts", "shift", "cka", "angles", "bures")}
    for arrays, kind in ((places[0], PlaceReadings), (held, HeldOutReadings), (drift, DriftReadings)):
        again = kind.from_arrays(arrays).to_arrays()
        assert again.keys() == arrays.keys()
        assert all(again[name] is values for name, values in arrays.items())
