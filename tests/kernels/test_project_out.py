import inspect

import pytest
import torch

from probing.kernels import project_out as kernel_file
from probing.kernels.jit import ELEMENT_TYPES
from probing.kernels.project_out import compile_variants, launch_project_out, project_out


def orthonormal(generator, *shape):
    return torch.linalg.qr(torch.randn(*shape, generator=generator, dtype=torch.float64).mT).Q.mT.float()


def by_loops(states, basis, rows, coefficient):
    """The definition in float64, an element at a time."""
    left = states.double().clone()
    for token, which in enumerate(rows):
        for vector in basis[which].double() if which >= 0 else ():
            left[token] -= (
                coefficient * sum(a * b for a, b in zip(states[token].tolist(), vector.tolist(), strict=True)) * vector
            )
    return left


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("coefficient", [1.0, 2.0, -0.5])
def test_as_a_loop_in_float64(generator, rank, coefficient):
    states, basis = torch.randn(6, 7, generator=generator), orthonormal(generator, 2, rank, 7)
    rows = torch.tensor([0, 1, -1, 1, 0, -1])
    expected = by_loops(states, basis, rows.tolist(), coefficient)
    own = project_out(states, basis, rows, coefficient=coefficient)
    torch.testing.assert_close(own.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(own[[2, 5]], states[[2, 5]])
    one = project_out(states, basis[0], coefficient=coefficient)
    torch.testing.assert_close(one.double(), by_loops(states, basis, [0] * 6, coefficient), rtol=1e-6, atol=1e-6)


def test_nothing_is_left_and_twice_is_as_once(generator):
    states, basis = torch.randn(50, 64, generator=generator) * 30, orthonormal(generator, 4, 64)
    once = project_out(states, basis)
    assert (once @ basis.T).abs().max() < 1e-4
    torch.testing.assert_close(project_out(once, basis), once, rtol=1e-5, atol=1e-4)


def test_half_precision_is_computed_in_float32(generator):
    states = (torch.randn(20, 512, generator=generator) + 3).bfloat16()
    basis = torch.full((1, 512), 512**-0.5)
    exact = by_loops(states, basis[None], [0] * 20, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = project_out(states, basis)
    assert own.dtype == torch.bfloat16
    # Half a unit in the last place of bf16.
    assert ((own.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_in_place_or_not(generator):
    states, basis = torch.randn(5, 9, generator=generator), orthonormal(generator, 2, 9)
    before = states.clone()
    own = project_out(states, basis)
    assert torch.equal(states, before)
    assert project_out(states, basis, in_place=True) is states
    assert torch.equal(states, own)


def test_gradients_flow(generator):
    states, basis = torch.randn(2, 5, generator=generator, requires_grad=True), orthonormal(generator, 1, 5)
    project_out(states, basis).sum().backward()
    torch.testing.assert_close(states.grad[0], 1 - basis[0].sum() * basis[0])


@pytest.mark.parametrize(
    ("basis", "rows", "message"),
    [
        ((1, 4), None, "width 4 for states of width 5"),
        ((2, 1, 5), None, "several directions need the index"),
        ((1, 5), [0, 0, 0], "one direction for all needs none"),
        ((2, 1, 5), [0, 2, 0], "from 0 to 2, and there are 2"),
        ((2, 1, 5), [-2, 0, 0], "from -2 to 0, and there are 2"),
    ],
)
def test_what_does_not_fit_is_refused(basis, rows, message):
    unchecked = inspect.unwrap(project_out)
    with pytest.raises(ValueError, match=message):
        unchecked(torch.ones(3, 5), torch.ones(basis), None if rows is None else torch.tensor(rows))


class Recorder:
    """Takes the place of the kernel and keeps what it was launched with."""

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **constants):
            self.arguments, self.constants, self.num_warps, self.grid = arguments, constants, num_warps, grid

        return launch


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
@pytest.mark.parametrize(("rank", "width"), [(1, 4096), (1, 37), (32, 4096)])
def test_what_is_launched_is_what_is_compiled_for_the_check(monkeypatch, dtype, rank, width):
    recorder = Recorder()
    monkeypatch.setattr(kernel_file, "project_out_kernel", recorder)
    launch_project_out(torch.zeros(4, width, dtype=dtype), torch.zeros(rank, width), None, torch.zeros(4, width))
    assert recorder.grid == (4,)
    label = f"{ELEMENT_TYPES[dtype]} rank {rank} {'aligned' if width % 16 == 0 else 'unaligned'} rows"
    (variant,) = (variant for variant in compile_variants() if variant.label == label)
    assert (variant.constants, variant.num_warps) == (recorder.constants, recorder.num_warps)
    assert len(variant.types) == len(recorder.arguments)


def test_an_empty_grid_is_not_launched(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(kernel_file, "project_out_kernel", recorder)
    launch_project_out(torch.zeros(0, 4), torch.zeros(1, 4), None, torch.zeros(0, 4))
    assert not vars(recorder)
