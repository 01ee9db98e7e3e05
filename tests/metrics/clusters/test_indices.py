"""Each formula, of ingredients that are made here in the dumbest form, against its definition."""

import math

import numpy as np
import oracles
import pytest
import torch

from probing.metrics.clusters.indices import (
    alignment_quality_index,
    calinski_harabasz_index,
    davies_bouldin_index,
    dunn_centroid_index,
    dunn_index,
    least_gap,
    parts_of_aqi,
    silhouette_coefficients,
    welch_index,
    xie_beni_index,
)


class Ingredients:
    """What the indices are made of, for some points and labels 0 .. K - 1; one draw."""

    def __init__(self, points, labels):
        clusters = [points[labels == name] for name in range(labels.max() + 1)]
        centroids = np.stack([cluster.mean(axis=0) for cluster in clusters])
        apart = [np.linalg.norm(cluster - c, axis=1) for cluster, c in zip(clusters, centroids, strict=True)]
        self.counts = torch.tensor([[len(cluster) for cluster in clusters]], dtype=torch.float64)
        self.spreads = torch.tensor([[own.mean() for own in apart]])
        self.squares = torch.tensor([[(own**2).sum() for own in apart]])
        self.gaps = torch.from_numpy(((centroids[:, None] - centroids) ** 2).sum(axis=-1))[None]
        self.distances = np.linalg.norm(points[:, None] - points, axis=-1)
        same = labels[:, None] == labels
        self.least = torch.tensor([self.distances[~same].min()])
        self.greatest = torch.tensor([self.distances[same].max()])
        self.values = {
            "davies_bouldin": davies_bouldin_index(self.spreads, self.gaps),
            "dunn": dunn_index(self.least, self.greatest),
            "dunn_centroid": dunn_centroid_index(self.gaps, self.greatest**2),
            "calinski_harabasz": calinski_harabasz_index(self.counts, self.squares, self.gaps),
            "xie_beni": xie_beni_index(self.counts, self.squares, self.gaps),
            "welch": welch_index(self.counts, self.squares, self.gaps),
        }


def labelled(clusters, n=23, width=4):
    random = np.random.default_rng(clusters)
    labels = np.arange(n) % clusters
    return random.normal(size=(n, width)) + 2 * random.normal(size=(clusters, width))[labels], labels


@pytest.mark.parametrize("clusters", [2, 3, 5])
@pytest.mark.parametrize("name", ["davies_bouldin", "dunn", "dunn_centroid", "calinski_harabasz", "xie_beni", "welch"])
def test_every_formula_is_its_definition(name, clusters):
    points, labels = labelled(clusters)
    expected = getattr(oracles, name)(points.tolist(), labels.tolist())
    assert float(Ingredients(points, labels).values[name]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_the_mean_of_the_silhouette_coefficients_is_the_silhouette(clusters):
    points, labels = labelled(clusters)
    labels[4] = clusters  # a cluster of one point
    distances = torch.from_numpy(Ingredients(points, labels).distances)
    own = torch.from_numpy(labels)
    sums = [distances[:, own == name].sum(dim=1) for name in range(clusters + 1)]
    sizes = list(torch.bincount(own))
    found = silhouette_coefficients(sums, sizes, own, torch.ones(()))
    assert float(found.mean()) == pytest.approx(oracles.silhouette(points.tolist(), labels.tolist()), rel=1e-12)
    assert found[4] == 0


def test_copies_of_a_point_are_no_neighbours_of_it():
    points, labels = labelled(2)
    weights = np.random.default_rng(0).integers(0, 4, len(labels))
    counted, own = torch.from_numpy(weights).double(), torch.from_numpy(labels)
    distances = torch.from_numpy(Ingredients(points, labels).distances)
    sums = [distances[:, own == name] @ counted[own == name] for name in (0, 1)]
    sizes = [counted[own == name].sum() for name in (0, 1)]
    found = silhouette_coefficients(sums, sizes, own, counted)
    expected = oracles.silhouette(points.tolist(), labels.tolist(), weights.tolist())
    assert float((found * counted).sum() / counted.sum()) == pytest.approx(expected, rel=1e-12)


def test_draws_are_independent_of_each_other():
    one, other = Ingredients(*labelled(3)), Ingredients(*labelled(3, n=31))
    counts, spreads, squares, gaps = (
        torch.cat([getattr(each, name) for each in (one, other)]) for name in ("counts", "spreads", "squares", "gaps")
    )
    for name, found in {
        "davies_bouldin": davies_bouldin_index(spreads, gaps),
        "calinski_harabasz": calinski_harabasz_index(counts, squares, gaps),
        "xie_beni": xie_beni_index(counts, squares, gaps),
    }.items():
        assert found.tolist() == pytest.approx([float(one.values[name]), float(other.values[name])], rel=1e-14)
    assert least_gap(gaps).tolist() == [float(least_gap(one.gaps)), float(least_gap(other.gaps))]


def test_centroids_in_one_place_and_clusters_without_extent():
    ones, gaps = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, 2, dtype=torch.float64)
    assert davies_bouldin_index(ones, gaps).tolist() == [math.inf]
    assert davies_bouldin_index(0 * ones, gaps).tolist() == [math.inf]  # scikit-learn answers 0, the best there is
    assert xie_beni_index(ones, ones, gaps).tolist() == [math.inf]
    assert calinski_harabasz_index(2 * ones, ones, gaps).tolist() == [0]
    assert dunn_index(ones[0, :1], 0 * ones[0, :1]).isnan().all()
    assert dunn_centroid_index(gaps + 1, 0 * ones[0, :1]).isnan().all()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("paper", lambda db, di, ch, xb: 0.3 / xb + 0.7 * ch),
        ("size_free", lambda db, di, ch, xb: 0.3 / xb + 0.7 * ch / 20),
        ("dbs_dunn", lambda db, di, ch, xb: 0.3 / (1 + db) + 0.7 * di / (1 + di)),
    ],
)
def test_the_forms_of_the_alignment_quality_index(form, expected):
    values = Ingredients(*labelled(3)).values
    parts = {name: values[name] for name in parts_of_aqi(form)}
    found = float(alignment_quality_index(parts, form, 0.3, 23, 3))
    names = ("davies_bouldin", "dunn", "calinski_harabasz", "xie_beni")
    assert found == pytest.approx(expected(*(float(values[name]) for name in names)), rel=1e-14)
