"""Cluster indices and the alignment quality index of labelled points, in the space itself.

The formulas stand in ``indices``; see also ``docs/clusters.md``. All of them are computed relative to the first point,
in float64 where differences are small.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from probing.metrics.clusters.draws import measure_clusters
from probing.metrics.clusters.indices import ALL_INDICES, INDICES, alignment_quality_index, parts_of_aqi
from probing.metrics.clusters.preparation import Labels, check_points, encode_labels, prepare

Points = Shaped[Tensor, "*axes n width"]


def davies_bouldin(
    points: Points, labels: Labels, metric: str = "euclidean", scaling: str = "none"
) -> Float[Tensor, "*axes"]:
    """Mean over clusters of ``max_j (s_i + s_j) / |c_i - c_j|``, s the mean distance to the centroid; lower is better.

    Davies and Bouldin 1979. Infinite where two centroids are the same (scikit-learn returns 0, the best possible
    value).

    Args, Returns, Raises: see ``cluster_indices``.
    """
    return cluster_indices(points, labels, ("davies_bouldin",), metric, scaling)["davies_bouldin"]


def dunn(
    points: Points,
    labels: Labels,
    metric: str = "euclidean",
    scaling: str = "none",
    form: str = "points",
) -> Float[Tensor, "*axes"]:
    """Least distance of two points of different clusters over the greatest of two points of one; higher is better.

    Dunn 1974. ``form="centroid"`` is another index that goes by its name in published code: the least distance of two
    centroids in place of points (Bezdek and Pal's nu_41).

    Args, Returns, Raises: see ``cluster_indices``.
    """
    name = {"points": "dunn", "centroid": "dunn_centroid"}.get(form)
    if name is None:
        raise ValueError(f"form is 'points' or 'centroid', not {form!r}")
    return cluster_indices(points, labels, (name,), metric, scaling)[name]


def calinski_harabasz(
    points: Points, labels: Labels, metric: str = "euclidean", scaling: str = "none"
) -> Float[Tensor, "*axes"]:
    """``[B / (K - 1)] / [W / (n - K)]``, sums of squares between and within clusters; higher is better, grows with n.

    Calinski and Harabasz 1974. For two clusters ``(n - 2) n1 n2 / (n^2 XB)``: the same number as Xie and Beni's.

    Args, Returns, Raises: see ``cluster_indices``.
    """
    return cluster_indices(points, labels, ("calinski_harabasz",), metric, scaling)["calinski_harabasz"]


def xie_beni(
    points: Points, labels: Labels, metric: str = "euclidean", scaling: str = "none"
) -> Float[Tensor, "*axes"]:
    """``W / (n min |c_i - c_j|^2)``, W the sum of squares within clusters; lower is better.

    Xie and Beni 1991, for hard labels.

    Args, Returns, Raises: see ``cluster_indices``.
    """
    return cluster_indices(points, labels, ("xie_beni",), metric, scaling)["xie_beni"]


def silhouette(
    points: Points, labels: Labels, metric: str = "euclidean", scaling: str = "none"
) -> Float[Tensor, "*axes"]:
    """Mean of ``(b - a) / max(a, b)``: a a point's mean distance to its cluster, b to the nearest other; in [-1, 1].

    Rousseeuw 1987. 0 for the only point of a cluster.

    Args, Returns, Raises: see ``cluster_indices``.
    """
    return cluster_indices(points, labels, ("silhouette",), metric, scaling)["silhouette"]


def aqi(
    points: Points,
    labels: Labels,
    form: str = "paper",
    weight: float = 0.5,
    metric: str = "euclidean",
    scaling: str = "none",
) -> Float[Tensor, "*axes"]:
    """The alignment quality index (arXiv 2506.13901) of labels such as safe and unsafe; higher is better.

    For two clusters the paper's form has one degree of freedom, Xie and Beni's index, and grows with n: only values of
    equal n can be compared. ``form="size_free"`` can be compared across n.

    Args:
        points: see ``cluster_indices``.
        labels: see there.
        form: "paper": ``weight / XB + (1 - weight) CH``; "size_free": the same with ``CH / (n - K)``; "dbs_dunn",
            of the first published code: ``weight / (1 + DB) + (1 - weight) DI / (1 + DI)``.
        weight: weight of the first term, in [0, 1].
        metric: see there.
        scaling: see there.

    Raises:
        ValueError: see ``cluster_indices``; or an unknown form, or the weight is not in [0, 1].
    """
    parts = cluster_indices(points, labels, parts_of_aqi(form), metric, scaling)
    n = check_points(points).shape[-2]
    return alignment_quality_index(parts, form, weight, float(n), len(encode_labels(labels, n)[1]))


def cluster_indices(
    points: Points,
    labels: Labels,
    indices: Sequence[str] = INDICES,
    metric: str = "euclidean",
    scaling: str = "none",
    impl: str = "auto",
) -> dict[str, Float[Tensor, "*axes"]]:
    """Several indices from one pass over the distances; n x n is never stored.

    Args:
        points: any floating dtype (integers are taken as float64), on any device; every leading index is a space of its
            own (a layer, say).
        labels: cluster of every point: numbers, strings or booleans.
        indices: names among ``davies_bouldin, dunn, dunn_centroid, calinski_harabasz, xie_beni, silhouette``.
        metric: "euclidean"; or "cosine": points are scaled to length one, and the distance of two points is 1 - cos
            (Dunn, silhouette); what has centroids in it stays Euclidean, between points of length one.
        scaling: scaling that comes before the metric: "standardize" divides every dimension by its standard deviation;
            "whiten" makes the distance Mahalanobis' by the covariance of all points (Ledoit and Wolf's shrinkage). Both
            leave the labels out of it, so that permutations of these stay fair.
        impl: "torch"; "triton": Euclidean distances of float32, bf16 and float16 points by a kernel, on a CUDA card;
            or "auto": the kernel where it can run.

    Returns:
        The indices by name, float64 on the CPU, one value for each leading index.

    Raises:
        TypeError: points are no array of real numbers, or some labels are text and others are not.
        ValueError: one cluster; as many clusters as points; another number of labels than of points; a label that is
            missing, or that differs from another in white space only; rows that are NaN, infinite or too large
            (named); points that are the same within every cluster; a row without length under "cosine"; or there is no
            such index, metric or scaling.
    """
    unknown = [name for name in indices if name not in ALL_INDICES]
    if unknown:
        raise ValueError(f"there is no index {unknown[0]!r}; there are {', '.join(ALL_INDICES)}")
    points = check_points(points)
    n, width = points.shape[-2:]
    codes, names = encode_labels(labels, n)
    axes = points.shape[:-2]
    by_index: dict[str, list[Tensor]] = {name: [] for name in indices}
    for number, entry in enumerate(points.reshape(-1, n, width)):
        where = f" of entry {[int(at) for at in np.unravel_index(number, axes)]}" if axes else ""
        grouped = prepare(entry, codes, len(names), metric, scaling, where)
        for name, value in measure_clusters(grouped, indices, impl=impl).values.items():
            by_index[name].append(value[0])
    return {
        name: (torch.stack(values) if values else torch.empty(0, dtype=torch.float64)).reshape(axes)
        for name, values in by_index.items()
    }
