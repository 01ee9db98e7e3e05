"""The cells of the table of coverage and size that were worst stay near what the table says."""

import numpy as np
import pytest
import simulate_intervals as simulation


def share_of(draw, replicates):
    return np.mean([draw(np.random.default_rng([7, number])) for number in range(replicates)])


@pytest.mark.slow
def test_the_worst_intervals_cover_as_often_as_the_table_says():
    """Three standard errors below .905, the least of the table: means of 15 rows, and of few skewed ones."""
    for draw in (simulation.cover_mean(15), simulation.cover_mean(10, skewed=True)):
        assert share_of(draw, 200) > 0.84
    assert share_of(simulation.cover_share(20, 0.95), 200) > 0.94


@pytest.mark.slow
def test_the_test_of_centres_keeps_its_size_where_spreads_and_sizes_differ():
    """There the index of Calinski and Harabasz rejects nearly always, and the centres are one."""
    case = (40, 8), (1.0, 3.0)
    assert share_of(simulation.reject_clusters("welch", *case), 60) < 0.2
    assert share_of(simulation.reject_clusters("calinski_harabasz", *case), 20) > 0.7
