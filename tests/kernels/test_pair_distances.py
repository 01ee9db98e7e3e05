import inspect
from itertools import accumulate

import oracles
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probing.errors import KernelUnavailable
from probing.kernels import pair_distances as module
from probing.kernels.pair_distances import (
    BLOCK,
    best_block_width,
    cut_into_blocks,
    pair_distances,
    pair_distances_reference,
    squared_norms,
)

# Points of each cluster: one, a block of four and one off it, several blocks, many clusters.
CLUSTERS = [[1], [4], [5], [3, 4, 5], [1, 1, 1], [1, 9, 1, 4, 2], [13, 3], [1] * 9]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def bounds_of(clusters):
    return [0, *accumulate(clusters)]


def oracle(points, bounds, block):
    """Layer by layer: sums, extremes."""
    found = [oracles.pair_distances(values.tolist(), bounds, block) for values in points]
    sums = torch.tensor([sums for sums, _ in found], dtype=torch.float64)
    return sums, torch.tensor([extremes for _, extremes in found], dtype=torch.float64)[:, :, 0]


def whole_numbers(generator, layers, count, width, dtype):
    """Products of them are exact in any dtype."""
    return torch.randint(-2, 3, (layers, count, width), generator=generator).to(dtype)


@pytest.mark.parametrize("clusters", CLUSTERS, ids=str)
def test_equals_a_loop_in_float64(generator, clusters):
    bounds = bounds_of(clusters)
    points = torch.randn(2, bounds[-1], 5, generator=generator).double()
    sums, extremes = oracle(points, bounds, 4)
    found = pair_distances_reference(points, bounds, 4)
    torch.testing.assert_close(found.sums, sums, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.extremes, extremes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clusters", CLUSTERS, ids=str)
def test_whole_numbers_are_exact(generator, clusters, dtype):
    bounds = bounds_of(clusters)
    points = whole_numbers(generator, 2, bounds[-1], 3, dtype)
    sums, extremes = oracle(points, bounds, 4)
    found = pair_distances_reference(points, bounds, 4)
    assert found.sums.dtype == found.extremes.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.sums.double(), sums, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.extremes, extremes.to(found.extremes.dtype))


def test_blocks_and_tiles(generator):
    found = pair_distances_reference(torch.randn(1, 9, 2, generator=generator), [0, 1, 6, 9], 3)
    assert found.blocks.tolist() == [[0, 1], [1, 4], [4, 6], [6, 9]]
    assert found.tiles.tolist() == [[i, j] for i in range(4) for j in range(i, 4)]
    assert cut_into_blocks([0, 1, 6, 9], 3) == ([0, 1, 4, 6, 9], [0, 1, 3, 4])


def test_blocks_of_the_size_that_is_used(generator):
    bounds = [0, BLOCK + 3, BLOCK + 40]
    points = torch.randn(1, bounds[-1], 2, generator=generator)
    sums, extremes = oracle(points, bounds, BLOCK)
    found = pair_distances(points, bounds)
    torch.testing.assert_close(found.sums.double(), sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.extremes.double(), extremes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(generator, dtype):
    points = (torch.randn(1, 12, 40, generator=generator) + 3).to(dtype)
    sums, extremes = oracle(points, [0, 5, 12], 4)
    found = pair_distances(points, [0, 5, 12])
    torch.testing.assert_close(found.sums.double(), sums, rtol=1e-5, atol=1e-5)
    blocks = pair_distances_reference(points, [0, 5, 12], 4)
    torch.testing.assert_close(blocks.extremes.double(), extremes, rtol=1e-4, atol=1e-4)


def test_identical_points_are_at_no_distance_and_not_themselves():
    points = torch.full((1, 5, 3), 0.1)
    found = pair_distances_reference(points, [0, 3, 5], 2)
    assert (found.sums == 0).all()
    assert (found.extremes == 0).all()


def test_rounding_makes_no_distance_imaginary(generator):
    """Points so far from zero that most squared distances round to either side of it."""
    points = torch.randn(1, 30, 4, generator=generator) * 1e-3 + 1000
    found = pair_distances(points, [0, 10, 30])
    assert found.sums.isfinite().all()
    assert (found.extremes >= 0).all()
    assert (found.extremes == 0).any()


def test_tensors_laid_out_otherwise(generator):
    points = torch.randn(2, 11, 6, generator=generator)
    expected = pair_distances_reference(points, [0, 4, 11], 4)
    for order in [(0, 2, 1), (2, 1, 0), (1, 0, 2)]:
        strided = points.permute(order).contiguous().permute(order)
        assert not strided.is_contiguous()
        found = pair_distances_reference(strided, [0, 4, 11], 4)
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)


def test_a_layer_feels_no_other(generator):
    points = torch.randn(3, 11, 6, generator=generator)
    together = pair_distances_reference(points, [0, 4, 11], 4)
    points[0], points[2] = 1e6, float("nan")
    for value, expected in zip(pair_distances_reference(points, [0, 4, 11], 4)[:2], together[:2], strict=True):
        assert torch.equal(value[1], expected[1])


def test_squared_norms_are_summed_in_float64_some_points_at_a_time(generator, monkeypatch):
    points = torch.randn(2, 11, 300, generator=generator)
    points[:, 0, 0] = 4000
    points[:, 0, 1:] = 0.9  # each square is less than half of the last digit of the first
    exact = points.double().square().sum(dim=2)
    found = squared_norms(points, torch.float32)
    assert torch.equal(found, exact.float())
    for size in (1, 3 * 300 * 8):
        monkeypatch.setattr(module, "NORM_BYTES", size)
        assert torch.equal(squared_norms(points, torch.float32), found)
    assert squared_norms(points, torch.float64).dtype == torch.float64
    assert squared_norms(points[:, :, :0], torch.float32).tolist() == [[0] * 11] * 2


class Largest(TorchDispatchMode):
    """The most numbers that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_than_a_block_of_distances_is_kept(generator, dtype):
    points, block = torch.randn(1, 400, 4, generator=generator).to(dtype), 8
    with Largest() as largest:
        pair_distances_reference(points, [0, 150, 400], block)
    assert largest.numbers == block * 400


def test_no_layers():
    found = pair_distances(torch.empty(0, 7, 3), [0, 2, 7])
    assert [values.shape for values in found] == [(0, 7, 2), (0, 3), (2, 2), (3, 2)]


@pytest.mark.parametrize("bounds", [[], [0], [0, 4], [1, 7], [0, 8], [7, 0]])
def test_bounds_of_other_points_are_refused(bounds):
    with pytest.raises(ValueError, match=r"clusters of 7 points are bounded by 0 \.\. 7, not \["):
        pair_distances(torch.zeros(1, 7, 3), bounds)


@pytest.mark.parametrize(("bounds", "cluster"), [([0, 0, 7], 0), ([0, 3, 3, 7], 1), ([0, 5, 3, 7], 1), ([0, 7, 7], 1)])
def test_empty_clusters_are_refused(bounds, cluster):
    with pytest.raises(ValueError, match=f"cluster {cluster} of {len(bounds) - 1} has no points"):
        pair_distances(torch.zeros(1, 7, 3), bounds)


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="cluster 0 of 1 has no points"):
        pair_distances(torch.zeros(1, 0, 3), [0, 0])


def test_what_cannot_run_says_so():
    with pytest.raises(ValueError, match="impl is one of"):
        pair_distances(torch.zeros(1, 7, 3), [0, 7], impl="cuda")
    with pytest.raises(KernelUnavailable, match="the Triton form of pair_distances cannot run: the tensors are on the"):
        pair_distances(torch.zeros(1, 7, 3), [0, 7], impl="triton")


def test_bounds_may_be_any_sequence(generator):
    points = torch.randn(1, 7, 3, generator=generator)
    expected = pair_distances(points, [0, 2, 7])
    found = inspect.unwrap(pair_distances)(points, (0, 2, 7))
    assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))


def test_how_much_of_a_point_is_multiplied_at_a_time():
    """Much only of half-precision points that can be read in whole vectors."""
    wide = torch.zeros(2, 20, 4096 + 64, dtype=torch.bfloat16)
    points = wide[:, :, :4096]
    assert best_block_width(points) == module.BLOCK_WIDTH
    for other in (points.float(), wide[:, :, 1:4097], wide[:, :, :4090], points.reshape(-1)[:8000].view(2, 4, 1000)):
        assert best_block_width(other) == module.NARROW_WIDTH
