"""Rank correlations of many columns at once equal those of every two columns by themselves."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from probing.statistics.bootstrap import bootstrap_spearman, draw_bootstrap_weights
from probing.statistics.rank_matrix import bootstrap_spearman_matrix


def columns_of(rows, count=3, values=1000, seed=0):
    """Columns that go together in part; few different values make many ties."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal(rows)
    return np.round((common + generator.standard_normal((count, rows))) * values) / values


@pytest.mark.parametrize("values", [1000, 1], ids=["few ties", "many ties"])
def test_every_two_columns_are_as_they_are_by_themselves(values):
    # Groups of different sizes, so that replicates have different numbers of rows.
    columns, groups = columns_of(60, values=values), np.minimum(np.arange(60) // 2, 22)
    found = bootstrap_spearman_matrix(columns, groups, resamples=300)
    for one in range(3):
        for other in range(3):
            plain = bootstrap_spearman(columns[one], columns[other], resamples=300, groups=groups)
            # The same draws; ranks are halves, so that only the sums of their products are rounded.
            assert found.value[one, other] == pytest.approx(plain.value, abs=1e-12)
            assert found.low[one, other] == pytest.approx(plain.low, abs=1e-12)
            assert found.high[one, other] == pytest.approx(plain.high, abs=1e-12)


def test_rows_that_are_their_own_groups_have_the_interval_of_scipy_s_ranks_over_the_same_draws():
    columns = columns_of(40, count=2)
    found = bootstrap_spearman_matrix(columns, np.arange(40), resamples=200, seed=3)
    draws = draw_bootstrap_weights(np.arange(40), 200, 3).astype(int)
    replicates = [spearmanr(*(np.repeat(column, counts) for column in columns)).statistic for counts in draws]
    assert found.value[0, 1] == pytest.approx(spearmanr(*columns).statistic, abs=1e-12)
    assert (found.low[0, 1], found.high[0, 1]) == pytest.approx(np.quantile(replicates, [0.025, 0.975]), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=12))
def test_the_value_is_that_of_the_oracle_or_there_is_none(rows):
    columns = np.array(rows, dtype=float).T
    found = bootstrap_spearman_matrix(columns, np.arange(len(rows))).value[0, 1]
    if min(len(set(column)) for column in columns) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(oracles.spearman(*columns), abs=1e-12)


def test_few_groups_have_no_interval_and_few_rows_no_value():
    columns = columns_of(40, count=2)
    few = bootstrap_spearman_matrix(columns, np.arange(40) % 14)
    assert np.isnan(few.low).all()
    assert np.isnan(few.high).all()
    assert np.isfinite(few.value).all()
    assert np.isnan(bootstrap_spearman_matrix(columns[:, :2], [0, 1]).value).all()


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="there must be rows, and every value must be finite"):
        bootstrap_spearman_matrix([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]], [0, 1, 2])
    with pytest.raises(ValueError, match="there must be rows"):
        bootstrap_spearman_matrix(np.empty((2, 0)), [])
