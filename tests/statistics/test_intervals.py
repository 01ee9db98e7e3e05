import math

import numpy as np
import pytest
from scipy import stats

from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.intervals import (
    auroc_interval,
    null_interval,
    percentile_interval,
    student_interval,
    studentized_interval,
)


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


@pytest.mark.parametrize("groups", [2, 6, 15, 40, 199])
def test_of_few_groups_the_percentiles_lie_further_out(groups):
    """So far that of normal replicates, whose variance is too small by (n - 1) / n, the interval is Student's."""
    error = 2.0
    replicates = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000) * error * math.sqrt((groups - 1) / groups)
    low, high = percentile_interval(replicates, groups)
    half = stats.t.ppf(0.975, groups - 1) * error
    # Beyond 4.4 standard deviations there are no replicates: the ends are the outermost ones.
    assert (low, high) == pytest.approx((max(-half, replicates[0]), min(half, replicates[-1])), rel=0.01)
    assert low < percentile_interval(replicates)[0]


def test_of_many_groups_the_percentiles_are_the_plain_ones():
    draws = np.random.default_rng(0).normal(size=500)
    assert percentile_interval(draws, 200) == percentile_interval(draws)
    assert percentile_interval(draws, 1) == (draws.min(), draws.max())


def test_the_bootstrap_t_by_loops():
    """Every replicate written down; each end is the farther one of Student's and of the bootstrap-t."""
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), random.integers(1, 4, 12))
    values = random.exponential(size=len(groups)) ** 2 + random.exponential(size=12)[groups]
    weights = draw_bootstrap_weights(np.arange(12), 400, 1)

    def error_of(parts):
        """Of a mean of groups: the linear form of a ratio."""
        mean = np.concatenate(parts).mean()
        sums = np.array([(part - mean).sum() for part in parts])
        return math.sqrt(len(parts) / (len(parts) - 1) * (sums**2).sum()) / sum(map(len, parts)), mean

    parts = [values[groups == group] for group in range(12)]
    error, mean = error_of(parts)
    ratios = []
    for times in weights:
        drawn = [part for part, count in zip(parts, times, strict=True) for _ in range(int(count))]
        ours, centre = error_of(drawn)
        ratios.append((centre - mean) / ours)
    low, high = mean - np.quantile(ratios, 0.975) * error, mean - np.quantile(ratios, 0.025) * error
    plain = student_interval(values, groups)
    found = studentized_interval(values, weights, groups)
    assert found == pytest.approx((min(low, plain[0]), max(high, plain[1])))
    assert found != plain  # the values are skewed


def test_where_a_replicate_has_no_spread_the_interval_is_students():
    values = np.array([0.0] * 11 + [5.0])
    weights = draw_bootstrap_weights(np.arange(12), 200, 0)
    assert (weights[:, 11] == 0).any()
    assert studentized_interval(values, weights) == student_interval(values)


def test_an_auroc_near_one_is_symmetric_in_the_log_odds():
    replicates = np.random.default_rng(0).normal(0.95, 0.03, size=500)
    low, high = auroc_interval(0.95, 20, replicates)
    odds = [math.log(each / (1 - each)) for each in (low, 0.95, high)]
    half = 1.959964 * replicates.std(ddof=1) / (0.95 * 0.05)
    assert odds[1] - odds[0] == pytest.approx(half)
    assert odds[2] - odds[1] == pytest.approx(half)
    assert auroc_interval(0.95, 200, replicates) is None  # ten couples in the rarer order
    assert auroc_interval(0.95, 199, replicates) is not None
    assert auroc_interval(math.nan, 20, replicates) is None


def test_an_auroc_of_one_has_an_interval_of_some_width():
    """Of 12 independent couples in order: as of 12 rows out of 12."""
    same = np.ones(9)
    assert auroc_interval(1.0, 12, same) == pytest.approx((0.025 ** (1 / 12), 1.0))
    assert auroc_interval(0.0, 12, 0 * same) == pytest.approx((0.0, 1 - 0.025 ** (1 / 12)))
    assert np.isnan(auroc_interval(1.0, 1, same)).all()
    assert auroc_interval(1.0, 0, same) is None
