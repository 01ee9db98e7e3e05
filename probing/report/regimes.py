"""What a table of scores says of the regimes of its pairs, and of the SFT term that would keep chosen responses up."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.report.figures import Figure, make_figure
from probing.report.tables import quantiles
from probing.statistics.bootstrap import estimate_share

ENDS = ("", "_exact")
REGIMES = ("disentangled", "both_fall", "both_rise")
NONE = "none"
"""Pairs whose rates are 0 or contradict one another: see ``metrics/entanglement.py``."""
_COLORS = {"disentangled": "#3a7d44", "both_fall": "#c8553d", "both_rise": "#b8860b", NONE: "#555555"}
COVERED = 0.95
"""Share of the pairs that the weight covers which is told in words."""


def describe_loss(config: Mapping[str, Any]) -> str:
    """The loss whose rates a run has, in words; nothing for the margin, which stands for many.

    Args:
        config: options of the run, as its record holds them.
    """
    loss, weight = config.get("loss", "margin"), config.get("sft_weight", 0)
    said = [str(loss)]
    said += [f"beta {config.get('beta', 0.1):g}"] if loss != "margin" else []
    said += [f"gamma {config.get('gamma', 0.5):g}"] if loss == "simpo" else []
    said += [f"label smoothing {config['label_smoothing']:g}"] if config.get("label_smoothing") else []
    said += [f"SFT weight {weight:g}"] if weight else []
    return ", ".join(said) if said != ["margin"] else ""


def count_regimes(frame: pd.DataFrame, groups: NDArray[np.int64] | None) -> pd.DataFrame:
    """Count and share of every regime among the pairs that are ok, with intervals; no rows where none has one.

    Args:
        frame: the scores; one of the columns "regime" and "regime_exact" or both.
        groups: group of every pair that is ok; None where every pair is its own.
    """
    good = frame[frame["status"] == "ok"]
    rows = []
    for column in (f"regime{end}" for end in ENDS if f"regime{end}" in frame):
        words = good[column].fillna(NONE)
        for regime in REGIMES if (words != NONE).all() else (*REGIMES, NONE):
            share = estimate_share((words == regime).astype(float), groups=groups)
            rows.append((column, regime, int((words == regime).sum()), share.value, share.low, share.high))
    return pd.DataFrame(rows, columns=["score", "regime", "pairs", "share", "low", "high"])


def draw_regimes(shares: pd.DataFrame, loss: str) -> list[Figure]:
    """Bars of the shares of the regimes, a figure for each column of ``count_regimes``; intervals when pointed at."""
    figures = []
    for column, own in shares.groupby("score", sort=False):
        traces = [
            {
                "type": "bar",
                "name": f"{row['regime']}, {row['pairs']:,} pairs",
                "x": [at],
                "y": [row["share"]],
                "width": [0.7],
                "text": [f"{row['regime']}: {row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"],
                "marker": {"color": _COLORS[row["regime"]]},
            }
            for at, row in enumerate(own.to_dict("records"))
        ]
        title = f"Share of each {column} over {own['pairs'].sum():,} pairs{f' ({loss})' if loss else ''}"
        figure = make_figure(traces, title, "regime", "share of the pairs")
        figure["layout"]["xaxis"] |= {"tickvals": list(range(len(own))), "ticktext": own["regime"].tolist()}
        figures.append(figure)
    return figures


def measure_sft_weights(frame: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of the least weight of an SFT term, for each pair alone and in batches of the mean length.

    A trainer divides the term by the number of chosen tokens of a batch, which is the mean length times the pairs. The
    table is empty where there are no such columns.
    """
    weights = {
        name: values
        for end in ENDS
        if f"least_sft_weight{end}" in frame
        for name, values in _name_weights(frame, f"least_sft_weight{end}").items()
    }
    return quantiles(pd.DataFrame(weights), list(weights)) if weights else pd.DataFrame()


def _name_weights(frame: pd.DataFrame, column: str) -> "dict[str, pd.Series[float]]":
    mean = mean_chosen_tokens(frame)
    return {column: frame[column], f"{column}, in batches of mean length {mean:.1f}": _in_batches(frame, column, mean)}


def mean_chosen_tokens(frame: pd.DataFrame) -> float:
    """Mean number of tokens of the chosen responses that have a score."""
    return float(frame.loc[frame["status"] == "ok", "chosen_tokens"].mean())


def _in_batches(frame: pd.DataFrame, column: str, mean: float) -> "pd.Series[float]":
    weights: pd.Series[float] = frame[column] * mean / frame["chosen_tokens"]
    return weights


def tell_sft_weights(frame: pd.DataFrame, loss: str) -> list[str]:
    """A sentence on the weight that covers nearly all pairs, for each way of taking gradients that there is.

    Args:
        frame: the scores.
        loss: what ``describe_loss`` says of the loss.
    """
    said = []
    for column in (f"least_sft_weight{end}" for end in ENDS):
        if column not in frame or not frame[column].notna().any():
            continue
        mean = mean_chosen_tokens(frame)
        alone, together = (find_covering(each) for each in (frame[column], _in_batches(frame, column, mean)))
        unit = " times the slope of the loss (beta / 2 of DPO)" if loss.partition(",")[0] in ("", "margin") else ""
        said.append(
            f"{column}: alpha = {alone:g}{unit} covers {100 * COVERED:g} % of pairs, each alone; alpha = "
            f"{together:g}{unit} in batches whose chosen responses have {mean:.1f} tokens in the mean. This is a "
            f"first-order statement of plain gradient descent; docs/displacement.md says how far it can be trusted."
        )
    return said


def find_covering(weights: "pd.Series[float]", share: float = COVERED) -> float:
    """The least weight of two digits that is at least that of this share of the pairs."""
    value = float(np.quantile(weights.dropna().to_numpy(dtype=np.float64), share, method="higher"))
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    # A quotient such as 0.8 / 0.01 may lie a rounding above the whole number.
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")
