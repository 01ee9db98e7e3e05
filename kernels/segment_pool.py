"""Sums over ragged segments of a token axis, and the dot product of pairs of rows."""

# Triton is not imported here, so annotations such as ``tl.constexpr`` must not be evaluated.
from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.kernels.dispatch import choose
from probing.kernels.jit import ELEMENT_TYPES, Variant, lazy_jit

if TYPE_CHECKING:
    import triton.language as tl

# A warp reads 256 columns of half precision in one instruction of 128 bits a lane; with 16 rows four are in flight.
BLOCK_ROWS = 16
BLOCK_COLUMNS = 256
NUM_WARPS = 4


def segment_sum_reference(
    values: Float[Tensor, "token width"], starts: Int[Tensor, " segment"], stops: Int[Tensor, " segment"]
) -> Float[Tensor, "segment width"]:
    """``segment_sum`` in plain torch: the definition.

    Each segment is reduced on its own slice, so its sum cannot depend on what else is in the batch, and no float32
    copy of half-precision states is made.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    if not len(starts):
        return values.new_zeros((0, values.shape[1]), dtype=dtype)
    bounds = zip(starts.tolist(), stops.tolist(), strict=True)
    return torch.stack([values[start:stop].sum(dim=0, dtype=dtype) for start, stop in bounds])


@lazy_jit
@no_type_check
def segment_sum_kernel(values, ends, sums, width, row_stride, block_rows: tl.constexpr, block_columns: tl.constexpr):
    """One program a segment and block of columns: the order of the sum depends on nothing else."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    inside = columns < width
    start = tl.load(ends + 2 * segment)
    stop = tl.load(ends + 2 * segment + 1)
    # Row i of the tile sums the rows start + i, start + i + block_rows, ..., so that the loop holds no reduction.
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for first in range(start, stop, block_rows):
        # 33 layers of 20,000 rows of 4,096 values overflow 32 bits, so the offset is computed in 64.
        rows = (first + tl.arange(0, block_rows)).to(tl.int64)
        mask = (rows < stop)[:, None] & inside[None, :]
        tile = tl.load(values + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)
        total += tile.to(tl.float32)
    tl.store(sums + segment * width + columns, tl.sum(total, axis=0), mask=inside)


def segment_sum(
    values: Float[Tensor, "token width"],
    starts: Int[Tensor, " segment"],
    stops: Int[Tensor, " segment"],
    impl: str = "auto",
    ends: Int[Tensor, "segment 2"] | None = None,
) -> Float[Tensor, "segment width"]:
    """Sum of the rows ``starts[i] .. stops[i] - 1`` for each segment, accumulated in float32.

    Accumulating in bf16 loses every digit within a few hundred rows. A sum depends on no row outside its segment, and
    for one implementation and device not on the other segments either, to the bit.

    Args:
        values: token states, any floating dtype.
        starts: first row of each segment; best on the CPU, since bounds on a card have to be waited for.
        stops: one past the last row of each segment; an empty segment sums to zero. Segments may overlap.
        impl: "torch", "triton" (bf16, float16 and float32 on a CUDA card), or "auto": Triton where it can run.
        ends: starts and stops once more, int64 on the device of ``values``, where they are there already.

    Returns:
        float32 sums (float64 for float64 states), on the device of ``values``.

    Raises:
        ValueError: a segment reaches outside ``values`` or ends before it starts, or there is no such ``impl``.
        KernelUnavailable: "triton" cannot run here.
    """
    starts, stops = starts.cpu(), stops.cpu()
    _check_bounds(starts, stops, len(values))
    if choose("segment_sum", impl, values, ELEMENT_TYPES).impl == "torch":
        return segment_sum_reference(values, starts, stops)
    sums = torch.empty((len(starts), values.shape[1]), dtype=torch.float32, device=values.device)
    launch_segment_sum(values, starts, stops, sums, ends)
    return sums


def launch_segment_sum(
    values: Float[Tensor, "token width"],
    starts: Int[Tensor, " segment"],
    stops: Int[Tensor, " segment"],
    sums: Float[Tensor, "segment width"],
    ends: Int[Tensor, "segment 2"] | None = None,
) -> None:
    """Have the kernel fill ``sums`` (float32, contiguous), every element of it. Bounds are not checked here."""
    segments, width = sums.shape
    # An empty grid cannot be launched.
    if sums.numel() == 0:
        return
    if values.stride(1) != 1:
        values = values.contiguous()
    ends = torch.stack((starts, stops), dim=1).long() if ends is None else ends
    if values.is_cuda and not ends.is_cuda:
        # A copy from pinned memory is queued; from other memory the host would wait for the card.
        ends = ends.pin_memory().to(values.device, non_blocking=True)
    grid = (segments, -(-width // BLOCK_COLUMNS))
    # Triton launches on the current card, whichever card holds the tensors.
    with torch.cuda.device_of(values):
        segment_sum_kernel[grid](
            values,
            ends,
            sums,
            width,
            values.stride(0),
            block_rows=BLOCK_ROWS,
            block_columns=BLOCK_COLUMNS,
            num_warps=NUM_WARPS,
        )


def compile_variants() -> list[Variant]:
    """Compile every dtype, with rows that begin at multiples of 16 elements, as in most models, and with others."""
    variants = []
    for name in ELEMENT_TYPES.values():
        for aligned in (("values", "ends", "sums", "width", "row_stride"), ("values", "ends", "sums")):
            vectors = "row_stride" in aligned
            variants.append(
                Variant(
                    segment_sum_kernel,
                    f"{name} {'aligned' if vectors else 'unaligned'} rows",
                    types={"values": f"*{name}", "ends": "*i64", "sums": "*fp32", "width": "i32", "row_stride": "i32"},
                    constants={"block_rows": BLOCK_ROWS, "block_columns": BLOCK_COLUMNS},
                    aligned=aligned,
                    instructions=("LDG.128",) if vectors else (),
                    num_warps=NUM_WARPS,
                )
            )
    return variants


def _check_bounds(starts: Tensor, stops: Tensor, tokens: int) -> None:
    if len(starts) != len(stops):
        raise ValueError(f"{len(starts)} segments start and {len(stops)} stop")
    outside = ((starts < 0) | (stops < starts) | (stops > tokens)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(f"segment {starts[first]}:{stops[first]} does not lie within {tokens} tokens")


def pair_dot(left: Float[Tensor, "*axes width"], right: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes"]:
    """Dot product over the last axis in float64, whatever the inputs' dtype.

    Scores are small differences of large products: with one massive dimension a float32 dot is off by 2e-3.
    """
    return (left.double() * right.double()).sum(dim=-1)
