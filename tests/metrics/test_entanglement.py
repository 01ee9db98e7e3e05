"""Regimes and least SFT weights against gradients written out, and against a step in the free-feature model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probing.metrics.entanglement import (
    PairProducts,
    PairRates,
    entanglement,
    find_regimes,
    gradient_ratio,
    least_sft_weight,
    pair_rates,
)
from probing.metrics.preference_losses import Slopes


def products_of(chosen, rejected):
    """Products of two lists of numbers, in plain Python."""

    def dot(left, right):
        return math.fsum(a * b for a, b in zip(left, right, strict=True))

    gap = [a - b for a, b in zip(chosen, rejected, strict=True)]
    values = dot(chosen, chosen), dot(chosen, rejected), dot(rejected, rejected), dot(chosen, gap)
    return PairProducts(*(torch.tensor([value], dtype=torch.float64) for value in values))


def slopes_of(chosen, rejected):
    return Slopes(torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64))


def move(chosen, rejected, slopes, sft=0.0):
    """Rates of both: the products of each gradient with the direction of training, in plain Python."""
    d_w, d_l = float(slopes.chosen) + sft, float(slopes.rejected)
    direction = [d_w * a - d_l * b for a, b in zip(chosen, rejected, strict=True)]
    return [math.fsum(a * b for a, b in zip(side, direction, strict=True)) for side in (chosen, rejected)]


numbers = st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=4, max_size=4)
slope = st.floats(0.01, 10)


@given(numbers, numbers, slope, slope)
def test_rates_and_regimes_are_those_of_the_gradients(chosen, rejected, d_w, d_l):
    slopes, products = slopes_of(d_w, d_l), products_of(chosen, rejected)
    rates = pair_rates(products, slopes)
    scale = 1e-12 * (1 + d_w + d_l) * (1 + float(products.chosen + products.rejected))
    expected = move(chosen, rejected, slopes)
    assert [float(rate) for rate in rates] == [pytest.approx(value, rel=1e-9, abs=scale) for value in expected]
    if min(map(abs, expected)) > 1e3 * scale:
        words = {(True, False): "disentangled", (False, False): "both_fall", (True, True): "both_rise"}
        assert find_regimes(rates) == [words[expected[0] > 0, expected[1] > 0]]


@given(numbers, numbers, slope, slope)
def test_the_inequalities_of_the_paper_say_the_same(chosen, rejected, d_w, d_l):
    products = products_of(chosen, rejected)
    rho, ratio = float(entanglement(products)), float(gradient_ratio(products))
    if not (rho > 1e-3 and 1e-3 < ratio < 1e3):
        return
    rates = pair_rates(products, slopes_of(d_w, d_l))
    if abs(d_w / d_l / (rho * ratio) - 1) > 1e-9:
        assert (float(rates.chosen) > 0) == (d_w / d_l > rho * ratio)
    if abs(d_w / d_l * rho / ratio - 1) > 1e-9:
        assert (float(rates.rejected) < 0) == (d_w / d_l < ratio / rho)


@given(numbers, numbers, slope, slope, st.integers(1, 50))
def test_the_chosen_response_stands_still_at_the_least_weight(chosen, rejected, d_w, d_l, tokens):
    products, slopes = products_of(chosen, rejected), slopes_of(d_w, d_l)
    if float(products.chosen) < 1e-6:
        return
    weight = float(least_sft_weight(products, slopes, torch.tensor([tokens])))
    before = move(chosen, rejected, slopes)[0]
    if weight == 0:
        assert before >= -1e-9
    else:
        still = move(chosen, rejected, slopes, weight / tokens)[0]
        assert still == pytest.approx(0, abs=1e-9 * (d_w + d_l) * float(products.chosen + products.rejected + 1))
        # As it is written for losses of two slopes.
        written = tokens * (d_l * float(products.cross) / float(products.chosen) - d_w)
        assert weight == pytest.approx(written, rel=1e-6, abs=1e-6)


def test_of_dpo_it_is_the_printed_formula():
    products, beta, tokens = products_of([1.0, 1.0], [2.0, 3.0]), 0.1, 7
    weight = least_sft_weight(products, slopes_of(beta / 2, beta / 2), torch.tensor([tokens]))
    assert float(weight) == pytest.approx(tokens * beta / 2 * (5 / 2 - 1))
    assert float(entanglement(products)) == pytest.approx(5 / math.sqrt(2 * 13))
    assert float(gradient_ratio(products)) == pytest.approx(math.sqrt(13 / 2))
    assert find_regimes(pair_rates(products, slopes_of(beta / 2, beta / 2))) == ["both_fall"]


ZERO = [0.0, 0.0]


@pytest.mark.parametrize(
    ("chosen", "rejected", "rho", "ratio", "weight"),
    [
        (ZERO, [1.0, 2.0], math.nan, math.nan, math.nan),
        ([1.0, 2.0], ZERO, math.nan, 0.0, 0.0),
        (ZERO, ZERO, math.nan, math.nan, math.nan),
        ([math.nan, 1.0], [1.0, 1.0], math.nan, math.nan, math.nan),
        ([1e200, 1.0], [1.0, 1.0], math.nan, math.nan, math.nan),
        ([1.0, 0.0], [0.0, 1.0], 0.0, 1.0, 0.0),
    ],
)
def test_where_a_gradient_is_zero_or_not_finite_there_is_no_number(chosen, rejected, rho, ratio, weight):
    chosen_square = sum(value * value for value in chosen)
    products = PairProducts(
        *(
            torch.tensor([value], dtype=torch.float64)
            for value in (
                chosen_square,
                sum(a * b for a, b in zip(chosen, rejected, strict=True)),
                sum(value * value for value in rejected),
                sum(a * (a - b) for a, b in zip(chosen, rejected, strict=True)),
            )
        )
    )
    found = (
        entanglement(products),
        gradient_ratio(products),
        least_sft_weight(products, slopes_of(1, 1), torch.ones(1, dtype=torch.long)),
    )
    assert [float(value) for value in found] == pytest.approx([rho, ratio, weight], nan_ok=True)


@pytest.mark.parametrize("rates", [(0.0, -1.0), (1.0, 0.0), (0.0, 0.0), (math.nan, -1.0), (1.0, math.nan), (-1.0, 1.0)])
def test_ties_and_nan_have_no_regime(rates):
    assert find_regimes(PairRates(*(torch.tensor([rate]) for rate in rates))) == [None]


def test_identical_gradients_tie():
    products = products_of([1.0, 2.0], [1.0, 2.0])
    assert find_regimes(pair_rates(products, slopes_of(0.05, 0.05))) == [None]
    assert float(entanglement(products)) == pytest.approx(1)


def test_a_cosine_beyond_one_is_rounding():
    tensor = [torch.tensor([value], dtype=torch.float64) for value in (1.0, 1.0 + 1e-12, 1.0, -1e-12)]
    assert float(entanglement(PairProducts(*tensor))) == 1.0
