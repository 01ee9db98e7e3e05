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
from probing.statistics.groups import find_twins

Scaling = Literal["none", "standardize", "whiten"]
Labels = Tensor | NDArray[np.generic] | Sequence[object]


def encode_labels(labels: Labels, n: int) -> tuple[Int[Tensor, " n"], list[Any]]:
    """Clusters as numbers from 0, and what each is called.

    Raises:
        ValueError: another number of labels than n, a missing label, two that differ in white space only, one cluster,
            or as many clusters as points.
        TypeError: some labels are text and others are not.
    """
    given = labels.numpy(force=True) if isinstance(labels, Tensor) else labels
    values = np.asarray(given)
    if values.shape != (n,):
        raise ValueError(f"there are {n} points, and labels of shape {tuple(values.shape)}; give one label a point")
    _check_labels(list(given))
    names, codes = np.unique(values, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"every point has the label {names[0]!r}; there must be two clusters" if n else "no points")
    if len(names) == n:
        raise ValueError(f"{n} clusters of one point each: nothing lies within a cluster")
    return torch.from_numpy(codes), names.tolist()


def _check_labels(labels: Sequence[Any]) -> None:
    """Raise for a label that is none, and for two that are meant to be one."""
    # NaN is the one value that is not equal to itself.
    missing = [at for at, label in enumerate(labels) if label is None or label != label]
    if missing:
        raise ValueError(f"point {missing[0]} has no label ({labels[missing[0]]}; {len(missing)} points have none)")
    texts = {label for label in labels if isinstance(label, str)}
    if texts and any(not isinstance(label, str) for label in labels):
        raise TypeError(f"some labels are text ({min(texts)!r}) and others are not; give all of one type")
    twins = find_twins(texts)
    if twins is not None:
        raise ValueError(f"the labels {twins[0]!r} and {twins[1]!r} differ in white space only")


def check_points(points: object) -> Tensor:
    """Points as a floating-point tensor; integers become float64.

    Raises:
        TypeError: no array of real numbers. ValueError: not [..., n, width].
    """
    if not isinstance(points, Tensor | np.ndarray):
        raise TypeError(f"points must be a tensor [..., n, width], not {type(points).__name__}")
    tensor = torch.as_tensor(points)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"points must be real numbers, not {tensor.dtype}")
    if tensor.ndim < 2:
        raise ValueError(f"points must be [..., n, width], not of shape {tuple(tensor.shape)}")
    return tensor if tensor.is_floating_point() else tensor.double()


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
    _check_size(points, where)
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


def _check_size(points: Float[Tensor, "n width"], where: str) -> None:
    """Raise where distances are larger than indices allow for in the dtype that they are computed in."""
    wide = points.dtype == torch.float64 and points.device.type == "cpu"
    # Squared distances in float32 end at 3e38; silhouettes take 1e30 for larger than any distance.
    most = 1e28 if wide else 1e18
    sizes = (points.double() / most).abs().amax(dim=1) * points.shape[1] ** 0.5
    if bool((sizes > 1).any()):
        row = int(sizes.argmax())
        raise ValueError(
            f"row {row}{where} has a coordinate of {float(points[row].double().abs().max()):.3g}: squared distances "
            f"overflow. Divide all points by one number: no index depends on it"
        )


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
