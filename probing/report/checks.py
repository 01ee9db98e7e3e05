"""Checks of a report: a number with its interval, held against a threshold, in a sentence that says so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from probing.report.parts import Check, RunData, State
from probing.types import Estimate


@dataclass(frozen=True)
class Threshold:
    """When a check warns.

    Attributes:
        words: what is checked, as a sentence with ``{value}`` and ``{n}``.
        side: on which side of ``value`` it warns.
        value: the threshold.
        share: whether the number is a share, which is written in percent.
    """

    words: str
    side: Literal["above", "below"]
    value: float
    share: bool = False


THRESHOLDS: Mapping[str, Threshold] = {
    "rows_left_out": Threshold("{value} of {n} rows have no number (see their statuses)", "above", 0.05, True),
    "share_displaced": Threshold("ln p(chosen) fell while the margin rose in {value} of {n} pairs", "above", 0.2, True),
    "share_halved": Threshold(
        "the chosen response of a displaced pair lost more than half its probability in {value} of {n} pairs",
        "above",
        0.2,
        True,
    ),
    "ranking_accuracy_change": Threshold("ranking accuracy changed by {value} over {n} pairs", "below", -0.05),
}
"""The checks by name."""


def judge(
    name: str, run: str, section: str, estimate: Estimate, thresholds: Mapping[str, float | None] | None = None
) -> Check | None:
    """Hold a number against the threshold of a check.

    Args:
        name: name of the check, in ``THRESHOLDS``.
        run: label of the run.
        section: name of the section that shows the number.
        estimate: the number with its interval, NaN where it has none: it is then taken as exact.
        thresholds: thresholds in place of the usual ones, by name of the check; None switches a check off.

    Returns:
        The check; None where it is switched off.
    """
    usual = THRESHOLDS[name]
    limit = (thresholds or {}).get(name, usual.value)
    if limit is None:
        return None
    state = _judge(estimate, limit, usual.side)
    written = _write(estimate, usual.share)
    bound = f"{100 * limit:.4g} %" if usual.share else f"{limit:.4g}"
    words = usual.words.format(value=written, n=f"{estimate.n:,}")
    return Check(
        name=name,
        run=run,
        state=state,
        sentence=f"{words}: WARN {usual.side} {bound}",
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        threshold=limit,
        side=usual.side,
        section=section,
    )


def judge_rows(run: RunData, section: str, thresholds: Mapping[str, float | None]) -> list[Check]:
    """The check of the rows of a run that have no number."""
    counts = run.record.get("rows_by_status", {})
    rows = sum(counts.values())
    share = (rows - counts.get("ok", 0)) / rows if rows else math.nan
    check = judge("rows_left_out", run.label, section, Estimate(share, math.nan, math.nan, rows), thresholds)
    return [] if check is None else [check]


def _judge(estimate: Estimate, limit: float, side: Literal["above", "below"]) -> State:
    """A check warns if the whole interval lies beyond its threshold."""
    if math.isnan(estimate.value):
        return "not judged"
    exact = math.isnan(estimate.low)
    low, high = (estimate.value, estimate.value) if exact else (estimate.low, estimate.high)
    beyond = (low > limit, high > limit) if side == "above" else (high < limit, low < limit)
    return "WARN" if all(beyond) else "unclear" if any(beyond) else "ok"


def _write(estimate: Estimate, share: bool) -> str:
    """The number with its interval: "41 % [36, 46]", "-0.069 [-0.11, -0.03]"."""
    if math.isnan(estimate.value):
        return "an unknown share" if share else "an unknown number"
    scale, unit = (100, " %") if share else (1, "")
    value, low, high = (f"{scale * number:.3g}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}{unit}" if math.isnan(estimate.low) else f"{value}{unit} [{low}, {high}]"
