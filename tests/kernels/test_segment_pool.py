import pytest
import torch

from probing.kernels.segment_pool import pair_dot, segment_sum

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


def test_pair_dot_is_float64(generator):
    left, right = torch.randn(4, 9, generator=generator), torch.randn(4, 9, generator=generator)
    expected = [
        sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)) for x, y in zip(left, right, strict=True)
    ]
    assert pair_dot(left, right).dtype == torch.float64
    assert pair_dot(left, right).tolist() == pytest.approx(expected, rel=1e-14)
