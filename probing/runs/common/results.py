"""What the results of several jobs have in common."""

import numpy as np
from numpy.typing import NDArray

NULL_SHARES = (0.025, 0.5, 0.975)


def null_columns(name: str, null: NDArray[np.float64] | None) -> dict[str, float]:
    """The middle 95 % of a null and its median, as columns of a table; NaN where there is none."""
    known = np.empty(0) if null is None else null[np.isfinite(null)]
    cuts = np.quantile(known, NULL_SHARES).tolist() if len(known) else [float("nan")] * 3
    return dict(zip((f"{name}_low", f"{name}_median", f"{name}_high"), cuts, strict=True))


CHOSEN = "chosen inside folds"
