import inspect
import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm, subspace_angles

from probing.metrics import drift
from probing.metrics.drift import bures_wasserstein, centroid_shift, linear_cka, principal_angles

SHAPES = [(6, 3, 4), (5, 9, 8), (7, 3, 20), (8, 8, 8), (30, 2, 2), (9, 1, 5)]
CASES = given(
    seed=st.integers(0, 10**6),
    rows=st.integers(6, 20),
    width=st.integers(2, 12),
    move=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e3),
)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sides(seed, rows, width):
    """Two sets of states that have something in common, with a spread of their own in each direction."""
    left = normal(seed, rows, width) * torch.linspace(3, 1, width, dtype=torch.float64)
    return left, left @ normal(seed + 1, width, width) / math.sqrt(width) + 0.3 * normal(seed + 2, rows, width)


def rotation(seed, width):
    return torch.linalg.qr(normal(seed + 3, width, width)).Q


def test_the_shift_by_hand():
    before = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    after = before + torch.tensor([[3.0, 4.0], [3.0, 5.0], [3.0, 3.0]])
    found = centroid_shift(before, after)
    assert found.vector.tolist() == [3.0, 4.0]
    assert found.vector.dtype == torch.float64
    assert found.norm == 5.0
    assert found.relative == pytest.approx(5 / math.sqrt(8 / 3), rel=1e-15)
    assert found.noise == pytest.approx(math.sqrt(1 / 3), rel=1e-15)  # changes have the variance 1, of 3 rows


def test_the_noise_is_what_sampling_alone_brings():
    """400 draws without a shift: the mean square of the norm is the noise squared, here 20 / 50, within 3 errors."""
    draws = [centroid_shift(normal(k, 50, 10), normal(k + 10**6, 50, 10)) for k in range(400)]
    expected = 2 * 10 / 50
    assert np.mean([draw.norm**2 for draw in draws]) == pytest.approx(expected, abs=3 * expected * math.sqrt(2 / 4000))
    assert np.mean([draw.noise**2 for draw in draws]) == pytest.approx(expected, rel=0.02)


def test_paired_rows_leave_out_the_spread_they_share():
    before = 100 * normal(0, 40, 6)
    found = centroid_shift(before, before + 1 + 1e-3 * normal(1, 40, 6))
    assert found.norm == pytest.approx(math.sqrt(6), rel=1e-3)
    assert found.noise == pytest.approx(1e-3 * math.sqrt(6 / 40), rel=0.2)
    same = centroid_shift(before, before)
    assert (same.norm, same.relative, same.noise) == (0.0, 0.0, 0.0)


@settings(deadline=None, max_examples=30)
@CASES
def test_the_shift_turns_with_the_states(seed, rows, width, move, scale):
    before, after = sides(seed, rows, width)
    turn = rotation(seed, width)
    found, moved = (
        centroid_shift(before, after),
        centroid_shift(*(scale * side @ turn + move for side in (before, after))),
    )
    torch.testing.assert_close(moved.vector, scale * found.vector @ turn, rtol=1e-9, atol=1e-11 * (1 + abs(move)))
    assert moved.norm == pytest.approx(scale * found.norm, rel=1e-7, abs=1e-11 * (1 + abs(move)))
    assert moved.noise == pytest.approx(scale * found.noise, rel=1e-7, abs=1e-11 * (1 + abs(move)))
    assert centroid_shift(scale * before + move, scale * after + move).relative == pytest.approx(
        found.relative, rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_is_widened_first(dtype):
    """Against the same numbers in float64, at an offset where means in the dtype itself have lost all digits."""
    left, right = ((side + 40).to(dtype) for side in sides(5, 300, 7))
    for function in (linear_cka, lambda a, b: linear_cka(a, b, debiased=True)):
        assert function(left, right) == pytest.approx(function(left.double(), right.double()), rel=1e-14)
    found, expected = (centroid_shift(a, b) for a, b in ((left, right), (left.double(), right.double())))
    assert (found.norm, found.relative, found.noise) == (expected.norm, expected.relative, expected.noise)
    assert bures_wasserstein(left, right) == bures_wasserstein(left.double(), right.double())
    assert torch.equal(principal_angles(left, right, 3), principal_angles(left.double(), right.double(), 3))


def test_a_difference_has_more_digits_than_its_sides():
    before, after = torch.tensor([[1.0], [1.5]]).bfloat16(), torch.tensor([[512.0], [512.0]]).bfloat16()
    assert centroid_shift(before, after).vector.tolist() == [510.75]


@pytest.mark.parametrize(("rows", "left_width", "right_width"), SHAPES)
@pytest.mark.parametrize("block", [1, 20, 1 << 22])
def test_alignment_equals_the_definition(rows, left_width, right_width, block, monkeypatch):
    """In rows x rows and in width x width form, whatever the block; the rest is rounding."""
    monkeypatch.setattr(drift, "BLOCK_NUMBERS", block)
    left = normal(0, rows, left_width) + 3
    right = left[:, :1] * normal(1, 1, right_width) + normal(2, rows, right_width) - 5
    for one, other in ((left, right), (right, left)):
        assert linear_cka(one, other) == pytest.approx(oracles.linear_cka(one, other), rel=1e-11)
        expected = oracles.debiased_linear_cka(one, other)
        assert linear_cka(one, other, debiased=True) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_the_smaller_form_is_taken(monkeypatch):
    wide, tall = normal(0, 5, 30), normal(1, 30, 5)
    expected = linear_cka(wide, wide.flip(1) + 1), linear_cka(tall, tall[:, :2])
    monkeypatch.setattr(drift, "_inner_by_columns", None)
    assert linear_cka(wide, wide.flip(1) + 1) == expected[0]
    monkeypatch.undo()
    monkeypatch.setattr(drift, "_inner_by_rows", None)
    assert linear_cka(tall, tall[:, :2]) == expected[1]


def test_noise_in_many_dimensions_is_alike_only_with_bias():
    """Independent states: biased 1 / (1 + rows / width) or so, debiased 0 within a few times 1 / rows."""
    left, right = normal(0, 20, 5000), normal(1, 20, 5000)
    assert linear_cka(left, right) > 0.98
    assert abs(linear_cka(left, right, debiased=True)) < 0.15
    assert linear_cka(left, left, debiased=True) == pytest.approx(1, rel=1e-12)
    shared = normal(2, 20, 3) @ normal(3, 3, 5000)
    assert linear_cka(left + shared, right + shared, debiased=True) > 0.9


@settings(deadline=None, max_examples=40)
@CASES
def test_alignment_knows_no_basis_place_or_size(seed, rows, width, move, scale):
    left, right = sides(seed, rows, width)
    changed = scale * left @ rotation(seed, width) + move
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    for debiased in (False, True):
        found = linear_cka(left, right, debiased)
        # An offset of 1e3 beside a spread of 1e-3 leaves float64 ten digits of the spread.
        assert linear_cka(changed, right, debiased) == pytest.approx(found, rel=1e-7, abs=1e-7)
        assert linear_cka(right, left, debiased) == pytest.approx(found, rel=1e-10, abs=1e-10)
        assert linear_cka(left[order], right[order], debiased) == pytest.approx(found, rel=1e-10, abs=1e-10)
        assert linear_cka(left, changed, debiased) == pytest.approx(1, rel=1e-7)
        assert -1 - 1e-12 <= found <= 1 + 1e-12
    assert linear_cka(left, right) >= 0


@pytest.mark.parametrize("degrees", [1e-12, 1e-9, 1e-4, 1.0, 44.0, 46.0, 89.0, 90.0])
@pytest.mark.parametrize("second", [1e-9, 1e-3, 60.0, 90 - 1e-9])
def test_planted_angles(degrees, second):
    """Two directions of three are turned out of the span, each into a dimension of its own."""
    turn = rotation(1, 8)
    scores = torch.linalg.qr(normal(0, 60, 3) - normal(0, 60, 3).mean(dim=0)).Q * torch.tensor([9.0, 7.0, 5.0])
    angles = np.deg2rad([degrees, second, 0])
    right = turn[:3].clone()
    for k, angle in enumerate(angles):
        right[k] = math.cos(angle) * turn[k] + math.sin(angle) * turn[k + 3]
    found = principal_angles(scores @ turn[:3] + 4, scores @ right - 2, 3)
    # The components themselves are known to about 1e-15 / gap, in degrees 1e-13.
    torch.testing.assert_close(
        found, torch.tensor(sorted([0, second, degrees]), dtype=torch.float64), rtol=1e-9, atol=2e-13
    )


@settings(deadline=None, max_examples=40)
@CASES
def test_angles_equal_those_of_the_leading_eigenvectors(seed, rows, width, move, scale):
    left, right = sides(seed, rows, width)
    components = min(2, width)
    found = principal_angles(left, right, components)
    assert found.tolist() == sorted(found.tolist())
    assert float(found[0]) >= 0
    assert float(found[-1]) <= 90
    spectra = [np.linalg.eigh(np.atleast_2d(np.cov(side.numpy().T))) for side in (left, right)]
    if width > 2 and min((values[-2] - values[-3]) / values[-1] for values, _ in spectra) < 1e-2:
        return  # a span that is hardly defined is hardly the same by another way
    expected = subspace_angles(*(vectors[:, -components:] for _, vectors in spectra))
    # Where one angle is large, scipy has the small ones from their cosines, to the root of the rounding.
    np.testing.assert_allclose(found.numpy(), np.sort(np.rad2deg(expected)), atol=1e-5)
    turn = rotation(seed, width)
    moved = principal_angles(scale * left @ turn + move, right @ turn - move, components)
    torch.testing.assert_close(moved, found, rtol=0, atol=1e-5)


def test_angles_of_other_rows_and_of_wide_states():
    """Four rows span three directions in fifty dimensions, whichever rows of that span are taken."""
    basis = normal(0, 3, 50)
    left, right = normal(1, 4, 3) @ basis, normal(2, 9, 3) @ basis
    assert float(principal_angles(left, right, 3).max()) < 1e-11
    torch.testing.assert_close(principal_angles(left, right, 1), principal_angles(right, left, 1))


def test_too_many_components_are_refused_by_side():
    full, flat = normal(0, 10, 5), normal(1, 10, 2) @ normal(2, 2, 5) + 1e6
    with pytest.raises(ValueError, match="right has spread in 2 directions only"):
        principal_angles(full, flat, 3)
    with pytest.raises(ValueError, match="left has spread in 2 directions only"):
        principal_angles(flat, full, 3)
    with pytest.raises(ValueError, match="left has spread in 3 directions only"):
        principal_angles(full[:4], full, 4)
    for components in (0, 6):
        with pytest.raises(ValueError, match=f"{components} components of 10 rows x 5 columns of left"):
            principal_angles(full, full, components)
    with pytest.raises(ValueError, match="4 components of 3 rows x 5 columns of right"):
        principal_angles(full, full[:3], 4)
    assert len(principal_angles(full, flat, 2)) == 2


def covariances(left, right):
    return (np.atleast_2d(np.cov(side.numpy().T)) for side in (left, right))


@pytest.mark.parametrize(("left_rows", "right_rows", "width"), [(20, 20, 4), (9, 40, 7), (30, 8, 1), (200, 15, 10)])
def test_distance_equals_the_definition_with_matrix_roots(left_rows, right_rows, width):
    left, right = normal(0, left_rows, width) + 7, 2 * normal(1, right_rows, width) @ normal(2, width, width)
    one, other = covariances(left, right)
    root = sqrtm(one)
    square = np.trace(one) + np.trace(other) - 2 * np.trace(sqrtm(root @ other @ root)).real
    found = bures_wasserstein(left, right)
    assert found.distance == pytest.approx(math.sqrt(square), rel=1e-7)
    assert found.conflict == pytest.approx(square / (np.trace(one) + np.trace(other)), rel=1e-7)


@pytest.mark.parametrize(("left_rows", "right_rows", "width"), [(5, 5, 40), (4, 9, 30), (50, 5, 20), (3, 60, 20)])
def test_distance_where_covariances_are_singular(left_rows, right_rows, width):
    """From the eigenvalues of AB, whose roots are those of A^1/2 B A^1/2; zeros come as 1e-8 each."""
    left, right = normal(0, left_rows, width), normal(1, right_rows, width)
    one, other = covariances(left, right)
    crossed = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0)).sum()
    found = bures_wasserstein(left, right)
    assert found.distance == pytest.approx(math.sqrt(np.trace(one) + np.trace(other) - 2 * crossed), rel=1e-5)
    assert 0 < found.conflict < 1


@pytest.mark.parametrize(("rows", "width"), [(50, 6), (8, 100), (64, 64)])
def test_equal_states_are_as_near_as_rounding_allows(rows, width):
    """By the traces they would be 1e-8 of the size apart."""
    states = 100 * normal(0, rows, width) + 1000
    size = math.sqrt(float(states.var(dim=0).sum()))
    shuffled = states.flip(0)
    for other in (
        states,
        shuffled,
        torch.cat([states, states.mean(dim=0, keepdim=True)]) * math.sqrt(rows / (rows - 1)),
    ):
        assert bures_wasserstein(states, other).distance < 1e-13 * size
    assert bures_wasserstein(states, shuffled).conflict < 1e-26


def test_roots_of_covariances_have_few_rows():
    for rows, width, expected in ((500, 3, 3), (4, 60, 4)):
        states = normal(0, rows, width)
        root = drift._covariance_root(states)
        assert root.shape == (expected, width)
        torch.testing.assert_close(root.T @ root, torch.cov(states.T), rtol=0, atol=1e-13)


def test_orthogonal_supports_are_in_full_conflict():
    left, right = torch.zeros(12, 6, dtype=torch.float64), torch.zeros(9, 6, dtype=torch.float64)
    left[:, :3], right[:, 3:] = normal(0, 12, 3), normal(1, 9, 3)
    found = bures_wasserstein(left, right)
    assert found.conflict == pytest.approx(1, rel=1e-14)
    assert found.conflict <= 1
    assert found.distance == pytest.approx(math.sqrt(float(left.var(dim=0).sum() + right.var(dim=0).sum())), rel=1e-12)


@settings(deadline=None, max_examples=40)
@CASES
def test_distance_turns_and_scales_with_the_states(seed, rows, width, move, scale):
    left, right = sides(seed, rows, width)
    right = right[: rows - 2]
    found, turn = bures_wasserstein(left, right), rotation(seed, width)
    moved = bures_wasserstein(scale * left @ turn + move, scale * right @ turn - move)
    assert moved.distance == pytest.approx(scale * found.distance, rel=1e-6, abs=1e-10 * scale)
    assert moved.conflict == pytest.approx(found.conflict, rel=1e-6, abs=1e-10)
    assert bures_wasserstein(right, left).distance == pytest.approx(found.distance, rel=1e-9)
    assert 0 <= found.conflict <= 1
    size = math.sqrt(float(left.var(dim=0).sum()))
    assert bures_wasserstein(left, scale * left).distance == pytest.approx(abs(scale - 1) * size, rel=1e-9, abs=1e-10)


FUNCTIONS = [centroid_shift, linear_cka, lambda a, b: principal_angles(a, b, 1), bures_wasserstein]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_states_that_say_nothing_are_refused(function):
    good, bad = normal(0, 6, 3), normal(1, 6, 3)
    bad[4, 1], bad[2, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"row 2 of (left|before) is not finite"):
        function(bad, good)
    with pytest.raises(ValueError, match=r"row 2 of (right|after) is not finite"):
        function(good, bad)
    with pytest.raises(ValueError, match=r"every row of (left|before) is the same"):
        function(torch.full((6, 3), 0.1), good.float())
    with pytest.raises(ValueError, match=r"shape \[1, 3\]; give at least 2 rows"):
        function(good[:1], good[:1])


def test_only_the_first_side_of_a_shift_needs_spread():
    before = normal(0, 6, 3)
    assert centroid_shift(before, torch.ones(6, 3)).norm == pytest.approx(float((1 - before.mean(dim=0)).norm()))
    for function in FUNCTIONS[1:]:
        with pytest.raises(ValueError, match="every row of right is the same"):
            function(before, torch.full((6, 3), 0.1))


def test_shapes_that_differ_are_refused():
    six, five, wide = normal(0, 6, 3), normal(1, 5, 3), normal(2, 6, 4)
    for function in (centroid_shift, linear_cka):
        with pytest.raises(ValueError, match="6 and 5 rows"):
            inspect.unwrap(function)(six, five)
    for function in (centroid_shift, bures_wasserstein, lambda a, b: inspect.unwrap(principal_angles)(a, b, 1)):
        with pytest.raises(ValueError, match="3 and 4 widths"):
            inspect.unwrap(function)(six, wide)
    with pytest.raises(ValueError, match=r"left has the shape \[6\]"):
        inspect.unwrap(linear_cka)(six[:, 0], six)


def test_what_cannot_be_debiased_is_refused():
    spike = torch.zeros(6, 3)
    spike[0] = 5
    with pytest.raises(ValueError, match="nothing in common"):
        linear_cka(normal(0, 6, 3), spike, debiased=True)
    with pytest.raises(ValueError, match="3 rows; the debiased form needs at least 4"):
        linear_cka(normal(0, 3, 3), normal(1, 3, 3), debiased=True)
    assert linear_cka(normal(0, 3, 3), normal(1, 3, 3)) <= 1
