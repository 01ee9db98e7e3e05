import pytest
import torch
from tolerance import assert_as_good_as_torch

from probing.kernels.segment_pool import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    launch_segment_sum,
    segment_sum,
    segment_sum_reference,
)

# Lengths of 0, 1, one tile and one off it, several tiles, everything; some overlap; one ends with the last token.
TOKENS = 3 * BLOCK_ROWS + 2
BOUNDS = [(0, 0), (0, 1), (1, BLOCK_ROWS), (3, 3 + BLOCK_ROWS), (2, 3 + BLOCK_ROWS), (TOKENS, TOKENS), (0, TOKENS)]
BOUNDS += [(TOKENS - 1, TOKENS), (5, TOKENS - 1)]
WIDTHS = [1, 37, BLOCK_COLUMNS - 1, BLOCK_COLUMNS, BLOCK_COLUMNS + 1]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def ends(bounds):
    return torch.tensor(bounds, dtype=torch.long).reshape(-1, 2).unbind(1)


def kernel_sums(values, bounds=BOUNDS):
    """What the kernel leaves in a buffer of NaN; behind its end it must leave all as it was."""
    size = len(bounds) * values.shape[1]
    buffer = torch.full((size + BLOCK_COLUMNS,), float("nan"), device=values.device)
    sums = buffer[:size].view(len(bounds), values.shape[1])
    launch_segment_sum(values, *ends(bounds), sums)
    assert buffer[size:].isnan().all()
    return sums


def check(values, bounds=BOUNDS):
    exact = segment_sum_reference(values.double(), *ends(bounds))
    assert_as_good_as_torch(kernel_sums(values, bounds), segment_sum_reference(values, *ends(bounds)), exact)


@pytest.fixture
def normal(generator, device):
    return lambda tokens, width, dtype=torch.float32: torch.randn(tokens, width, generator=generator).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_as_good_as_torch(normal, width, dtype):
    check(normal(TOKENS, width, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_sums_of_whole_numbers_are_exact(generator, device, width, dtype):
    """No rounding to hide behind: a row too many or too few shows, in any dtype."""
    values = torch.randint(1, 9, (TOKENS, width), generator=generator).to(device, dtype)
    assert torch.equal(kernel_sums(values), segment_sum_reference(values, *ends(BOUNDS)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_massive_dimension(normal, dtype):
    values = normal(TOKENS, 40, dtype)
    values[:, 7] = values[:, 7] * 30 + 3000
    check(values)


def test_half_precision_is_summed_in_float32(normal):
    """In bf16 a sum stands still once it is 256 times as large as what is added."""
    values = normal(700, 3, torch.bfloat16) + 4
    check(values, [(0, 700)])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_segment_feels_nothing_outside_it(normal, poison):
    values = normal(TOKENS, 37)
    poisoned = values.clone()
    poisoned[:5] = poison
    poisoned[20:] = poison
    bounds = [(5, 20), (0, 20), (5, 21), (7, 7)]
    clean, sums = kernel_sums(values, bounds), kernel_sums(poisoned, bounds)
    assert torch.equal(sums[[0, 3]], clean[[0, 3]])
    assert not sums[[1, 2]].isfinite().any()


def test_a_sum_does_not_depend_on_the_other_segments(normal):
    values = normal(TOKENS, 37)
    together = kernel_sums(values)
    alone = [kernel_sums(values, [bounds]) for bounds in BOUNDS]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_do_not_lie_side_by_side(normal, device, dtype):
    wide = torch.full((TOKENS, 50), float("nan"), dtype=dtype, device=device)
    inner = wide[:, 3:40]
    inner[:] = normal(TOKENS, 37, dtype)
    check(inner)
    check(normal(37, TOKENS, dtype).T)
    check(normal(1, 37, dtype).expand(TOKENS, 37))
    check(normal(2 * TOKENS, 37, dtype)[1::2])


def test_offsets_beyond_32_bits(device):
    """Rows so far apart that the last begins behind element 2**31; on a CPU only their pages are ever touched."""
    stride = 2**27
    values = torch.empty(17 * stride + 5, dtype=torch.bfloat16, device=device).as_strided((18, 5), (stride, 1))
    values[:] = torch.arange(90).reshape(18, 5)
    assert kernel_sums(values, [(0, 18), (17, 18)]).tolist() == [[765, 783, 801, 819, 837], [85, 86, 87, 88, 89]]


@pytest.mark.parametrize(
    ("tokens", "width", "bounds"),
    [(4, 3, []), (0, 3, [(0, 0), (0, 0)]), (0, 3, []), (4, 0, [(0, 4)]), (4, 3, [(4, 4), (0, 0)])],
)
def test_nothing_to_add(normal, tokens, width, bounds):
    assert torch.equal(kernel_sums(normal(tokens, width), bounds).cpu(), torch.zeros(len(bounds), width))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_the_operation_takes_the_kernel(normal, dtype, kind):
    values = normal(TOKENS, 37, dtype)
    starts, stops = (end.to(kind) for end in ends(BOUNDS))
    sums = segment_sum(values, starts, stops, impl="triton")
    assert sums.dtype == torch.float32
    assert sums.device == values.device
    assert torch.equal(sums, kernel_sums(values))
    assert torch.equal(sums, segment_sum(values, starts.to(values.device), stops.to(values.device), impl="triton"))
    assert not torch.equal(sums, torch.zeros_like(sums))


def test_bounds_outside_are_refused_before_the_launch(normal):
    with pytest.raises(ValueError, match="segment 2:51 does not lie within 50 tokens"):
        segment_sum(normal(TOKENS, 2), *ends([(0, 1), (2, TOKENS + 1)]), impl="triton")
