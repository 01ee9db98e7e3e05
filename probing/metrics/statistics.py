"""Estimates with intervals."""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import DegenerateDataWarning, bootstrap, rankdata

from probing.types import Estimate

RESAMPLES = 1000
CONFIDENCE = 0.95
BATCH_NUMBERS = 1 << 22
"""Numbers that are resampled at a time: bounds the memory whatever the number of rows."""
LEAST_RESAMPLES = 200
RANKED_NUMBERS = 20_000_000
Array = NDArray[np.float64]


def bootstrap_mean(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean, with a 95 % percentile bootstrap interval over rows.

    Without an interval (NaN) for fewer than two rows.

    Raises:
        ValueError: no rows, or values that are not finite.
    """
    return _estimate((np.asarray(values, dtype=np.float64),), lambda data: data.mean(axis=-1), resamples, seed)


def bootstrap_spearman(left: ArrayLike, right: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Spearman's rank correlation, ties by mean ranks, with a 95 % percentile bootstrap interval over rows.

    Beyond 20,000 rows there are fewer resamples, down to 200: every one has to be ranked anew. NaN where it is not
    defined: fewer than three rows, or the same value throughout on one side.

    Raises:
        ValueError: no rows, or not as many on both sides, or values that are not finite.
    """
    sides = (np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64))
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"{len(sides[0])} and {len(sides[1])} values; there must be as many")
    if _cannot_be_ranked(sides):
        return Estimate(float("nan"), float("nan"), float("nan"), len(sides[0]))
    fewer = max(LEAST_RESAMPLES, RANKED_NUMBERS // len(sides[0]))
    return _estimate(sides, _spearman, min(resamples, fewer), seed)


def spearman(left: ArrayLike, right: ArrayLike) -> float:
    """Spearman's rank correlation alone; NaN where ``bootstrap_spearman`` has none."""
    sides = (np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64))
    return float("nan") if _cannot_be_ranked(sides) else float(_spearman(*sides))


def _cannot_be_ranked(sides: tuple[Array, Array]) -> bool:
    """Whether there is no rank correlation: too few rows, or the same value throughout on one side."""
    return len(sides[0]) < 3 or any(bool(side.min() == side.max()) for side in sides)


def _spearman(left: Array, right: Array) -> Array:
    ranks = [rankdata(side, axis=-1) for side in (left, right)]
    ranks = [side - side.mean(axis=-1, keepdims=True) for side in ranks]
    scale = np.sqrt((ranks[0] ** 2).sum(axis=-1) * (ranks[1] ** 2).sum(axis=-1))
    with np.errstate(invalid="ignore"):  # a resample of one row only has none
        return np.asarray((ranks[0] * ranks[1]).sum(axis=-1) / scale)


def _estimate(data: tuple[Array, ...], statistic: Callable[..., Array], resamples: int, seed: int) -> Estimate:
    rows = len(data[0])
    if not rows or not all(np.isfinite(side).all() for side in data):
        raise ValueError("there must be rows, and every value must be finite")
    value = float(statistic(*data))
    if rows < 2:
        return Estimate(value, float("nan"), float("nan"), rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # the same value throughout: an interval of no width
        found = bootstrap(
            data,
            lambda *sides, axis: statistic(*sides),
            paired=len(data) > 1,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, BATCH_NUMBERS // rows),
            method="percentile",
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    return Estimate(value, *percentile_interval(found), rows)


def percentile_interval(draws: Array) -> tuple[float, float]:
    """The middle 95 % of draws, those that are not finite left out; NaN where none are."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
