import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from probing.metrics.ranking import idealized_ranking_accuracy, ranking_accuracy, ranking_difficulty

logprobs = st.floats(-60, 0, allow_nan=False)


def test_ties_count_and_are_told():
    found = ranking_accuracy(torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([-2.0, -2.0, -1.0, -1.0]))
    assert (found.value, found.ties, found.n) == (0.5, 0.25, 4)


@given(st.tuples(logprobs, logprobs, logprobs, logprobs), st.floats(0.01, 5))
def test_ranked_correctly_exactly_if_the_loss_is_small_enough(values, beta):
    """Theorem 4.1: R = 1 iff the DPO loss is at most -ln sigmoid(beta c), brute force from the loss."""
    reference_chosen, reference_rejected, chosen, rejected = values
    if abs(chosen - rejected) < 1e-9:
        return  # on the border rounding decides
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    loss = math.log1p(math.exp(-beta * margin)) if beta * margin > -700 else -beta * margin
    difficulty = float(ranking_difficulty(torch.tensor(reference_chosen), torch.tensor(reference_rejected)))
    limit = beta * (reference_rejected - reference_chosen)
    assert difficulty == pytest.approx(reference_rejected - reference_chosen, abs=1e-4)
    bound = math.log1p(math.exp(-limit)) if limit > -700 else -limit
    if abs(loss - bound) > 1e-12 * max(1, bound):
        assert (chosen >= rejected) == (loss <= bound)


def test_the_idealised_accuracy_is_that_of_the_optimal_policy():
    """Brute force: the optimum of the DPO loss has log-ratio ln(a / (1 - a)) / beta between the responses."""
    generator = torch.Generator().manual_seed(1)
    plus, minus = (-20 * torch.rand(500, generator=generator, dtype=torch.float64) for _ in range(2))
    share = 0.05 + 0.9 * torch.rand(500, generator=generator, dtype=torch.float64)
    beta = 0.2
    ranked = 0
    for p, m, a in zip(plus.tolist(), minus.tolist(), share.tolist(), strict=True):
        odds = math.exp(p - m) * (a / (1 - a)) ** (1 / beta)
        ranked += odds > 1
    found = idealized_ranking_accuracy(plus, minus, share, beta)
    assert found.value == ranked / 500
    assert 0.1 < found.value < 0.9


def test_unanimous_raters_leave_a_thousandth():
    """ln(1 / .001) = 6.9: a reference model that prefers the other by more than 6.9 / beta is not turned."""
    plus, minus, share = (
        torch.tensor([-10.0, -10.0, 0.0]),
        torch.tensor([-3.2, -3.0, -1.0]),
        torch.tensor([1.0, 1.0, 0.5]),
    )
    found = idealized_ranking_accuracy(plus, minus, share, 1.0)
    assert found.value == pytest.approx(2 / 3)
    undecided = idealized_ranking_accuracy(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([0.5]), 0.1)
    assert (undecided.value, undecided.ties) == (0.0, 1.0)


def test_a_single_rater_is_answered_with_an_explanation():
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="as if there had been one rater: then the best possible"):
        idealized_ranking_accuracy(-ones, -ones, ones, 0.1)


@pytest.mark.parametrize(("share", "beta"), [(1.1, 0.1), (-0.1, 0.1), (float("nan"), 0.1), (0.5, 0.0), (0.5, -1.0)])
def test_out_of_range(share, beta):
    with pytest.raises(ValueError, match=r"share of raters|beta is a positive"):
        idealized_ranking_accuracy(torch.zeros(1), torch.zeros(1), torch.tensor([share]), beta)


def test_bad_input():
    with pytest.raises(ValueError, match="0 chosen and 0 rejected"):
        ranking_accuracy(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="must be finite"):
        ranking_accuracy(torch.tensor([float("nan")]), torch.zeros(1))
