import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from probing.directions.transfer import (
    draw_like,
    fit_least_squares,
    fit_maps,
    fit_orthogonal,
    keep_states,
    to_length,
)


def rotated(generator, rows=60, width=8, other=8, noise=0.0):
    """States and the same states rotated, stretched and moved, in another model."""
    states = torch.randn(rows, width, generator=generator, dtype=torch.float64) + 3
    turn = torch.linalg.qr(torch.randn(max(width, other), max(width, other), generator=generator).double()).Q
    turn = turn[:width, :other]
    targets = 2 * states @ turn - 5
    return states, targets + noise * torch.randn(rows, other, generator=generator), turn


def test_orthogonal_is_procrustes_of_scipy(generator):
    states, targets, turn = rotated(generator, noise=0.3)
    found = fit_orthogonal(states, targets)
    left, right = (each - each.mean(dim=0) for each in (states, targets))
    expected, scale = orthogonal_procrustes(left.numpy(), right.numpy())
    expected = expected * scale / float(left.square().sum())
    np.testing.assert_allclose(found.matrix.numpy(), expected, atol=1e-10)
    torch.testing.assert_close(found.matrix, 2 * turn, rtol=0, atol=0.1)


def test_orthogonal_of_other_widths_is_procrustes_with_zeros(generator):
    states, targets, _ = rotated(generator, width=5, other=8)
    found = fit_orthogonal(states, targets)
    # scipy wants equal widths.
    left = np.pad((states - states.mean(dim=0)).numpy(), ((0, 0), (0, 3)))
    right = (targets - targets.mean(dim=0)).numpy()
    expected, scale = orthogonal_procrustes(left, right)
    np.testing.assert_allclose(found.matrix.numpy(), (expected * scale / np.square(left).sum())[:5], atol=1e-10)
    assert found.measure_error(states, targets) < 1e-12


@pytest.mark.parametrize("rows", [6, 60])
def test_least_squares_is_ridge(generator, rows):
    states, targets, _ = rotated(generator, rows=rows, other=5, noise=0.5)
    found = fit_least_squares(states, targets, 0.1)
    centred = states - states.mean(dim=0)
    ridge = Ridge(alpha=float(0.1 * centred.square().sum(dim=1).mean())).fit(states.numpy(), targets.numpy())
    np.testing.assert_allclose(found.matrix.numpy(), ridge.coef_.T, atol=1e-10)
    error = np.square(ridge.predict(states.numpy()) - targets.numpy()).sum()
    wanted = np.square((targets - targets.mean(dim=0)).numpy()).sum()
    assert found.measure_error(states, targets) == pytest.approx(error / wanted)


def test_the_map_of_least_held_out_error_comes_first(generator):
    states, targets, turn = rotated(generator, rows=24, width=16, other=16)
    held = torch.arange(6)
    found = fit_maps(states, targets, held)
    # Of 18 prompts in 16 dimensions a rotation is known well enough.
    assert [each.name for each, _ in found][-1] == "as it is"
    assert [error for _, error in found] == sorted(error for _, error in found)
    same = fit_maps(states, states, held)
    assert same[0][1] < 1e-6
    vector = torch.randn(16, generator=generator).double()
    moved = next(each for each, _ in found if each.name == "orthogonal map").carry(vector)
    assert torch.nn.functional.cosine_similarity(moved, vector @ turn, dim=0) > 0.999
    wrong = fit_maps(states, targets[torch.randperm(24, generator=generator)], held)
    assert min(error for _, error in wrong) > 0.8


def test_random_directions_have_the_length_of_the_given_one(generator):
    vector = torch.randn(8, generator=generator)
    drawn = draw_like(vector, 5, generator)
    torch.testing.assert_close(drawn.norm(dim=1), vector.double().norm().expand(5))
    assert float(to_length(vector, 3.0).norm()) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="nothing of the direction is left"):
        to_length(torch.zeros(4), 1.0)
    with pytest.raises(ValueError, match="cannot stay as it is"):
        keep_states(torch.zeros(3, 4), torch.zeros(3, 5))
