"""The bootstrap: estimates with percentile intervals over rows, and weights of rows in a cluster bootstrap."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

from probing.statistics.correlation import has_rank_correlation, rank_correlations
from probing.statistics.intervals import (
    CONFIDENCE,
    FEW,
    MANY,
    count_groups,
    needs_share_interval,
    percentile_interval,
    share_interval,
    student_interval,
    studentized_interval,
)
from probing.types import Estimate

RESAMPLES = 1000
LEAST_STUDENTIZED = 10
"""Number of groups of rows below which replicates say too little of how skewed a distribution is."""
BATCH_NUMBERS = 1 << 22
"""Numbers of bootstrap replicates that are held at a time: bounds the memory whatever the number of rows."""
LEAST_RESAMPLES = 200
RANKED_NUMBERS = 20_000_000
KEPT_NUMBERS = 1 << 17
"""Size of draws that are remembered."""
STREAM = 2
Array = NDArray[np.float64]


def bootstrap_mean(
    values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, groups: ArrayLike | None = None
) -> Estimate:
    """The mean, with a 95 % interval over rows, or over groups of rows.

    Of 200 groups or more it is the percentile interval of the bootstrap. Of fewer, where percentiles are too narrow,
    each end is the farther one of Student's and of the bootstrap-t; of fewer than ten it is Student's. It is NaN for
    fewer than two groups.

    Args:
        values: [row].
        resamples: number of bootstrap replicates.
        seed: seed of the draw.
        groups: group of each row, which are drawn together; None where every row is its own.

    Raises:
        ValueError: no rows, or values that are not finite.
    """
    data = _check_rows(np.asarray(values, dtype=np.float64))
    together = _find_groups(groups)
    count = count_groups(data, together)
    if count >= MANY:
        return _resample_mean(data, together, resamples, seed)
    if count < LEAST_STUDENTIZED:
        return Estimate(float(data.mean()), *student_interval(data, together), len(data))
    weights = draw_bootstrap_weights(np.arange(count), resamples, seed)
    return Estimate(float(data.mean()), *studentized_interval(data, weights, together), len(data))


def estimate_share(
    values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, groups: ArrayLike | None = None
) -> Estimate:
    """A share, with a 95 % interval: percentiles of the bootstrap, or Clopper and Pearson's where these do not hold.

    Shares of groups of several rows are means of what the groups say: see ``bootstrap_mean``.

    Args, Raises: see ``bootstrap_mean``.
    """
    data = _check_rows(np.asarray(values, dtype=np.float64))
    together = _find_groups(groups)
    if needs_share_interval(data, together):
        return Estimate(float(data.mean()), *share_interval(data, together), len(data))
    if together is None:
        return _resample_mean(data, together, resamples, seed)
    found = bootstrap_mean(data, resamples, seed, together)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def bootstrap_spearman(
    left: ArrayLike,
    right: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Estimate:
    """Spearman's rank correlation, ties by mean ranks, with a 95 % percentile bootstrap interval over (groups of) rows.

    Beyond 20,000 rows there are fewer replicates, down to 200, since every one has to be ranked again. NaN where it is
    not defined: fewer than three rows, or the same value throughout on one side. With fewer than 15 groups there is no
    interval.

    Args:
        left: [row].
        right: [row].
        resamples: number of bootstrap replicates.
        seed: seed of the draw.
        groups: group of each row, which are drawn together; None where every row is its own.

    Raises:
        ValueError: no rows, different numbers of rows on both sides, or values that are not finite.
    """
    sides = (np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64))
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"{len(sides[0])} and {len(sides[1])} values; there must be as many")
    if not has_rank_correlation(*sides):
        return Estimate(float("nan"), float("nan"), float("nan"), len(sides[0]))
    fewer = min(resamples, max(LEAST_RESAMPLES, RANKED_NUMBERS // len(sides[0])))
    together = _find_groups(groups)
    if count_groups(sides[0], together) < FEW:
        value = float(rank_correlations(*map(_check_rows, sides)))
        return Estimate(value, float("nan"), float("nan"), len(sides[0]))
    if together is None:
        return _estimate(sides, rank_correlations, fewer, seed)
    value = float(rank_correlations(*map(_check_rows, sides)))
    draws = draw_bootstrap_weights(together, fewer, seed).astype(np.int64)
    replicates = [rank_correlations(*(np.repeat(side, counts) for side in sides)) for counts in draws]
    return Estimate(value, *percentile_interval(np.array(replicates)), len(sides[0]))


def draw_bootstrap_weights(groups: ArrayLike, replicates: int, seed: int = 0) -> Array:
    """Number of times that every row counts in each bootstrap replicate, [replicate row].

    Groups are drawn with replacement (cluster bootstrap), as many as there are, so that rows of one group count alike.

    Args:
        groups: group of each row, [row].
        replicates: number of bootstrap replicates.
        seed: seed of the draw.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    # Several numbers of the same few rows are often estimated one after the other.
    draw = _draw_again if len(names) * replicates <= KEPT_NUMBERS else _draw_groups
    weights: Array = draw(len(names), replicates, seed)[:, index].astype(np.float64)
    return weights


def _draw_groups(count: int, replicates: int, seed: int) -> NDArray[np.int64]:
    """Number of times that each of so many groups is drawn in each replicate, [replicate group]."""
    generator = np.random.default_rng([seed, STREAM])
    return generator.multinomial(count, np.full(count, 1 / count), size=replicates)


_draw_again = functools.lru_cache(maxsize=2)(_draw_groups)


def _resample_mean(data: Array, together: NDArray[Any] | None, resamples: int, seed: int) -> Estimate:
    """The mean with the percentile interval of its replicates."""
    if together is None:
        return _estimate((data,), lambda rows: rows.mean(axis=-1), resamples, seed)
    drawn = draw_bootstrap_weights(together, resamples, seed)
    return Estimate(float(data.mean()), *percentile_interval(drawn @ data / drawn.sum(axis=1)), len(data))


def _find_groups(groups: ArrayLike | None) -> NDArray[Any] | None:
    """The groups, or None where every row is its own: then the draws are those without groups."""
    if groups is None:
        return None
    names = np.asarray(groups)
    return None if len(np.unique(names)) == len(names) else names


def _check_rows(values: Array) -> Array:
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("there must be rows, and every value must be finite")
    return values


def _estimate(data: tuple[Array, ...], statistic: Callable[..., Array], resamples: int, seed: int) -> Estimate:
    rows, value = len(data[0]), float(statistic(*map(_check_rows, data)))
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
