import math

import numpy as np
import oracles
import pytest

from probing.statistics.correlation import rank_correlations, spearman


@pytest.mark.parametrize("values", [3, 6, 1000])
def test_every_row_equals_the_oracle(values):
    left, right = np.random.default_rng(values).integers(0, values, size=(2, 5, 40)).astype(float)
    expected = [oracles.spearman(one, other) for one, other in zip(left, right, strict=True)]
    assert rank_correlations(left, right) == pytest.approx(expected)
    assert [spearman(one, other) for one, other in zip(left, right, strict=True)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("left", "right"),
    [([1.0, 2.0], [2.0, 1.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])],
)
def test_two_rows_or_one_value_have_no_rank_correlation(left, right):
    assert math.isnan(spearman(left, right))


def test_monotone_is_one():
    values = np.array([0.1, 5.0, 2.0, 7.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
