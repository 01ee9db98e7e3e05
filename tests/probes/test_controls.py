import numpy as np
import pytest

from probing.probes.controls import draw_directions, shuffle_pairings


def test_permuted_pairings_stay_in_their_fold_and_leave_nothing_in_place():
    folds = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    found = shuffle_pairings(folds, 20, 0)
    for partner in found:
        assert sorted(partner) == list(range(9))
        assert np.array_equal(folds[partner], folds)
        assert (partner != np.arange(9)).all()
    assert len({tuple(partner) for partner in found}) > 5


def test_random_directions_have_length_one_and_no_favourite():
    drawn = draw_directions(50, 400, 0)
    assert np.linalg.norm(drawn, axis=0) == pytest.approx(np.ones(400))
    assert np.abs(drawn.mean(axis=1)).max() < 0.05
