"""Intervals: the middle 95 % of bootstrap replicates, of the draws of a null distribution; of shares and few rows.

Percentiles of bootstrap replicates have no width where every row says the same, and too little of it with few rows.
There the interval of a share is that of Clopper and Pearson, that of a mean is made with Student's t and the
bootstrap-t, and others are between percentiles that lie further out; all of groups of rows.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95
NULL_SHARES = (0.025, 0.5, 0.975)
"""Quantiles of an interval and its median. They are written out since (1 - 0.95) / 2 is another float64 than 0.025, and
tables are compared to the last bit."""
FEW = 15
"""Number of groups of rows below which percentiles of the bootstrap are no interval, however far out they lie."""
MANY = 200
"""Number of groups of rows from which on the plain percentiles of the bootstrap are an interval."""
NO_SPREAD = 1e-6
"""A standard error of less than this part of that of the rows themselves is rounding."""
LEAST_OUTCOMES = 10
"""Rows of the rarer outcome below which percentiles of the bootstrap are no interval of a share."""


def percentile_interval(replicates: Array, groups: int | None = None) -> tuple[float, float]:
    """The middle 95 % of bootstrap replicates, those that are not finite left out; NaN where none are finite.

    Args:
        replicates: [replicate].
        groups: number of groups that were drawn from, where the interval is to be as wide as few groups ask for:
            replicates vary by (groups - 1) / groups of the variance, and Student's t is wider than the normal. None, or
            many groups: the plain percentiles.

    Source: the expanded percentile interval, Hesterberg 2015, arXiv 1411.5279.
    """
    known = replicates[np.isfinite(replicates)]
    if not len(known):
        return float("nan"), float("nan")
    shares = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    if groups is not None and groups < MANY:
        outside = _expand(groups)
        shares = [outside, 1 - outside]
    low, high = np.quantile(known, shares)
    return float(low), float(high)


def _expand(groups: int) -> float:
    """The share of replicates outside an end of the expanded percentile interval; less than .025."""
    from scipy.stats import norm, t

    if groups < 2:
        return 0.0
    return float(norm.cdf(-t.ppf((1 + CONFIDENCE) / 2, groups - 1) * math.sqrt(groups / (groups - 1))))


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
    """Whether a share is too near 0 or 1, of too few rows, or of rows that are all alike, for percentiles.

    Args:
        values: how far each row has the property, 0 to 1, [row].
        groups: group of each row; None where every row is its own.
    """
    value, effective = float(values.mean()), effective_rows(values, groups)
    return _is_constant(values) or effective * min(value, 1 - value) < LEAST_OUTCOMES


def share_interval(values: Array, groups: ArrayLike | None = None) -> tuple[float, float]:
    """The 95 % interval of a share: Clopper and Pearson's, for as many independent rows as the groups are worth.

    NaN for fewer than two groups. It covers at least 95 %, usually more. Where all rows have one value, such as a half,
    it reaches as far as it would if the groups that could be otherwise, of which none was seen, were all 0 or all 1.

    Args:
        values: how far each row has the property, 0 to 1, [row].
        groups: group of each row; None where every row is its own.

    Source: Clopper and Pearson 1934; Korn and Graubard 1998 for groups.
    """
    from scipy.stats import beta

    count, tail = count_groups(values, groups), (1 - CONFIDENCE) / 2
    if count < 2:
        return float("nan"), float("nan")
    if _is_constant(values):
        value, other = float(values[0]), 1 - tail ** (1 / count)
        return value * (1 - other), value + (1 - value) * other
    rows = effective_rows(values, groups)
    right = float(values.mean()) * rows
    low = float(beta.ppf(tail, right, rows - right + 1)) if right > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, rows - right)) if right < rows else 1.0
    return low, high


def auroc_interval(value: float, couples: int, replicates: Array) -> tuple[float, float] | None:
    """The 95 % interval of an AUROC near 0 or 1, or of few rows; None where percentiles of the bootstrap hold.

    Couples of rows of both kinds that have no row in common are independent, and each is in order with a probability
    that is the AUROC. Where fewer than ten of them are expected in the rarer order, the interval is symmetric in the
    log-odds, with the standard error of the replicates. Where none is, no replicate differs: then so many couples in a
    row give Clopper and Pearson's interval.

    Args:
        value: the AUROC.
        couples: number of couples that have no group of rows in common.
        replicates: the AUROC in every bootstrap replicate, [replicate].

    Source: Pepe 2003, 5.2.4, for the log-odds.
    """
    if not math.isfinite(value) or couples < 1 or couples * min(value, 1 - value) >= LEAST_OUTCOMES:
        return None
    if couples == 1 and value in (0.0, 1.0):
        return float("nan"), float("nan")
    if value in (0.0, 1.0):
        return share_interval(np.full(couples, value))
    from scipy.special import expit, logit
    from scipy.stats import norm

    error = float(np.nanstd(replicates, ddof=1)) / (value * (1 - value))
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def effective_rows(values: Array, groups: ArrayLike | None = None) -> float:
    """Number of independent rows that tell as much of a share as these rows in groups: at most the number of rows.

    Where all rows say the same nothing shows how alike those of a group are: then it is the number of groups.
    """
    value, count = float(values.mean()), count_groups(values, groups)
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


def _is_constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def student_interval(values: Array, groups: ArrayLike | None = None) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t over groups of rows; NaN for fewer than two groups.

    Args:
        values: [row].
        groups: group of each row; None where every row is its own.
    """
    from scipy.stats import t

    count = count_groups(values, groups)
    if count < 2:
        return float("nan"), float("nan")
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * _variance_of_mean(values, groups) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def studentized_interval(values: Array, weights: Array, groups: ArrayLike | None = None) -> tuple[float, float]:
    """The 95 % interval of a mean of few groups: each end is the farther one of Student's and of the bootstrap-t.

    The bootstrap-t reads from the replicates how far the mean lies from the truth in units of its standard error, so
    that it follows a skewed distribution; Student's holds for long tails on both sides. Where a replicate has no spread
    there is no such unit, and the interval is Student's.

    Args:
        values: [row].
        weights: number of times that each group counts in each bootstrap replicate, [replicate group]; groups in
            ascending order.
        groups: group of each row; None where every row is its own.

    Source: Efron and Tibshirani 1993, 12.5.
    """
    mean, error = float(values.mean()), _variance_of_mean(values, groups) ** 0.5
    low, high = student_interval(values, groups)
    index = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, sizes = np.bincount(index, values - mean), np.bincount(index).astype(np.float64)
    rows, count = weights @ sizes, len(sizes)
    away = weights @ sums / rows
    squares = weights @ sums**2 - 2 * away * (weights @ (sums * sizes)) + away**2 * (weights @ sizes**2)
    errors = np.sqrt(np.maximum(squares, 0) * count / (count - 1)) / rows
    if not (errors > NO_SPREAD * error).all():
        return low, high
    below, above = np.quantile(away / errors, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return min(low, mean - float(above) * error), max(high, mean - float(below) * error)


def _variance_of_mean(values: Array, groups: ArrayLike | None) -> float:
    """Variance of the mean over rows when groups are drawn, as many as there are."""
    index = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(index, values - values.mean())
    return float(len(sums) / (len(sums) - 1) * (sums**2).sum() / len(values) ** 2)


def count_groups(values: Array, groups: ArrayLike | None) -> int:
    """Number of groups of rows; None where every row is its own."""
    return len(values) if groups is None else len(np.unique(np.asarray(groups)))
