import math

import numpy as np
import pytest

from probing.statistics.intervals import null_interval, percentile_interval


def quantile(values, share):
    """By linear interpolation between the two nearest of the sorted values."""
    ordered = sorted(float(value) for value in values)
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_middle_95_percent(count):
    draws = np.random.default_rng(count).normal(size=count)
    assert percentile_interval(draws) == pytest.approx((quantile(draws, 0.025), quantile(draws, 0.975)))
    expected = (quantile(draws, 0.025), quantile(draws, 0.5), quantile(draws, 0.975))
    assert null_interval(draws) == pytest.approx(expected)


def test_draws_that_are_not_finite_are_left_out():
    draws = np.array([3.0, math.nan, 1.0, math.inf, 2.0, -math.inf])
    assert percentile_interval(draws) == percentile_interval(np.array([3.0, 1.0, 2.0]))
    assert null_interval(draws) == null_interval(np.array([3.0, 1.0, 2.0]))


@pytest.mark.parametrize("draws", [[], [math.nan, math.inf]])
def test_no_finite_draw_gives_no_interval(draws):
    assert all(map(math.isnan, percentile_interval(np.array(draws))))
    assert all(map(math.isnan, null_interval(np.array(draws))))
    assert all(map(math.isnan, null_interval(None)))
