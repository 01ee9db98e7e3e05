"""Plots of influences and joint rates."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probing.report.figures import (
    Figure,
    choose_edges,
    make_figure,
    make_histogram,
    mark_value,
    note_outside,
    stack_bars,
)
from probing.report.pair_titles import TITLES

DRAWN = ("influence", "joint_rate", "joint_rejected_rate", "pilot_influence", "pilot_change")
_COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6", "#b8860b", "#555555")
MOST_GROUPS = len(_COLORS)
"""Largest number of groups that are told apart by colours."""


def draw_influences(scored: pd.DataFrame, groups: Sequence[str] | None = None) -> list[Figure]:
    """A histogram of every influence and rate, each group of pairs in a colour of its own.

    Args:
        scored: one row a pair that is ok.
        groups: group of each pair; None where there are none.
    """
    names = list(dict.fromkeys(groups or ()))
    told = pd.Series(groups if groups is not None and 1 < len(names) <= MOST_GROUPS else ["pairs"] * len(scored))
    return [_draw(scored[name], told) for name in DRAWN if name in scored and scored[name].notna().any()]


def _draw(values: "pd.Series[float]", groups: "pd.Series[str]") -> Figure:
    numbers = np.asarray(values, dtype=np.float64)
    edges, told = choose_edges(numbers), groups.to_numpy()
    bars = []
    for name, color in zip(dict.fromkeys(groups), _COLORS, strict=False):
        part = numbers[told == name]
        called = name if name == "pairs" else f"{name}, {len(part):,} pairs"
        bars.append(make_histogram(part, edges, called, color))
    title = f"Distribution of {values.name} over {len(values):,} pairs{note_outside(numbers, edges)}"
    figure = make_figure(bars, title, TITLES[str(values.name)], "pairs")
    return mark_value(stack_bars(figure), 0.0, "no effect")
