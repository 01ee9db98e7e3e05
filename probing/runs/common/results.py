"""Results that several jobs share: a value with its interval, beside null distributions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from probing.statistics.intervals import needs_share_interval, null_interval, percentile_interval, share_interval
from probing.statistics.permutation import corrected_p_values, p_value
from probing.types import Estimate

Array = NDArray[np.float64]
ALL = "all"
"""Stands for every row of the data, where results are of sets of rows."""
CHOSEN = "chosen inside folds"
"""Stands for a place: each fold has its own, chosen without the rows of that fold (nested cross-validation)."""
SURFACE = "surface"
"""Stands for the baseline that reads lengths and punctuation only."""
NOT_KNOWN = float("nan")


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """Draws of a metric under a null hypothesis: random probes, or permutations of the labels.

    Attributes:
        draws: [draw]; None where this metric has no such null distribution.
        places: the draws at every place, where one of the places is chosen for its value: gives the corrected p-value.
        chosen: each draw chose its own place, as the value did; then its p-value is corrected already.
        tested: whether there are p-values; otherwise only the quantiles are shown.
    """

    draws: Array | None
    places: Sequence[Array] = ()
    chosen: bool = False
    tested: bool = True


@dataclass(frozen=True)
class NullComparison:
    """Place of a value in a null distribution; every number is NaN where there is none.

    Attributes:
        low: 2.5 % quantile of the null distribution.
        median: median of the null distribution.
        high: 97.5 % quantile of the null distribution.
        p: share of the draws that are as good as the value, the value itself counted in.
        p_corrected: p-value against the best place of every draw (Westfall and Young's maxT).
        tested: whether the p-values are part of the results.
    """

    low: float = NOT_KNOWN
    median: float = NOT_KNOWN
    high: float = NOT_KNOWN
    p: float = NOT_KNOWN
    p_corrected: float = NOT_KNOWN
    tested: bool = True


@dataclass(frozen=True)
class ComparedEstimate:
    """A value with its 95 % interval, beside the null distributions that it is compared with.

    Attributes:
        estimate: value, ends of the interval, and the number of rows.
        nulls: null distributions, by the names that they have in the columns.
        corrected: the value with the bias of few rows taken off; None where the job makes no such correction.
    """

    estimate: Estimate
    nulls: Mapping[str, NullComparison] = field(default_factory=dict)
    corrected: float | None = None

    def to_columns(self, unit: str) -> dict[str, float]:
        """Columns of a results table; ``unit`` is the column with the number of rows."""
        columns = {"value": self.estimate.value}
        if self.corrected is not None:
            columns["corrected"] = self.corrected
        columns |= {"low": self.estimate.low, "high": self.estimate.high, unit: self.estimate.n}
        for name, null in self.nulls.items():
            columns |= {f"{name}_low": null.low, f"{name}_median": null.median, f"{name}_high": null.high}
        for name, null in self.nulls.items():
            if null.tested:
                columns |= {f"p_{name}": null.p, f"p_{name}_corrected": null.p_corrected}
        return columns


def compare(
    value: float,
    replicates: Array,
    n: int,
    nulls: Mapping[str, NullDistribution],
    *,
    higher_is_better: bool | None = True,
    rounding: float = 0.0,
    debiased: tuple[float, float, float] | None = None,
    interval: tuple[float, float] | None = None,
    groups: int | None = None,
) -> ComparedEstimate:
    """A value with its percentile interval, beside its null distributions.

    Args:
        value: value of the metric.
        replicates: the metric in every bootstrap replicate, [replicate].
        n: number of rows (or pairs) that the value is of.
        nulls: null distributions by name.
        higher_is_better: whether large values are good; None where neither end is good: no p-values then.
        rounding: relative, how far a draw of the very same labels may be from the value.
        debiased: the value with the bias of few rows taken off, and the ends of the interval for that one, in place of
            the percentile interval.
        interval: ends of another interval, in place of the percentile interval, where that does not hold.
        groups: number of groups that replicates were drawn from, for the width of the percentile interval.
    """
    lenient = value
    if rounding and higher_is_better is not None:
        lenient += abs(value) * rounding * (-1 if higher_is_better else 1)
    comparisons = {name: _compare_with_null(lenient, null, higher_is_better) for name, null in nulls.items()}
    if interval is not None:
        return ComparedEstimate(Estimate(value, *interval, n), comparisons)
    if debiased is None:
        return ComparedEstimate(estimate_with_interval(value, replicates, n, groups), comparisons)
    corrected, low, high = debiased
    return ComparedEstimate(Estimate(value, low, high, n), comparisons, corrected)


def _compare_with_null(value: float, null: NullDistribution, higher_is_better: bool | None) -> NullComparison:
    low, median, high = null_interval(null.draws)
    comparison = NullComparison(low, median, high, tested=null.tested)
    if higher_is_better is None or not null.tested:
        return comparison
    if null.draws is not None:
        comparison = replace(comparison, p=p_value(value, null.draws, higher_is_better))
    if null.chosen:
        return replace(comparison, p_corrected=comparison.p)
    if len(null.places):
        corrected = corrected_p_values(np.array([value]), np.stack(list(null.places)), higher_is_better)
        comparison = replace(comparison, p_corrected=float(corrected[0]))
    return comparison


def estimate_with_interval(value: float, replicates: Array, n: int, groups: int | None = None) -> Estimate:
    """The value with the percentile interval of its bootstrap replicates; without one (NaN) for fewer than two rows."""
    low, high = percentile_interval(replicates, groups) if n > 1 else (NOT_KNOWN, NOT_KNOWN)
    return Estimate(float(value), low, high, n)


def correct_share_interval(values: Array, groups: NDArray[np.int64]) -> tuple[float, float] | None:
    """The interval of a share where percentiles of the bootstrap do not hold; None where they do.

    Args:
        values: how right each row is, 0 to 1, [row].
        groups: group of each row.
    """
    return share_interval(values, groups) if needs_share_interval(values, groups) else None


def estimate_without_interval(value: float, n: int) -> Estimate:
    """A value that has no interval."""
    return Estimate(float(value), NOT_KNOWN, NOT_KNOWN, n)
