import inspect

import pytest
import torch

from probing.kernels import segment_pool
from probing.kernels.jit import ELEMENT_TYPES
from probing.kernels.segment_pool import compile_variants, pair_dot, segment_sum

BOUNDS = [(0, 3), (3, 3), (2, 9), (9, 10)]


def summed(values, bounds=BOUNDS):
    ends = torch.tensor(bounds, dtype=torch.long).reshape(-1, 2)
    return segment_sum(values, ends[:, 0], ends[:, 1])


def test_sums_equal_a_loop_in_float64(generator):
    values = torch.randn(10, 5, generator=generator)
    expected = [[sum(values[t, d].item() for t in range(a, b)) for d in range(5)] for a, b in BOUNDS]
    assert summed(values).dtype == torch.float32
    torch.testing.assert_close(summed(values).double(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)


def test_half_precision_states_are_summed_in_float32(generator):
    values = torch.randn(700, 16, generator=generator).bfloat16()
    exact = values.double().sum(0)
    wide = summed(values, [(0, 700)])[0]
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), exact, rtol=1e-5, atol=1e-4)
    accumulated = torch.zeros(16, dtype=torch.bfloat16)
    for row in values:
        accumulated += row
    assert (accumulated.double() - exact).abs().max() > 0.01  # what the wide sum is for


def test_a_segment_does_not_feel_its_neighbours(generator):
    values = torch.randn(10, 5, generator=generator)
    poisoned = values.clone()
    poisoned[:2] = float("nan")
    assert torch.equal(summed(values)[2], summed(poisoned)[2])


def test_views_that_are_not_contiguous(generator):
    values = torch.randn(5, 10, generator=generator)
    # Another memory order is another order of summation: equal to rounding, not to the bit.
    torch.testing.assert_close(summed(values.T), summed(values.T.contiguous()), rtol=1e-6, atol=1e-6)


def test_no_segments(generator):
    assert summed(torch.randn(4, 3, generator=generator), []).shape == (0, 3)


@pytest.mark.parametrize("bounds", [(0, 11), (-1, 3), (5, 4)])
def test_bounds_outside_are_refused(generator, bounds):
    with pytest.raises(ValueError, match="does not lie within 10 tokens"):
        summed(torch.randn(10, 2, generator=generator), [bounds])


def test_as_many_starts_as_stops(generator):
    # Without the shape checks of the tests, which would be the first to say so.
    unchecked = inspect.unwrap(segment_sum)
    with pytest.raises(ValueError, match="2 segments start and 1 stop"):
        unchecked(torch.randn(10, 2, generator=generator), torch.tensor([0, 1]), torch.tensor([4]))


class Recorder:
    """Takes the place of a kernel and keeps what it was launched with."""

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **constants):
            self.arguments, self.constants, self.num_warps, self.grid = arguments, constants, num_warps, grid

        return launch


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_an_empty_grid_is_not_launched(monkeypatch, shape):
    """A card refuses it; the interpreter does not."""
    recorder = Recorder()
    monkeypatch.setattr(segment_pool, "segment_sum_kernel", recorder)
    end = torch.zeros(shape[0], dtype=torch.long)
    segment_pool.launch_segment_sum(torch.zeros(5, shape[1]), end, end, torch.zeros(shape))
    assert not vars(recorder)


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
@pytest.mark.parametrize("width", [4096, 37])
def test_what_is_launched_is_what_is_compiled_for_the_check(monkeypatch, dtype, width):
    recorder, variants = Recorder(), compile_variants()
    monkeypatch.setattr(segment_pool, "segment_sum_kernel", recorder)
    values, end, sums = torch.zeros(4, width, dtype=dtype), torch.zeros(3, dtype=torch.int32), torch.zeros(3, width)
    segment_pool.launch_segment_sum(values, end, end, sums)
    assert recorder.grid == (3, -(-width // segment_pool.BLOCK_COLUMNS))
    types = {**{key: f"*{name}" for key, name in ELEMENT_TYPES.items()}, torch.int64: "*i64"}
    launched = [types[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in recorder.arguments]
    numbers = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in recorder.arguments]
    aligned = [number % 16 == 0 for number in numbers]
    # One variant, and only one, is the form that was launched.
    assert [
        (list(variant.types.values()), variant.constants, variant.num_warps)
        for variant in variants
        if list(variant.types.values()) == launched and [name in variant.aligned for name in variant.types] == aligned
    ] == [(launched, recorder.constants, recorder.num_warps)]


def test_pair_dot_is_float64(generator):
    left, right = torch.randn(4, 9, generator=generator), torch.randn(4, 9, generator=generator)
    expected = [
        sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)) for x, y in zip(left, right, strict=True)
    ]
    assert pair_dot(left, right).dtype == torch.float64
    assert pair_dot(left, right).tolist() == pytest.approx(expected, rel=1e-14)
