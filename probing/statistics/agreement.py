"""How far two judges agree: share of equal verdicts, and Cohen's kappa, with intervals over rows or groups of rows."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.statistics.bootstrap import RESAMPLES, draw_bootstrap_weights, estimate_share
from probing.statistics.intervals import percentile_interval
from probing.types import Estimate

Array = NDArray[np.float64]


def cohen_kappa(left: ArrayLike, right: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Cohen's kappa of two judges that say yes or no: agreement beyond what their shares of yes give by chance.

    Args:
        left: verdicts of one judge, [row].
        right: verdicts of the other, [row].
        weights: number of times that every row counts, [weighting row]; by default once.

    Returns:
        One value a weighting, from -1 to 1; NaN where both give all rows the same verdict.

    Raises:
        ValueError: no rows, or not as many on both sides.

    Source: Cohen 1960.
    """
    sides = [np.asarray(side, dtype=bool) for side in (left, right)]
    if len(sides[0]) != len(sides[1]) or not len(sides[0]):
        raise ValueError(f"{len(sides[0])} and {len(sides[1])} verdicts; there must be as many, and at least one")
    counted = np.ones((1, len(sides[0]))) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
    total = counted.sum(axis=1)
    agreed = counted @ (sides[0] == sides[1]) / total
    yes = [counted @ side / total for side in sides]
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa: Array = np.where(chance < 1, (agreed - chance) / (1 - chance), np.nan)
    return kappa


def estimate_agreement(
    left: ArrayLike, right: ArrayLike, groups: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Share of equal verdicts, and Cohen's kappa, with 95 % intervals; kappa's is of bootstrap replicates of groups.

    Args, Raises: see ``cohen_kappa``; ``groups`` are drawn together.
    """
    sides = [np.asarray(side, dtype=bool) for side in (left, right)]
    kappa = float(cohen_kappa(sides[0], sides[1])[0])
    replicates = cohen_kappa(sides[0], sides[1], draw_bootstrap_weights(groups, resamples, seed))
    share = estimate_share((sides[0] == sides[1]).astype(float), resamples, seed, groups)
    return share, Estimate(kappa, *percentile_interval(replicates), len(sides[0]))
