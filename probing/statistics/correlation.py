"""Spearman's rank correlation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]


def spearman(left: ArrayLike, right: ArrayLike) -> float:
    """Spearman's rank correlation, ties by mean ranks; NaN where ``has_rank_correlation`` says that there is none."""
    sides = (np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64))
    return float(rank_correlations(*sides)) if has_rank_correlation(*sides) else float("nan")


def has_rank_correlation(left: Array, right: Array) -> bool:
    """Whether there are at least three rows, and more than one value on each side."""
    return len(left) >= 3 and not any(bool(side.min() == side.max()) for side in (left, right))


def rank_correlations(left: Array, right: Array) -> Array:
    """Spearman's rank correlation of every leading index, [...] from [... row]; NaN where a side has one value only."""
    ranks = [rankdata(side, axis=-1) for side in (left, right)]
    ranks = [side - side.mean(axis=-1, keepdims=True) for side in ranks]
    scale = np.sqrt((ranks[0] ** 2).sum(axis=-1) * (ranks[1] ** 2).sum(axis=-1))
    # A bootstrap replicate may consist of copies of a single row.
    with np.errstate(invalid="ignore"):
        return np.asarray((ranks[0] * ranks[1]).sum(axis=-1) / scale)
