"""What a run of ``probing displacement`` says on a page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.report.changes import average_changes, average_pairs, find_halved
from probing.report.checks import judge, judge_rows
from probing.report.figures import Figure
from probing.report.parts import Check, RunData, RunReport, Section
from probing.report.plots import draw_changes, draw_course
from probing.report.sections.pairs import CHANGES, TOKENS, JoinedPairs
from probing.report.sections.shared import say_estimate
from probing.report.tables import estimates
from probing.statistics.bootstrap import bootstrap_mean, estimate_share
from probing.types import Estimate

QUESTION = "Did training displace probability?"
COURSE = "course.parquet"
JUDGED = ("share_displaced", "share_halved", "chosen_change_per_token", "ranking_accuracy_change")
NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, 0)


def describe_displacement(run: RunData, thresholds: Mapping[str, float | None], pairs: JoinedPairs) -> RunReport:
    """Changes of both log-probabilities with their shares of displaced pairs, and the course over a training."""
    frame, name = run.files[CHANGES], f"displacement-{run.anchor}"
    good = (frame["status"] == "ok").to_numpy()
    scored = frame[good].reset_index(drop=True)
    units = None if run.units is None else np.asarray(run.units)[good]
    checks = [*judge_changes(run, name, scored, units, thresholds), *judge_rows(run, name, thresholds)]
    if scored.empty:
        said = ["No pair has a number: see the statuses of the rows."]
        return RunReport([Section(name, QUESTION, run.label, said, rows=pairs.table.name)], checks)
    measured = average_pairs(scored, units)
    displaced = dict(measured)["share displaced"]
    section = Section(
        name=name,
        question=QUESTION,
        run=run.label,
        says=_say(run, scored, dict(measured), units),
        figures=[*_draw_changes(scored, displaced, run, pairs), *_draw_course(run, scored, units)],
        tables={"From reference to policy (95 % intervals; ln p in nats)": estimates(measured)},
        rows=pairs.table.name,
    )
    return RunReport([section], checks)


def judge_changes(
    run: RunData,
    section: str,
    scored: pd.DataFrame,
    units: NDArray[np.int64] | None,
    thresholds: Mapping[str, float | None],
) -> list[Check]:
    """The checks of a comparison, from the pairs that have a number.

    Args:
        run: the run.
        section: name of the section that shows the numbers.
        scored: one row a pair that is ok.
        units: group of each of these pairs, [pair]; None where every pair is its own.
        thresholds: see ``checks.judge``.
    """
    found: dict[str, Estimate] = dict.fromkeys(JUDGED, NO_ESTIMATE)
    if len(scored):
        halved = find_halved(scored)
        ranked = [scored[f"ranking_correct_{time}"].astype(float) for time in ("before", "after")]
        found["chosen_change_per_token"] = bootstrap_mean(scored["chosen_change_per_token"], groups=units)
        found["share_displaced"] = estimate_share(scored["displaced"].astype(float), groups=units)
        found["share_halved"] = estimate_share(halved.astype(float), groups=units)
        found["ranking_accuracy_change"] = bootstrap_mean(ranked[1] - ranked[0], groups=units)
    judged = (judge(name, run.label, section, estimate, thresholds) for name, estimate in found.items())
    return [check for check in judged if check is not None]


def _say(
    run: RunData, scored: pd.DataFrame, measured: Mapping[str, Estimate], units: NDArray[np.int64] | None
) -> list[str]:
    fell = scored["chosen_change"] < 0
    change = measured["change of ln p(chosen)"]
    said = [
        f"ln p(chosen) changed by {say_estimate(change, digits=4)} nats in the mean of {change.n:,} pairs; it fell in "
        f"{int(fell.sum()):,} of them, and in {int(scored['displaced'].sum()):,} of these the margin rose all the "
        f"same: these are displaced. A loss that only looks at the margin does not see them.",
        "The numbers say what happened to the log-probability of these responses, not whether sampled answers got "
        "worse, and not which training pair caused it.",
    ]
    if TOKENS in run.files:
        said.append("Open a pair to see which of its tokens lost, and which tokens gained in their place.")
    if (scored[["chosen_change", "rejected_change"]] == 0).all(axis=None):
        said.append("The policy gives exactly the reference's probabilities: nothing changed between the two.")
    if units is None:
        said.append(
            "The intervals are over pairs, because the texts are not at hand; pairs that share a prompt or a text are "
            "not drawn together, so that the intervals may be too narrow."
        )
    else:
        said.append(f"The intervals are over {len(np.unique(units)):,} groups of pairs that share a prompt or a text.")
    return said


def _draw_changes(scored: pd.DataFrame, displaced: Estimate, run: RunData, pairs: JoinedPairs) -> list[Figure]:
    figures = draw_changes(scored, displaced)
    for figure, side in zip(figures, ("chosen", "rejected"), strict=True):
        figure["rows"] = {"table": pairs.table.name, "column": pairs.names[run.label, f"{side}_change"]}
    return figures


def _draw_course(run: RunData, scored: pd.DataFrame, units: NDArray[np.int64] | None) -> list[Figure]:
    course = run.files.get(COURSE)
    if course is None or course.empty:
        return []
    numbers: Sequence[Any] = range(len(scored)) if units is None else units.tolist()
    return draw_course(average_changes(course, dict(zip(scored["id"], numbers, strict=True))))
