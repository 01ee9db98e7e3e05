import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.statistics.folds import Splits, make_folds


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


@pytest.mark.parametrize("labels", [[0] * 30 + [1] * 30, [0, 1, 2] * 20, [0] * 55 + [1] * 5], ids=["2", "3", "rare"])
def test_folds_hold_the_labels_alike_whatever_the_seed(labels):
    """Without strata two labels of 30 rows had a fold of too few in one seed of ten, three labels nearly always."""
    for seed in range(100):
        found = make_folds(range(60), 5, seed, labels)
        for label in set(labels):
            counts = np.bincount(found[np.array(labels) == label], minlength=5)
            assert counts.max() - counts.min() <= 1
        assert set(np.bincount(found, minlength=5)) == {12}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), min_size=13, max_size=60), st.integers(0, 5))
def test_groups_stay_whole_in_stratified_folds(rows, seed):
    units, labels = [*(unit for unit, _ in rows), *range(6)], [*(label for _, label in rows), *"ababab"]
    found = make_folds(units, 3, seed, labels)
    for unit in set(units):
        assert len(set(found[np.array(units) == unit])) == 1
    assert (np.bincount(found, minlength=3) > 0).all()


def test_folds_without_labels_are_those_of_earlier_versions():
    assert make_folds([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8], 4).tolist() == [1, 1, 2, 2, 0, 0, 0, 1, 3, 3, 2, 3]


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
