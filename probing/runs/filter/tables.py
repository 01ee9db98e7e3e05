"""Tables of ``probing filter``."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.instruments.filter_rules import (
    RuleComparison,
    correlate_rules,
    count_kept,
    measure_agreement,
    measure_lengths,
    ranks_state_sums,
)
from probing.report.pair_titles import has_one_token
from probing.report.tables import counts, quantiles
from probing.runs.filter.rows import JoinedScores, OrderedScores
from probing.runs.score.tables import name_intervals, note_one_token
from probing.shown import count_of
from probing.statistics.intervals import FEW
from probing.types import Report

LEFT_OUT = "Left out of the comparison"
MANY_TIED = 0.05
"""Share of the pairs that a rule leaves out by their ids alone, from which on that is said."""
LENGTH_RULE = 0.8
"""Rank correlation with the number of tokens from which on a rule is said to do little else than to sort by length."""


def make_report(scores: OrderedScores, kept: NDArray[np.bool_], by: str) -> Report:
    """Counts of the rows by status, and quantiles of the score of all, kept and dropped rows; nothing is written yet.

    Args:
        scores: the scores of the rows of the dataset.
        kept: whether each of them is kept, [row].
        by: the score that they were filtered by.
    """
    names = list(scores.status.categories)
    columns = {"kept": kept, "dropped": ~kept}
    values = {"all": scores.values, **{fate: scores.values[mask] for fate, mask in columns.items()}}
    counted = pd.DataFrame(
        {fate: np.bincount(scores.status.codes[mask], minlength=len(names)) for fate, mask in columns.items()},
        index=pd.Index(names, name="status"),
    ).sort_index()
    parts = [quantiles(pd.DataFrame({by: part}), [by]).assign(score=name) for name, part in values.items()]
    spread = pd.concat(parts, ignore_index=True)
    facts = {"by": by, "kept": int(kept.sum()), "dropped": int((~kept).sum())}
    return Report({"Pairs": counted.reset_index(), f"Quantiles: {by}": spread.rename(columns={"score": "rows"})}, facts)


def make_comparison(
    joined: JoinedScores,
    compared: RuleComparison,
    units: NDArray[np.int64],
    groups: Sequence[str] | None,
    column: str | None,
) -> Report:
    """How far rules agree, how long the pairs are that each one keeps, and of which groups they are.

    Args:
        joined: the scores.
        compared: the rules.
        units: group of each pair that is compared, [pair]; see ``pair_units``.
        groups: value by which pairs are grouped, of each row of the dataset; None where they are not grouped.
        column: name of the column of these values.
    """
    kept, count, over = int(compared.kept[0].sum()), len(compared.pairs), name_intervals(units)
    correlations, chance = correlate_rules(compared, units), f"{kept / count:.2g}"
    lengths = measure_lengths(compared, correlations)
    about_rules = f"each keeping {kept} of {count_of(count, 'pair')}; Spearman is 1 where the longest are kept first"
    about_both = f"where chance would give a share of {chance}"
    tables = {
        "Pairs by status": counts(Counter(map(str, joined.frame["status"])), "status"),
        f"Rules, {about_rules}, with {over}": lengths,
        f"Agreement of two rules, {about_both}, with {over}": measure_agreement(compared, correlations),
    }
    if groups is not None:
        of_pairs = [groups[row] for row in compared.rows]
        tables[f"What each rule keeps by group: {column}"] = count_kept(compared, of_pairs)
    said = [*joined.notes, *_make_notes(joined.frame, compared, units, lengths)]
    if said:
        tables["Notes"] = pd.DataFrame({"note": said})
    facts = {"compared": count, "kept": kept, "rules": [str(rule) for rule in compared.rules]}
    facts["scores"] = {rule.column: joined.sources[rule.column] for rule in compared.rules}
    return Report(tables, facts)


def _make_notes(
    frame: pd.DataFrame, compared: RuleComparison, units: NDArray[np.int64], lengths: pd.DataFrame
) -> list[str]:
    said = []
    good, short = int((frame["status"] == "ok").sum()), 0
    if good < len(frame):
        said.append(f"{LEFT_OUT}, since a run gives them no score: {count_of(len(frame) - good, 'pair')}")
    if ranks_state_sums(compared.rules):
        short = int(has_one_token(frame).sum())
        said += [note_one_token(short, "left out of the comparison")] if short else []
    missing = good - short - len(compared.pairs)
    if missing:
        said.append(f"{LEFT_OUT}, since a column of a rule has no number for them: {count_of(missing, 'pair')}")
    if len(np.unique(units)) < FEW:
        said.append(f"There are fewer than {FEW} pairs or groups of pairs: correlations have no interval")
    said += [
        f"{rule} says nothing of {count_of(tied, 'pair')} that it leaves out: their value is that of the last pair "
        f"which it keeps, and their ids decide"
        for rule, tied in compared.count_tied().items()
        if tied >= MANY_TIED * len(compared.pairs)
    ]
    by_length = lengths[lengths["Spearman with tokens"].abs() >= LENGTH_RULE]["rule"]
    said += [f"{rule} does little else here than to sort pairs by the number of their tokens" for rule in by_length]
    return said
