"""How good held-out probabilities are, for many weightings and labelings of the pairs at once.

Everything is computed from four probabilities a pair, of the forms A1, A0, N1, N0 (the statement's yes and no form, the
opposite's), each by the probe of the fold that the pair was held out of. Scores are compared only within a fold, since
the probe of another fold has another scale.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from probing.probes.polarity import polar_consistency, symmetric_contradiction_index

Array = NDArray[np.float64]
METRICS = (
    "esa",
    "auroc",
    "polar_consistency",
    "median_abs_polar_consistency",
    "contradiction_index",
    "silhouette",
)
MEANS = ("esa", "polar_consistency", "contradiction_index")
"""Metrics that are means over pairs."""
HIGHER_IS_BETTER = ("esa", "auroc", "silhouette")
BY_LABEL = HIGHER_IS_BETTER
"""Metrics that the labels enter into (into the others only by the orientation)."""


def scores(forms: Array) -> Array:
    """``(p1 + 1 - p0) / 2`` of statements and opposites, [... 2 pair], from [... 4 pair]."""
    return np.stack([forms[..., 0, :] + 1 - forms[..., 1, :], forms[..., 2, :] + 1 - forms[..., 3, :]], axis=-2) / 2


def credit(forms: Array) -> Array:
    """Score of a probe on each pair if the statement is true, less a half: [... pair] in [-1/2, 1/2].

    Statement and opposite count alike; a score of exactly a half is half right. For a pair whose statement is false the
    score is the negative.
    """
    own = scores(forms)
    credited: Array = (np.sign(own[..., 0, :] - 0.5) - np.sign(own[..., 1, :] - 0.5)) / 4
    return credited


def measure_pairs(metric: str, forms: Array, truth: Array) -> Array:
    """What each pair adds to a metric that is a mean over pairs, [pair]: one of ``MEANS``.

    Args:
        metric: the metric.
        forms: oriented held-out probabilities, [4 pair].
        truth: 1 where the statement is true, -1 where its opposite is, [pair].
    """
    if metric == "esa":
        return np.asarray(0.5 + credit(forms) * truth)
    sides = [torch.from_numpy(np.ascontiguousarray(side)) for side in forms]
    of_pairs = polar_consistency if metric == "polar_consistency" else symmetric_contradiction_index
    values: Array = of_pairs(*sides).numpy()
    return values


def measure(
    forms: Array,
    truth: Array,
    folds: NDArray[np.int64],
    weights: Array | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Array]:
    """Every metric, for every labeling and weighting.

    Args:
        forms: oriented held-out probabilities, [4 pair].
        truth: 1 where the statement is true, -1 where its opposite is; [pair], or [labeling pair].
        folds: fold that each pair was held out of.
        weights: number of times that each pair counts, [weighting pair]; by default once. Labelings and weightings go
            together one by one, or one of them is alone.
        metrics: metrics to compute.

    Returns:
        One value each: "esa" (share of statements that are right; with the orientation of the training pairs, so that
        it may be below a half), "auroc" of the scores (within folds), mean "polar_consistency",
        "median_abs_polar_consistency", mean "contradiction_index" (also over both orientations of the probe),
        "silhouette" of the scores by truth (in one dimension, within folds; a statement that counts several times is no
        neighbour of its own copies, or silhouettes would rise). NaN where one is not defined.
    """
    rows = np.atleast_2d(np.ones(forms.shape[1]) if weights is None else weights)
    signs = np.atleast_2d(truth)
    count = max(len(rows), len(signs))
    rows, signs = (np.broadcast_to(each, (count, forms.shape[1])) for each in (rows, signs))
    sides = [torch.from_numpy(np.ascontiguousarray(side)) for side in forms]
    values: dict[str, Array] = {}
    if "esa" in metrics:
        values["esa"] = 0.5 + _mean(credit(forms) * signs, rows)
    if "polar_consistency" in metrics or "median_abs_polar_consistency" in metrics:
        consistency = polar_consistency(*sides).numpy()
        values["polar_consistency"] = _mean(consistency, rows)
        values["median_abs_polar_consistency"] = _median(np.abs(consistency), rows)
    if "contradiction_index" in metrics:
        values["contradiction_index"] = _mean(symmetric_contradiction_index(*sides).numpy(), rows)
    if "auroc" in metrics or "silhouette" in metrics:
        flat, true = scores(forms).reshape(-1), np.concatenate([signs > 0, signs < 0], axis=1)
        twice = np.concatenate([rows, rows], axis=1), np.concatenate([folds, folds])
        ranked = rank_within_folds(flat, true, *twice, "silhouette" in metrics)
        values |= ranked
    return {name: values[name] for name in METRICS if name in metrics}


def _mean(values: Array, weights: Array) -> Array:
    with np.errstate(invalid="ignore"):
        means: Array = (weights * values).sum(axis=-1) / weights.sum(axis=-1)
    return means


def _median(values: Array, weights: Array) -> Array:
    """Weighted median: the mean of the values just below and just above half of the weight."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    half = reached[:, -1:] / 2
    low = np.minimum((reached < half).sum(axis=1), len(values) - 1)
    high = np.minimum((reached <= half).sum(axis=1), len(values) - 1)
    # A row of weight 0 between them does not count.
    ordered = values[order]
    empty = half[:, 0] == 0
    return np.where(empty, np.nan, (ordered[low] + ordered[_find_next(weights[:, order], high)]) / 2)


def _find_next(weights: Array, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first place from ``index`` on that has any weight."""
    ahead = np.arange(weights.shape[1])[None, :] >= index[:, None]
    first: NDArray[np.int64] = np.argmax(ahead & (weights > 0), axis=1)
    return first


def rank_within_folds(
    values: Array, true: NDArray[np.bool_], weights: Array, folds: NDArray[np.int64], silhouette: bool = False
) -> dict[str, Array]:
    """AUROC and silhouette of values by truth: sums over the folds, each by its own order.

    Args:
        values: scores of rows, [row].
        true: whether each row is true under every labeling, [labeling row].
        weights: number of times that each row counts, [labeling row].
        folds: fold of each row; rows of one fold are compared with each other, [row].
        silhouette: whether to compute the silhouette.
    """
    won, fought, shape, held = (np.zeros(len(true)) for _ in range(4))
    for fold in np.unique(folds):
        inside = np.flatnonzero(folds == fold)
        inside = inside[np.argsort(values[inside], kind="stable")]
        ordered, weight = values[inside], weights[:, inside]
        right, wrong = weight * true[:, inside], weight * ~true[:, inside]
        wins, fights = _count_wins(ordered, right, wrong)
        won, fought = won + wins, fought + fights
        if silhouette:
            widths = _silhouettes(ordered, true[:, inside], right, wrong)
            shape, held = shape + (widths * weight).sum(axis=1), held + weight.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return {"auroc": won / fought, "silhouette": shape / held}


def measure_auroc(logits: Array, labels: NDArray[np.bool_]) -> float:
    """AUROC of some rows; NaN where there is one class only."""
    ones = np.ones((1, len(logits)))
    return float(rank_within_folds(logits, labels[None], ones, np.zeros(len(logits), dtype=np.int64))["auroc"][0])


def _count_wins(ordered: Array, right: Array, wrong: Array) -> tuple[Array, Array]:
    """Weight of the couples in which the true statement scores higher (equal: half), and of all couples."""
    start = np.searchsorted(ordered, ordered, side="left")
    stop = np.searchsorted(ordered, ordered, side="right")
    below = np.pad(np.cumsum(wrong, axis=1), ((0, 0), (1, 0)))
    wins = (right * (below[:, start] + below[:, stop]) / 2).sum(axis=1)
    return wins, right.sum(axis=1) * wrong.sum(axis=1)


def _silhouettes(ordered: Array, true: NDArray[np.bool_], right: Array, wrong: Array) -> Array:
    """``(b - a) / max(a, b)`` of every statement, by its mean distance to its own kind and to the other."""
    distances = [_distances(ordered, kind) for kind in (right, wrong)]
    sizes = [kind.sum(axis=1, keepdims=True) for kind in (right, wrong)]
    with np.errstate(invalid="ignore", divide="ignore"):
        # Copies of a statement are at distance 0 from it, and are not counted among its neighbours.
        own = [far / (size - kind) for far, size, kind in zip(distances, sizes, (right, wrong), strict=True)]
        other = [far / size for far, size in zip(reversed(distances), reversed(sizes), strict=True)]
        a, b = (np.where(true, side[0], side[1]) for side in (own, other))
        widths: Array = (b - a) / np.maximum(a, b)
    alone = np.where(true, sizes[0] - right, sizes[1] - wrong) <= 0
    return np.where(alone | ~np.isfinite(widths), 0.0, widths)


def _distances(ordered: Array, weights: Array) -> Array:
    """Sum of the distances of every value to all weighted ones."""
    reached, sums = np.cumsum(weights, axis=1), np.cumsum(weights * ordered, axis=1)
    return ordered * (2 * reached - reached[:, -1:]) - (2 * sums - sums[:, -1:])
