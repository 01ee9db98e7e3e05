"""What is told of regimes: shares with their intervals, and the weight that covers nearly all pairs."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta as beta_distribution

from probing.report.regimes import (
    count_regimes,
    describe_loss,
    draw_regimes,
    find_covering,
    measure_sft_weights,
    tell_sft_weights,
)


def make_frame(words, weights=None, tokens=None, status=None):
    count = len(words)
    return pd.DataFrame(
        {
            "status": status or ["ok"] * count,
            "chosen_tokens": tokens or [10] * count,
            "regime": pd.Series(words, dtype=object),
            "least_sft_weight": weights or [0.0] * count,
        }
    )


def test_shares_have_the_interval_of_clopper_and_pearson_where_one_outcome_is_rare():
    frame = make_frame(["disentangled"] * 37 + ["both_fall"] * 3)
    shares = count_regimes(frame, None).set_index("regime")
    assert shares["pairs"].to_dict() == {"disentangled": 37, "both_fall": 3, "both_rise": 0}
    expected = beta_distribution.ppf([0.025, 0.975], [3, 4], [38, 37])
    assert shares.loc["both_fall", ["low", "high"]].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert shares.loc["both_fall", "share"] == 3 / 40


def test_pairs_without_a_score_or_a_regime_are_told_apart():
    frame = make_frame(["both_rise", None, None, "disentangled"], status=["ok", "ok", "truncated", "ok"])
    shares = count_regimes(frame, np.array([0, 1, 2])).set_index("regime")["pairs"].to_dict()
    assert shares == {"disentangled": 1, "both_fall": 0, "both_rise": 1, "none": 1}
    [figure] = draw_regimes(count_regimes(frame, None), "dpo, beta 0.1")
    assert figure["title"] == "Share of each regime over 3 pairs (dpo, beta 0.1)"
    assert [trace["name"] for trace in figure["data"]][-1] == "none, 1 pairs"
    assert not len(count_regimes(frame.drop(columns="regime"), None))


@pytest.mark.parametrize("value", [0.8, 0.79, 0.801, 12.0, 1e-7, 99.5, 3.0])
def test_the_weight_that_covers_is_rounded_up(value):
    found = find_covering(pd.Series([0.0] * 94 + [value] * 6))
    assert value <= found * (1 + 1e-9)
    assert found <= value * 1.1 + 1e-12
    assert float(f"{found:.1e}") == pytest.approx(found)


def test_as_many_pairs_as_are_said_are_covered():
    weights = pd.Series([*np.random.default_rng(0).exponential(size=200), math.nan])
    assert (weights.dropna() <= find_covering(weights)).mean() >= 0.95
    assert find_covering(pd.Series([0.0] * 96 + [5.0] * 4)) == 0


def test_in_batches_a_short_response_needs_more():
    frame = make_frame(["both_fall"] * 2, [0.8, 0.8], [5, 15])
    table = measure_sft_weights(frame).set_index("score")
    assert table.loc["least_sft_weight", "100%"] == 0.8
    assert table.loc["least_sft_weight, in batches of mean length 10.0", "100%"] == pytest.approx(1.6)
    [told] = tell_sft_weights(frame, "dpo, beta 0.1")
    assert told.startswith("least_sft_weight: alpha = 0.8 covers 95 % of pairs, each alone; alpha = 1.6 in batches")
    assert "first-order statement of plain gradient descent" in told
    for loss in ("", "margin, SFT weight 0.2"):
        assert "alpha = 0.8 times the slope of the loss (beta / 2 of DPO) covers" in tell_sft_weights(frame, loss)[0]
    assert not len(measure_sft_weights(frame.drop(columns="least_sft_weight")))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, ""),
        ({"loss": "margin", "beta": 0.5}, ""),
        ({"loss": "margin", "sft_weight": 0.5}, "margin, SFT weight 0.5"),
        ({"loss": "dpo"}, "dpo, beta 0.1"),
        ({"loss": "simpo", "beta": 2.0, "gamma": 1.0}, "simpo, beta 2, gamma 1"),
        ({"loss": "robust", "beta": 0.1, "label_smoothing": 0.2}, "robust, beta 0.1, label smoothing 0.2"),
    ],
)
def test_the_loss_is_told(config, told):
    assert describe_loss(config) == told
