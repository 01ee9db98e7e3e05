"""Percentile intervals: the middle 95 % of bootstrap replicates, and of the draws of a null distribution."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95
NULL_SHARES = (0.025, 0.5, 0.975)
"""Quantiles of an interval and its median. They are written out since (1 - 0.95) / 2 is another float64 than 0.025, and
tables are compared to the last bit."""


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
