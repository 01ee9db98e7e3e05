"""A value with its interval, beside null distributions: by hand, and as the columns of a results table."""

import numpy as np
import pytest

from probing.runs.common.results import (
    ComparedEstimate,
    NullDistribution,
    compare,
    correct_share_interval,
    estimate_with_interval,
    estimate_without_interval,
)
from probing.statistics.intervals import null_interval, percentile_interval


@pytest.fixture
def replicates():
    return np.random.default_rng(0).standard_normal(200) * 0.1 + 0.7


@pytest.fixture
def draws():
    """Of three places."""
    return np.random.default_rng(1).standard_normal((3, 99)) * 0.1 + 0.5


def share(value, null, high=True):
    """The value counted in."""
    return (1 + sum(each >= value if high else each <= value for each in null)) / (1 + len(null))


@pytest.mark.parametrize("high", [True, False])
def test_all_parts_by_hand(replicates, draws, high):
    null = NullDistribution(draws[1], list(draws))
    columns = compare(0.6, replicates, 12, {"labels": null}, higher_is_better=high).to_columns("rows")
    best = draws.max(axis=0) if high else draws.min(axis=0)
    assert columns == {
        "value": 0.6,
        "low": pytest.approx(np.quantile(replicates, 0.025)),
        "high": pytest.approx(np.quantile(replicates, 0.975)),
        "rows": 12,
        "labels_low": pytest.approx(np.quantile(draws[1], 0.025)),
        "labels_median": pytest.approx(np.median(draws[1])),
        "labels_high": pytest.approx(np.quantile(draws[1], 0.975)),
        "p_labels": pytest.approx(share(0.6, draws[1], high)),
        "p_labels_corrected": pytest.approx(share(0.6, best, high)),
    }
    assert 0 < columns["p_labels"] <= columns["p_labels_corrected"] <= 1


def test_the_order_of_columns_is_that_of_the_files(replicates, draws):
    """A folder's tables are the same bytes whatever made them, so that the order counts."""
    nulls = {
        "random": NullDistribution(draws[0], list(draws)),
        "pairings": NullDistribution(draws[1], tested=False),
        "labels": NullDistribution(None),
    }
    columns = compare(0.6, replicates, 12, nulls).to_columns("pairs")
    ends = [f"{name}_{part}" for name in nulls for part in ("low", "median", "high")]
    tested = ["p_random", "p_random_corrected", "p_labels", "p_labels_corrected"]
    assert list(columns) == ["value", "low", "high", "pairs", *ends, *tested]
    debiased = compare(0.6, replicates, 12, {}, debiased=(0.5, 0.4, 0.7)).to_columns("rows")
    assert list(debiased.items()) == [("value", 0.6), ("corrected", 0.5), ("low", 0.4), ("high", 0.7), ("rows", 12)]


def test_without_a_null_distribution_nothing_is_known_of_it(replicates):
    columns = compare(0.6, replicates, 12, {"labels": NullDistribution(None)}).to_columns("rows")
    assert all(np.isnan(value) for name, value in columns.items() if "labels" in name)
    none = compare(0.6, replicates, 12, {"labels": NullDistribution(np.empty(0), [np.empty(0)])}).to_columns("rows")
    assert all(np.isnan(value) for name, value in none.items() if "labels" in name)


def test_draws_that_chose_their_own_place_are_corrected_already(replicates, draws):
    found = compare(0.6, replicates, 12, {"labels": NullDistribution(draws[2], chosen=True)}).nulls["labels"]
    assert found.p == found.p_corrected == pytest.approx(share(0.6, draws[2]))


def test_where_neither_end_is_better_there_is_no_p_value(replicates, draws):
    null = NullDistribution(draws[0], list(draws), chosen=True)
    found = compare(0.6, replicates, 12, {"random": null}, higher_is_better=None).nulls["random"]
    assert np.isnan(found.p)
    assert np.isnan(found.p_corrected)
    assert (found.low, found.median, found.high) == null_interval(draws[0])


@pytest.mark.parametrize("high", [True, False])
def test_rounding_does_not_part_a_value_from_a_draw_of_the_same_labels(replicates, high):
    value = 3.0
    drawn = np.full(9, value * (1 + (-1e-6 if high else 1e-6)))
    strict, lenient = (
        compare(value, replicates, 12, {"labels": NullDistribution(drawn)}, higher_is_better=high, rounding=rounding)
        for rounding in (0.0, 1e-5)
    )
    assert strict.nulls["labels"].p == pytest.approx(0.1)
    assert lenient.nulls["labels"].p == 1
    assert lenient.estimate.value == value


def test_an_interval_needs_two_rows(replicates):
    assert np.isnan(estimate_with_interval(0.5, replicates, 1).low)
    assert estimate_with_interval(0.5, replicates, 2).low < 0.7
    alone = estimate_without_interval(0.5, 7)
    assert (alone.value, alone.n) == (0.5, 7)
    assert np.isnan([alone.low, alone.high]).all()
    assert list(ComparedEstimate(alone).to_columns("pairs")) == ["value", "low", "high", "pairs"]


def test_of_few_groups_the_ends_lie_further_out(replicates):
    plain, few = (compare(0.7, replicates, 12, {}, groups=groups).estimate for groups in (None, 20))
    assert few.low < plain.low < plain.high < few.high
    assert (few.low, few.high) == percentile_interval(replicates, 20)
    assert compare(0.7, replicates, 12, {}, groups=200).estimate == plain


def test_the_interval_of_a_share_is_exact_where_replicates_do_not_differ():
    assert correct_share_interval(np.ones(20), np.arange(20)) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert correct_share_interval(np.arange(60) % 2.0, np.arange(60)) is None
    found = compare(1.0, np.ones(9), 20, {}, interval=(0.8, 1.0)).estimate
    assert (found.value, found.low, found.high, found.n) == (1.0, 0.8, 1.0, 20)
