from itertools import accumulate

import pytest
import torch
from tolerance import assert_as_good_as_torch

from probing.errors import KernelUnavailable
from probing.kernels import pair_distances as module
from probing.kernels.dispatch import is_interpreting
from probing.kernels.jit import ELEMENT_TYPES
from probing.kernels.pair_distances import (
    BLOCK,
    PARTIAL_BYTES,
    TILE_ROWS,
    compile_variants,
    cut_into_blocks,
    launch_pair_distances,
    launch_tiles,
    pair_distances,
    pair_distances_reference,
    partial_shapes,
    squared_norms,
)
from probing.metrics.clusters import cluster_indices

# Small blocks, so that a few points fill several, and rows of tiles that are launched two by two.
SIDE, DEPTH, ROWS = (4, 4, 2) if is_interpreting() else (16, 16, 2)
# Points of each cluster: one, a block and one off it, several blocks, blocks of one point beside whole ones.
CLUSTERS = [
    [1],
    [SIDE - 1],
    [SIDE + 1],
    [1, 1],
    [1, SIDE, 2 * SIDE + 1],
    [3 * SIDE + 2, 2],
    [SIDE - 1, 1, SIDE + 1, 1],
    [1] * 5,
]
WIDTHS = [1, DEPTH - 1, DEPTH, 2 * DEPTH + 3]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GUARD = 64


class Guards:
    """Takes the place of ``torch.empty``: every tensor is poisoned, and lies between poison that has to stay."""

    def __init__(self):
        self.buffers = []

    def __call__(self, shape, *, dtype, device):
        shape = torch.Size(shape)
        poison = float("nan") if dtype.is_floating_point else -7
        buffer = torch.full((shape.numel() + 2 * GUARD,), poison, dtype=dtype, device=device)
        self.buffers.append(buffer)
        return buffer[GUARD : GUARD + shape.numel()].view(shape)

    def check(self):
        assert self.buffers
        for buffer in self.buffers:
            for edge in (buffer[:GUARD], buffer[-GUARD:]):
                assert (edge.isnan() if buffer.is_floating_point() else edge == -7).all()


def kernel_distances(points, bounds, **options):
    """By the kernel, in poisoned buffers; around them, and in its input, it must leave all as it was."""
    before, guards = points.clone(), Guards()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.torch, "empty", guards)
        found = launch_pair_distances(
            points, bounds, **{"block": SIDE, "block_width": DEPTH, "tile_rows": ROWS, **options}
        )
    guards.check()
    assert torch.equal(points, before)
    return found


def check(points, bounds, **options):
    """As close to float64 as torch."""
    found = kernel_distances(points, bounds, **options)
    block = options.get("block", SIDE)
    plain = pair_distances_reference(points, bounds, block)
    exact = pair_distances_reference(points.double(), bounds, block)
    assert_as_good_as_torch(found.sums, plain.sums, exact.sums)
    assert_as_good_as_torch(found.extremes, plain.extremes, exact.extremes)
    assert torch.equal(found.blocks, exact.blocks)
    assert torch.equal(found.tiles, exact.tiles)
    return found


def check_exactly(points, bounds, **options):
    found = kernel_distances(points, bounds, **options)
    exact = pair_distances_reference(points.double(), bounds, options.get("block", SIDE))
    for values, expected in zip(found, exact, strict=True):
        assert torch.equal(values, expected.to(values.dtype))
    assert not torch.signbit(found.extremes).any()
    return found


def same(found, others):
    return all(torch.equal(left, right) for left, right in zip(found, others, strict=True))


def bounds_of(clusters):
    return [0, *accumulate(clusters)]


@pytest.fixture
def normal(generator, device):
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=generator).to(device, dtype)


@pytest.fixture
def on_a_line(generator, device):
    """Whole numbers at whole distances, many of them alike, so that every result is exact in every dtype."""

    def points(layers, count, width, dtype):
        root = int(width**0.5)
        direction = (torch.arange(width) % (width // root**2) == 0).cumsum(0) <= root**2
        direction &= torch.arange(width) % (width // root**2) == 0
        assert direction.sum() == root**2
        places = torch.randint(-4, 5, (layers, count, 1), generator=generator)
        return (places * direction).to(device, dtype)

    return points


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clusters", CLUSTERS[::2], ids=str)
def test_as_good_as_torch(normal, clusters, dtype):
    bounds = bounds_of(clusters)
    check(normal(2, bounds[-1], DEPTH + 1, dtype=dtype), bounds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(normal, width, dtype):
    check(normal(1, 2 * SIDE + 2, width, dtype=dtype), [0, SIDE + 1, 2 * SIDE + 2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clusters", CLUSTERS, ids=str)
def test_whole_numbers_are_exact(on_a_line, clusters, dtype):
    """No rounding to hide behind: a point too many, or twice, shows in any dtype."""
    bounds = bounds_of(clusters)
    check_exactly(on_a_line(2, bounds[-1], DEPTH + 1, dtype), bounds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_whole_numbers_of_any_width(on_a_line, width, dtype):
    check_exactly(on_a_line(1, 2 * SIDE + 2, width, dtype), [0, SIDE + 1, 2 * SIDE + 2])


@pytest.mark.parametrize("tile_rows", [1, 3, 100])
@pytest.mark.parametrize("partial_bytes", [1, 5000, 2**26])
def test_however_much_is_done_in_one_launch(on_a_line, tile_rows, partial_bytes):
    bounds = bounds_of([SIDE + 1, 1, 2 * SIDE - 1])
    check_exactly(on_a_line(2, bounds[-1], 5, torch.float32), bounds, tile_rows=tile_rows, partial_bytes=partial_bytes)


def test_the_layers_of_several_launches(on_a_line):
    """Two at a time and the last one alone."""
    points, bounds = on_a_line(5, SIDE + 2, 5, torch.float32), [0, 2, SIDE + 2]
    each = 4 * (2 * (SIDE + 2) + ROWS * (SIDE + 2))
    check_exactly(points, bounds, partial_bytes=2 * each + 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_points(device, dtype):
    points = torch.full((1, 3 * SIDE, 9), 1.5, device=device, dtype=dtype)
    found = check_exactly(points, [0, SIDE, SIDE + 1, 3 * SIDE])
    assert (found.sums == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_massive_dimension(normal, dtype):
    """Centred, it is what sets the points apart. What rounding there is, is that of the norms."""
    points, bounds = normal(1, 2 * SIDE + 3, 9, dtype=dtype), [0, SIDE + 1, 2 * SIDE + 3]
    points[:, :, 7] *= 300
    found, exact = (work(points, bounds, block=SIDE) for work in (kernel_distances, exactly))
    norms = points.double().square().sum(dim=2)[0]
    edges = [norms[start:stop].max() for start, stop in exact.blocks.tolist()]
    sizes = torch.stack([edges[left] + edges[right] for left, right in exact.tiles.tolist()])
    assert ((found.extremes.double() - exact.extremes).abs() / sizes).max() < 2**-22
    assert_as_good_as_torch(found.sums, pair_distances_reference(points, bounds).sums, exact.sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_massive_dimension_that_all_points_share(generator, device, dtype):
    """Distances of a few behind norms of 2,048, all of them whole numbers, so that nothing may be lost."""
    points = torch.randint(-4, 5, (1, 2 * SIDE + 3, 9), generator=generator).to(device, dtype)
    points[:, :, 7] = 2048
    bounds = [0, SIDE + 1, 2 * SIDE + 3]
    found, exact = (work(points, bounds, block=SIDE) for work in (kernel_distances, exactly))
    assert torch.equal(found.extremes.double(), exact.extremes)
    torch.testing.assert_close(found.sums.double(), exact.sums, rtol=1e-6, atol=0)


def exactly(points, bounds, block):
    return pair_distances_reference(points.double(), bounds, block)


def test_rounding_makes_no_distance_imaginary(normal):
    """Points so far from zero that most squared distances round to either side of it."""
    found = kernel_distances(normal(1, 2 * SIDE + 3, 5) * 1e-3 + 1000, [0, SIDE + 1, 2 * SIDE + 3])
    assert found.sums.isfinite().all()
    assert (found.extremes >= 0).all()
    assert (found.extremes == 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_points_that_do_not_lie_side_by_side(normal, device, dtype):
    """The same points in other places."""
    bounds, count = [0, 2, SIDE + 2], SIDE + 2
    points = normal(2, count, 5, dtype=dtype)
    expected = kernel_distances(points, bounds)
    wide = torch.full((4, 2 * count, 20), float("nan"), dtype=dtype, device=device)
    for strided in (
        wide[:2, 1 : count + 1, 3:8],
        wide[1::2, 1::2, :5],
        wide[:2, :5, :count].transpose(1, 2),
        torch.full((count, 2, 5), float("nan"), dtype=dtype, device=device).transpose(0, 1),
    ):
        strided[:] = points
        assert not strided.is_contiguous()
        assert same(launch_as(strided, bounds), expected)
    for values, first in zip(launch_as(points[:1].expand(2, -1, -1), bounds)[:2], expected[:2], strict=True):
        assert torch.equal(values, first[:1].expand_as(values))


def launch_as(points, bounds):
    return launch_pair_distances(points, bounds, SIDE, DEPTH, ROWS)


@pytest.mark.parametrize("strides", [(1, 2**27, 1), (2**30, 5, 1)])
def test_offsets_beyond_32_bits(device, strides):
    """Points or layers so far apart that the last begins behind 2**31 others; on a CPU only their pages are touched."""
    layers, count = (1, 18) if strides[0] == 1 else (3, 2)
    size = (layers - 1) * strides[0] + (count - 1) * strides[1] + 5
    points = torch.empty(size, dtype=torch.bfloat16, device=device).as_strided((layers, count, 5), strides)
    points[:] = torch.arange(layers * count * 5).reshape(layers, count, 5)
    assert same(launch_as(points, [0, 1, count]), kernel_distances(points.contiguous(), [0, 1, count]))


def test_asked_again_and_layer_by_layer(normal):
    points, bounds = normal(3, 2 * SIDE + 3, 9), [0, SIDE + 1, 2 * SIDE + 3]
    together = kernel_distances(points, bounds)
    assert same(kernel_distances(points, bounds), together)
    points[0], points[2] = 1e15, -1e15
    alone = launch_as(points[1:2], bounds)
    for mine, every in zip(alone[:2], launch_as(points, bounds)[:2], strict=True):
        assert torch.equal(mine[0], every[1])


@pytest.mark.parametrize("first", [0, 2, 4])
def test_the_sums_of_tiles(normal, device, first):
    """Those along rows and along columns, each element of them, one launch by itself; zero below the diagonal."""
    points, bounds = normal(2, 3 * SIDE + 3, 5), [0, 2, SIDE + 3, 3 * SIDE + 3]
    edges, firsts = cut_into_blocks(bounds, SIDE)
    stop = min(first + ROWS, len(edges) - 1)
    guards, count = Guards(), len(edges) * (len(edges) - 1) // 2
    rows, columns = (guards(s, dtype=torch.float32, device=device) for s in partial_shapes(2, edges, first, stop))
    extremes = guards((2, count), dtype=torch.float32, device=device)
    clusters = [sum(later <= block for later in firsts[1:]) for block in range(len(edges))]
    table = torch.tensor([edges, clusters], dtype=torch.int32, device=device)
    norms = squared_norms(points, torch.float32)
    launch_tiles(points, norms, table, extremes, rows, columns, first, SIDE, DEPTH)
    guards.check()
    distances = torch.cdist(points.double(), points.double())
    start = edges[first]
    for i in range(first, stop):
        for j in range(first, len(edges) - 1):
            own = slice(edges[i] - start, edges[i + 1] - start), slice(edges[j] - start, edges[j + 1] - start)
            tile = distances[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            expected = tile.sum(dim=2) * (i <= j), tile.sum(dim=1) * (i < j)
            for found, value in (
                (rows[:, j - first, own[0]], expected[0]),
                (columns[:, i - first, own[1]], expected[1]),
            ):
                torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-5)
    launched = [i for i in range(len(edges) - 1) for _ in range(i, len(edges) - 1)]
    filled = torch.tensor([first <= i < stop for i in launched], device=device)
    assert torch.equal(~extremes.isnan(), filled.expand(2, -1))


def test_nothing_is_said_of_tiles_below_the_diagonal(normal, device, monkeypatch):
    """Not even for a while: on a card, programs run in any order. Here those of the other tiles do not run at all."""
    kernel, edges = module.pair_distances_kernel, [0, 1, 2, 3, 4]

    class Fewer:
        def __getitem__(self, grid):
            return kernel[(4, 1)]

    monkeypatch.setattr(module, "pair_distances_kernel", Fewer())
    points, guards = normal(1, 4, 3), Guards()
    partials = (guards(shape, dtype=torch.float32, device=device) for shape in partial_shapes(1, edges, 1, 3))
    extremes = guards((1, 10), dtype=torch.float32, device=device)
    table = torch.tensor([edges, [0] * 5], dtype=torch.int32, device=device)
    launch_tiles(points, squared_norms(points, torch.float32), table, extremes, *partials, 1, SIDE, DEPTH)
    tiles = torch.triu_indices(4, 4).T.tolist()
    assert [tiles[tile] for tile in (~extremes.isnan())[0].nonzero()] == [[1, 1], [1, 2], [2, 2]]


class Recorder:
    """Takes the place of the kernel and keeps what it was launched with."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **constants):
            self.launches.append((grid, arguments, constants, num_warps))

        return launch


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(module, "pair_distances_kernel", recorder)
    return recorder


def test_no_layers_no_launch(recorder, device):
    """A card may refuse an empty grid; the interpreter does not."""
    found = pair_distances(torch.empty((0, 5, 3), device=device), [0, 2, 5], impl="triton")
    assert [len(values) for values in found] == [0, 0, 2, 3]
    edges, _ = cut_into_blocks([0, 2, 5], BLOCK)
    none = torch.empty((0, 5), device=device)
    partials = (torch.empty(shape, device=device) for shape in partial_shapes(0, edges, 0, 2))
    launch_tiles(none[:, :, None], none, torch.empty((2, 3), device=device).int(), none, *partials, 0)
    assert not recorder.launches


def test_blocks_are_as_small_as_asked_for(recorder, normal):
    """Else no test above would reach a second block."""
    launch_as(normal(2, 2 * SIDE + 3, 9), [0, SIDE + 1, 2 * SIDE + 3])
    assert [grid for grid, *_ in recorder.launches] == [(8, 2), (4, 2)]
    assert all(
        (constants["block"], constants["block_width"]) == (SIDE, DEPTH) for *_, constants, _ in recorder.launches
    )


def test_sums_of_tiles_take_little_memory(recorder, device, monkeypatch):
    """However many layers and points, and however small their clusters."""
    layers, count, most, guards = 5, 4000, 2**20, Guards()
    points = torch.zeros((layers, count, 1), device=device)
    monkeypatch.setattr(module.torch, "empty", guards)
    launch_pair_distances(points, [0, count // 3, count], partial_bytes=most)
    partials = [buffer.numel() - 2 * GUARD for buffer in guards.buffers][-2 * len(recorder.launches) :]
    assert [size for *_, arguments, _, _ in recorder.launches for size in map(torch.numel, arguments[5:7])] == partials
    assert most / 2 < 4 * max(map(sum, zip(partials[::2], partials[1::2], strict=True))) <= most <= PARTIAL_BYTES
    monkeypatch.setattr(module.torch, "empty", guards := Guards())
    launch_pair_distances(points[:1, :600], list(range(601)))  # blocks of one point: no space for whole ones
    partials = [buffer.numel() - 2 * GUARD for buffer in guards.buffers[-2:]]
    assert max(partials) <= TILE_ROWS * 600


VARIANTS = [(dtype, width) for dtype in ELEMENT_TYPES for width in (64, 65)]  # in the order of compile_variants


@pytest.mark.parametrize(("form", "variant"), list(zip(VARIANTS, compile_variants(), strict=True)))
def test_what_is_launched_is_what_is_compiled_for_the_check(recorder, device, form, variant):
    dtype, width = form
    points = torch.zeros((2, BLOCK + 1, width), dtype=dtype, device=device)
    pair_distances(points, [0, BLOCK + 1], impl="triton")
    (grid, arguments, constants, num_warps), *others = recorder.launches
    assert not others
    assert (grid, num_warps) == ((4, 2), variant.num_warps)
    assert constants == {**variant.constants, "upcast": is_interpreting()}
    names = {**{kind: f"*{name}" for kind, name in ELEMENT_TYPES.items()}, torch.int32: "*i32"}
    kinds = [names[a.dtype] if torch.is_tensor(a) else "i32" for a in arguments]
    assert kinds == list(variant.types.values())
    assert all(a.is_contiguous() for a in arguments if torch.is_tensor(a))
    named = dict(zip(variant.types, arguments, strict=True))
    assert all(named[name].data_ptr() % 16 == 0 for name in variant.aligned if variant.types[name].startswith("*"))
    for name in ("width", "row_stride", "layer_stride"):
        assert (named[name] % 16 == 0) == (name in variant.aligned) == (width == 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operation_takes_the_kernel(normal, device, dtype):
    """Blocks of the size that is used, three rows of them; a centre that is no whole block."""
    points, bounds = normal(1, BLOCK + 30, 20, dtype=dtype), [0, BLOCK + 9, BLOCK + 30]
    found = pair_distances(points, bounds, impl="triton")
    plain = pair_distances_reference(points, bounds)
    exact = pair_distances_reference(points.double(), bounds)
    assert_as_good_as_torch(found.sums, plain.sums, exact.sums)
    assert_as_good_as_torch(found.extremes, plain.extremes, exact.extremes)
    assert [values.dtype for values in found] == [torch.float32] * 2 + [torch.int64] * 2
    assert all(values.device == points.device for values in found)
    assert same(found, launch_pair_distances(points, bounds))


def test_other_points_are_refused(normal):
    points = normal(1, 5, 3).double()
    with pytest.raises(KernelUnavailable, match="the Triton form of pair_distances cannot run: it takes bfloat16, "):
        pair_distances(points, [0, 2, 5], impl="triton")
    assert pair_distances(points, [0, 2, 5]).sums.dtype == torch.float64


def test_bounds_are_checked_before_the_launch(normal):
    with pytest.raises(ValueError, match="cluster 1 of 2 has no points"):
        pair_distances(normal(1, 5, 3), [0, 5, 5], impl="triton")


@pytest.mark.parametrize("offset", [0.0, 3.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_by_the_kernel_are_those_of_torch(generator, device, dtype, offset):
    """An offset leaves half-precision products no digits of small distances, unless the points are centred."""
    labels = torch.arange(140) % 3
    points = (torch.randn(140, 70, generator=generator) + 0.5 * labels[:, None] + offset).to(device, dtype)
    by_kernel, by_torch = (cluster_indices(points, labels, impl=impl) for impl in ("triton", "torch"))
    exact = cluster_indices(points.double(), labels, impl="torch")
    for name, value in exact.items():
        assert float(by_torch[name]) == pytest.approx(float(value), rel=1e-6), name
        assert float(by_kernel[name]) == pytest.approx(float(value), rel=3.8e-5), name
    assert float(by_kernel["dunn"]) == pytest.approx(float(exact["dunn"]), rel=1e-12)


def test_near_ties_are_decided_in_float64(generator, device):
    """Distances that float32 cannot tell apart, in several tiles: the least and the greatest are found all the same."""
    labels = torch.arange(512) % 2
    for _ in range(4):
        points = torch.zeros(512, 2)
        points[:, 0] = torch.arange(512) * 64.0
        points[:, 1] = torch.rand(512, generator=generator)
        found = cluster_indices(points.to(device), labels, ("dunn",), impl="triton")["dunn"]
        exact = cluster_indices(points.double(), labels, ("dunn",), impl="torch")["dunn"]
        assert float(found) == pytest.approx(float(exact), rel=1e-13)


def test_no_kernel_for_other_distances(device):
    points = torch.randn(20, 3, device=device)
    with pytest.raises(KernelUnavailable, match="Euclidean distances only"):
        cluster_indices(points, torch.arange(20) % 2, metric="cosine", impl="triton")
