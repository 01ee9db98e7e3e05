"""Rules by which people keep preference pairs, compared at one share: how far they agree, and what each one keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.data.filters import make_keep_mask
from probing.errors import UsageError
from probing.instruments.columns import KEEP_HIGHEST, KEEP_LOWEST
from probing.instruments.filtering import list_score_columns
from probing.report.pair_titles import STATE_SUMS, mask_one_token
from probing.statistics.rank_matrix import SpearmanMatrix, bootstrap_spearman_matrix

if TYPE_CHECKING:
    import pandas as pd

Keeps = Literal["lowest", "highest", "smallest", "largest"]
"""Which end of a column is kept: of its values, or ("smallest", "largest") of their absolute values."""
USUAL_ENDS: Mapping[str, Keeps] = {
    **dict.fromkeys(KEEP_LOWEST, "lowest"),
    **dict.fromkeys(KEEP_HIGHEST, "highest"),
    "margin_change": "lowest",
    "margin_before": "largest",
    "ranking_difficulty": "largest",
}
"""The end of each column that someone recommends to keep.

Pairs that are least alike: Razin et al. 2024 (2410.08847). Small implicit reward gaps, which are beta times
``margin_change``: Qi et al. 2025 (2508.04149); their code sorts the signed gap. Pairs whose two log-probabilities under
the reference differ by more than 3 nats, to either side: Chen et al. 2025 (2505.05465), the part of the data that they
train on by DPO; ``margin_before`` and ``-ranking_difficulty`` are that difference. Rates and influences: see their
modules.
"""
RESPONSE_TOKENS = ("chosen_tokens", "rejected_tokens")
ALL_RULES = "all"
"""Stands for every column that is there and has a usual end."""


@dataclass(frozen=True)
class FilterRule:
    """A column of scores, and the end of it that is kept."""

    column: str
    keeps: Keeps

    def __str__(self) -> str:
        return f"{self.column}:{self.keeps}"

    def order(self, values: ArrayLike) -> NDArray[np.float64]:
        """Numbers by which the pairs that are kept first are the lowest, [pair]."""
        known = np.asarray(values, dtype=np.float64)
        sized = np.abs(known) if self.keeps in ("smallest", "largest") else known
        return -sized if self.keeps in ("highest", "largest") else sized


@dataclass(frozen=True, eq=False)
class RuleComparison:
    """Rules at the same share of the same pairs.

    Attributes:
        pairs: scores of the pairs that are compared, one row a pair.
        rows: number of each of these pairs in the table of scores, [pair].
        rules: the rules.
        kept: whether each rule keeps each pair, [rule pair].
        orders: see ``FilterRule.order``, [rule pair].
    """

    pairs: "pd.DataFrame"
    rows: NDArray[np.int64]
    rules: Sequence[FilterRule]
    kept: NDArray[np.bool_]
    orders: NDArray[np.float64]

    def count_tied(self) -> dict[str, int]:
        """By rule, the pairs that it leaves out although their value is that of the last pair which it keeps."""
        found = {}
        for rule, kept, order in zip(self.rules, self.kept, self.orders, strict=True):
            found[str(rule)] = int((order[~kept] == order[kept].max()).sum())
        return {rule: tied for rule, tied in found.items() if tied}


def parse_rules(text: str, scores: "pd.DataFrame") -> list[FilterRule]:
    """Rules from ``COLUMN`` or ``COLUMN:END``, separated by commas; "all" stands for every column with a usual end.

    Args:
        text: the rules; END is lowest, highest, or (of absolute values) smallest or largest.
        scores: the table of scores.

    Raises:
        UsageError: an unknown column or end, a column without a usual end, a rule that is given twice, or fewer than
            two rules.
    """
    columns = list_score_columns(scores)
    rules: list[FilterRule] = []
    for word in (part.strip() for part in text.split(",")):
        usual = [FilterRule(name, USUAL_ENDS[name]) for name in columns if name in USUAL_ENDS]
        rules += usual if word == ALL_RULES else [_parse_rule(word, columns)]
    twice = next((rule for at, rule in enumerate(rules) if rule in rules[:at]), None)
    if twice is not None:
        raise UsageError(f"the rule {twice} is given twice; leave one out")
    if len(rules) < 2:
        raise UsageError(
            f"'{text}' names {len(rules)} rule{'' if len(rules) == 1 else 's'}, and a comparison needs two; there are "
            f"the columns {', '.join(columns)}"
        )
    return rules


def _parse_rule(word: str, columns: Sequence[str]) -> FilterRule:
    column, colon, end = word.partition(":")
    if column not in columns:
        raise UsageError(f"there is no score column '{column}'; there are {', '.join(columns)}")
    if colon and end not in get_args(Keeps):
        raise UsageError(f"'{word}': the end that is kept is one of {', '.join(get_args(Keeps))}, not '{end}'")
    if not colon and column not in USUAL_ENDS:
        raise UsageError(
            f"nothing says which end of {column} to keep; write {column}:lowest or {column}:highest, or of its "
            f"absolute value {column}:smallest or {column}:largest"
        )
    kept: Keeps = end if colon else USUAL_ENDS[column]  # type: ignore[assignment]
    return FilterRule(column, kept)


def compare_rules(scores: "pd.DataFrame", rules: Sequence[FilterRule], keep: float) -> RuleComparison:
    """What each rule keeps of the pairs that all of them can rank.

    CHES cannot rank pairs of responses of one token each: with a rule by CHES they are left out.

    Args:
        scores: a row a pair, with a status; see ``score_pairs``.
        rules: the rules; their columns are there.
        keep: share of these pairs that every rule keeps, rounded as ``make_keep_mask`` does.

    Raises:
        UsageError: no pair or every pair would be kept.
    """
    named = list(dict.fromkeys(rule.column for rule in rules))
    known = np.isfinite(mask_one_token(scores)[named].to_numpy(dtype=np.float64)).all(axis=1)
    rows = np.flatnonzero((scores["status"] == "ok").to_numpy() & known)
    pairs = scores.iloc[rows].reset_index(drop=True)
    orders = np.stack([rule.order(pairs[rule.column]) for rule in rules])
    kept = np.stack([make_keep_mask(pairs["id"].tolist(), order, keep_lowest=keep) for order in orders])
    if not kept.any() or kept.all():
        raise UsageError(f"a share of {keep:g} of {len(rows)} pairs is {'all' if kept.any() else 'none'} of them")
    return RuleComparison(pairs, rows, rules, kept, orders)


def correlate_rules(compared: RuleComparison, units: NDArray[np.int64]) -> SpearmanMatrix:
    """Rank correlations of the rules with one another and, last, with the number of tokens of both responses.

    They are 1 where the same pairs are kept first, or the longest.

    Args:
        compared: the rules.
        units: group of each pair that is compared, which are drawn together, [pair]; see ``pair_units``.
    """
    tokens = compared.pairs[list(RESPONSE_TOKENS)].sum(axis=1).to_numpy(dtype=np.float64)
    return bootstrap_spearman_matrix(np.vstack([-compared.orders, tokens]), units)


def measure_agreement(compared: RuleComparison, correlations: SpearmanMatrix) -> "pd.DataFrame":
    """For every two rules, the pairs that both keep and the rank correlation of their orders, with its 95 % interval.

    Returns:
        A row for every two rules: "both" counts pairs, "share" is of those that each keeps, "Jaccard" of those that
        either keeps.
    """
    import pandas as pd

    rows = []
    for one, other in combinations(range(len(compared.rules)), 2):
        kept = compared.kept[[one, other]]
        both = int(kept.all(axis=0).sum())
        rows.append(
            {
                "rule": str(compared.rules[one]),
                "other": str(compared.rules[other]),
                "both": both,
                "share": both / int(kept[0].sum()),
                "Jaccard": both / int(kept.any(axis=0).sum()),
                "Spearman": correlations.value[one, other],
                "low": correlations.low[one, other],
                "high": correlations.high[one, other],
            }
        )
    return pd.DataFrame(rows)


def measure_lengths(compared: RuleComparison, correlations: SpearmanMatrix) -> "pd.DataFrame":
    """Mean tokens of the responses that each rule keeps, and the rank correlation of its order with their sum.

    Returns:
        A row for all pairs, then one a rule.
    """
    import pandas as pd

    lengths = compared.pairs[list(RESPONSE_TOKENS)]
    rows = [{"rule": "(all pairs)", "kept": len(lengths), **_average(lengths)}]
    for at, (rule, kept) in enumerate(zip(compared.rules, compared.kept, strict=True)):
        names = {"value": "Spearman with tokens", "low": "low", "high": "high"}
        measured = {shown: getattr(correlations, name)[at, -1] for name, shown in names.items()}
        rows.append({"rule": str(rule), "kept": int(kept.sum()), **_average(lengths[kept]), **measured})
    return pd.DataFrame(rows)


def _average(lengths: "pd.DataFrame") -> dict[str, float]:
    return {str(name).replace("_", " "): float(values) for name, values in lengths.mean().items()}


def count_kept(compared: RuleComparison, groups: Sequence[str]) -> "pd.DataFrame":
    """How many pairs of each group every rule keeps: a row a group and rule, with the share of the group.

    Args:
        compared: the rules.
        groups: group of each pair that is compared, [pair].
    """
    import pandas as pd

    index, names = pd.factorize(pd.Series(groups, dtype=object), sort=True)
    sizes = np.bincount(index)
    counted = [np.bincount(index, kept).astype(int) for kept in compared.kept]
    rows = [
        (group, str(rule), int(sizes[at]), int(of_rule[at]))
        for at, group in enumerate(names)
        for rule, of_rule in zip(compared.rules, counted, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["group", "rule", "pairs", "kept"])
    return table.assign(share=table["kept"] / table["pairs"])


def ranks_state_sums(rules: Sequence[FilterRule]) -> bool:
    """Whether a rule is by CHES, which is 0 by definition for responses of one token each."""
    return any(rule.column in STATE_SUMS for rule in rules)
