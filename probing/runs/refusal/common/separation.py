"""How well held-out prompts of both kinds are told apart by a projection, with its interval."""

import numpy as np
from numpy.typing import NDArray

from probing.probes.evaluate import rank_within_folds
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.intervals import auroc_interval, percentile_interval


def measure_separation(
    projected: NDArray[np.float64],
    harmful: NDArray[np.bool_],
    units: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> tuple[float, float, float]:
    """AUROC of prompts by their projection, and the ends of its 95 % interval over texts.

    Args:
        projected: projection of each prompt.
        harmful: whether each is harmful.
        units: prompts of one unit have the same text and are drawn together.
        resamples: number of bootstrap replicates.
        seed: seed of the draw.
    """
    weights = np.concatenate([np.ones((1, len(units))), draw_bootstrap_weights(units, resamples, seed)])
    true = np.broadcast_to(harmful, weights.shape)
    values = rank_within_folds(projected, true, weights, np.zeros(len(units), dtype=np.int64))["auroc"]
    couples = min(len(set(units[harmful == kind].tolist())) for kind in (True, False))
    value = float(values[0])
    return value, *(auroc_interval(value, couples, values[1:]) or percentile_interval(values[1:]))
