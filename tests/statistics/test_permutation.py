import numpy as np
import pytest

from probing.statistics.folds import Splits, make_folds
from probing.statistics.permutation import corrected_p_values, draw_label_flips, p_value, permute_labels


def test_labels_of_one_unit_turn_together():
    flips = draw_label_flips([0, 0, 1, 2], 400, 0)
    assert set(np.unique(flips)) == {-1, 1}
    assert (flips[:, 0] == flips[:, 1]).all()
    assert abs(flips[:, 2:].mean()) < 0.1
    assert abs((flips[:, 2] * flips[:, 3]).mean()) < 0.15


def test_p_values_count_the_value_itself():
    null = np.array([0.1, 0.2, 0.3])
    assert p_value(0.25, null) == 2 / 4
    assert p_value(0.25, null, higher_is_better=False) == 3 / 4
    assert p_value(1.0, null) == 1 / 4
    assert p_value(0.2, null) == p_value(0.2, null, higher_is_better=False) == 3 / 4  # as good is not worse
    assert np.isnan(p_value(1.0, np.array([np.nan])))
    assert np.isnan(p_value(np.nan, null))


def test_corrected_p_values_are_against_the_best_layer():
    nulls = np.array([[0.1, 0.9], [0.8, 0.2]])
    assert corrected_p_values(np.array([0.85, 0.95]), nulls) == pytest.approx([2 / 3, 1 / 3])
    assert corrected_p_values(np.array([0.15, 0.05]), nulls, higher_is_better=False) == pytest.approx([2 / 3, 1 / 3])


def test_corrected_p_values_keep_their_level():
    """Under the null the least p-value of 12 layers is below .05 in about .05 of the cases, and uncorrected in .46."""
    rng = np.random.default_rng(0)
    found, plain = [], []
    for _ in range(300):
        draws = rng.standard_normal((12, 200))
        found.append(corrected_p_values(draws[:, 0], draws[:, 1:]).min())
        plain.append(min(p_value(layer[0], layer[1:]) for layer in draws))
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09
    assert np.mean(np.array(plain) <= 0.05) > 0.3


def test_labels_are_exchanged_between_units_that_have_one_label_each():
    units = np.array([0, 0, 1, 2, 2, 3, 4, 5])
    labels = np.array([1, 1, 0, 0, 0, 1, 0, 1], dtype=bool)
    drawn = permute_labels(labels, units, 200, 0)
    for unit in range(6):
        assert (drawn[:, units == unit] == drawn[:, units == unit][:, :1]).all()
    firsts = drawn[:, [0, 2, 3, 5, 6, 7]]  # one row a unit
    assert (firsts.sum(axis=1) == 3).all()
    assert np.abs(firsts.mean(axis=0) - 0.5).max() < 0.15
    assert np.array_equal(drawn, permute_labels(labels, units, 200, 0))
    assert not np.array_equal(drawn, permute_labels(labels, units, 200, 1))


def test_labels_are_exchanged_inside_units_that_have_both():
    units = np.array([3, 1, 3, 1, 3, 2, 2])
    labels = np.array([1, 0, 0, 1, 0, 1, 0], dtype=bool)
    drawn = permute_labels(labels, units, 300, 0)
    for unit in (1, 2, 3):
        assert (drawn[:, units == unit].sum(axis=1) == 1).all()
    assert np.abs(drawn.mean(axis=0) - [1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 2]).max() < 0.1


def test_a_unit_with_both_labels_does_not_keep_the_others_from_being_exchanged():
    """One text that occurs twice, with another label each time, must not leave all others as they are."""
    units = np.array([*range(20), 20, 20])
    labels = np.array([*(n % 2 == 0 for n in range(20)), True, False])
    drawn = permute_labels(labels, units, 100, 0)
    assert (drawn[:, :20].sum(axis=1) == 10).all()
    assert (drawn[:, 20:].sum(axis=1) == 1).all()
    assert (drawn[:, :20] == labels[:20]).mean() == pytest.approx(0.5, abs=0.1)
    assert drawn[:, 20].mean() == pytest.approx(0.5, abs=0.2)


def test_permutations_leave_both_classes_to_train_on():
    splits = Splits.of(make_folds(range(20), 4, 0))
    labels = np.zeros(20, dtype=bool)
    labels[[np.flatnonzero(splits.folds == fold)[0] for fold in range(3)]] = True
    free = permute_labels(labels, range(20), 200, 0)
    drawn = permute_labels(labels, range(20), 200, 0, splits.train)
    for each, always in ((free, False), (drawn, True)):
        assert (each.sum(axis=1) == 3).all()
        assert (np.stack([each[:, kept].any(axis=1) for kept in splits.train.T]).all(axis=0)).all() == always
    allowed = [row for row in drawn.tolist() if row != labels.tolist()]
    assert len({tuple(row) for row in allowed}) > 50
    with pytest.raises(ValueError, match="one class only"):
        permute_labels(np.eye(20, dtype=bool)[0], range(20), 1, 0, splits.train)


def test_groups_exchange_labels_inside_their_folds():
    units, folds = np.arange(12), np.arange(12) % 3
    labels = np.array([1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0], dtype=bool)
    drawn = permute_labels(labels, units, 400, 0, folds=folds)
    for fold in range(3):
        assert (drawn[:, folds == fold].sum(axis=1) == labels[folds == fold].sum()).all()
        expected = labels[folds == fold].mean()
        assert np.abs(drawn[:, folds == fold].mean(axis=0) - expected).max() < 0.1
