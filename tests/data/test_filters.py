import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probing.data.filters import find_threshold, make_keep_mask

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)
SHARES = st.floats(0.01, 0.99)


def ids_of(scores):
    return [f"i{index}" for index in range(len(scores))]


def kept(scores, **rule):
    return {
        identity
        for identity, keep in zip(ids_of(scores), make_keep_mask(ids_of(scores), scores, **rule), strict=True)
        if keep
    }


@given(SCORES, SHARES)
def test_the_lowest_are_kept_and_ties_go_by_id(scores, share):
    ordered = sorted(zip(scores, ids_of(scores), strict=True))
    count = int(np.floor(share * len(scores) + 0.5))
    assert kept(scores, keep_lowest=share) == {identity for _, identity in ordered[:count]}


@given(SCORES, SHARES)
def test_the_highest_are_dropped(scores, share):
    ordered = sorted(zip(scores, ids_of(scores), strict=True), reverse=True)
    count = int(np.floor(share * len(scores) + 0.5))
    assert kept(scores, drop_highest=share) == set(ids_of(scores)) - {identity for _, identity in ordered[:count]}


@given(SCORES, SHARES, st.randoms())
def test_the_order_of_rows_never_matters(scores, share, randomness):
    rows = list(zip(ids_of(scores), scores, strict=True))
    randomness.shuffle(rows)
    mask = make_keep_mask([identity for identity, _ in rows], [score for _, score in rows], keep_lowest=share)
    assert {identity for (identity, _), keep in zip(rows, mask, strict=True) if keep} == kept(scores, keep_lowest=share)


@given(SCORES, SHARES)
def test_keeping_the_highest_is_keeping_the_lowest_of_the_negated(scores, share):
    negated = [-score for score in scores]
    assert kept(scores, keep_highest=share) == kept(negated, keep_lowest=share)
    assert kept(scores, drop_lowest=share) == kept(negated, drop_highest=share)


def test_below_and_above_are_strict():
    assert kept([1.0, 0.0, -1.0], below=0.0) == {"i2"}
    assert kept([1.0, 0.0, -1.0], above=0.0) == {"i0"}
    assert kept([1.0, 2.0, 3.0], keep_highest=0.34) == {"i2"}
    assert kept([1.0, 2.0, 3.0], drop_lowest=0.34) == {"i1", "i2"}


def test_an_unknown_rule_is_refused():
    with pytest.raises(TypeError, match="there is no rule keep_best; there are keep_lowest"):
        make_keep_mask(["a"], [1.0], keep_best=1.0)


@pytest.mark.parametrize(
    ("share", "rows", "count"), [(0.29, 100, 29), (0.05, 200, 10), (0.05, 10, 1), (0.05, 9, 0), (1, 7, 7)]
)
def test_shares_are_whole_rows(share, rows, count):
    scores = [random.Random(row).random() for row in range(rows)]
    assert len(kept(scores, keep_lowest=share)) == count


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "exactly one of .* given: none"),
        ({"below": 0.0, "keep_lowest": 0.1}, "given: keep_lowest and below"),
        ({"keep_lowest": 0.0}, "above 0 and at most 1"),
        ({"keep_lowest": 5}, "above 0 and at most 1, not 5"),
        ({"drop_highest": 1.0}, "from 0 to below 1"),
        ({"drop_highest": -0.1}, "from 0 to below 1"),
        ({"below": float("nan")}, "not NaN"),
        ({"keep_highest": 1.5}, "keep_highest is a share above 0"),
        ({"drop_lowest": 1.0}, "drop_lowest is a share from 0"),
        ({"above": 1.0, "keep_highest": 0.5}, "given: keep_highest and above"),
    ],
)
def test_rules_out_of_range(rule, message):
    with pytest.raises(ValueError, match=message):
        make_keep_mask(["a"], [1.0], **rule)


def test_scores_that_are_no_numbers_are_named():
    with pytest.raises(ValueError, match="the score of 'b' is not a finite number"):
        make_keep_mask(["a", "b"], [1.0, float("nan")], below=1)
    with pytest.raises(ValueError, match="2 scores need as many different ids, there are 1"):
        make_keep_mask(["a", "a"], [1.0, 2.0], below=1)


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ({"keep_lowest": 0.5}, 2.5),
        ({"keep_highest": 0.25}, 3.5),
        ({"drop_highest": 0.25}, 3.5),
        ({"drop_lowest": 0.5}, 2.5),
        ({"keep_lowest": 1.0}, None),
        ({"below": 0.0}, None),
    ],
)
def test_the_threshold_lies_between_what_is_kept_and_what_is_dropped(rule, threshold):
    scores = np.array([3.0, 1.0, 4.0, 2.0])
    mask = make_keep_mask(list("abcd"), scores.tolist(), **rule)
    assert find_threshold(scores, mask) == threshold
    assert find_threshold(np.append(scores, np.nan), np.append(mask, True)) == threshold


def test_the_threshold_between_equal_scores_is_that_score():
    assert find_threshold(np.array([1.0, 1.0, 1.0]), np.array([True, False, False])) == 1.0
