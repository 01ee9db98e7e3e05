import math

import numpy as np
import oracles
import pytest
import torch
from scipy import stats

from probing.metrics.clusters import ALL_INDICES, INDICES, LOWER_IS_BETTER, cluster_indices, distance_sums
from probing.metrics.clusters import draws as draws_module
from probing.metrics.clusters import extremes as pair_extremes
from probing.metrics.clusters import tiles as pair_tiles
from probing.metrics.clusters.draws import measure_clusters
from probing.metrics.clusters.indices import alignment_quality_index
from probing.metrics.clusters.intervals import debias, debias_difference
from probing.metrics.clusters.preparation import prepare
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.permutation import p_value, permute_labels


def blobs(clusters, n, width, seed=0, apart=0.7):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % clusters
    centers = torch.randn(clusters, width, generator=generator) * apart
    return torch.randn(n, width, generator=generator) + centers[labels], labels


def relabelled(labels, draws, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(draws)], dim=1)


def in_order(grouped, columns):
    return columns[grouped.order].to(torch.int16)


def weights_of(n, draws, seed=0):
    return torch.from_numpy(draw_bootstrap_weights(np.arange(n), draws, seed).T.copy()).to(torch.int16)


@pytest.fixture(params=["whole", "in parts", "across"])
def parts(request, monkeypatch):
    """With small tiles (also across clusters), several passes and lists that decide little, or with none of that."""
    if request.param == "across":
        monkeypatch.setattr(pair_tiles, "MANY_CLUSTERS", 1)
    if request.param != "whole":
        for module in (pair_tiles, pair_extremes):
            monkeypatch.setattr(module, "TILE_ROWS", 7)
        monkeypatch.setattr(pair_tiles, "TILE_COLUMNS", 11)
        monkeypatch.setattr(draws_module, "BUDGET", {"cpu": 4 * 60 * 7})
        monkeypatch.setattr(distance_sums, "CACHED", {"cpu": 4 * 12 * 7})
        monkeypatch.setattr(draws_module, "DRAWS_AT_ONCE", 4)
        monkeypatch.setattr(pair_extremes, "DRAWS_AT_ONCE", 3)
        monkeypatch.setattr(pair_extremes, "LEAST_PAIRS", 1)
        monkeypatch.setattr(pair_extremes, "PAIRS_OF_A_POINT", 0)
        monkeypatch.setattr(pair_extremes, "PAIRS_AT_ONCE", 2)
    return request.param


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("clusters", [2, 3, 6])
def test_other_labels_are_as_if_read_alone(parts, clusters, metric):
    points, labels = blobs(clusters, 60, 5)
    grouped = prepare(points, labels, clusters, metric)
    drawn = relabelled(labels, 12)
    found = measure_clusters(grouped, ALL_INDICES, in_order(grouped, drawn))
    for draw in range(12):
        alone = cluster_indices(points.double(), drawn[:, draw], ALL_INDICES, metric)
        for name in ALL_INDICES:
            close = pytest.approx(float(alone[name]), rel=2e-5, abs=1e-6)
            assert float(found.null[name][draw]) == close, name


@pytest.mark.parametrize("clusters", [2, 3, 6])
def test_resamples_are_as_if_points_were_repeated(parts, clusters):
    points, labels = blobs(clusters, 60, 5)
    grouped = prepare(points, labels, clusters)
    weights = weights_of(60, 12)
    found = measure_clusters(grouped, ALL_INDICES, None, in_order(grouped, weights))
    assert found.sizes.tolist() == [60] * 12
    for draw in range(12):
        repeated = torch.arange(60).repeat_interleave(weights[:, draw].long())
        alone = cluster_indices(points.double()[repeated], labels[repeated], ALL_INDICES)
        alone["silhouette"] = oracles.silhouette(points.tolist(), labels.tolist(), weights[:, draw].tolist())
        for name in ALL_INDICES:
            close = pytest.approx(float(alone[name]), rel=2e-5, abs=1e-6)
            assert float(found.draws[name][draw]) == close, name


def test_resamples_of_units_of_unequal_size(parts):
    """They have more rows or fewer than there are."""
    points, labels = blobs(2, 40, 4)
    grouped = prepare(points, labels, 2)
    units = np.where(np.arange(40) < 12, 0, np.arange(40))
    weights = torch.from_numpy(draw_bootstrap_weights(units, 6).T.copy()).to(torch.int16)
    found = measure_clusters(grouped, ALL_INDICES, None, in_order(grouped, weights))
    assert found.sizes.tolist() == weights.sum(dim=0).tolist()
    assert len(set(found.sizes.tolist())) > 1
    for draw in range(6):
        repeated = torch.arange(40).repeat_interleave(weights[:, draw].long())
        alone = cluster_indices(points.double()[repeated], labels[repeated], ALL_INDICES)
        alone["silhouette"] = oracles.silhouette(points.tolist(), labels.tolist(), weights[:, draw].tolist())
        for name in ALL_INDICES:
            close = pytest.approx(float(alone[name]), rel=2e-5, abs=1e-6)
            assert float(found.draws[name][draw]) == close, name


@pytest.mark.parametrize("clusters", [2, 3])
def test_draws_of_clusters_of_unequal_size_that_fill_more_than_a_tile(clusters):
    points, _ = blobs(2, 4700, 3)
    labels = (torch.arange(4700) >= 4400).long()
    labels[:2] = clusters - 1
    labels[4690:] = clusters - 1
    points = points + labels[:, None] + 5
    grouped = prepare(points, labels, clusters)
    drawn, weights = relabelled(labels, 2), weights_of(4700, 2)
    names = ("davies_bouldin", "calinski_harabasz", "xie_beni", "dunn_centroid")
    found = measure_clusters(grouped, names, in_order(grouped, drawn), in_order(grouped, weights))
    for draw in range(2):
        repeated = torch.arange(4700).repeat_interleave(weights[:, draw].long())
        null = cluster_indices(points.double(), drawn[:, draw], names)
        again = cluster_indices(points.double()[repeated], labels[repeated], names)
        for name in names:
            assert float(found.null[name][draw]) == pytest.approx(float(null[name]), rel=1e-3), name
            assert float(found.draws[name][draw]) == pytest.approx(float(again[name]), rel=1e-4), name


def test_both_at_once_and_the_values_themselves(parts):
    points, labels = blobs(3, 60, 5)
    grouped = prepare(points, labels, 3)
    drawn, weights = in_order(grouped, relabelled(labels, 5)), in_order(grouped, weights_of(60, 4))
    both = measure_clusters(grouped, ALL_INDICES, drawn, weights)
    plain = measure_clusters(grouped, ALL_INDICES)
    alone = measure_clusters(grouped, ALL_INDICES, drawn), measure_clusters(grouped, ALL_INDICES, None, weights)
    for name in ALL_INDICES:
        assert both.values[name].tolist() == plain.values[name].tolist()
        assert len(plain.null[name]) == len(plain.draws[name]) == 0
        assert both.null[name].tolist() == pytest.approx(alone[0].null[name].tolist(), rel=1e-6)
        assert both.draws[name].tolist() == pytest.approx(alone[1].draws[name].tolist(), rel=1e-6)
    same = in_order(grouped, labels[:, None]), torch.ones((60, 1), dtype=torch.int16)
    unchanged = measure_clusters(grouped, ALL_INDICES, *same)
    for name in ALL_INDICES:
        assert float(unchanged.null[name]) == pytest.approx(float(plain.values[name]), rel=1e-5)
        assert float(unchanged.draws[name]) == pytest.approx(float(plain.values[name]), rel=1e-5)


def test_silhouettes_of_points():
    points, labels = blobs(2, 40, 3)
    grouped = prepare(points, labels, 2)
    found = measure_clusters(grouped, INDICES)
    assert float(found.silhouettes.mean()) == pytest.approx(float(found.values["silhouette"]))
    at = 17
    row = int(grouped.order[at])
    apart = (points.double() - points[row].double()).norm(dim=1)
    own, other = apart[labels == labels[row]].sum() / 19, apart[labels != labels[row]].mean()
    assert float(found.silhouettes[at]) == pytest.approx(float((other - own) / torch.maximum(own, other)))


def test_a_draw_without_a_cluster_has_no_index():
    points, labels = blobs(2, 20, 3)
    grouped = prepare(points, labels, 2)
    weights = torch.ones((20, 4), dtype=torch.int16)
    weights[10:, 1] = 0  # in the order of the clusters: the second is gone
    weights[:, 2] = 0
    weights[[3, 15], 2] = 4  # copies of one point of each: nothing lies within
    weights[:, 3] = 0
    found = measure_clusters(grouped, ALL_INDICES, None, weights)
    for name in ALL_INDICES:
        assert math.isfinite(found.draws[name][0])
        assert found.draws[name][1:].isnan().all(), name


@pytest.mark.parametrize("kind", ["resamples", "relabelings"])
def test_an_outlier_or_rows_of_one_text_cost_no_further_pass(monkeypatch, kind):
    """The pairs of an outlier are the farthest of all, and those of a text that comes often the closest."""
    points, labels = blobs(2, 300, 5)
    points[7] *= 100
    points[labels == 1] += 1
    units = np.arange(300)
    if kind == "relabelings":
        units[:] = np.arange(300) // 5
        labels = torch.from_numpy(units % 2)
        points = points.roll(3, 0) * 0.01 + torch.randn(60, 5, generator=torch.Generator().manual_seed(1))[units]
    grouped = prepare(points, labels, 2)
    alone = []
    monkeypatch.setattr(pair_extremes, "_decide_alone", lambda *arguments: alone.append(1) or math.nan)
    drawn = torch.from_numpy(permute_labels(labels.numpy(), units, 100).T.copy())
    given = {"relabelings": (in_order(grouped, drawn),), "resamples": (None, in_order(grouped, weights_of(300, 100)))}
    measure_clusters(grouped, ("dunn",), *given[kind])
    assert not alone


def test_labels_that_only_change_names_are_as_good_as_they_were():
    """With few units they come often; float32 leaves few digits of clusters that lie far apart."""
    points, labels = blobs(2, 40, 8)
    points = points * 1e-4 + labels[:, None]
    grouped = prepare(points, labels, 2)
    drawn = torch.stack((labels, 1 - labels, labels.roll(2), labels.flip(0).roll(1), torch.zeros_like(labels)), dim=1)
    drawn[:2, 2] = 1 - drawn[:2, 2]
    found = measure_clusters(grouped, ALL_INDICES, in_order(grouped, drawn))
    for name in ALL_INDICES:
        value, null = float(found.values[name]), found.null[name].tolist()
        assert null[0] == null[1] == null[3] == value, name
        assert null[2] != value, name
        assert math.isnan(null[4]), name


def test_a_rare_cluster_beyond_the_lists(monkeypatch):
    """The closest pairs of all seldom hold one of its two points."""
    monkeypatch.setattr(pair_extremes, "MOST_PAIRS", 20)
    points, labels = blobs(2, 80, 4)
    labels = torch.zeros(80, dtype=torch.long)
    labels[:2] = 1
    grouped = prepare(points, labels, 2)
    drawn = relabelled(labels, 6)
    found = measure_clusters(grouped, ("dunn",), in_order(grouped, drawn))
    for draw in range(6):
        assert float(found.null["dunn"][draw]) == pytest.approx(float(cluster_indices(points, drawn[:, draw])["dunn"]))


def test_points_that_are_far_from_others():
    """Two clusters whose spread is a millionth of their distance."""
    points, labels = blobs(2, 40, 3)
    points = points.double() + 2.0**20 * labels[:, None]
    grouped = prepare(points, labels, 2)
    weights = weights_of(40, 5)
    found = measure_clusters(grouped, ALL_INDICES, None, in_order(grouped, weights))
    for draw in range(5):
        repeated = torch.arange(40).repeat_interleave(weights[:, draw].long())
        alone = cluster_indices(points[repeated], labels[repeated], ALL_INDICES)
        for name in ("davies_bouldin", "calinski_harabasz", "xie_beni", "dunn", "dunn_centroid"):
            assert float(found.draws[name][draw]) == pytest.approx(float(alone[name]), rel=2e-5), name


def test_progress_goes_to_its_end(monkeypatch):
    monkeypatch.setattr(draws_module, "BUDGET", {"cpu": 4 * 60 * 7})
    points, labels = blobs(3, 60, 5)
    grouped = prepare(points, labels, 3)
    shares = []
    measure_clusters(grouped, INDICES, in_order(grouped, relabelled(labels, 20)), report=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert min(shares) < 0.5


def test_without_a_difference_p_values_are_uniform():
    """Ties, which Dunn's index has many of, are broken by chance here; counted in full they make p larger."""
    chance = np.random.default_rng(0)
    found = {name: [] for name in INDICES}
    for seed in range(200):
        points = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
        labels = (torch.arange(30) < 12).long()
        grouped = prepare(points, labels, 2)
        read = measure_clusters(grouped, INDICES, in_order(grouped, relabelled(labels, 99, seed)))
        for name, values in found.items():
            value, null = float(read.values[name]), read.null[name].numpy()
            sign = -1 if name in LOWER_IS_BETTER else 1
            ties = np.isclose(null, value, rtol=1e-5, atol=0)
            better = (sign * null > sign * value) & ~ties
            values.append((better.sum() + chance.uniform() * (1 + ties.sum())) / 100)
            assert p_value(value - sign * 1e-5 * abs(value), null, sign > 0) >= values[-1]
    for name, values in found.items():
        assert stats.kstest(values, "uniform").pvalue > 0.01, name


@pytest.mark.parametrize(("width", "apart", "n"), [(3, 1.5, 120), (100, 1.5, 120), (200, 6.0, 60)])
def test_intervals_cover(width, apart, n):
    """Of the values that many points have: in many dimensions, where plain percentiles never do.

    Dunn's index has no such value: it falls as points are added.
    """
    generator = torch.Generator().manual_seed(0)
    half, runs = n // 2, 120
    spread = float(torch.randn(50000, width, generator=generator).norm(dim=1).mean())
    true = {"davies_bouldin": 2 * spread / apart, "xie_beni": width / apart**2}
    true["calinski_harabasz"] = (n - 2) * half * half / (n**2 * true["xie_beni"])
    true["aqi_size_free"] = 0.5 / true["xie_beni"] + 0.5 * true["calinski_harabasz"] / (n - 2)
    covered, by_percentile = dict.fromkeys(true, 0), dict.fromkeys(true, 0)
    corrected = {name: [] for name in true}
    for seed in range(runs):
        labels = torch.arange(n) % 2
        points = torch.randn(n, width, generator=generator)
        points[:, 0] += apart * labels
        grouped = prepare(points, labels, 2)
        found = measure_clusters(
            grouped,
            ("davies_bouldin", "calinski_harabasz", "xie_beni"),
            None,
            in_order(grouped, weights_of(n, 300, seed)),
        )
        values = found.values | {"aqi_size_free": alignment_quality_index(found.values, "size_free", 0.5, float(n), 2)}
        draws = found.draws | {"aqi_size_free": alignment_quality_index(found.draws, "size_free", 0.5, found.sizes, 2)}
        for name, value in true.items():
            middle, low, high = debias(name, float(values[name]), draws[name].numpy())
            covered[name] += low <= value <= high
            corrected[name].append(middle)
            by_percentile[name] += np.quantile(draws[name], 0.025) <= value <= np.quantile(draws[name], 0.975)
    for name, value in true.items():
        assert covered[name] / runs > 0.88, (name, covered)
        assert np.median(corrected[name]) == pytest.approx(value, rel=0.15 if width > 3 else 0.1), name
        if width > 3:
            assert by_percentile[name] / runs < 0.1, name


def test_the_interval_of_the_silhouette_covers():
    generator = torch.Generator().manual_seed(0)

    def sample(n):
        labels = torch.arange(n) % 2
        points = torch.randn(n, 20, generator=generator)
        points[:, 0] += 3 * labels
        return prepare(points, labels, 2)

    true = float(measure_clusters(sample(6000), ("silhouette",)).values["silhouette"])
    covered = 0
    for seed in range(100):
        grouped = sample(80)
        found = measure_clusters(grouped, ("silhouette",), None, in_order(grouped, weights_of(80, 300, seed)))
        low, high = debias("silhouette", float(found.values["silhouette"]), found.draws["silhouette"].numpy())[1:]
        covered += low <= true <= high
    assert 0.88 < covered / 100 <= 1


@pytest.mark.parametrize(("width", "apart"), [(4, 2.0), (150, 4.0)])
def test_intervals_of_differences_cover(width, apart):
    """What few points add to the distance of centroids is not the same in two spaces."""
    generator = torch.Generator().manual_seed(0)
    runs, n = 100, 100
    labels = torch.arange(n) % 2
    spread = float(torch.randn(50000, width, generator=generator).norm(dim=1).mean())
    true = {
        "davies_bouldin": 2 * spread / (1.5 * apart) - 2 * spread / apart,
        "xie_beni": width / (1.5 * apart) ** 2 - width / apart**2,
        "calinski_harabasz": (n - 2) / 4 * ((1.5 * apart) ** 2 - apart**2) / width,
    }
    covered = dict.fromkeys(true, 0)
    for seed in range(runs):
        points = torch.randn(n, width, generator=generator)
        others = 0.8 * points + 0.6 * torch.randn(n, width, generator=generator)
        points[:, 0] += 1.5 * apart * labels
        others[:, 0] += apart * labels
        weights = weights_of(n, 300, seed)
        found = []
        for each in (points, others):
            grouped = prepare(each, labels, 2)
            found.append(measure_clusters(grouped, tuple(true), None, in_order(grouped, weights)))
        for name, value in true.items():
            low, high = debias_difference(
                name, *(part for one in found for part in (float(one.values[name]), one.draws[name].numpy()))
            )
            covered[name] += low <= value <= high
    for name in true:
        assert covered[name] / runs > 0.88, (name, covered)
