"""How far labelled points lie apart, in the space itself: cluster indices and the alignment quality index.

Definitions, for K clusters of n points with centroids c: see each function and ``docs/clusters.md``. All of them are
computed relative to the first point, in float64 where differences are small.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from probing.metrics.cluster_draws import read_clusters
from probing.metrics.cluster_pairs import Grouped, Metric
from probing.statistics.intervals import CONFIDENCE, percentile_interval

INDICES = ("davies_bouldin", "dunn", "calinski_harabasz", "xie_beni", "silhouette")
ALL_INDICES = (*INDICES, "dunn_centroid")
LOWER_IS_BETTER = frozenset(("davies_bouldin", "xie_beni"))
POWERS = {"davies_bouldin": -2.0, "xie_beni": -1.0, "calinski_harabasz": 1.0, "aqi": 1.0, "aqi_size_free": 1.0}
"""The power of an index that grows in proportion to the squared distance of centroids."""
Scaling = Literal["none", "standardize", "whiten"]
AqiForm = Literal["paper", "dbs_dunn", "size_free"]
Labels = Tensor | NDArray[np.generic] | Sequence[object]
Points = Float[Tensor, "*axes n width"]


def davies_bouldin(
    points: Points, labels: Labels, metric: str = "euclidean", scaling: str = "none"
) -> Float[Tensor, "*axes"]:
    """Mean over clusters of ``max_j (s_i + s_j) / |c_i - c_j|``, s the mean distance to the centroid; lower is better.

    Davies and Bouldin 1979. Infinite where two centroids are the same (scikit-learn answers 0, the best there is).

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
        weight: of the first term, in [0, 1].
        metric: see there.
        scaling: see there.

    Raises:
        ValueError: see there; or there is no such form, or the weight is not in [0, 1].
    """
    parts = cluster_indices(points, labels, parts_of_aqi(form), metric, scaling)
    n = points.shape[-2]
    return combined_aqi(parts, form, weight, float(n), len(encode_labels(labels, n)[1]))


def parts_of_aqi(form: str) -> tuple[str, str]:
    """The indices that a form is made of.

    Raises:
        ValueError: there is no such form.
    """
    if form not in get_args(AqiForm):
        raise ValueError(f"form is one of {', '.join(map(repr, get_args(AqiForm)))}, not {form!r}")
    return ("davies_bouldin", "dunn") if form == "dbs_dunn" else ("xie_beni", "calinski_harabasz")


def combined_aqi(
    parts: Mapping[str, Float[Tensor, "*axes"]],
    form: str,
    weight: float,
    n: int | float | Tensor,
    clusters: int,
) -> Float[Tensor, "*axes"]:
    """A form of the alignment quality index from its parts, for n points; see ``aqi``.

    Raises:
        ValueError: there is no such form, or the weight is not in [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], not {weight}")
    first, second = (parts[name] for name in parts_of_aqi(form))
    if form == "dbs_dunn":
        return weight / (1 + first) + (1 - weight) * second / (1 + second)
    return weight / first + (1 - weight) * (second if form == "paper" else second / (n - clusters))


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
        points: any floating dtype, on any device; every leading index is a space of its own (a layer, say).
        labels: cluster of every point: numbers, strings or booleans.
        indices: of ``davies_bouldin, dunn, dunn_centroid, calinski_harabasz, xie_beni, silhouette``.
        metric: "euclidean"; or "cosine": points are scaled to length one, and the distance of two points is 1 - cos
            (Dunn, silhouette); what has centroids in it stays Euclidean, between points of length one.
        scaling: before that, "standardize" divides every dimension by its standard deviation; "whiten" makes the
            distance Mahalanobis' by the covariance of all points (Ledoit and Wolf's shrinkage). Both leave the labels
            out of it, so that permutations of these stay fair.
        impl: "torch"; "triton": Euclidean distances of float32, bf16 and float16 points by a kernel, on a CUDA card;
            or "auto": the kernel where it can run.

    Returns:
        By name, float64 on the CPU: one value a leading index.

    Raises:
        ValueError: one cluster; as many clusters as points; another number of labels than of points; NaN or infinite
            rows (named); points that are the same within every cluster; a row without length under "cosine"; or there
            is no such index, metric or scaling.
    """
    unknown = [name for name in indices if name not in ALL_INDICES]
    if unknown:
        raise ValueError(f"there is no index {unknown[0]!r}; there are {', '.join(ALL_INDICES)}")
    n, width = points.shape[-2:]
    codes, names = encode_labels(labels, n)
    axes = points.shape[:-2]
    found: dict[str, list[Tensor]] = {name: [] for name in indices}
    for number, entry in enumerate(points.reshape(-1, n, width)):
        where = f" of entry {[int(at) for at in np.unravel_index(number, axes)]}" if axes else ""
        grouped = prepare(entry, codes, len(names), metric, scaling, where)
        for name, value in read_clusters(grouped, indices, impl=impl).values.items():
            found[name].append(value[0])
    return {
        name: (torch.stack(values) if values else torch.empty(0, dtype=torch.float64)).reshape(axes)
        for name, values in found.items()
    }


def debiased(index: str, value: float, draws: NDArray[np.float64]) -> tuple[float, float, float]:
    """The value that many points would have, and its 95 % interval, from resamples.

    The centroids of n points lie apart by chance alone: the squared distance of two is too large by ``tr(S) (1/n1 +
    1/n2)`` on average, which in a space of many dimensions can be most of it, and a resample adds as much once more.
    So what resamples add is taken off, in a power of the index that is proportional to the squared distance (the basic
    bootstrap interval: Davison and Hinkley 1997, 5.2). The silhouette needs next to none of it.

    Args:
        index: "silhouette", or one of those with centroids; aqi and aqi_size_free too.
        value: as measured.
        draws: in resamples; those that have no value (NaN) are left out.

    Returns:
        Value, low, high; "davies_bouldin" and "xie_beni" are infinite where the squared distance may be 0.
    """
    power = POWERS.get(index, 1.0)
    own, reflected = _reflected(power, value, draws)
    known = reflected[np.isfinite(reflected)]
    if not len(known) or not math.isfinite(own):
        return math.nan, math.nan, math.nan
    found = _back(index, np.array([known.mean(), *percentile_interval(known)])).tolist()
    return (found[0], found[1], found[2]) if power > 0 else (found[0], found[2], found[1])


def debiased_difference(
    index: str, value: float, draws: NDArray[np.float64], other: float, other_draws: NDArray[np.float64]
) -> tuple[float, float]:
    """The 95 % interval of how much larger an index is than of other states, as ``debiased`` for many points.

    What few points add to the distance of centroids is not the same in both: of what is divided by that distance, a
    difference of the values as measured can be far from the interval.

    Args:
        index: see ``debiased``.
        value: as measured.
        draws: in resamples.
        other: of the other states, as measured.
        other_draws: in the same resamples.

    Returns:
        Low and high; infinite on a side where one of the two may be, and on both where both may be.
    """
    power = POWERS.get(index, 1.0)
    one, two = (_back(index, _reflected(power, *each)[1]) for each in ((value, draws), (other, other_draws)))
    known = ~np.isnan(one) & ~np.isnan(two)
    if not known.any():
        return math.nan, math.nan
    one, two = one[known], two[known]
    both = np.isinf(one) & np.isinf(two)
    change = np.where(both, 0.0, one) - np.where(both, 0.0, two)
    share = (1 - CONFIDENCE) / 2
    low = np.quantile(np.where(both, -np.inf, change), share, method="lower")
    high = np.quantile(np.where(both, np.inf, change), 1 - share, method="higher")
    return float(low), float(high)


def _reflected(power: float, value: float, draws: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The power of a value, and of what lies as far on the other side of it as each draw; NaN where there is none."""
    with np.errstate(divide="ignore"):  # centroids in one place are 0 in such a power, and points in one infinite
        own, powers = float(np.float64(value) ** power), draws**power
    return own, 2 * own - np.where(np.isfinite(powers), powers, np.nan)


def _back(index: str, powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The index of its powers."""
    if index not in POWERS:
        return powers
    with np.errstate(divide="ignore"):
        return np.maximum(powers, 0.0) ** (1 / POWERS[index])


def encode_labels(labels: Labels, n: int) -> tuple[Int[Tensor, " n"], list[Any]]:
    """Clusters as numbers from 0, and what each is called.

    Raises:
        ValueError: not n labels, one cluster, or as many as points.
    """
    values = labels.numpy(force=True) if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"there are {n} points, and labels of shape {tuple(values.shape)}; give one label a point")
    names, codes = np.unique(values, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"every point has the label {names[0]!r}; there must be two clusters" if n else "no points")
    if len(names) == n:
        raise ValueError(f"{n} clusters of one point each: nothing lies within a cluster")
    return torch.from_numpy(codes), names.tolist()


def prepare(
    points: Float[Tensor, "n width"],
    codes: Int[Tensor, " n"],
    clusters: int,
    metric: str = "euclidean",
    scaling: str = "none",
    where: str = "",
) -> Grouped:
    """Scaled points in groups; see ``cluster_indices``.

    Raises:
        ValueError: rows that are not finite, or nothing varies within the clusters.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric is one of {', '.join(map(repr, get_args(Metric)))}, not {metric!r}")
    bad = (~points.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"row {bad[0]}{where} is NaN or infinite ({len(bad)} of {len(points)} rows are)")
    grouped = Grouped.of(points, codes.to(points.device), clusters)
    same = _same_within(grouped)  # as they came: scaling leaves rounding between equal points
    scaled = points if same else scaled_points(points, scaling)
    if metric == "cosine":
        lengths = scaled.double().norm(dim=1)
        if not lengths.all():
            raise ValueError(f"row {int((lengths == 0).nonzero()[0])}{where} is zero and has no direction")
        scaled = scaled.double() / lengths[:, None]
    grouped = replace(grouped, points=scaled, metric=metric)
    rounding = 2 * torch.finfo(points.dtype).eps + 16 * torch.finfo(torch.float64).eps  # of a row and of its length
    if same or (metric == "cosine" and _same_within(grouped, rounding)):
        raise ValueError(
            f"the points{where} are the same within every cluster: either nothing tells texts of one label apart here, "
            f"or the dtype {str(points.dtype).removeprefix('torch.')} cannot"
        )
    return grouped


def _same_within(grouped: Grouped, rounding: float = 0.0) -> bool:
    """Whether the points of every cluster are the same, but for a relative rounding of their coordinates."""
    for cluster, (start, _) in enumerate(grouped.ranges):
        first = grouped.points[grouped.order[start]].double()
        for a, b in grouped.blocks(cluster):
            change = grouped.points[grouped.order[a:b]].double() - first
            if bool((change.abs() > rounding * first.abs()).any()):
                return False
    return True


def scaled_points(points: Float[Tensor, "n width"], scaling: str) -> Float[Tensor, "n width"]:
    """Points as they are, or centred and scaled by what all of them have in common.

    Raises:
        ValueError: there is no such scaling.
    """
    if scaling == "none":
        return points
    if scaling not in get_args(Scaling):
        raise ValueError(f"scaling is one of {', '.join(map(repr, get_args(Scaling)))}, not {scaling!r}")
    centered = points.double() - points[0].double()
    centered -= centered.mean(dim=0)
    dtype = torch.promote_types(points.dtype, torch.float32)
    deviation = centered.square().mean(dim=0).sqrt()
    if scaling == "standardize":
        return (centered / torch.where(deviation > 0, deviation, 1.0)).to(dtype)
    from sklearn.covariance import ledoit_wolf

    covariance = torch.from_numpy(ledoit_wolf(centered.numpy(force=True), assume_centered=True)[0]).to(centered)
    values, vectors = torch.linalg.eigh(covariance)
    return (centered @ (vectors / values.clamp_min(values[-1] * torch.finfo(torch.float64).eps).sqrt())).to(dtype)
