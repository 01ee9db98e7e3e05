import math

import numpy as np
import pytest

from probing.metrics.clusters.intervals import debias, debias_difference


def test_an_interval_that_reaches_one_place():
    """Where the squared distance of centroids may be 0, what is divided by it has no end."""
    draws = np.linspace(1.0, 4.0, 101)
    middle, low, _ = debias("xie_beni", 1.5, draws)
    assert low == pytest.approx(1 / (2 / 1.5 - np.quantile(1 / draws, 0.025)))
    assert middle == pytest.approx(1 / (2 / 1.5 - (1 / draws).mean()))
    assert debias("xie_beni", 5.0, draws)[2] == math.inf
    assert debias("calinski_harabasz", 1.0, draws)[1] == 0
    assert debias("silhouette", 1.0, draws)[1] == pytest.approx(2 - np.quantile(draws, 0.975))
    assert all(map(math.isnan, debias("silhouette", 1.0, draws * math.nan)))
    assert all(map(math.isnan, debias("xie_beni", 0.0, draws)))
    assert debias("davies_bouldin", 1.5, np.append(draws, [0, math.nan])) == debias("davies_bouldin", 1.5, draws)
    assert debias("davies_bouldin", math.inf, draws) == (math.inf, math.inf, math.inf)


def test_resamples_without_any_spread_count_for_no_index():
    """They are infinite in one index, and 0 in another that is the same turned over."""
    draws = np.array([0.5, 1.0, 2.0, 4.0, 0.0])
    with np.errstate(divide="ignore"):
        turned = 1 / draws
    corrected, low, high = debias("xie_beni", 1.0, draws)
    assert debias("calinski_harabasz", 1.0, turned) == pytest.approx((1 / corrected, 1 / high, 1 / low))
    assert debias("xie_beni", 1.0, draws) == debias("xie_beni", 1.0, draws[:-1])


def test_differences_of_what_may_be_infinite():
    draws, far = np.linspace(1.0, 4.0, 101), np.linspace(0.9, 1.1, 101)
    low, high = debias_difference("calinski_harabasz", 9.0, draws + 6, 1.0, far)
    assert (low, high) == pytest.approx(tuple(16 - np.quantile(draws + 6 - far, [0.975, 0.025])), abs=0.05)
    assert -debias_difference("calinski_harabasz", 1.0, far, 9.0, draws + 6)[1] == pytest.approx(low)
    assert debias_difference("xie_beni", 5.0, draws, 1.0, far)[1] == math.inf
    assert debias_difference("xie_beni", 1.0, far, 5.0, draws)[0] == -math.inf
    assert debias_difference("xie_beni", 5.0, draws, 5.0, draws) == (-math.inf, math.inf)
    assert debias_difference("xie_beni", 1.0, far, 1.0, far) == (0, 0)
    assert debias_difference("xie_beni", 1.0, np.append(far, [0] * 9), 1.0, np.append(far, [1] * 9)) == (0, 0)
    assert all(map(math.isnan, debias_difference("silhouette", 1.0, draws, 1.0, draws * math.nan)))
