"""Spearman's rank correlation of every two of several columns, with one bootstrap for all of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.statistics.bootstrap import LEAST_RESAMPLES, RANKED_NUMBERS, RESAMPLES, draw_bootstrap_weights
from probing.statistics.correlation import has_rank_correlation
from probing.statistics.intervals import FEW, percentile_interval

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpearmanMatrix:
    """Rank correlations of every two columns with their 95 % intervals; NaN where there is none.

    Attributes:
        value: [column column].
        low: lower end of the interval, [column column].
        high: its upper end, [column column].
    """

    value: Array
    low: Array
    high: Array


def bootstrap_spearman_matrix(
    columns: ArrayLike, groups: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> SpearmanMatrix:
    """What ``bootstrap_spearman`` gives for every two columns with these groups, from the same draws.

    The values of a column are sorted once: a row that is drawn several times counts so often in the ranks. That is the
    same as to rank the rows of every replicate anew for every two columns, and much faster.

    Args:
        columns: [column row].
        groups: group of each row, which are drawn together, [row].
        resamples: number of bootstrap replicates; fewer beyond 20,000 rows, down to 200.
        seed: seed of the draw.

    Raises:
        ValueError: no rows, or values that are not finite.
    """
    data, together = np.asarray(columns, dtype=np.float64), np.asarray(groups)
    if not data.size or not np.isfinite(data).all():
        raise ValueError("there must be rows, and every value must be finite")
    rows = data.shape[1]
    numbers = np.stack([np.unique(column, return_inverse=True)[1] for column in data])
    value = _correlate(numbers, np.ones(rows))
    # Rounding could give a column of one value, or two rows, a correlation.
    value[[[not has_rank_correlation(one, other) for one in data] for other in data]] = np.nan
    if len(np.unique(together)) < FEW:
        return SpearmanMatrix(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    fewer = min(resamples, max(LEAST_RESAMPLES, RANKED_NUMBERS // rows))
    replicates = np.stack([_correlate(numbers, drawn) for drawn in draw_bootstrap_weights(together, fewer, seed)])
    ends = np.array(
        [[percentile_interval(replicates[:, one, other]) for one in range(len(data))] for other in range(len(data))]
    )
    ends[np.isnan(value)] = np.nan
    return SpearmanMatrix(value, ends[..., 0], ends[..., 1])


def _correlate(numbers: NDArray[np.int64], counts: Array) -> Array:
    """Rank correlations of every two columns, [column column].

    Args:
        numbers: number of the value of each row among the distinct values of its column in ascending order,
            [column row].
        counts: number of times that each row is there, [row].
    """
    ranks = np.stack([_rank(column, counts) for column in numbers]) - (counts.sum() + 1) / 2
    products = (ranks * counts) @ ranks.T
    scale = np.sqrt(np.outer(products.diagonal(), products.diagonal()))
    # A bootstrap replicate may consist of copies of a single row.
    with np.errstate(invalid="ignore"):
        return np.asarray(products / scale)


def _rank(numbers: NDArray[np.int64], counts: Array) -> Array:
    """Mean rank of the copies of each row, ties included, [row]."""
    sizes = np.bincount(numbers, counts)
    return np.asarray((sizes.cumsum() - (sizes - 1) / 2)[numbers])
