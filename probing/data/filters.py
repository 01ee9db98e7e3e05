"""Which pairs to keep, by score. The answer depends on scores and ids alone, never on the order of rows."""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.data.aside import find_repeated

RULES = ("keep_lowest", "drop_highest", "below", "keep_highest", "drop_lowest", "above")


def make_keep_mask(ids: Sequence[str], scores: ArrayLike, **rule: float | None) -> NDArray[np.bool_]:
    """Whether to keep each row, by exactly one rule.

    Rows are ordered by score, equal scores by id. Shares refer to the given rows and are rounded to whole rows, halves
    up.

    Args:
        ids: unique.
        scores: finite, one an id.
        rule: one of ``keep_lowest`` and ``keep_highest`` (share to keep, above 0 and at most 1), ``drop_highest`` and
            ``drop_lowest`` (share to drop, from 0 to below 1), ``below`` and ``above`` (strictly); others None.

    Returns:
        Whether to keep each row, in the order given.

    Raises:
        ValueError: no rule or several, a share out of range, a score that is not finite, duplicate ids.
    """
    name, value = check_rule(**rule)
    values = np.asarray(scores, dtype=np.float64)
    if len(ids) != len(values) or find_repeated(ids) is not None:
        raise ValueError(f"{len(values)} scores need as many different ids, there are {len(set(ids))}")
    if not np.isfinite(values).all():
        raise ValueError(f"the score of '{ids[int(np.argmin(np.isfinite(values)))]}' is not a finite number")
    if name in ("below", "above"):
        return values < value if name == "below" else values > value
    ordered = -values if name in ("keep_highest", "drop_lowest") else values
    kept = _share(value, len(values)) if name.startswith("keep") else len(values) - _share(value, len(values))
    return _mask_lowest(ids, ordered, kept)


def _mask_lowest(ids: Sequence[str], values: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Whether each value is among so many lowest ones; equal values are ordered by their ids."""
    if not count:
        return np.zeros(len(values), dtype=np.bool_)
    last = np.partition(values, count - 1)[count - 1]
    mask = values < last
    tied = np.flatnonzero(values == last).tolist()
    mask[heapq.nsmallest(count - int(mask.sum()), tied, key=ids.__getitem__)] = True
    return mask


def find_threshold(scores: NDArray[np.float64], kept: NDArray[np.bool_]) -> float | None:
    """The value in the middle between the rows that are kept and those that are dropped; None if either is empty.

    Args:
        scores: [row]; rows without a score (NaN) are left out.
        kept: whether each row is kept, [row], by a rule of ``make_keep_mask``.
    """
    known = np.isfinite(scores)
    sides = scores[known & kept], scores[known & ~kept]
    if not all(map(len, sides)):
        return None
    low, high = sides if sides[0].max() <= sides[1].min() else sides[::-1]
    return float(low.max() / 2 + high.min() / 2)


def check_rule(**rule: float | None) -> tuple[str, float]:
    """The one rule that is given, and its value.

    Raises:
        ValueError: no rule or several, or a value out of range.
    """
    unknown = sorted(set(rule) - set(RULES))
    if unknown:
        raise TypeError(f"there is no rule {', '.join(unknown)}; there are {', '.join(RULES)}")
    given = {name: rule[name] for name in RULES if rule.get(name) is not None}
    if len(given) != 1:
        names = " and ".join(given) or "none"
        raise ValueError(f"give exactly one of {', '.join(RULES[:-1])} and {RULES[-1]}; given: {names}")
    [(name, value)] = ((name, value) for name, value in given.items() if value is not None)
    if name.startswith("keep") and not 0 < value <= 1:
        raise ValueError(f"{name} is a share above 0 and at most 1, not {value}")
    if name.startswith("drop") and not 0 <= value < 1:
        raise ValueError(f"{name} is a share from 0 to below 1, not {value}")
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, not NaN")
    return name, value


def _share(share: float, rows: int) -> int:
    return math.floor(share * rows + 0.5)
