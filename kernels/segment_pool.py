"""Sums over ragged segments of a token axis, and the dot product of pairs of rows.

These are the plain forms, the definition that any faster implementation has to equal.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(
    values: Float[Tensor, "token width"], starts: Int[Tensor, " segment"], stops: Int[Tensor, " segment"]
) -> Float[Tensor, "segment width"]:
    """Sum of the rows ``starts[i] .. stops[i] - 1`` for each segment, accumulated in float32.

    Each segment is reduced on its own slice, so its sum cannot depend on what else is in the batch, and no float32
    copy of half-precision states is made. Accumulating in bf16 loses every digit within a few hundred rows.

    Args:
        values: token states, any floating dtype.
        starts: first row of each segment.
        stops: one past its last row; an empty segment sums to zero. Segments may overlap.

    Returns:
        float32 sums (float64 for float64 states), on the device of ``values``.

    Raises:
        ValueError: a segment reaches outside ``values`` or ends before it starts.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    bounds = list(zip(starts.tolist(), stops.tolist(), strict=True))
    for start, stop in bounds:
        if not 0 <= start <= stop <= len(values):
            raise ValueError(f"segment {start}:{stop} does not lie within {len(values)} tokens")
    if not bounds:
        return values.new_zeros((0, values.shape[1]), dtype=dtype)
    return torch.stack([values[start:stop].sum(dim=0, dtype=dtype) for start, stop in bounds])


def pair_dot(left: Float[Tensor, "*axes width"], right: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes"]:
    """Dot product over the last axis in float64, whatever the inputs' dtype.

    Scores are small differences of large products: with one massive dimension a float32 dot is off by 2e-3.
    """
    return (left.double() * right.double()).sum(dim=-1)
