"""Changes of log-probabilities between two models, averaged over pairs: one row a measure, or a step of a training."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.statistics.bootstrap import bootstrap_mean, estimate_share
from probing.statistics.intervals import student_interval
from probing.types import Estimate

MEANS = {
    "share displaced": "displaced",
    "change of ln p(chosen)": "chosen_change",
    "change of ln p(chosen) per token": "chosen_change_per_token",
    "change of ln p(rejected)": "rejected_change",
    "change of ln p(rejected) per token": "rejected_change_per_token",
    "change of the margin": "margin_change",
    "ranking accuracy before": "ranking_correct_before",
    "ranking accuracy after": "ranking_correct_after",
}


SHARES = ("displaced", "ranking_correct_before", "ranking_correct_after")
"""Columns of ``MEANS`` that say yes or no of a pair."""


def average_pairs(scored: pd.DataFrame, units: NDArray[np.int64] | None) -> list[tuple[str, Estimate]]:
    """Means and shares over pairs, with their 95 % intervals, by what they are.

    Args:
        scored: one row a pair that is ok, with the columns of ``MEANS``, and ``margin_before`` and ``margin_after``.
        units: group of each pair, [pair]; None where every pair is its own.
    """
    rows = []
    for name, column in MEANS.items():
        average = estimate_share if column in SHARES else bootstrap_mean
        rows.append((name, average(scored[column].astype(float), groups=units)))
        if column == "displaced":
            halved = estimate_share(find_halved(scored).astype(float), groups=units)
            rows.append(("share displaced and less than half as likely", halved))
    for time in ("before", "after"):
        ties = estimate_share((scored[f"margin_{time}"] == 0).astype(float), groups=units)
        if ties.value:
            rows.append((f"of these, ties {time}", ties))
    return rows


def find_halved(scored: pd.DataFrame) -> "pd.Series[bool]":
    """Pairs that are displaced and whose chosen response is less than half as likely as before."""
    return scored["displaced"].astype(bool) & (scored["chosen_change"] < -math.log(2))


def average_changes(course: pd.DataFrame, units: Mapping[str, int]) -> pd.DataFrame:
    """Changes against step 0, averaged over pairs: one row a step and measure, for ``plots.draw_course``.

    The interval of each mean is Student's over groups of pairs, which needs one pass where a bootstrap would need a
    thousand for each step.

    Args:
        course: one row a step and pair.
        units: group of each pair, by its id.
    """
    sides = {
        side: course.pivot(index="step", columns="id", values=f"{side}_logprob").sort_index()
        for side in ("chosen", "rejected")
    }
    changes = {side: (table - table.iloc[0]) if len(table) else table for side, table in sides.items()}
    changes["margin"] = changes["chosen"] - changes["rejected"]
    rows = []
    for measure, table in changes.items():
        groups = np.array([units[identity] for identity in table.columns])
        for step, values in zip(table.index, table.to_numpy(), strict=True):
            low, high = student_interval(values, groups)
            quarter, three_quarters = np.quantile(values, [0.25, 0.75]).tolist()
            row = {"step": int(step), "measure": measure, "mean": float(values.mean()), "low": low, "high": high}
            rows.append(row | {"quarter": quarter, "three_quarters": three_quarters, "pairs": len(values)})
    return pd.DataFrame(rows)
