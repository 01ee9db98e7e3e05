"""Intervals: the middle 95 % of bootstrap replicates, of the draws of a null distribution; of shares and few rows.

Percentiles of bootstrap replicates have no width where every row says the same, and too little of it with few rows.
There the interval of a share is that of Clopper and Pearson, and that of a mean is Student's, both of groups of rows.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95
NULL_SHARES = (0.025, 0.5, 0.975)
"""Quantiles of an interval and its median. They are written out since (1 - 0.95) / 2 is another float64 than 0.025, and
tables are compared to the last bit."""
FEW = 15
"""Number of groups of rows below which percentiles of the bootstrap are too narrow."""
LEAST_OUTCOMES = 10
"""Rows of the rarer outcome below which percentiles of the bootstrap are no interval of a share."""


def percentile_interval(replicates: Array) -> tuple[float, float]:
    """The middle 95 % of bootstrap replicates, those that are not finite left out; NaN where none are finite."""
    known = replicates[np.isfinite(replicates)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def null_interval(null: Array | None) -> tuple[float, float, float]:
    """The middle 95 % of a null distribution with its median: low, median, high.

    Draws that are not finite are left out; NaN where none are finite, or there is no null distribution.
    """
    known = np.empty(0) if null is None else null[np.isfinite(null)]
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    low, median, high = np.quantile(known, NULL_SHARES)
    return float(low), float(median), float(high)


def needs_share_interval(values: Array, groups: ArrayLike | None = None) -> bool:
    """Whether a share is too near 0 or 1, or of too few rows, for percentiles of the bootstrap.

    Args:
        values: how far each row has the property, 0 to 1, [row].
        groups: group of each row; None where every row is its own.
    """
    value, effective = float(values.mean()), effective_rows(values, groups)
    return effective * min(value, 1 - value) < LEAST_OUTCOMES


def share_interval(values: Array, groups: ArrayLike | None = None) -> tuple[float, float]:
    """The 95 % interval of a share: Clopper and Pearson's, for as many independent rows as the groups are worth.

    NaN for fewer than two groups. It covers at least 95 %, usually more.

    Args:
        values: how far each row has the property, 0 to 1, [row].
        groups: group of each row; None where every row is its own.

    Source: Clopper and Pearson 1934; Korn and Graubard 1998 for groups.
    """
    from scipy.stats import beta

    if _count_groups(values, groups) < 2:
        return float("nan"), float("nan")
    rows = effective_rows(values, groups)
    right = float(values.mean()) * rows
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, rows - right + 1)) if right > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, rows - right)) if right < rows else 1.0
    return low, high


def effective_rows(values: Array, groups: ArrayLike | None = None) -> float:
    """Number of independent rows that tell as much of a share as these rows in groups: at most the number of rows.

    Where all rows say the same nothing shows how alike those of a group are: then it is the number of groups.
    """
    value, count = float(values.mean()), _count_groups(values, groups)
    if count == len(values):
        return float(count)
    if count < 2 or value in (0.0, 1.0):
        return float(count)
    from scipy.stats import t

    independent = value * (1 - value) / (len(values) - 1)
    tail = (1 + CONFIDENCE) / 2
    # Few groups tell their own variance badly.
    variance = _variance_of_mean(values, groups)
    worth = independent / variance if variance > 0 else 1.0
    known = len(values) * worth * (t.ppf(tail, len(values) - 1) / t.ppf(tail, count - 1)) ** 2
    return float(min(known, len(values)))


def student_interval(values: Array, groups: ArrayLike | None = None) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t over groups of rows; NaN for fewer than two groups.

    Args:
        values: [row].
        groups: group of each row; None where every row is its own.
    """
    from scipy.stats import t

    count = _count_groups(values, groups)
    if count < 2:
        return float("nan"), float("nan")
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * _variance_of_mean(values, groups) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def _variance_of_mean(values: Array, groups: ArrayLike | None) -> float:
    """Variance of the mean over rows when groups are drawn, as many as there are."""
    index = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(index, values - values.mean())
    return float(len(sums) / (len(sums) - 1) * (sums**2).sum() / len(values) ** 2)


def _count_groups(values: Array, groups: ArrayLike | None) -> int:
    return len(values) if groups is None else len(np.unique(np.asarray(groups)))
