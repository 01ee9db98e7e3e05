"""Labelled points before anything is measured: checked, scaled, and grouped by cluster."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from probing.metrics.clusters.grouped import Grouped, Metric

Scaling = Literal["none", "standardize", "whiten"]
EXTREME = 100.0
"""Times the median norm from which a row is named."""
Labels = Tensor | NDArray[np.generic] | Sequence[object]


def encode_labels(labels: Labels, n: int) -> tuple[Int[Tensor, " n"], list[Any]]:
    """Clusters as numbers from 0, and what each is called.

    Raises:
        ValueError: another number of labels than n, one cluster, or as many clusters as points.
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


def find_extreme_norms(norms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows whose norm is more than a hundred times the median: a lone BOS, an attention sink. They decide any index."""
    return np.flatnonzero(norms > EXTREME * np.median(norms)) if np.median(norms) > 0 else np.zeros(0, dtype=np.int64)


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
    # Compared before scaling, which leaves rounding differences between equal points.
    same = _has_same_points_within(grouped)
    scaled = points if same else scale_points(points, scaling)
    if metric == "cosine":
        lengths = scaled.double().norm(dim=1)
        if not lengths.all():
            raise ValueError(f"row {int((lengths == 0).nonzero()[0])}{where} is zero and has no direction")
        scaled = scaled.double() / lengths[:, None]
    grouped = replace(grouped, points=scaled, metric=metric)
    # Relative rounding of a row and of its length.
    rounding = 2 * torch.finfo(points.dtype).eps + 16 * torch.finfo(torch.float64).eps
    if same or (metric == "cosine" and _has_same_points_within(grouped, rounding)):
        raise ValueError(
            f"the points{where} are the same within every cluster: either nothing tells texts of one label apart here, "
            f"or the dtype {str(points.dtype).removeprefix('torch.')} cannot"
        )
    return grouped


def _has_same_points_within(grouped: Grouped, rounding: float = 0.0) -> bool:
    """Whether the points of every cluster are the same, but for a relative rounding of their coordinates."""
    for cluster, (start, _) in enumerate(grouped.ranges):
        first = grouped.points[grouped.order[start]].double()
        for a, b in grouped.blocks(cluster):
            change = grouped.points[grouped.order[a:b]].double() - first
            if bool((change.abs() > rounding * first.abs()).any()):
                return False
    return True


def scale_points(points: Float[Tensor, "n width"], scaling: str) -> Float[Tensor, "n width"]:
    """Points as they are, or centred and scaled by what all of them have in common.

    Raises:
        ValueError: an unknown scaling.
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
