import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from probing.statistics.agreement import cohen_kappa, estimate_agreement


def test_kappa_is_that_of_the_library():
    generator = np.random.default_rng(0)
    for _ in range(20):
        left = generator.random(30) < 0.6
        right = np.where(generator.random(30) < 0.3, ~left, left)
        weights = generator.integers(0, 3, (2, 30))
        assert cohen_kappa(left, right)[0] == pytest.approx(cohen_kappa_score(left, right))
        expected = [cohen_kappa_score(left, right, sample_weight=row) for row in weights]
        assert cohen_kappa(left, right, weights) == pytest.approx(expected)


def test_judges_that_give_one_verdict_throughout_have_no_kappa():
    assert np.isnan(cohen_kappa([True] * 4, [True] * 4)[0])
    assert cohen_kappa([True] * 4, [True, True, False, True])[0] == 0
    with pytest.raises(ValueError, match="as many"):
        cohen_kappa([True], [])


def test_intervals_hold_the_value():
    generator = np.random.default_rng(1)
    left = generator.random(200) < 0.5
    right = np.where(generator.random(200) < 0.2, ~left, left)
    share, kappa = estimate_agreement(left, right, np.arange(200), 400)
    assert share.value == pytest.approx((left == right).mean())
    assert share.low < share.value < share.high
    assert kappa.low < 0.6 < kappa.high
    assert kappa.value == cohen_kappa(left, right)[0]
    assert share.n == kappa.n == 200
