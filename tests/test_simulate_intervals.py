"""The cells of the table of coverage and size that were worst stay near what the table says."""

import numpy as np
import pytest
import simulate_intervals as simulation


def shares_of(draw, replicates):
    """Of every line of a cell."""
    return np.mean([draw(np.random.default_rng([7, number])) for number in range(replicates)], axis=0)


def test_every_line_of_the_table_has_its_name():
    """Of the cells that are quick; the names and the draws stand apart in the script."""
    named = {
        simulation.PROMPT_INTERVALS: simulation.cover_prompts(12, 1.0),
        simulation.STATEMENT_INTERVALS: simulation.cover_statements(16, 1, 0.7),
    }
    for names, draw in named.items():
        assert len(draw(np.random.default_rng(0))) == len(names)
    assert len({(what, cell.data) for cell in simulation.make_cells() for what in cell.what}) == sum(
        len(cell.what) for cell in simulation.make_cells()
    )


@pytest.mark.slow
def test_the_worst_intervals_cover_as_often_as_the_table_says():
    """Three standard errors below .95 where the table is near it, and below .88 for the mean of six skewed rows."""
    for draw in (simulation.cover_mean(15), simulation.cover_mean(10, skewed=True), simulation.cover_mean(25, 4)):
        assert shares_of(draw, 400) > 0.915
    assert shares_of(simulation.cover_mean(6, skewed=True), 400) > 0.83
    assert shares_of(simulation.cover_share(20, 0.95), 200) > 0.94
    assert (shares_of(simulation.cover_prompts(40, 3.0), 200) > 0.9).all()
    # A third of the draws had another value of the silhouette in the interval of silhouettes as they are.
    assert shares_of(simulation.cover_statements(40, 1, 0.7), 100)[simulation.METRICS.index("silhouette")] > 0.85


@pytest.mark.slow
def test_the_test_of_centres_keeps_its_size_where_spreads_and_sizes_differ():
    """There the index of Calinski and Harabasz rejects nearly always, and the centres are one."""
    shares = shares_of(simulation.reject_clusters((40, 12), (1.0, 3.0)), 40)
    found = dict(zip(simulation.CLUSTER_TESTS, shares, strict=True))
    assert found["p of welch, a fixed place"] < 0.2
    assert found["p of calinski_harabasz, a fixed place"] > 0.7


@pytest.mark.slow
def test_the_held_out_p_of_a_fixed_place_keeps_its_size():
    """Wanted is .05 or less; three standard errors of 100 draws are .065."""
    shares = shares_of(simulation.reject_prompts(24, 1, 0.0, 1), 100)
    assert (shares < 0.115).all()
