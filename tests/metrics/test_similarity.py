import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probing import ches, ches_normalized, edit_similarity, last_state_similarity


def states(generator, rows, width=8):
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 2), (7, 7)])
def test_scores_equal_the_double_sum_over_states(generator, n, m):
    plus, minus = states(generator, n), states(generator, m)
    total = plus.sum(0), minus.sum(0)
    assert ches(*total).item() == pytest.approx(oracles.ches(plus, minus), rel=1e-12)
    normalized = ches_normalized(*total, torch.tensor(n), torch.tensor(m)).item()
    assert normalized == pytest.approx(oracles.ches_normalized(plus, minus), rel=1e-12)


def test_leading_axes_are_kept(generator):
    plus, minus = torch.randn(2, 3, 5, 8, generator=generator), torch.randn(2, 3, 5, 8, generator=generator)
    counts = torch.randint(1, 9, (2, 3, 5), generator=generator)
    assert ches(plus, minus).shape == (2, 3, 5)
    assert ches_normalized(plus, minus, counts, counts)[1, 2, 4] == pytest.approx(
        ches(plus, minus)[1, 2, 4] / counts[1, 2, 4] ** 2
    )


def test_one_state_against_itself_is_exactly_zero(generator):
    state = torch.randn(6, 32, generator=generator)
    ones = torch.ones(6, dtype=torch.long)
    assert torch.equal(ches(state, state), torch.zeros(6, dtype=torch.float64))
    assert torch.equal(ches_normalized(state, state, ones, ones), torch.zeros(6, dtype=torch.float64))


def test_one_massive_dimension_costs_no_digits(generator):
    """The textbook form in float32 is off by 2e-3 here; that is why the difference is taken first, in float64."""
    plus, minus = states(generator, 1, 64)[0], states(generator, 1, 64)[0]
    plus[7], minus[7] = 30000.0, 30000.5
    plus, minus = plus.float(), minus.float()
    exact = oracles.dot(plus.tolist(), [b - a for a, b in zip(plus.tolist(), minus.tolist(), strict=True)])
    assert ches(plus, minus).item() == pytest.approx(exact, rel=1e-12)
    naive = (plus @ minus - plus @ plus).item()
    assert naive != pytest.approx(exact, rel=1e-4)


def test_half_precision_sums_are_refused(generator):
    half = states(generator, 2).bfloat16()
    with pytest.raises(TypeError, match="float32"):
        ches(half[0], half[1])
    with pytest.raises(TypeError, match="float32"):
        ches_normalized(half[0], half[1].float(), torch.tensor(1), torch.tensor(1))


def test_an_empty_response_is_refused(generator):
    total = states(generator, 2)
    with pytest.raises(ValueError, match="no tokens"):
        ches_normalized(total[0], total[1], torch.tensor(0), torch.tensor(3))


def test_swapping_the_responses_changes_only_the_own_term(generator):
    plus, minus = states(generator, 2)
    difference = ches(plus, minus) - ches(minus, plus)
    assert difference.item() == pytest.approx(oracles.dot(minus, minus) - oracles.dot(plus, plus), rel=1e-12)


def test_last_state_similarity_is_the_inner_product(generator):
    left, right = torch.randn(3, 8, generator=generator), torch.randn(3, 8, generator=generator)
    expected = [oracles.dot(a, b) for a, b in zip(left, right, strict=True)]
    assert last_state_similarity(left, right).tolist() == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_edit_similarity_equals_the_table_of_distances(left, right):
    value = edit_similarity(left, right)
    assert value == pytest.approx(-oracles.levenshtein(left, right) / max(len(left), len(right)))
    assert -1 <= value <= 0
    assert value == edit_similarity(right, left)


def test_edit_similarity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty"):
        edit_similarity([], [])
