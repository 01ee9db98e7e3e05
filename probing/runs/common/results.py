"""What the results of several jobs have in common."""

import numpy as np
from numpy.typing import NDArray

from probing.statistics.intervals import null_interval


def null_columns(name: str, null: NDArray[np.float64] | None) -> dict[str, float]:
    """The middle 95 % of a null and its median, as columns of a table; NaN where there is none."""
    cuts = null_interval(np.empty(0) if null is None else null)
    return dict(zip((f"{name}_low", f"{name}_median", f"{name}_high"), cuts, strict=True))


CHOSEN = "chosen inside folds"
