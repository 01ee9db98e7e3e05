"""Tables of the scores of a dataset."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probing.data.filters import find_threshold, make_keep_mask
from probing.data.pair_units import pair_units
from probing.data.pairs import find_pairs
from probing.instruments.columns import GROUPS, LIKELIHOOD_COLUMNS, RATE_COLUMNS, REGIME_COLUMNS, SCORE_COLUMNS
from probing.metrics.likelihood import dataset_rank_surprisal_ratio
from probing.report.pair_titles import has_one_token, mask_one_token
from probing.report.regimes import count_regimes, describe_loss, measure_sft_weights, tell_sft_weights
from probing.report.tables import counts, estimates, extremes, histogram, quantiles
from probing.runs.common.results import estimate_without_interval
from probing.runs.score.config import SUGGESTED_DROP
from probing.shown import count_of
from probing.statistics.bootstrap import estimate_share
from probing.types import Estimate, PreferencePair

LISTED_PAIRS = 5
BY = "ches_normalized"
RATES_MEAN = "below 0: training on the pair pushes ln p(chosen) down"
ENTANGLEMENT_COLUMNS = [
    name for name in REGIME_COLUMNS if name not in GROUPS and not name.startswith("least_sft_weight")
]


def score_tables(
    frame: pd.DataFrame,
    pairs: Sequence[PreferencePair],
    facts: Mapping[str, Any],
    pulls: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown.

    Args:
        frame: the scores.
        pairs: the pairs of the dataset.
        facts: record of the run.
        pulls: tables of the tokens that pull most; None where there are no pulls.
    """
    short = has_one_token(frame)
    ranked = mask_one_token(frame)
    loss = describe_loss(facts.get("config", {}))
    of_loss = f"{loss}; " if loss else ""
    tables = {"Pairs by status": counts(facts["rows_by_status"], "status")}
    groups = {
        "Quantiles of the scores (higher: the responses look more alike to the model)": SCORE_COLUMNS,
        "Quantiles of likelihoods (ln p in nats)": [name for name in LIKELIHOOD_COLUMNS if name != "ranking_correct"],
        f"Quantiles of displacement rates ({of_loss}{RATES_MEAN})": RATE_COLUMNS,
        "Quantiles of entanglement (entanglement: cosine of both gradients)": ENTANGLEMENT_COLUMNS,
    }
    for title, names in groups.items():
        present = [name for name in names if name in frame]
        if present:
            tables[title] = quantiles(ranked, present)
    units = good_units(frame, pairs)
    if set(GROUPS) & set(frame):
        tables[f"Regimes ({of_loss}{name_intervals(units)})"] = count_regimes(frame, units)
    weights = measure_sft_weights(frame)
    if len(weights):
        tables[f"Least weight of an SFT term ({of_loss}from which on ln p(chosen) does not fall at first)"] = weights
    if "ranking_correct" in frame:
        tables[f"Ranking, with {name_intervals(units)}"] = estimates(_measure_ranking(frame, units))
    if BY in frame:
        find = partial(find_pairs, pairs)
        tables[f"Histogram of {BY}"] = histogram(ranked[BY])
        tables[f"Most alike by {BY}"] = extremes(ranked, BY, find, LISTED_PAIRS, highest=True)
        tables[f"Least alike by {BY}"] = extremes(ranked, BY, find, LISTED_PAIRS, highest=False)
    tables |= pulls or {}
    notes = [note_one_token(int(short.sum()), "not ranked by it")] if bool(short.any()) else []
    notes += tell_sft_weights(frame, loss)
    if notes:
        tables["Notes"] = pd.DataFrame({"note": notes})
    return tables


def note_one_token(count: int, fate: str) -> str:
    """A note of so many pairs that CHES cannot rank, and of what became of them."""
    pairs, verb, them = count_of(count, "pair"), "have" if count > 1 else "has", "them" if count > 1 else "it"
    why = f"{pairs} {verb} responses of one token each, for which CHES is 0 by definition"
    return f"{why}: {'they are' if count > 1 else 'it is'} {fate}; displacement_rate ranks {them}"


def find_suggested_threshold(frame: pd.DataFrame) -> float | None:
    """The score between the pairs that the suggested filter keeps and those that it drops, if it drops any."""
    good = frame[frame["status"] == "ok"]
    kept = make_keep_mask(good["id"].array, good[BY], drop_highest=SUGGESTED_DROP)
    return find_threshold(good[BY].to_numpy(), kept)


def good_units(frame: pd.DataFrame, pairs: Sequence[PreferencePair]) -> NDArray[np.int64]:
    """The group of every pair that is ok: see ``pair_units``."""
    units: NDArray[np.int64] = pair_units(pairs)[(frame["status"] == "ok").to_numpy()]
    return units


def name_intervals(groups: NDArray[np.int64]) -> str:
    """What the intervals of a table are, for its title."""
    count = len(np.unique(groups))
    over = "pairs" if count == len(groups) else f"{count} groups of pairs that share a text"
    return f"95 % bootstrap intervals over {over}"


def _measure_ranking(frame: pd.DataFrame, groups: NDArray[np.int64]) -> list[tuple[str, Estimate]]:
    """Accuracies over the pairs that have a score, and the rank-surprisal ratios of the dataset."""
    good = frame[frame["status"] == "ok"]

    def share(values: pd.Series) -> Estimate:
        return estimate_share(values.astype(float), groups=groups)

    rows = [("ranking accuracy", share(good["ranking_correct"]))]
    if {"chosen_logprob", "rejected_logprob"} <= set(good):
        ties = share(good["chosen_logprob"] == good["rejected_logprob"])
        rows += [("of these, ties", ties)] if ties.value else []
    names = [f"{side}_logprob_per_token" for side in ("chosen", "rejected")]
    if set(names) <= set(good):
        rows.append(("ranking accuracy per token", share(good[names[0]] >= good[names[1]])))
    for side in ("chosen", "rejected"):
        ratio = f"{side}_rank_surprisal"
        if {ratio, f"{side}_logprob_per_token"} <= set(good):
            surprisals = -good[f"{side}_logprob_per_token"]
            # These are clipped ranks; 1 where the model was certain of every token.
            ranks = (good[ratio] * surprisals).fillna(1.0)
            value = dataset_rank_surprisal_ratio(*(torch.tensor(part.to_numpy()) for part in (ranks, surprisals)))
            rows.append((f"rank-surprisal ratio, {side}", estimate_without_interval(value, len(good))))
    return rows
