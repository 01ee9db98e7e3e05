"""The bootstrap: estimates with percentile intervals over rows, and weights of rows in a cluster bootstrap."""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

from probing.statistics.correlation import has_rank_correlation, rank_correlations
from probing.statistics.intervals import CONFIDENCE, percentile_interval
from probing.types import Estimate

RESAMPLES = 1000
BATCH_NUMBERS = 1 << 22
"""Numbers of bootstrap replicates that are held at a time: bounds the memory whatever the number of rows."""
LEAST_RESAMPLES = 200
RANKED_NUMBERS = 20_000_000
STREAM = 2
Array = NDArray[np.float64]


def bootstrap_mean(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean, with a 95 % percentile bootstrap interval over rows.

    The interval is NaN for fewer than two rows.

    Raises:
        ValueError: no rows, or values that are not finite.
    """
    return _estimate((np.asarray(values, dtype=np.float64),), lambda data: data.mean(axis=-1), resamples, seed)


def bootstrap_spearman(left: ArrayLike, right: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Spearman's rank correlation, ties by mean ranks, with a 95 % percentile bootstrap interval over rows.

    Beyond 20,000 rows there are fewer replicates, down to 200, since every one has to be ranked again. NaN where it is
    not defined: fewer than three rows, or the same value throughout on one side.

    Raises:
        ValueError: no rows, different numbers of rows on both sides, or values that are not finite.
    """
    sides = (np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64))
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"{len(sides[0])} and {len(sides[1])} values; there must be as many")
    if not has_rank_correlation(*sides):
        return Estimate(float("nan"), float("nan"), float("nan"), len(sides[0]))
    fewer = max(LEAST_RESAMPLES, RANKED_NUMBERS // len(sides[0]))
    return _estimate(sides, rank_correlations, min(resamples, fewer), seed)


def draw_bootstrap_weights(groups: ArrayLike, replicates: int, seed: int = 0) -> Array:
    """Number of times that every row counts in each bootstrap replicate, [replicate row].

    Groups are drawn with replacement (cluster bootstrap), as many as there are, so that rows of one group count alike.

    Args:
        groups: group of each row, [row].
        replicates: number of bootstrap replicates.
        seed: seed of the draw.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng([seed, STREAM])
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    weights: Array = drawn[:, index].astype(np.float64)
    return weights


def _estimate(data: tuple[Array, ...], statistic: Callable[..., Array], resamples: int, seed: int) -> Estimate:
    rows = len(data[0])
    if not rows or not all(np.isfinite(side).all() for side in data):
        raise ValueError("there must be rows, and every value must be finite")
    value = float(statistic(*data))
    if rows < 2:
        return Estimate(value, float("nan"), float("nan"), rows)
    return Estimate(value, *percentile_interval(_replicates(data, statistic, resamples, seed)), rows)


def _replicates(data: tuple[Array, ...], statistic: Callable[..., Array], resamples: int, seed: int) -> Array:
    """The statistic of every bootstrap replicate, [replicate]; rows are drawn with replacement."""
    with warnings.catch_warnings():
        # Data that are all equal give an interval of no width, which is right.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            data,
            lambda *sides, axis: statistic(*sides),
            paired=len(data) > 1,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, BATCH_NUMBERS // len(data[0])),
            method="percentile",
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        )
    replicates: Array = result.bootstrap_distribution
    return replicates
