"""Distances between all points of a layer, added up by cluster, with the least and the greatest; none are kept."""

# Triton is not imported here, so annotations such as ``tl.constexpr`` must not be evaluated.
from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.kernels.dispatch import can_sum_wide, choose, is_interpreting
from probing.kernels.jit import ELEMENT_TYPES, Variant, lazy_jit

if TYPE_CHECKING:
    import triton.language as tl

# Two warp groups hold 64 x 128 sums each in registers; 128 bytes of every half-precision point are multiplied at a
# time.
BLOCK = 128
BLOCK_WIDTH = 64
NARROW_WIDTH = 16
"""Values multiplied at a time of float32 points and of points that are read value by value: no more addresses fit into
the registers."""
NUM_WARPS = 8
TILE_ROWS = 16
"""Rows of tiles of one launch: a card then works on about as many columns of tiles at a time."""
PARTIAL_BYTES = 1 << 26
"""Bytes of partial sums that are held at once, unless those of one layer take more."""
NORM_BYTES = 1 << 26
"""Bytes of the points that are widened at once to square them."""


class PairDistances(NamedTuple):
    """Sums of distances, and the extreme of every tile.

    Each cluster is cut into blocks of consecutive points, and a tile is a pair of blocks, the earlier one its rows.

    Attributes:
        sums: sums of the distances from each point to all points of each cluster, [layer n cluster]; to itself counts
            zero. float32, or float64 for float64 points.
        extremes: a squared distance of each tile, [layer tile]: the least where its blocks are of two clusters, the
            greatest where they are of one, though of no point with itself unless there is no other.
        blocks: first point of each block and one past its last, [block 2] int64.
        tiles: the two blocks of each tile, [tile 2] int64.
    """

    sums: Tensor
    extremes: Tensor
    blocks: Tensor
    tiles: Tensor


def pair_distances_reference(
    points: Float[Tensor, "layer n width"], bounds: Sequence[int], block: int = BLOCK
) -> PairDistances:
    """``pair_distances`` in plain torch: the definition. Each block is compared with itself and all points behind it.

    Half-precision points are widened, one layer at a time, where the device cannot sum their products in float32.
    """
    edges, _ = cut_into_blocks(bounds, block)
    reductions = _allocate(points, edges, len(bounds) - 1)
    exact = reductions.sums.dtype
    norms = squared_norms(points, exact)
    for layer in range(len(points)):
        values, tile = _widen_for_products(points[layer], exact), 0
        for start, stop in pairwise(edges):
            squared = norms[layer, start:stop, None] + norms[layer, start:]
            squared = squared.sub_(_products(values[start:stop], values[start:], exact), alpha=2).clamp_(min=0)
            distances = squared.fill_diagonal_(0).sqrt()
            # Each point is paired only with those behind it: the same distance may be rounded differently the other way
            # round.
            own_tile = squared[:, : stop - start]
            own_tile.masked_fill_(torch.ones_like(own_tile, dtype=torch.bool).tril_(), -1)
            own = bisect(bounds, start) - 1
            reductions.sums[layer, stop:, own] += distances[:, stop - start :].sum(dim=0)
            for cluster in range(own, len(bounds) - 1):
                first, last = max(bounds[cluster], start), bounds[cluster + 1]
                behind = slice(first - start, last - start)
                reductions.sums[layer, start:stop, cluster] += distances[:, behind].sum(dim=1)
                extremes = _extremes_of_tiles(squared[:, behind], block, cluster == own)
                reductions.extremes[layer, tile : tile + len(extremes)] = extremes
                tile += len(extremes)
    return reductions


@lazy_jit
@no_type_check
def pair_distances_kernel(
    points,
    norms,
    edges,
    clusters,
    extremes,
    row_sums,
    column_sums,
    count,
    width,
    layer_stride,
    row_stride,
    blocks,
    tiles,
    first_block,
    tile_rows,
    upcast: tl.constexpr,
    block: tl.constexpr,
    block_width: tl.constexpr,
):
    """One program a tile and layer: of some rows of tiles, every column of tiles from the first of these rows on.

    Tiles below the diagonal repeat those above it: there the sums are zero, and nothing is multiplied. Neighbouring
    programs take tiles of one column, whose points they share in the cache.
    """
    program, layer = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, column = first_block + program % tile_rows, first_block + program // tile_rows
    row_start, column_start = tl.load(edges + row), tl.load(edges + column)
    rows, columns = row_start + tl.arange(0, block), column_start + tl.arange(0, block)
    rows_inside, columns_inside = rows < tl.load(edges + row + 1), columns < tl.load(edges + column + 1)
    # 33 layers of 20,000 points of 4,096 values overflow 32 bits, so the offset is computed in 64.
    own_points = points + layer * layer_stride
    lanes = tl.arange(0, block_width)[None, :]
    row_points = own_points + rows.to(tl.int64)[:, None] * row_stride + lanes
    column_points = own_points + columns.to(tl.int64)[:, None] * row_stride + lanes
    products = tl.zeros((block, block), tl.float32)
    for first in range(0, tl.where(row <= column, width, 0), block_width):
        inside = first + lanes < width
        left = tl.load(row_points + first, mask=rows_inside[:, None] & inside, other=0.0)
        right = tl.load(column_points + first, mask=columns_inside[:, None] & inside, other=0.0)
        if upcast:
            left, right = left.to(tl.float32), right.to(tl.float32)
        products = tl.dot(left, tl.trans(right), products, input_precision="ieee")
    own_norms = norms + layer * count
    row_norms = tl.load(own_norms + rows, mask=rows_inside, other=0.0)
    column_norms = tl.load(own_norms + columns, mask=columns_inside, other=0.0)
    squared = tl.maximum(row_norms[:, None] + column_norms[None, :] - 2.0 * products, 0.0)
    pairs = rows_inside[:, None] & columns_inside[None, :] & (row <= column)
    sign = tl.where(tl.load(clusters + row) == tl.load(clusters + column), 1.0, -1.0)
    # Each point is paired only with those behind it: the same distance may be rounded differently the other way round.
    signed = tl.where(pairs & (rows[:, None] < columns[None, :]), squared * sign, float("-inf"))
    largest = tl.max(tl.max(signed, axis=0), axis=0)
    wide = row.to(tl.int64)
    tile = layer * tiles + wide * blocks - wide * (wide - 1) // 2 + column - row
    # A single point has no distance but that to itself.
    tl.store(extremes + tile, tl.where(largest == float("-inf"), 0.0, tl.abs(largest)), mask=row <= column)
    distances = tl.where(pairs & (rows[:, None] != columns[None, :]), tl.sqrt(squared), 0.0)
    group_start, group_stop = tl.load(edges + first_block), tl.load(edges + first_block + tile_rows)
    group_rows = group_stop - group_start
    row_sums += (layer * (blocks - first_block) + column - first_block) * group_rows - group_start
    tl.store(row_sums + rows, tl.sum(distances, axis=1), mask=rows_inside)
    # The rows of a tile on the diagonal are its columns.
    below = tl.where(row < column, tl.sum(distances, axis=0), 0.0)
    column_sums += (layer * tile_rows + row - first_block) * (count - group_start) - group_start
    tl.store(column_sums + columns, below, mask=columns_inside)


def pair_distances(points: Float[Tensor, "layer n width"], bounds: Sequence[int], impl: str = "auto") -> PairDistances:
    """Euclidean distances between all points of each layer: their sums by cluster, and the extreme of every tile.

    Squared distances are ``|x|^2 + |y|^2 - 2 <x, y>``, not below zero, from norms summed in float64 and products
    summed in float32 (in float64 for float64 points). They are off by some 1e-7 of the squared norms where sums are
    rounded to nearest. Tensor cores cut sums off instead: squared distances of half-precision points then come out too
    large, by a share of the norms that grows with the width (2.3e-5 at 4,096 in an emulation; not measured on a card).
    So float32 points are best centred beforehand. Half-precision points are best left as they are: their products are
    exact.

    There are as many tiles as pairs of blocks, so clusters should have many more points than a handful. One
    implementation on one device gives the same numbers to the bit whenever it is asked again.

    Args:
        points: sorted by cluster, any floating dtype, finite.
        bounds: first point of each cluster, and one past the last point of all; no cluster is empty.
        impl: "torch", "triton" (bf16, float16 and float32 on a CUDA card), or "auto": Triton where it can run.

    Raises:
        ValueError: the bounds do not cut the points into clusters, or there is no such ``impl``.
        KernelUnavailable: "triton" cannot run here.
    """
    bounds = list(bounds)
    if len(bounds) < 2 or (bounds[0], bounds[-1]) != (0, points.shape[1]):
        raise ValueError(f"clusters of {points.shape[1]} points are bounded by 0 .. {points.shape[1]}, not {bounds}")
    empty = [cluster for cluster, (start, stop) in enumerate(pairwise(bounds)) if stop <= start]
    if empty:
        raise ValueError(f"cluster {empty[0]} of {len(bounds) - 1} has no points")
    if choose("pair_distances", impl, points, ELEMENT_TYPES).impl == "torch":
        return pair_distances_reference(points, bounds)
    return launch_pair_distances(points, bounds)


def launch_pair_distances(
    points: Float[Tensor, "layer n width"],
    bounds: Sequence[int],
    block: int = BLOCK,
    block_width: int | None = None,
    tile_rows: int = TILE_ROWS,
    partial_bytes: int = PARTIAL_BYTES,
) -> PairDistances:
    """Have the kernel compute everything: some rows of tiles of some layers at a time.

    The sums of tiles are added in an order that depends on nothing but the arguments.

    Args:
        points, bounds: see ``pair_distances``; not checked.
        block: points a side of a tile, a power of two; this and the others are small in tests.
        block_width: values of a point that are multiplied at a time, a power of two; None for what is best.
        tile_rows: rows of tiles of one launch.
        partial_bytes: bytes of partial sums that are held at a time, unless those of one layer take more.
    """
    if points.stride(2) != 1:
        points = points.contiguous()
    edges, firsts = cut_into_blocks(bounds, block)
    reductions = _allocate(points, edges, len(bounds) - 1)
    norms = squared_norms(points, torch.float32)
    table = torch.tensor([edges, [*_clusters(firsts), -1]], dtype=torch.int32).to(points.device)
    blocks = len(edges) - 1
    groups = [(first, min(first + tile_rows, blocks)) for first in range(0, blocks, tile_rows)]
    most = max((edges[stop] - edges[first]) * (blocks - first) for first, stop in groups)
    each = 4 * (most + tile_rows * points.shape[1])
    size = max(partial_bytes // each, 1)
    for start in range(0, len(points), size):
        layers = slice(start, start + size)
        part, sums = points[layers], reductions.sums[layers]
        for first, stop in groups:
            shapes = partial_shapes(len(part), edges, first, stop)
            row_sums, column_sums = (torch.empty(shape, dtype=torch.float32, device=points.device) for shape in shapes)
            launch_tiles(
                part,
                norms[layers],
                table,
                extremes=reductions.extremes[layers],
                row_sums=row_sums,
                column_sums=column_sums,
                first=first,
                block=block,
                block_width=block_width,
            )
            _add_partials(sums, row_sums, column_sums, edges, firsts, first)
    return reductions


def partial_shapes(
    layers: int, edges: Sequence[int], first: int, stop: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of the partial sums of the rows of tiles ``first .. stop - 1``: along each tile's rows, and its columns.

    Returns:
        [layer, column of tiles, point of these rows] and [layer, row of tiles, point of the columns], columns of tiles
        and their points counted from ``first`` on.
    """
    start = edges[first]
    return (layers, len(edges) - 1 - first, edges[stop] - start), (layers, stop - first, edges[-1] - start)


def launch_tiles(
    points: Float[Tensor, "layer n width"],
    norms: Float[Tensor, "layer n"],
    table: Int[Tensor, "2 edge"],
    extremes: Float[Tensor, "layer tile"],
    row_sums: Float[Tensor, "layer tile_column row"],
    column_sums: Float[Tensor, "layer tile_row column"],
    first: int,
    block: int = BLOCK,
    block_width: int | None = None,
) -> None:
    """Have the kernel fill the sums, every element of them, and the extremes of these rows of tiles.

    Args:
        points: the last dimension contiguous.
        norms: squared, float32, contiguous.
        table: where each block begins and the last ends; of which cluster it is, and one number more. int32,
            contiguous.
        extremes: float32, contiguous.
        row_sums, column_sums: see ``partial_shapes``; float32, contiguous.
        first: the first row of tiles.
        block, block_width: see ``launch_pair_distances``.
    """
    layers, columns, _ = row_sums.shape
    tile_rows = column_sums.shape[1]
    # An empty grid cannot be launched.
    if not layers:
        return
    # Triton launches on the current card, whichever card holds the tensors.
    with torch.cuda.device_of(points):
        pair_distances_kernel[(tile_rows * columns, layers)](
            points,
            norms,
            *table,
            extremes,
            row_sums,
            column_sums,
            *points.shape[1:],
            *points.stride()[:2],
            first + columns,
            extremes.shape[1],
            first,
            tile_rows,
            upcast=is_interpreting(),
            block=block,
            block_width=best_block_width(points) if block_width is None else block_width,
            num_warps=NUM_WARPS,
        )


def compile_variants() -> list[Variant]:
    """Compile every dtype, with points that begin at multiples of 16 elements, as in most models, and with others."""
    arguments = "points norms edges clusters extremes row_sums column_sums".split()
    numbers = "count width layer_stride row_stride blocks tiles first_block tile_rows".split()
    # The other tensors may be single layers out of several, whose addresses may be any.
    buffers = ("points", "edges", "row_sums", "column_sums")
    kinds = "*fp32 *i32 *i32 *fp32 *fp32 *fp32".split()
    return [
        Variant(
            pair_distances_kernel,
            f"{name}, {label} points",
            types={
                **dict(zip(arguments, [f"*{name}", *kinds], strict=True)),
                **dict.fromkeys(numbers, "i32"),
            },
            constants={
                "upcast": False,
                "block": BLOCK,
                "block_width": BLOCK_WIDTH if dtype.itemsize == 2 and "width" in aligned else NARROW_WIDTH,
            },
            aligned=aligned,
            instructions=("HGMMA",) if dtype.itemsize == 2 else (),
            num_warps=NUM_WARPS,
        )
        for dtype, name in ELEMENT_TYPES.items()
        for label, aligned in (
            ("aligned", (*buffers, "width", "layer_stride", "row_stride")),
            ("unaligned", buffers),
        )
    ]


def best_block_width(points: Float[Tensor, "layer n width"]) -> int:
    """The number of values of a point that are best multiplied at a time."""
    numbers = (points.data_ptr(), points.shape[2], *points.stride()[:2])
    return BLOCK_WIDTH if points.element_size() == 2 and all(number % 16 == 0 for number in numbers) else NARROW_WIDTH


def cut_into_blocks(bounds: Sequence[int], block: int) -> tuple[list[int], list[int]]:
    """Cut clusters into blocks of at most ``block`` points.

    Returns:
        The first point of every block, and one past the last point; the first block of every cluster, and one past
        the last block.
    """
    edges: list[int] = []
    firsts = [0]
    for start, stop in pairwise(bounds):
        edges += range(start, stop, block)
        firsts.append(len(edges))
    return [*edges, bounds[-1]], firsts


def squared_norms(points: Float[Tensor, "layer n width"], dtype: torch.dtype) -> Float[Tensor, "layer n"]:
    """Squared norm of every point, summed in float64; only so many points are widened at once."""
    norms = torch.empty(points.shape[:2], dtype=dtype, device=points.device)
    size = max(NORM_BYTES // (8 * max(points.shape[2], 1)), 1)
    for values, own in zip(points, norms, strict=True):
        for start in range(0, len(own), size):
            wide = values[start : start + size].double()
            own[start : start + size] = torch.linalg.vecdot(wide, wide)
    return norms


def _allocate(points: Tensor, edges: Sequence[int], clusters: int) -> PairDistances:
    """Tensors of the results: sums of zero, the blocks and tiles, and memory for the rest."""
    dtype, device = torch.promote_types(points.dtype, torch.float32), points.device
    layers, count, _ = points.shape
    ends = torch.tensor(edges, device=device)
    tiles = torch.triu_indices(len(edges) - 1, len(edges) - 1, device=device).T
    shape = (layers, len(tiles))
    return PairDistances(
        torch.zeros((layers, count, clusters), dtype=dtype, device=device),
        torch.empty(shape, dtype=dtype, device=device),
        torch.stack((ends[:-1], ends[1:]), dim=1),
        tiles,
    )


def _clusters(firsts: Sequence[int]) -> list[int]:
    """The cluster of every block."""
    return [cluster for cluster, (first, stop) in enumerate(pairwise(firsts)) for _ in range(first, stop)]


def _add_partials(
    sums: Tensor, row_sums: Tensor, column_sums: Tensor, edges: Sequence[int], firsts: Sequence[int], first: int
) -> None:
    """Add the sums of the rows of tiles from ``first`` on to those of their points, and of the points behind them."""
    stop = first + column_sums.shape[1]
    rows = slice(edges[first], edges[stop])
    for cluster in range(bisect(firsts, first) - 1, len(firsts) - 1):
        start, end = max(firsts[cluster], first), firsts[cluster + 1]
        sums[:, rows, cluster] += row_sums[:, start - first : end - first].sum(dim=1)
        # Only then does the cluster have some of these rows of tiles.
        if start < stop:
            sums[:, rows.start :, cluster] += column_sums[:, start - first : end - first].sum(dim=1)


def _widen_for_products(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``; half-precision ones as they are where the device sums their products in float32."""
    half = values.dtype in (torch.bfloat16, torch.float16)
    return values if half and values.is_cuda and can_sum_wide() else values.to(dtype)


def _products(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left @ right.T`` with sums and result in ``dtype``."""
    return left @ right.T if left.dtype == dtype else torch.ops.aten.mm.dtype(left, right.T, dtype)


def _extremes_of_tiles(squared: Float[Tensor, "row column"], block: int, greatest: bool) -> Float[Tensor, " tile"]:
    """The greatest or the least of each tile, the last of which may be ragged."""
    tiles = squared.split(block, dim=1)
    return torch.stack([tile.max() if greatest else tile.min() for tile in tiles]).clamp_(min=0)
