import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.probes.controls import (
    Splits,
    corrected_p_values,
    label_flips,
    make_folds,
    p_value,
    permuted_labels,
    permuted_pairings,
    random_directions,
    resamples,
)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 12), min_size=13, max_size=60), st.integers(3, 6), st.integers(0, 5))
def test_no_unit_is_in_two_folds(units, folds, seed):
    units = [*units, *range(6)]
    found = make_folds(units, folds, seed)
    for unit in set(units):
        assert len({int(fold) for fold, name in zip(found, units, strict=True) if name == unit}) == 1
    sizes = np.bincount(found, minlength=folds)
    assert (sizes > 0).all()
    largest = max(units.count(unit) for unit in units)
    assert sizes.max() - sizes.min() <= largest


def test_folds_depend_on_the_seed_alone():
    units = list(range(30))
    assert np.array_equal(make_folds(units, 5, 1), make_folds(units, 5, 1))
    assert not np.array_equal(make_folds(units, 5, 1), make_folds(units, 5, 2))


@pytest.mark.parametrize(("units", "folds", "said"), [([0, 0, 1, 1], 3, "there are 2"), (range(9), 2, "at least 3")])
def test_too_few(units, folds, said):
    with pytest.raises(ValueError, match=said):
        make_folds(units, folds)


@pytest.fixture
def splits():
    return Splits.of(make_folds(range(20), 4, 0))


def test_what_is_trained_on(splits):
    assert splits.count == 4
    assert len(splits.left_out) == 4 + 6 + 1
    for at, out in enumerate(splits.left_out):
        assert np.array_equal(splits.train[:, at], ~np.isin(splits.folds, out))
    assert splits.train[:, -1].all()


def test_the_layer_of_a_fold_is_chosen_without_its_rows(splits):
    for fold in range(4):
        judged = []
        for at, other in splits.inner(fold):
            assert not splits.train[splits.folds == fold, at].any()
            assert not splits.train[splits.folds == other, at].any()
            judged.append(other)
        assert sorted(judged) == [other for other in range(4) if other != fold]


def test_inner_scores_read_no_row_of_their_fold(splits):
    rng = np.random.default_rng(0)
    credits = rng.uniform(-0.5, 0.5, (20, len(splits.left_out)))
    before = splits.inner_scores(credits)
    for fold in range(4):
        changed = credits.copy()
        changed[splits.folds == fold] = 99
        changed[:, fold] = 99  # nor what the probe does that is judged in the end
        assert splits.inner_scores(changed)[fold] == before[fold]
    by_hand = np.mean([credits[splits.folds == other, at].mean() for at, other in splits.inner(2)])
    assert before[2] == pytest.approx(by_hand)


def test_the_orientation_reads_training_rows_only(splits):
    rng = np.random.default_rng(0)
    credits = rng.uniform(-0.5, 0.5, (20, len(splits.left_out)))
    before = splits.orientation(credits)
    assert set(before) == {-1, 1}
    credits[~splits.train] = 1e9
    assert np.array_equal(splits.orientation(credits), before)
    assert np.array_equal(splits.orientation(-credits), -before)


def test_held_out_values_are_of_the_split_that_left_the_row_out(splits):
    values = np.arange(20.0)[:, None] * 100 + np.arange(len(splits.left_out))
    assert np.array_equal(splits.held_out(values), np.arange(20) * 100 + splits.folds)
    assert np.array_equal(splits.held_out(np.stack([values, -values]))[1], -splits.held_out(values))


def test_resamples_draw_units():
    units = [0, 0, 1, 2, 2, 2]
    drawn = resamples(units, 500, 0)
    assert drawn.shape == (500, 6)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 3] == drawn[:, 5]).all()
    assert (drawn[:, 0] + drawn[:, 2] + drawn[:, 3] == 3).all()
    assert drawn.mean() == pytest.approx(1, abs=0.1)


def test_labels_of_one_unit_turn_together():
    flips = label_flips([0, 0, 1, 2], 400, 0)
    assert set(np.unique(flips)) == {-1, 1}
    assert (flips[:, 0] == flips[:, 1]).all()
    assert abs(flips[:, 2:].mean()) < 0.1
    assert abs((flips[:, 2] * flips[:, 3]).mean()) < 0.15


def test_permuted_pairings_stay_in_their_fold_and_leave_nothing_in_place():
    folds = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    found = permuted_pairings(folds, 20, 0)
    for partner in found:
        assert sorted(partner) == list(range(9))
        assert np.array_equal(folds[partner], folds)
        assert (partner != np.arange(9)).all()
    assert len({tuple(partner) for partner in found}) > 5


def test_random_directions_have_length_one_and_no_favourite():
    drawn = random_directions(50, 400, 0)
    assert np.linalg.norm(drawn, axis=0) == pytest.approx(np.ones(400))
    assert np.abs(drawn.mean(axis=1)).max() < 0.05


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
    drawn = permuted_labels(labels, units, 200, 0)
    for unit in range(6):
        assert (drawn[:, units == unit] == drawn[:, units == unit][:, :1]).all()
    firsts = drawn[:, [0, 2, 3, 5, 6, 7]]  # one row a unit
    assert (firsts.sum(axis=1) == 3).all()
    assert np.abs(firsts.mean(axis=0) - 0.5).max() < 0.15
    assert np.array_equal(drawn, permuted_labels(labels, units, 200, 0))
    assert not np.array_equal(drawn, permuted_labels(labels, units, 200, 1))


def test_labels_are_exchanged_inside_units_that_have_both():
    units = np.array([3, 1, 3, 1, 3, 2, 2])
    labels = np.array([1, 0, 0, 1, 0, 1, 0], dtype=bool)
    drawn = permuted_labels(labels, units, 300, 0)
    for unit in (1, 2, 3):
        assert (drawn[:, units == unit].sum(axis=1) == 1).all()
    assert np.abs(drawn.mean(axis=0) - [1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 2]).max() < 0.1


def test_a_unit_with_both_labels_does_not_keep_the_others_from_being_exchanged():
    """One text that occurs twice, with another label each time, must not leave all others as they are."""
    units = np.array([*range(20), 20, 20])
    labels = np.array([*(n % 2 == 0 for n in range(20)), True, False])
    drawn = permuted_labels(labels, units, 100, 0)
    assert (drawn[:, :20].sum(axis=1) == 10).all()
    assert (drawn[:, 20:].sum(axis=1) == 1).all()
    assert (drawn[:, :20] == labels[:20]).mean() == pytest.approx(0.5, abs=0.1)
    assert drawn[:, 20].mean() == pytest.approx(0.5, abs=0.2)


def test_permutations_leave_both_classes_to_train_on(splits):
    labels = np.zeros(20, dtype=bool)
    labels[[np.flatnonzero(splits.folds == fold)[0] for fold in range(3)]] = True
    free = permuted_labels(labels, range(20), 200, 0)
    drawn = permuted_labels(labels, range(20), 200, 0, splits.train)
    for each, always in ((free, False), (drawn, True)):
        assert (each.sum(axis=1) == 3).all()
        assert (np.stack([each[:, kept].any(axis=1) for kept in splits.train.T]).all(axis=0)).all() == always
    allowed = [row for row in drawn.tolist() if row != labels.tolist()]
    assert len({tuple(row) for row in allowed}) > 50
    with pytest.raises(ValueError, match="one class only"):
        permuted_labels(np.eye(20, dtype=bool)[0], range(20), 1, 0, splits.train)
