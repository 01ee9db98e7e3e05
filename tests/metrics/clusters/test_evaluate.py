import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from sklearn import metrics as sklearn_metrics
from sklearn.covariance import ledoit_wolf

import probing
from probing.metrics.clusters import (
    ALL_INDICES,
    INDICES,
    LOWER_IS_BETTER,
    aqi,
    calinski_harabasz,
    cluster_indices,
    davies_bouldin,
    dunn,
    silhouette,
    xie_beni,
)
from probing.metrics.clusters.preparation import check_points

FAMILIAR = {
    "davies_bouldin": sklearn_metrics.davies_bouldin_score,
    "calinski_harabasz": sklearn_metrics.calinski_harabasz_score,
    "silhouette": sklearn_metrics.silhouette_score,
}
SHAPES = [(2, 40, 3), (3, 61, 7), (5, 300, 40), (2, 1100, 20), (7, 2100, 5), (60, 1300, 8)]


def blobs(clusters, n, width, seed=0, apart=0.7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(clusters, (n,), generator=generator)
    centers = torch.randn(clusters, width, generator=generator, dtype=torch.float64) * apart
    points = torch.randn(n, width, generator=generator, dtype=torch.float64) + centers[labels]
    return points.to(dtype), labels


def brute_force(points, labels):
    """Dunn and Xie-Beni by all n x n distances."""
    apart = squareform(pdist(points.double().numpy()))
    same = labels.numpy()[:, None] == labels.numpy()
    centers = torch.stack([points.double()[labels == name].mean(dim=0) for name in labels.unique()])
    within = sum(float((points.double()[labels == name] - c).square().sum()) for name, c in enumerate(centers))
    return {
        "dunn": apart[~same].min() / apart[same].max(),
        "dunn_centroid": pdist(centers.numpy()).min() / apart[same].max(),
        "xie_beni": within / (len(points) * pdist(centers.numpy()).min() ** 2),
        "welch": oracles.welch(points.double().tolist(), labels.tolist()),
    }


@pytest.mark.parametrize("name", ALL_INDICES)
@pytest.mark.parametrize("clusters", [2, 3])
def test_against_the_definition(name, clusters):
    points, labels = blobs(clusters, 17, 3)
    found = float(cluster_indices(points, labels, (name,))[name])
    assert found == pytest.approx(getattr(oracles, name)(points.tolist(), labels.tolist()), rel=1e-12)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_sklearn_and_brute_force(shape, dtype, close):
    points, labels = blobs(*shape, dtype=dtype)
    found = cluster_indices(points, labels, ALL_INDICES)
    expected = {name: score(points.double(), labels) for name, score in FAMILIAR.items()} | brute_force(points, labels)
    for name in ALL_INDICES:
        assert float(found[name]) == pytest.approx(expected[name], rel=close), name


def test_bf16_is_as_good_as_its_rounding():
    points, labels = blobs(3, 500, 64, dtype=torch.bfloat16)
    found, exact = (cluster_indices(same, labels) for same in (points, points.double()))
    for name in INDICES:
        assert float(found[name]) == pytest.approx(float(exact[name]), rel=3.8e-5), name


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(9, 60), st.integers(1, 9), st.integers(0, 10**6))
def test_ch_and_xb_are_one_number_for_two_clusters(clusters, n, width, seed):
    points, labels = blobs(2, n, width, seed)
    labels[:2] = torch.tensor([0, 1])
    first = int((labels == 0).sum())
    ch, xb = float(calinski_harabasz(points, labels)), float(xie_beni(points, labels))
    assert ch == pytest.approx((n - 2) * first * (n - first) / (n**2 * xb), rel=1e-9)
    assert float(aqi(points, labels)) == pytest.approx(0.5 / xb + 0.5 * ch, rel=1e-12)
    assert float(aqi(points, labels, form="size_free")) == pytest.approx(
        (0.5 + 0.5 * first * (n - first) / n**2) / xb, rel=1e-9
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(20, 60), st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 100))
def test_no_index_knows_where_the_points_lie(clusters, n, width, seed, factor):
    points, labels = blobs(clusters, n, width, seed)
    labels[:clusters] = torch.arange(clusters)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    shift = torch.randn(width, generator=generator, dtype=torch.float64) * 10
    order = torch.randperm(n, generator=generator)
    names = torch.randperm(clusters, generator=generator)
    moved = (points @ rotation * factor + shift)[order]
    found, again = (
        cluster_indices(p, own, ALL_INDICES) for p, own in ((points, labels), (moved, names[labels][order]))
    )
    for name in ALL_INDICES:
        assert float(again[name]) == pytest.approx(float(found[name]), rel=1e-7), name


def test_leading_axes_are_spaces_of_their_own():
    spaces = torch.stack([blobs(2, 50, 4, seed)[0] for seed in range(6)]).reshape(2, 3, 50, 4)
    labels = blobs(2, 50, 4)[1]
    found = cluster_indices(spaces, labels)
    for name, values in found.items():
        assert values.shape == (2, 3)
        assert values.dtype == torch.float64
        assert float(values[1, 2]) == float(cluster_indices(spaces[1, 2], labels)[name])
    assert cluster_indices(spaces[:0], labels)["dunn"].shape == (0, 3)


def test_any_labels():
    points, labels = blobs(2, 30, 4)
    expected = float(dunn(points, labels))
    words = ["harmful" if label else "harmless" for label in labels]
    for same in (words, np.array(words), labels.bool(), labels.numpy() * 7 - 3, labels.tolist()):
        assert float(dunn(points, same)) == expected


@pytest.mark.parametrize("offset", [1e6, -3e4])
def test_an_offset_takes_no_digits(offset):
    """scikit-learn's Davies-Bouldin is 0 here, the best there is."""
    points, labels = blobs(2, 200, 16)
    points = points * 1e-3
    far = points + offset
    near = far - offset  # what is left of them after rounding to float64
    for name, value in cluster_indices(far, labels, ALL_INDICES).items():
        assert float(value) == pytest.approx(float(cluster_indices(near, labels, ALL_INDICES)[name]), rel=1e-9), name
    assert float(davies_bouldin(far, labels)) > 0.3


def test_clusters_far_from_each_other_keep_their_digits():
    """The spread is 1e-9 of the distance between clusters."""
    points, labels = blobs(3, 90, 8, apart=0)
    centers = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2**20
    far = points * 2.0**-10 + centers.round()[labels]
    exact = brute_force(far, labels)
    found = cluster_indices(far, labels, ALL_INDICES)
    for name in ("dunn", "xie_beni"):
        assert float(found[name]) == pytest.approx(exact[name], rel=1e-6), name
    assert float(found["silhouette"]) == pytest.approx(1, abs=1e-6)


def test_two_near_clusters_far_from_a_third_keep_their_distance():
    points, labels = blobs(2, 60, 4, apart=3)
    third = torch.full((30, 4), 1e8, dtype=torch.float64) + torch.randn(30, 4, dtype=torch.float64)
    labels = torch.cat((labels, torch.full((30,), 2)))
    everything = torch.cat((points, third))
    assert float(dunn(everything, labels)) == pytest.approx(brute_force(everything, labels)["dunn"], rel=1e-12)


def test_one_massive_dimension():
    points, labels = blobs(2, 300, 24, dtype=torch.float32)
    points[:, 5] = points[:, 5] * 30 + 3000
    expected = {name: score(points.double(), labels) for name, score in FAMILIAR.items()} | brute_force(points, labels)
    for name, value in cluster_indices(points, labels).items():
        assert float(value) == pytest.approx(expected[name], rel=1e-6), name


def test_cosine():
    points, labels = blobs(3, 200, 9)
    lengths = torch.rand(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.1
    unit = points / points.norm(dim=1, keepdim=True)
    expected = float(sklearn_metrics.silhouette_score(points, labels, metric="cosine"))
    assert float(silhouette(points * lengths, labels, metric="cosine")) == pytest.approx(expected, rel=1e-9)
    apart = squareform(pdist(points, "cosine"))
    same = labels.numpy()[:, None] == labels.numpy()
    found = cluster_indices(points * lengths, labels, ALL_INDICES, metric="cosine")
    assert float(found["dunn"]) == pytest.approx(apart[~same].min() / apart[same].max(), rel=1e-9)
    plain = cluster_indices(unit, labels, ALL_INDICES)
    for name in ("davies_bouldin", "calinski_harabasz", "xie_beni", "dunn_centroid"):
        assert float(found[name]) == pytest.approx(float(plain[name]), rel=1e-9), name


def test_standardized():
    points, labels = blobs(2, 200, 9)
    scaled = (points - points.mean(dim=0)) / points.std(dim=0, correction=0)
    stretched = points * torch.logspace(-3, 3, 9, dtype=torch.float64)
    for name, value in cluster_indices(stretched, labels, scaling="standardize").items():
        assert float(value) == pytest.approx(float(cluster_indices(scaled, labels)[name]), rel=1e-9), name
    constant = torch.cat((stretched, torch.ones(200, 1, dtype=torch.float64)), dim=1)
    found = silhouette(constant, labels, scaling="standardize")
    assert float(found) == pytest.approx(float(silhouette(scaled, labels)), rel=1e-9)


@pytest.mark.parametrize("n", [30, 400])
def test_whitened_is_mahalanobis(n):
    points, labels = blobs(2, n, 40)
    labels[:2] = torch.tensor([0, 1])
    covariance = ledoit_wolf(points.numpy())[0]
    apart = squareform(pdist(points.numpy(), "mahalanobis", VI=np.linalg.inv(covariance)))
    same = labels.numpy()[:, None] == labels.numpy()
    found = cluster_indices(points, labels, scaling="whiten")
    assert float(found["dunn"]) == pytest.approx(apart[~same].min() / apart[same].max(), rel=1e-8)
    expected = sklearn_metrics.silhouette_score(apart, labels, metric="precomputed")
    assert float(found["silhouette"]) == pytest.approx(expected, rel=1e-8)


def test_whitened_where_nothing_is_shrunk():
    """Every product of two coordinates is as large in all points: the covariance stays as it is, of rank one."""
    points = torch.tensor([[1.0, 1], [-1, -1]], dtype=torch.float64).repeat(20, 1)
    labels = torch.arange(40) % 2 ^ (torch.arange(40) < 7).long()
    found = cluster_indices(points, labels, scaling="whiten")
    flat = cluster_indices(points[:, :1], labels)
    for name in INDICES:
        assert float(found[name]) == pytest.approx(float(flat[name]), rel=1e-6, abs=1e-7), name


def test_the_forms_of_the_alignment_quality_index():
    points, labels = blobs(3, 80, 5)
    parts = {name: float(value) for name, value in cluster_indices(points, labels).items()}
    db, di, ch, xb = (parts[name] for name in ("davies_bouldin", "dunn", "calinski_harabasz", "xie_beni"))
    assert float(aqi(points, labels, weight=0.3)) == pytest.approx(0.3 / xb + 0.7 * ch)
    assert float(aqi(points, labels, form="size_free", weight=0.3)) == pytest.approx(0.3 / xb + 0.7 * ch / 77)
    assert float(aqi(points, labels, form="dbs_dunn", weight=0.3)) == pytest.approx(
        0.3 / (1 + db) + 0.7 * di / (1 + di)
    )
    with pytest.raises(ValueError, match="'paper', 'dbs_dunn', 'size_free'"):
        aqi(points, labels, form="best")
    with pytest.raises(ValueError, match="weight"):
        aqi(points, labels, weight=1.5)


def test_the_papers_form_grows_with_n_and_the_other_does_not():
    values = {}
    for n in (200, 800, 3200):
        points, labels = blobs(2, n, 8, apart=0)
        points[:, 0] += 3 * labels
        values[n] = [float(aqi(points, labels, form)) for form in ("paper", "size_free")]
    assert values[3200][0] / values[200][0] == pytest.approx(16, rel=0.3)
    assert values[3200][1] / values[200][1] == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, own: (p, own * 0), "there must be two clusters"),
        (lambda p, own: (p, torch.arange(len(own))), "clusters of one point each"),
        (lambda p, own: (p, own[:-1]), "labels of shape"),
        (lambda p, own: (p * 0 + own[:, None], own), "the same within every cluster"),
        (lambda p, own: (p * 0, own), "the same within every cluster"),
        (lambda p, own: (p[:0], own[:0]), "no points"),
    ],
)
def test_what_has_no_index(change, message):
    with pytest.raises(ValueError, match=message):
        cluster_indices(*change(*blobs(2, 20, 3)))


def test_a_dtype_that_cannot_tell_points_apart_gives_no_perfect_score():
    points, labels = blobs(2, 50, 4)
    far = (points * 1e-3 + labels[:, None] * 2 + 1e6).float()
    with pytest.raises(ValueError, match="or the dtype float32 cannot"):
        davies_bouldin(far, labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_alone_gives_no_perfect_score(dtype):
    """Lengths are all that tells the points of a label apart; and equal points that differ once they are whitened."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(41) % 3
    same = torch.randn(3, 700, generator=generator, dtype=torch.float64).to(dtype)[labels]
    stretched = (same.double() * (torch.rand(41, 1, generator=generator, dtype=torch.float64) + 0.5)).to(dtype)
    with pytest.raises(ValueError, match="the same within every cluster"):
        silhouette(stretched, labels, metric="cosine")
    for scaling in ("standardize", "whiten"):
        with pytest.raises(ValueError, match="the same within every cluster"):
            silhouette(same, labels, scaling=scaling)
    stretched[0, 0] += 1
    assert float(davies_bouldin(stretched, labels, metric="cosine")) > 0


def test_rows_that_are_not_finite_are_named():
    points, labels = blobs(2, 20, 3)
    spaces = torch.stack((points, points))
    spaces[1, 7, 2], spaces[1, 9, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"row 7 of entry \[1\] is NaN or infinite \(2 of 20 rows are\)"):
        silhouette(spaces, labels)


def test_a_row_without_direction():
    points, labels = blobs(2, 20, 3)
    points[4] = 0
    with pytest.raises(ValueError, match="row 4 is zero"):
        silhouette(points, labels, metric="cosine")


@pytest.mark.parametrize("option", [{"metric": "manhattan"}, {"scaling": "pca"}, {"indices": ("dun",)}])
def test_unknown_options(option):
    with pytest.raises(ValueError, match=str(next(iter(option.values()))).strip("(),'")):
        cluster_indices(*blobs(2, 20, 3), **option)
    with pytest.raises(ValueError, match="form"):
        dunn(*blobs(2, 20, 3), form="point")


def test_a_cluster_of_one_point():
    points, labels = blobs(2, 30, 3)
    labels[4] = 2
    found = cluster_indices(points, labels)
    for name, score in FAMILIAR.items():
        assert float(found[name]) == pytest.approx(score(points, labels), rel=1e-11), name
    assert float(found["dunn"]) == pytest.approx(brute_force(points, labels)["dunn"], rel=1e-11)


def test_centroids_in_one_place_are_the_worst_there_is():
    """scikit-learn leaves such a pair out and answers 0."""
    points = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]], dtype=torch.float64)
    assert float(davies_bouldin(points, [0, 0, 1, 1])) == float(xie_beni(points, [0, 0, 1, 1])) == math.inf
    assert float(aqi(points, [0, 0, 1, 1])) == 0


def test_identical_points_in_two_clusters():
    points, labels = blobs(2, 40, 3)
    points[labels == 0][0] = 0
    first, second = int((labels == 0).nonzero()[0]), int((labels == 1).nonzero()[0])
    points[first] = points[second]
    assert float(dunn(points, labels)) == 0


def test_public_names():
    for name in (*INDICES, "aqi", "cluster_indices"):
        assert getattr(probing, name).__name__ == name
    assert set(INDICES) > LOWER_IS_BETTER


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([float("nan"), 0.0, 0.0, 0.0, 1.0, 1.0], ValueError, r"point 0 has no label \(nan; 1 points have none\)"),
        (["a", "a", None, "b", "b", None], ValueError, r"point 2 has no label \(None; 2 points have none\)"),
        (
            ["safe", " safe", "unsafe", "safe", "unsafe", "unsafe"],
            ValueError,
            "' safe' and 'safe' differ in white space",
        ),
        (["1", "1", "1", 0, 0, 0], TypeError, "some labels are text"),
    ],
)
def test_labels_that_are_none_or_meant_to_be_one(labels, error, message):
    with pytest.raises(error, match=message):
        cluster_indices(blobs(2, 6, 3)[0], labels)


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (None, TypeError, "a tensor .* not NoneType"),
        ([[1.0, 2.0]] * 6, TypeError, "not list"),
        (torch.zeros(6, 2, dtype=torch.complex64), TypeError, "real numbers"),
        (torch.zeros(6), ValueError, r"not of shape \(6,\)"),
    ],
)
def test_points_that_are_none_say_so(points, error, message):
    with pytest.raises(error, match=message):
        check_points(points)


@pytest.mark.parametrize("points", [torch.ones(6, 2).double() * 1e160, torch.ones(6, 2) * 1e30], ids=["64", "32"])
def test_points_that_are_too_large_say_so(points):
    with pytest.raises(ValueError, match=r"row 0 has a coordinate of 6e.*: squared distances overflow"):
        cluster_indices(points * torch.arange(1, 7)[:, None].flip(0), [0, 0, 0, 1, 1, 1])


def test_integers_are_points():
    points = torch.arange(18).reshape(6, 3) % 7
    found, expected = (cluster_indices(each, [0, 0, 0, 1, 1, 1]) for each in (points, points.double()))
    assert found == expected


def test_no_index_depends_on_the_unit():
    """Up to the size that squared distances allow."""
    points, labels = blobs(2, 30, 3)
    found, expected = cluster_indices(points * 1e25, labels), cluster_indices(points, labels)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-9
    )
