"""Bootstrap intervals of cluster indices, corrected for the bias that few points add to distances of centroids."""

import math

import numpy as np
from numpy.typing import NDArray

from probing.statistics.intervals import CONFIDENCE, percentile_interval

POWERS = {"davies_bouldin": -2.0, "xie_beni": -1.0, "calinski_harabasz": 1.0, "aqi": 1.0, "aqi_size_free": 1.0}
"""The power of an index that grows in proportion to the squared distance of centroids."""


def debias(index: str, value: float, draws: NDArray[np.float64]) -> tuple[float, float, float]:
    """The value that many points would have, and its 95 % interval, from bootstrap replicates.

    The centroids of n points lie apart by chance alone: the squared distance of two is too large by ``tr(S) (1/n1 +
    1/n2)`` on average, which in a space of many dimensions can be most of it, and a replicate adds as much once more.
    So what replicates add is taken off, in a power of the index that is proportional to the squared distance (the basic
    bootstrap interval: Davison and Hinkley 1997, 5.2). The silhouette needs next to none of it.

    Args:
        index: "silhouette", or one of those with centroids; aqi and aqi_size_free too.
        value: the index of the points themselves.
        draws: the index in each bootstrap replicate; replicates without a value (NaN) are left out.

    Returns:
        Value, low, high; "davies_bouldin" and "xie_beni" are infinite where the squared distance may be 0.
    """
    power = POWERS.get(index, 1.0)
    own, reflected = _reflect(power, value, draws)
    known = reflected[np.isfinite(reflected)]
    if not len(known) or not math.isfinite(own):
        return math.nan, math.nan, math.nan
    estimates = _back(index, np.array([known.mean(), *percentile_interval(known)])).tolist()
    return (estimates[0], estimates[1], estimates[2]) if power > 0 else (estimates[0], estimates[2], estimates[1])


def debias_difference(
    index: str, value: float, draws: NDArray[np.float64], other: float, other_draws: NDArray[np.float64]
) -> tuple[float, float]:
    """The 95 % interval of the difference of an index between two sets of states, debiased like ``debias``.

    Few points bias the distance of centroids differently in both: for an index that is divided by that distance, the
    difference of the uncorrected values can lie far outside the interval.

    Args:
        index: see ``debias``.
        value: the index of the states themselves.
        draws: the index in each bootstrap replicate.
        other: the index of the other states themselves.
        other_draws: the index of the other states in the same bootstrap replicates.

    Returns:
        Low and high; infinite on a side where one of the two may be, and on both where both may be.
    """
    power = POWERS.get(index, 1.0)
    one, two = (_back(index, _reflect(power, *each)[1]) for each in ((value, draws), (other, other_draws)))
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


def _reflect(power: float, value: float, draws: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The power of a value, and of what lies as far on the other side of it as each draw; NaN where there is none."""
    # Centroids in one place have the power 0, and points in one place an infinite one.
    with np.errstate(divide="ignore"):
        own, powers = float(np.float64(value) ** power), draws**power
    return own, 2 * own - np.where(np.isfinite(powers), powers, np.nan)


def _back(index: str, powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The index of its powers."""
    if index not in POWERS:
        return powers
    with np.errstate(divide="ignore"):
        return np.maximum(powers, 0.0) ** (1 / POWERS[index])
