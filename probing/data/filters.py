"""Which pairs to keep, by score. The answer depends on scores and ids alone, never on the order of rows."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def keep_mask(
    ids: Sequence[str],
    scores: Sequence[float],
    *,
    keep_lowest: float | None = None,
    drop_highest: float | None = None,
    below: float | None = None,
) -> NDArray[np.bool_]:
    """Which rows to keep: exactly one rule is given.

    Rows are ordered by score, equal scores by id. Shares are of the rows given, rounded to whole rows, halves up.

    Args:
        ids: unique.
        scores: finite, one an id; higher means more alike.
        keep_lowest: share to keep, above 0 and at most 1.
        drop_highest: share to drop, from 0 to below 1.
        below: keep scores strictly below this.

    Returns:
        One boolean a row, in the order given.

    Raises:
        ValueError: no rule or several, a share out of range, a score that is not finite, duplicate ids.
    """
    check_rule(keep_lowest, drop_highest, below)
    values = np.asarray(scores, dtype=np.float64)
    if len(set(ids)) != len(values):
        raise ValueError(f"{len(values)} scores need as many different ids, there are {len(set(ids))}")
    if not np.isfinite(values).all():
        raise ValueError(f"the score of '{ids[int(np.argmin(np.isfinite(values)))]}' is not a finite number")
    if below is not None:
        return values < below
    if keep_lowest is not None:
        kept = _share(keep_lowest, len(values))
    else:
        kept = len(values) - _share(drop_highest or 0.0, len(values))
    order = sorted(range(len(values)), key=lambda index: (values[index], ids[index]))
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[order[:kept]] = True
    return mask


def check_rule(keep_lowest: float | None, drop_highest: float | None, below: float | None) -> None:
    """Raise ``ValueError`` unless exactly one rule is given and within its range."""
    given = {"keep_lowest": keep_lowest, "drop_highest": drop_highest, "below": below}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        found = " and ".join(named) if named else "none"
        raise ValueError(f"give exactly one of keep_lowest, drop_highest and below; given: {found}")
    if keep_lowest is not None and not 0 < keep_lowest <= 1:
        raise ValueError(f"keep_lowest is a share above 0 and at most 1, not {keep_lowest}")
    if drop_highest is not None and not 0 <= drop_highest < 1:
        raise ValueError(f"drop_highest is a share from 0 to below 1, not {drop_highest}")
    if below is not None and math.isnan(below):
        raise ValueError("below must be a number, not NaN")


def _share(share: float, rows: int) -> int:
    return math.floor(share * rows + 0.5)
