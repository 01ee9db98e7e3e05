"""Tables of influences: what dropping pairs does to the target, and how the influences compare with chance."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DROPPED = (0.0, 0.05, 0.1, 0.2)
"""Shares of the pairs, those with the lowest influence, without which the target is looked at."""
DROP_TITLE = "What dropping the pairs of lowest influence does to the target"
SPREAD_TITLE = "Spread of influence on a sample (root mean square)"


def drop_worst(influence: "pd.Series[float]") -> pd.DataFrame:
    """The mean influence, which is the change of the target per unit learning rate, of what is left."""
    ordered = np.sort(influence.to_numpy(np.float64))
    rows = []
    for share in DROPPED:
        kept = ordered[round(share * len(ordered)) :]
        if len(kept):
            rows.append((f"{share:.0%}", len(kept), float(kept.mean()), float((kept < 0).mean())))
    return pd.DataFrame(rows, columns=["dropped", "pairs", "change of the target", "pairs below 0"])


def list_spread(frame: pd.DataFrame, null: pd.DataFrame) -> pd.DataFrame:
    """Root mean square of the influences: of the target, and over the draws of each null the range."""
    rows = [
        (name, len(draws), float(np.median(draws)), float(draws.min()), float(draws.max()))
        for name, draws in measure_spread(frame, null).items()
    ]
    return pd.DataFrame(rows, columns=["direction", "draws", "median", "lowest", "highest"])


def measure_spread(frame: pd.DataFrame, null: pd.DataFrame) -> Mapping[str, NDArray[np.float64]]:
    """Root mean square of the influences of the sampled pairs: of the target, and in each draw of each null."""
    sample = frame[frame["id"].isin(set(null["id"]))]["influence"].dropna()
    spread = {"target": np.array([float(np.sqrt(np.square(sample).mean()))])}
    for kind, part in null.dropna().groupby("kind", sort=False):
        draws = part.groupby("draw", sort=False)["influence"].apply(
            lambda values: float(np.sqrt(np.square(values).mean()))
        )
        spread[f"{kind}s"] = draws.to_numpy(np.float64)
    return spread
