"""Intervals where percentiles of the bootstrap do not hold: shares near 0 and 1, groups, few rows."""

import math

import numpy as np
import pytest
from scipy import stats

from probing.statistics.bootstrap import bootstrap_mean, bootstrap_spearman, estimate_share
from probing.statistics.intervals import effective_rows, share_interval, student_interval


def test_a_share_of_all_rows_has_an_interval_of_some_width():
    found = estimate_share(np.ones(20))
    exact = stats.binomtest(20, 20).proportion_ci(method="exact")
    assert (found.value, found.low, found.high) == pytest.approx((1, exact.low, exact.high))
    assert found.low == pytest.approx(0.8316, abs=1e-4)
    nothing = estimate_share(np.zeros(20))
    assert (nothing.low, nothing.high) == pytest.approx((0, 1 - found.low))


def test_a_share_of_halves_has_an_interval_of_some_width():
    """None of 40 rows is otherwise: at most 1 - .025^(1/40) of all are, and these may all be wrong, or all right."""
    found = estimate_share(np.full(40, 0.5))
    other = stats.binomtest(0, 40).proportion_ci(method="exact").high
    assert (found.low, found.high) == pytest.approx((0.5 - other / 2, 0.5 + other / 2))
    groups = np.repeat(np.arange(10), 4)
    assert share_interval(np.full(40, 0.5), groups) == pytest.approx(share_interval(np.full(10, 0.5)))
    assert share_interval(np.ones(10)) == pytest.approx((0.025 ** (1 / 10), 1))


def test_a_share_with_enough_rows_on_both_sides_keeps_its_interval():
    """The percentiles of the bootstrap, to the last bit."""
    values = (np.arange(60) < 30).astype(float)
    found = estimate_share(values)
    drawn = stats.bootstrap((values,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0))
    low, high = np.quantile(drawn.bootstrap_distribution, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    assert (found.low, found.high) == (low, high)
    values = np.arange(60) < 5
    exact = stats.binomtest(5, 60).proportion_ci(method="exact")
    assert share_interval(values.astype(float)) == pytest.approx((exact.low, exact.high))


def test_rows_that_share_text_are_worth_one():
    """Each row four times says no more than each once."""
    values, groups = np.repeat(np.arange(30) < 4, 4).astype(float), np.repeat(np.arange(30), 4)
    assert effective_rows(values, groups) == pytest.approx(30, rel=0.1)
    once = share_interval(values[::4])
    assert share_interval(values, groups) == pytest.approx(once, abs=0.03)
    assert effective_rows(np.ones(120), groups) == 30
    assert all(map(math.isnan, share_interval(np.ones(5), np.zeros(5))))


def test_the_mean_of_few_rows_has_students_interval():
    values = np.array([1.0, 4.0, 2.5, 8.0])
    exact = stats.ttest_1samp(values, 0).confidence_interval()
    found = bootstrap_mean(values)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    twice = student_interval(np.repeat(values, 2), np.repeat(np.arange(4), 2))
    assert twice == pytest.approx((exact.low, exact.high))


def test_the_mean_of_many_rows_keeps_its_interval():
    """The percentiles of the bootstrap, to the last bit; of 199 rows they are a little further apart."""
    values = np.random.default_rng(5).normal(size=200)
    drawn = stats.bootstrap((values,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0))
    low, high = np.quantile(drawn.bootstrap_distribution, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    found, fewer = bootstrap_mean(values), bootstrap_mean(values[:199])
    assert (found.low, found.high) == (low, high)
    assert fewer.high - fewer.low == pytest.approx(high - low, rel=0.15)
    plain = stats.ttest_1samp(values[:199], 0).confidence_interval()
    assert fewer.low <= plain.low < plain.high <= fewer.high


def test_groups_that_are_single_rows_change_nothing():
    left, right = np.random.default_rng(0).normal(size=(2, 40))
    assert bootstrap_mean(left, groups=np.arange(40)) == bootstrap_mean(left)
    assert bootstrap_spearman(left, right, groups=np.arange(40)) == bootstrap_spearman(left, right)


def test_intervals_are_over_groups():
    """Every row four times: as wide as of each once, and twice as wide as over rows."""
    left, right = np.random.default_rng(0).normal(size=(2, 100))
    groups = np.repeat(np.arange(100), 4)
    for once, grouped, alone in (
        (bootstrap_mean(left), bootstrap_mean(np.repeat(left, 4), groups=groups), bootstrap_mean(np.repeat(left, 4))),
        (
            bootstrap_spearman(left, right),
            bootstrap_spearman(np.repeat(left, 4), np.repeat(right, 4), groups=groups),
            bootstrap_spearman(np.repeat(left, 4), np.repeat(right, 4)),
        ),
    ):
        assert grouped.value == pytest.approx(once.value)
        assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.1)
        assert grouped.high - grouped.low == pytest.approx(2 * (alone.high - alone.low), rel=0.15)


def test_a_correlation_of_few_rows_has_no_interval():
    values = np.random.default_rng(0).normal(size=(2, 12))
    found = bootstrap_spearman(*values)
    assert found.value == pytest.approx(stats.spearmanr(*values).statistic)
    assert math.isnan(found.low)
