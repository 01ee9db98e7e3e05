"""Formulas of the audit, against the full singular value decomposition in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probing.directions.audit import (
    LEFT,
    ROUNDING,
    alignment_quantile,
    as_matrices,
    common_directions,
    join_states,
    measure_along,
    measure_component,
    measure_spectrum,
    refine_direction,
    share_of_directions,
)
from probing.directions.edits import orthonormal_rows, pull_back, remove_from_vectors

WIDTH = 24


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(width=WIDTH, seed=9):
    return orthonormal_rows(normal(width, seed=seed))


def remove(matrix, basis, keep_norms=False):
    return remove_from_vectors(matrix.T.contiguous(), basis, keep_norms).T


@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 99))
def test_spectrum_is_that_of_the_full_decomposition(rows, columns, seed):
    matrix = normal(rows, columns, seed=seed)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    shares = values**2 / (values**2).sum()
    found = measure_spectrum(matrix)
    # Squared singular values are exact to 1e-16 of the largest, their roots to 1e-8.
    np.testing.assert_allclose(found.values, values[:4], atol=1e-7 * float(values[0]))
    assert found.norm == pytest.approx(float(matrix.norm()))
    assert found.effective_rank == pytest.approx(math.exp(-float(torch.special.xlogy(shares, shares).sum())), rel=1e-7)
    assert found.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-7)
    if len(values) == 1 or values[1] < 0.95 * values[0]:
        assert abs(float(found.leading @ left[:, 0])) == pytest.approx(1, abs=1e-6)


def test_spectrum_of_known_matrices():
    assert measure_spectrum(torch.eye(6)).effective_rank == pytest.approx(6)
    assert measure_spectrum(normal(8, 1) @ normal(1, 5, seed=1)).effective_rank == pytest.approx(1, abs=1e-6)
    nothing = measure_spectrum(torch.zeros(5, 3))
    assert (nothing.norm, nothing.effective_rank, nothing.stable_rank) == (0, 0, 0)
    assert not nothing.leading.any()


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("keep_norms", [False, True])
def test_a_removal_is_recognised(rank, keep_norms):
    before, basis = normal(WIDTH, 40), orthonormal_rows(normal(rank, WIDTH, seed=4))
    along = measure_along(before, remove(before, basis, keep_norms), basis)
    assert along.state == "removed"
    assert along.left < 1e-12
    assert along.form == ("projection, lengths kept" if keep_norms else "projection")
    assert (along.off_lengths if keep_norms else along.off) < 1e-12
    assert along.before == pytest.approx(float((basis @ before).norm() / before.norm()) * math.sqrt(WIDTH / rank))
    if not keep_norms:
        assert along.share == pytest.approx(1)


def test_what_is_no_removal():
    before, basis = normal(WIDTH, 40), unit()
    change = normal(WIDTH, 2, seed=1) @ normal(2, 40, seed=2)
    change *= (basis @ before).norm() / change.norm()
    assert measure_along(before, before, basis).state == "unchanged"
    assert measure_along(before, before + change, basis).state == "kept"
    half = before - 0.8 * basis.T @ (basis @ before)
    assert measure_along(before, half, basis).state == "in part"
    assert measure_along(before, half, basis).left == pytest.approx(0.2)
    assert measure_along(remove(before, basis), before, basis).state == "absent"
    both = remove(before + change, basis)
    assert measure_along(before, both, basis).state == "removed"
    assert measure_along(before, both, basis).form == "projection and more"


@pytest.mark.parametrize("width", [64, 576])
def test_rounding_leaves_less_than_the_threshold(width):
    before, basis = normal(width, 200).bfloat16().double(), unit(width)
    after = remove(before, basis).bfloat16()
    along = measure_along(before, after, basis)
    assert along.left < LEFT / 10
    assert (along.state, along.form) == ("removed", "projection")
    assert measure_along(normal(width, 200), normal(width, 200).bfloat16(), basis).state == "kept"
    assert float((normal(width, 200).bfloat16() - normal(width, 200)).norm() / normal(width, 200).norm()) < ROUNDING


@pytest.mark.parametrize("rank", [1, 3])
def test_null_of_alignments_against_random_vectors(rank):
    drawn = normal(40_000, WIDTH)
    lengths = (drawn / drawn.norm(dim=1, keepdim=True))[:, :rank].norm(dim=1)
    # Of 40,000 draws the share below a quantile of .99 has a standard error of .0005.
    assert float((lengths < alignment_quantile(WIDTH, 0.99, rank)).double().mean()) == pytest.approx(0.99, abs=0.002)
    assert alignment_quantile(3, 0.99, 3) == 1


def test_a_common_direction_is_found_through_a_scale():
    basis, total = unit(), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for seed in range(4):
        before, scale = normal(WIDTH, 30, seed=seed), normal(WIDTH, seed=seed + 20).abs() + 0.2
        inner = pull_back(basis, scale, centred=False)
        total += share_of_directions(remove(before, inner) - before, float(before.norm()), scale)
    assert float(total.trace()) == pytest.approx(4)
    assert abs(float(common_directions(total, 1)[0] @ basis[0])) == pytest.approx(1)


def test_rounding_noise_counts_for_less():
    before = normal(WIDTH, 30)
    noise = before.bfloat16().double() - before
    assert 0.05 < float(share_of_directions(noise, float(before.norm())).trace()) < 0.5
    assert not share_of_directions(torch.zeros(WIDTH, 3), 1.0).any()
    assert float(share_of_directions(noise, 0.0).trace()) == pytest.approx(1)


def test_what_is_left_tells_the_direction_exactly():
    before, basis = normal(WIDTH, 60), unit()
    after = remove(before + 0.2 * normal(WIDTH, 60, seed=3), basis)
    near = orthonormal_rows(basis[0] + 0.3 * unit(seed=5)[0])[0]
    refined = refine_direction(before @ before.T, after @ after.T, near)
    assert float(near @ basis[0]) < 0.97
    assert float(refined @ basis[0]) == pytest.approx(1, abs=1e-8)
    far = unit(seed=6)[0]
    assert refine_direction(before @ before.T, after @ after.T, far) is far


def test_matrices_of_tensors():
    bias, matrix, experts = normal(5), normal(5, 7), normal(3, 5, 7)
    assert torch.equal(as_matrices(bias, 0), bias[None, :, None])
    assert torch.equal(as_matrices(matrix, 0)[0], matrix)
    assert torch.equal(as_matrices(matrix, 1)[0], matrix.T)
    assert torch.equal(as_matrices(experts, 1), experts)
    assert torch.equal(as_matrices(experts, 2), experts.transpose(1, 2))
    assert as_matrices(experts, 0).shape == (1, 3, 35)


def test_states_of_a_writer():
    assert join_states(["removed", "absent"]) == "removed"
    assert join_states(["removed", "unchanged"]) == "in part"
    assert join_states(["in part", "kept"]) == "in part"
    assert join_states(["kept", "unchanged"]) == "kept"
    assert join_states(["absent", "absent"]) == "absent"
    assert measure_component(torch.zeros(WIDTH, 3), unit()) == 0
