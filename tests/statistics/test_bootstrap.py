import math

import numpy as np
import oracles
import pytest

from probing.statistics.bootstrap import bootstrap_mean, bootstrap_spearman, draw_bootstrap_weights


def test_the_interval_of_a_mean_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        found = bootstrap_mean(random.normal(3.0, 2.0, size=80), resamples=400, seed=seed)
        hits += found.low <= 3.0 <= found.high
    assert 0.90 < hits / 300 < 0.98


def test_the_interval_of_a_correlation_covers():
    random = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.5 / 2)  # Spearman of two normals with correlation .5
    hits = 0
    for seed in range(200):
        left = random.normal(size=100)
        right = 0.5 * left + math.sqrt(0.75) * random.normal(size=100)
        found = bootstrap_spearman(left, right, resamples=300, seed=seed)
        hits += found.low <= truth <= found.high
    assert 0.88 < hits / 200 < 0.99


def test_spearman_with_ties_equals_the_oracle():
    random = np.random.default_rng(1)
    left, right = random.integers(0, 6, size=(2, 40)).astype(float)
    assert bootstrap_spearman(left, right).value == pytest.approx(oracles.spearman(left, right))


def test_where_there_is_nothing_to_say():
    assert math.isnan(bootstrap_spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).value)
    assert math.isnan(bootstrap_spearman([1.0, 2.0], [1.0, 2.0]).value)
    one = bootstrap_mean([4.0])
    assert (one.value, one.n) == (4.0, 1)
    assert math.isnan(one.low)
    with pytest.raises(ValueError, match="every value must be finite"):
        bootstrap_mean([1.0, float("nan")])
    with pytest.raises(ValueError, match="there must be rows"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="3 and 2 values"):
        bootstrap_spearman([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(50.0) ** 2
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_bootstrap_weights_draw_groups():
    units = [0, 0, 1, 2, 2, 2]
    drawn = draw_bootstrap_weights(units, 500, 0)
    assert drawn.shape == (500, 6)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 3] == drawn[:, 5]).all()
    assert (drawn[:, 0] + drawn[:, 2] + drawn[:, 3] == 3).all()
    assert drawn.mean() == pytest.approx(1, abs=0.1)
