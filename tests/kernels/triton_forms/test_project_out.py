import pytest
import torch
from tolerance import assert_as_good_as_torch

from probing.kernels.project_out import launch_project_out, project_out, project_out_reference

TOKENS = 5
# One tile of columns and one off it, several tiles.
SHAPES = [(1, 1), (1, 37), (1, 1024), (1, 1025), (3, 257), (4, 300), (32, 129)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def normal(generator, device):
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(device, dtype)


def orthonormal(random):
    return torch.linalg.qr(random.double().mT).Q.mT.float()


def kernel_states(states, basis, rows=None, coefficient=1.0):
    """What the kernel leaves in a buffer of NaN; behind its end it must leave all as it was."""
    size = states.numel()
    buffer = torch.full((size + 64,), float("nan"), device=states.device, dtype=states.dtype)
    projected = buffer[:size].view(states.shape)
    launch_project_out(states, basis, rows, projected, coefficient)
    assert buffer[size:].isnan().all()
    return projected


def check(states, basis, rows=None, coefficient=1.0):
    exact = project_out_reference(states.double(), basis, rows, coefficient)
    plain = project_out_reference(states, basis, rows, coefficient)
    assert_as_good_as_torch(kernel_states(states, basis, rows, coefficient), plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "width"), SHAPES)
def test_as_good_as_torch(normal, rank, width, dtype):
    check(normal(TOKENS, width, dtype=dtype), orthonormal(normal(rank, width)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_direction_a_row(normal, device, dtype):
    rows = torch.tensor([2, -1, 0, 1, -1], device=device)
    states, basis = normal(TOKENS, 37, dtype=dtype), orthonormal(normal(3, 2, 37))
    check(states, basis, rows, coefficient=1.5)
    assert torch.equal(kernel_states(states, basis, rows)[[1, 4]], states[[1, 4]])


def test_a_row_that_stays_keeps_what_is_not_finite(normal, device):
    states = normal(2, 5)
    states[0, 0], states[0, 1] = float("inf"), float("nan")
    kept = kernel_states(states, orthonormal(normal(1, 1, 5)), torch.tensor([-1, 0], device=device))
    assert torch.equal(kept[0].nan_to_num(), states[0].nan_to_num())
    assert kept[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_massive_dimension(normal, dtype):
    states = normal(TOKENS, 40, dtype=dtype)
    states[:, 7] = states[:, 7] * 30 + 3000
    check(states, orthonormal(normal(2, 40)))


def test_in_place_and_rows_that_do_not_lie_side_by_side(normal):
    wide, basis = normal(TOKENS, 50), orthonormal(normal(2, 37))
    before = wide.clone()
    inner = wide[:, 3:40]
    expected = project_out_reference(inner, basis)
    assert project_out(inner, basis, impl="triton", in_place=True) is inner
    torch.testing.assert_close(inner, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(wide[:, :3], before[:, :3])
    assert torch.equal(wide[:, 40:], before[:, 40:])
    turned = before[:, :TOKENS].T
    own = project_out(turned, orthonormal(normal(1, TOKENS)), impl="triton", in_place=True)
    assert own is turned
    check(before.T, orthonormal(normal(1, TOKENS)))
