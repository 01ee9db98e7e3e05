import pytest
import torch

from probing.directions.edits import (
    Change,
    affine_target,
    orthonormal_rows,
    pull_back,
    remove_from_vectors,
)
from probing.errors import UsageError


def test_rows_are_orthonormal_and_span_the_same(generator):
    vectors = torch.randn(3, 8, generator=generator) * torch.tensor([[1e-30], [1.0], [1e30]])
    basis = orthonormal_rows(vectors)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close((unit @ basis.T).norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_one_vector_keeps_its_sense(generator):
    vector = torch.randn(8, generator=generator)
    torch.testing.assert_close(orthonormal_rows(vector)[0], vector.double() / vector.double().norm())


def test_dependent_vectors_are_refused(generator):
    vectors = torch.randn(2, 8, generator=generator)
    with pytest.raises(UsageError, match="3 vectors of the direction are linearly dependent"):
        orthonormal_rows(torch.cat([vectors, vectors.sum(dim=0, keepdim=True)]))


@pytest.mark.parametrize("centred", [False, True])
def test_what_is_removed_before_a_norm_is_gone_behind_it(generator, centred):
    """Against the norms of torch, in float64."""
    basis = orthonormal_rows(torch.randn(2, 16, generator=generator))
    norm = (torch.nn.LayerNorm(16) if centred else torch.nn.RMSNorm(16)).double()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16, generator=generator))
        states = torch.randn(20, 16, generator=generator, dtype=torch.float64) + 1
        inner = pull_back(basis, norm.weight.detach(), centred)
        written = norm(states - (states @ inner.T) @ inner)
        assert (written @ basis.T).abs().max() < 1e-12
        # Without the scale of the norm, or its centring, some of the direction stays.
        assert (norm(states - (states @ basis.T) @ basis) @ basis.T).abs().max() > 0.01
        if centred:
            other = pull_back(basis, norm.weight.detach(), centred=False)
            assert (norm(states - (states @ other.T) @ other) @ basis.T).abs().max() > 0.01


def test_a_norm_that_stops_the_direction_is_named(generator):
    with pytest.raises(UsageError, match="multiplies the direction by zero"):
        pull_back(orthonormal_rows(torch.eye(4)[0]), torch.tensor([0.0, 1.0, 1.0, 1.0]), centred=False)


def test_affine_lands_on_the_means(generator):
    harmless, harmful = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    vector = harmful - harmless
    states = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    for alpha, mean in ((0.0, harmless), (1.0, harmful)):
        moved = Change(orthonormal_rows(vector), shift=affine_target(vector, harmless, alpha)).apply(states)
        torch.testing.assert_close(moved @ vector, (mean @ vector).expand(5))
        # Nothing else moves.
        torch.testing.assert_close(
            Change(orthonormal_rows(vector)).apply(moved), Change(orthonormal_rows(vector)).apply(states)
        )


def test_a_subspace_has_no_length(generator):
    vectors, mean = torch.randn(2, 8, generator=generator), torch.randn(8, generator=generator)
    assert affine_target(vectors, mean, 0.0).shape == (8,)
    with pytest.raises(UsageError, match=r"coefficient 0\.5 for 2 directions"):
        affine_target(vectors, mean, 0.5)


def test_norms_that_are_kept(generator):
    basis, vectors = orthonormal_rows(torch.randn(2, 8, generator=generator)), torch.randn(30, 8, generator=generator)
    left = remove_from_vectors(vectors, basis, keep_norms=True)
    torch.testing.assert_close(left.norm(dim=1), vectors.norm(dim=1), rtol=1e-6, atol=0)
    assert (left.double() @ basis.T).abs().max() < 1e-6
    # A vector within the subspace has nothing that could be made longer.
    inside = remove_from_vectors(basis.float() * 3, basis, keep_norms=True)
    assert inside.abs().max() < 1e-5


def test_changes_of_half_precision_and_of_rows(generator):
    states = torch.randn(4, 8, generator=generator).bfloat16()
    change = Change(None, shift=torch.randn(2, 8, generator=generator, dtype=torch.float64))
    moved = change.apply(states, torch.tensor([1, -1, 0, 1]))
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved[1], states[1])
    assert torch.equal(moved[0], (states[0].float() + change.shift[1].float()).bfloat16())


def test_a_change_first_used_in_inference_mode_serves_where_gradients_are_wanted(generator):
    change = Change(orthonormal_rows(torch.randn(8, generator=generator)))
    with torch.inference_mode():
        change.apply(torch.ones(1, 8))
    states = torch.ones(1, 8, requires_grad=True)
    change.apply(states).sum().backward()
    assert states.grad is not None
