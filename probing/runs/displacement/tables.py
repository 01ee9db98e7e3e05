"""Tables of a comparison of two models; every number is recomputed from the files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from probing.data.pairs import find_pairs
from probing.metrics.ranking import idealized_ranking_accuracy
from probing.report.changes import average_pairs
from probing.report.layout import shorten
from probing.report.pair_titles import STATE_SUMS, has_one_token
from probing.report.tables import counts, estimates, extremes
from probing.runs.common.results import estimate_without_interval
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.displacement.data import Inputs
from probing.runs.score.tables import good_units, name_intervals, note_one_token
from probing.statistics.bootstrap import bootstrap_mean, bootstrap_spearman
from probing.statistics.correlation import spearman
from probing.statistics.intervals import FEW
from probing.types import Estimate

LISTED_PAIRS = 5
TOKEN_WIDTH = 16
SHOWN_GAIN = 0.005


@dataclass(frozen=True)
class Results:
    """The finished tables of a run.

    Attributes:
        pairs: one row a pair.
        course: one row a step and pair, where there were steps.
        tokens: file with one row a position of a response, where it was asked for.
    """

    pairs: pd.DataFrame
    course: pd.DataFrame | None
    tokens: Path | None


def make_tables(
    results: Results,
    config: DisplacementConfig,
    inputs: Inputs,
    facts: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    frame, pairs, groups, shares = results.pairs, inputs.pairs, inputs.groups, inputs.shares
    good = (frame["status"] == "ok").to_numpy()
    scored = frame[good].reset_index(drop=True)
    said = [*notes, *_make_notes(scored, config, facts)]
    units = good_units(frame, pairs)
    said += _note_few(units, config)
    rows = average_pairs(scored, units)
    if shares is not None:
        ideal = _idealize(scored, np.asarray(shares)[good], config.beta)
        if isinstance(ideal, str):
            said.append(f"No idealised ranking accuracy: {ideal}")
        else:
            rows += ideal
    tables = {
        "Pairs by status": counts(facts["rows_by_status"], "status"),
        f"From reference to policy, with {name_intervals(units)} (ln p in nats)": estimates(rows),
        "Rank correlation of scores of the reference with the change of ln p(chosen)": _rank_predictors(
            scored, config.predictor_names(), units
        ),
    }
    if groups is not None:
        names = pd.Series([str(group) for group in groups])[good].reset_index(drop=True)
        tables[f"By group: {config.group_column}"] = _compare_groups(scored, names, config.predictor_names())
    lost = scored[scored["chosen_change"] < 0]
    tables["Chosen responses that lost most"] = extremes(
        lost, "chosen_change", partial(find_pairs, pairs), LISTED_PAIRS, highest=False
    )
    if results.tokens is not None and len(lost):
        worst = lost.sort_values(["chosen_change", "id"])["id"].head(LISTED_PAIRS).tolist()
        tables["Where their probability went, at the token that lost most"] = _find_gains(results.tokens, worst)
    if results.course is not None and len(results.course):
        tables["Course over training, mean over pairs"] = _average_course(results.course)
        tables["Drop of the chosen response, mean over pairs"] = estimates(
            _measure_drops(results.course, dict(zip(scored["id"], units, strict=True)))
        )
    if results.course is not None and not len(results.course):
        said.append("There is no course: no pair has a finite likelihood at every step")
    if said:
        tables["Notes"] = pd.DataFrame({"note": said})
    return tables


def _idealize(scored: pd.DataFrame, shares: Any, beta: float) -> list[tuple[str, Estimate]] | str:
    """The best ranking accuracy that training with this loss could reach, or the reason why there is none."""
    before = [torch.from_numpy(scored[f"{side}_logprob_before"].to_numpy(copy=True)) for side in ("chosen", "rejected")]
    try:
        ideal = idealized_ranking_accuracy(before[0], before[1], torch.from_numpy(shares), beta)
    except ValueError as error:
        return str(error)
    return [
        (f"idealised ranking accuracy (beta {beta:g})", estimate_without_interval(ideal.value, ideal.n)),
        ("of the pairs, exactly undecided", estimate_without_interval(ideal.ties, ideal.n)),
    ]


def _rank_predictors(scored: pd.DataFrame, predictors: Sequence[str], units: NDArray[np.int64]) -> pd.DataFrame:
    """Spearman of each predictor with the change; CHES without the pairs for which it is 0 by definition."""
    rows = []
    for name in predictors:
        pairs = _keep_ranked(scored, name)
        nothing = estimate_without_interval(float("nan"), 0)
        groups = units[pairs.index]
        estimate = bootstrap_spearman(pairs[name], pairs["chosen_change"], groups=groups) if len(pairs) else nothing
        rows.append((name, estimate.value, estimate.low, estimate.high, estimate.n))
    return pd.DataFrame(rows, columns=["score", "Spearman", "low", "high", "pairs"])


def _keep_ranked(scored: pd.DataFrame, score: str) -> pd.DataFrame:
    """The pairs that a score can rank: CHES is 0 by definition for responses of one token each."""
    return scored[~has_one_token(scored)] if score in STATE_SUMS else scored


def _compare_groups(scored: pd.DataFrame, names: pd.Series, predictors: Sequence[str]) -> pd.DataFrame:
    rows = []
    for name, part in scored.groupby(names):
        row = {"group": name, "pairs": len(part), "displaced": part["displaced"].astype(float).mean()}
        row |= {column: part[column].mean() for column in ("chosen_change", "rejected_change", "margin_change")}
        for score in predictors:
            pairs = _keep_ranked(part, score)
            few = len(pairs) < FEW
            row[f"Spearman {score}"] = float("nan") if few else spearman(pairs[score], pairs["chosen_change"])
        rows.append(row)
    return pd.DataFrame(rows)


def _find_gains(tokens: Path, ids: Sequence[str]) -> pd.DataFrame:
    """For each pair the token of the chosen response whose probability fell most, and what gained there."""
    positions = pq.read_table(tokens, filters=[("id", "in", list(ids)), ("side", "=", "chosen")]).to_pandas()
    rows = []
    for identity in ids:
        part = positions[positions["id"] == identity]
        before, after = (np.exp(part[f"logprob_{time}"]) for time in ("before", "after"))
        worst = part.loc[(before - after).idxmax()]
        gained = ", ".join(
            f"{shorten(repr(token), TOKEN_WIDTH)} {old:.2f}->{new:.2f}"
            for token, old, new in zip(worst["gained"], worst["gained_before"], worst["gained_after"], strict=True)
            if new - old >= SHOWN_GAIN
        )
        rows.append(
            {
                "id": identity,
                "position": worst["position"],
                "token": repr(worst["token"]),
                "p before": float(np.exp(worst["logprob_before"])),
                "p after": float(np.exp(worst["logprob_after"])),
                "gained": gained,
            }
        )
    return pd.DataFrame(rows)


def course_frame(pairs: pd.DataFrame, steps: Mapping[int, pd.DataFrame], last: int) -> pd.DataFrame:
    """Likelihoods of the pairs that every step gives one for: step 0 is the reference, ``last`` the policy."""
    good = pairs[pairs["status"] == "ok"]
    parts = []
    for step, time in ((0, "before"), (last, "after")):
        columns = {f"{side}_logprob": good[f"{side}_logprob_{time}"] for side in ("chosen", "rejected")}
        parts.append(pd.DataFrame({"step": step, "id": good["id"], **columns}))
    parts += [frame.assign(step=step)[list(parts[0].columns)] for step, frame in steps.items() if step]
    course = pd.concat(parts, ignore_index=True)
    whole = course.dropna().groupby("id")["step"].nunique()
    known = set(whole[whole == course["step"].nunique()].index)
    return sort_course(course[course["id"].isin(known)], pairs["id"].tolist())


def sort_course(course: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """A course by its steps, and within a step in the order of the pairs, which have these ids."""
    order = {identity: index for index, identity in enumerate(ids)}
    return course.sort_values(["step", "id"], key=lambda column: column.map(order) if column.name == "id" else column)


def _average_course(course: pd.DataFrame) -> pd.DataFrame:
    first = course[course["step"] == 0].set_index("id")
    rows = []
    for step, part in course.groupby("step"):
        part = part.set_index("id")
        change = {side: part[f"{side}_logprob"] - first[f"{side}_logprob"] for side in ("chosen", "rejected")}
        margin = change["chosen"] - change["rejected"]
        rows.append(
            {
                "step": step,
                "pairs": len(part),
                "change of ln p(chosen)": change["chosen"].mean(),
                "change of ln p(rejected)": change["rejected"].mean(),
                "change of the margin": margin.mean(),
                "displaced": ((change["chosen"] < 0) & (margin > 0)).mean(),
                "ranking accuracy": (part["chosen_logprob"] >= part["rejected_logprob"]).mean(),
            }
        )
    return pd.DataFrame(rows)


def _measure_drops(course: pd.DataFrame, units: Mapping[str, int]) -> list[tuple[str, Estimate]]:
    """From first to last, and the largest from any earlier to any later step, of ln p and of p.

    Args:
        course: one row a step and pair.
        units: group of each pair, by its id.
    """
    table = course.pivot(index="step", columns="id", values="chosen_logprob").sort_index()
    wide, groups = table.to_numpy(), [units[identity] for identity in table.columns]
    rows = []
    for name, values in (("ln p(chosen)", wide), ("p(chosen)", np.exp(wide))):
        rows.append((f"{name}, first to last step", bootstrap_mean(values[0] - values[-1], groups=groups)))
        largest = bootstrap_mean(measure_largest_drop(values), groups=groups)
        rows.append((f"{name}, largest between any two steps", largest))
    return rows


def measure_largest_drop(course: Any) -> Any:
    """The largest fall from any earlier to any later step, [pair], for values [step pair]; never negative."""
    return (np.maximum.accumulate(course, axis=0) - course).max(axis=0)


def _note_few(units: NDArray[np.int64], config: DisplacementConfig) -> list[str]:
    """Note which intervals are left out or made otherwise, for want of pairs."""
    said = []
    if len(np.unique(units)) < FEW:
        said.append(
            f"There are fewer than {FEW} pairs or groups of pairs: correlations have no interval, and those of means "
            f"rest on Student's t"
        )
    if config.group_column:
        said.append(f"No correlation is shown of a group of fewer than {FEW} pairs")
    return said


def _make_notes(scored: pd.DataFrame, config: DisplacementConfig, facts: Mapping[str, Any]) -> list[str]:
    notes = []
    if (scored[["chosen_change", "rejected_change"]] == 0).all(axis=None):
        notes.append("The policy gives exactly the reference's probabilities: nothing changed between the two")
    short = int(has_one_token(scored).sum())
    if short and set(config.predictor_names()) & set(STATE_SUMS):
        notes.append(note_one_token(short, "left out of its correlation"))
    if facts.get("policy_step") is not None:
        notes.append(f"The policy is step {facts['policy_step']}")
    return notes
