"""Groups of responses with rewards: what one step does to the correct ones, summed up by group, and drawn."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.report.figures import (
    Figure,
    choose_edges,
    make_figure,
    make_histogram,
    mark_value,
    note_outside,
    stack_bars,
)
from probing.statistics.bootstrap import bootstrap_mean, estimate_share
from probing.types import Estimate

AXIS = "rate, nats per unit of step (below 0: the step lowers ln p of the correct responses)"
_COLOR = "#1b6ca8"


def sum_up_groups(responses: pd.DataFrame) -> pd.DataFrame:
    """One row a group that is ok, in order.

    Args:
        responses: one row a response; see ``docs/rollouts.md``.

    Returns:
        ``id`` of the group; ``correct`` and ``incorrect``, numbers of responses; ``rate`` and ``rate_per_token``, means
        over the correct ones; ``incorrect_rate``, the mean over the others.
    """
    good = responses[responses["status"] == "ok"]
    correct = good["correct"].astype(bool)
    right, wrong = (part.groupby("group", sort=False) for part in (good[correct], good[~correct]))
    found = pd.DataFrame(
        {
            "correct": right.size(),
            "incorrect": wrong.size(),
            "rate": right["rate"].mean(),
            "rate_per_token": right["rate_per_token"].mean(),
            "incorrect_rate": wrong["rate"].mean(),
        }
    )
    order = list(dict.fromkeys(good["group"]))
    # A damaged file may lack numbers that a run wrote.
    return found.reindex(order).dropna().rename_axis("id").reset_index()


def estimate_groups(
    responses: pd.DataFrame, groups: pd.DataFrame, units: NDArray[np.int64] | None
) -> list[tuple[str, Estimate]]:
    """What holds of all groups and of their correct responses, with intervals.

    Args:
        responses: one row a response.
        groups: what ``sum_up_groups`` makes of them; at least one row.
        units: groups with the same number are drawn together, with all their responses; None where each is its own.
    """
    fall = (groups["rate"] < 0).astype(float)
    numbers = dict(zip(groups["id"], range(len(groups)) if units is None else units.tolist(), strict=True))
    right = responses[responses["group"].isin(numbers) & responses["correct"].fillna(False).astype(bool)]
    falls = (right["rate"] < 0).astype(float)
    return [
        ("share of groups whose correct responses fall", estimate_share(fall, groups=units)),
        ("share of correct responses that fall", estimate_share(falls, groups=right["group"].map(numbers))),
        ("mean rate of the correct responses", bootstrap_mean(groups["rate"], groups=units)),
        ("mean rate of the correct responses per token", bootstrap_mean(groups["rate_per_token"], groups=units)),
        ("mean rate of the incorrect responses", bootstrap_mean(groups["incorrect_rate"], groups=units)),
    ]


def draw_group_rates(groups: pd.DataFrame) -> list[Figure]:
    """The distribution of the mean rate of the correct responses over groups; none where there are no groups."""
    values = groups["rate"].to_numpy(dtype=np.float64)
    if not len(values):
        return []
    edges = choose_edges(values)
    title = f"Mean rate of the correct responses over {len(values):,} groups{note_outside(values, edges)}"
    trace = make_histogram(values, edges, "groups", _COLOR)
    trace |= {"hovertext": [text.replace(" pairs", " groups") for text in trace.get("hovertext", [])]}
    figure = stack_bars(make_figure([trace], title, AXIS, "groups"))
    return [mark_value(figure, 0.0, "falls | rises") if edges[0] < 0 < edges[-1] else figure]
