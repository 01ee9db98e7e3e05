import math

import pytest
import torch

from probing.directions.refusal_score import find_refusal_tokens, refusal_log_odds


def by_hand(logits, tokens):
    """Sums of exponentials of Python floats."""
    values = [math.exp(value - max(logits)) for value in logits]
    refusal = math.fsum(values[token] for token in tokens) / math.fsum(values)
    rest = math.fsum(value for at, value in enumerate(values) if at not in tokens) / math.fsum(values)
    return math.log(refusal + 1e-8) - math.log(rest + 1e-8)


def test_log_odds_are_those_by_hand():
    logits = 5 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    found = refusal_log_odds(logits, [3, 17])
    assert found.dtype == torch.float64
    expected = [by_hand(row, (3, 17)) for row in logits.double().tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sign", [1, -1])
def test_certain_answers_end_at_the_published_limit(sign):
    logits = torch.zeros(1, 5)
    logits[0, 2] = sign * 200.0
    assert float(refusal_log_odds(logits, [2])) == pytest.approx(sign * math.log(1e8), abs=1e-6)


def test_tokens_are_checked():
    logits = torch.zeros(2, 5)
    for tokens, said in (([], "at least one"), ([1, 1], "none twice"), ([5], "outside"), ([-1], "outside")):
        with pytest.raises(ValueError, match=said):
            refusal_log_odds(logits, tokens)


def test_scores_of_logits_that_are_not_finite_are_nan():
    logits = torch.zeros(2, 5)
    logits[0, 1] = torch.nan
    assert refusal_log_odds(logits, [0]).isnan().tolist() == [True, False]


def test_refusal_tokens_are_those_that_tell_the_kinds_apart():
    harmful, harmless = torch.full((12,), 0.002), torch.full((12,), 0.002)
    harmful[3], harmless[3] = 0.6, 0.01
    harmful[7], harmless[7] = 0.3, 0.02
    # As likely after both, so that it says nothing; and one that is likelier, but not twice as likely.
    harmful[1], harmless[1] = 0.02, 0.9
    harmful[5], harmless[5] = 0.06, 0.05
    found = find_refusal_tokens(harmful, harmless)
    assert [token.id for token in found] == [3, 7]
    assert (found[0].harmful, found[0].harmless) == pytest.approx((0.6, 0.01))
    assert find_refusal_tokens(harmless, harmless) == []
