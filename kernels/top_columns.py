"""The largest values of long rows, searched only in the tiles that can hold them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.kernels.output_head import Unembedding, finish_logits

TILE = 128
"""Columns that have one maximum."""


def top_columns(
    values: Float[Tensor, "row column"],
    count: int,
    maxima: Float[Tensor, "row tile"] | None = None,
    head: Unembedding | None = None,
) -> tuple[Float[Tensor, "row best"], Int[Tensor, "row best"]]:
    """The largest values of each row, descending, and their columns; equal ones come in no particular order.

    The same as ``values.topk(count)``, in less time: only the ``count`` tiles of greatest maximum are searched. They
    hold ``count`` values that no value elsewhere exceeds.

    Args:
        values: [row column].
        count: number of values to return, at most as many as there are columns.
        maxima: the greatest of each ``TILE`` columns, where they are known.
        head: output head whose bias, scale and cap are still to be applied to the values; its cap changes no order, so
            the maxima may be those before it.
    """
    rows, columns = values.shape
    if not count:
        return values.new_empty((rows, 0)), torch.empty((rows, 0), dtype=torch.long, device=values.device)
    if maxima is None and count * TILE >= columns:
        best = values.topk(count)
        return best.values, best.indices
    if maxima is None:
        maxima = tile_maxima(values)
    tiles = maxima.topk(min(count, maxima.shape[1])).indices
    places = (tiles[:, :, None] * TILE + torch.arange(TILE, device=values.device)).flatten(1)
    outside = places >= columns
    places.clamp_max_(columns - 1)
    candidates = values.gather(1, places)
    if head is not None:
        finish_logits(candidates, head, None if head.bias is None else head.bias[places])
    best = candidates.masked_fill_(outside, -float("inf")).topk(count)
    return best.values, places.gather(1, best.indices)


def tile_maxima(values: Float[Tensor, "row column"]) -> Float[Tensor, "row tile"]:
    """The greatest of each ``TILE`` columns, and of those that are left over."""
    whole = values.shape[1] // TILE * TILE
    parts = [values[:, :whole].unflatten(1, (-1, TILE)).amax(dim=2)] if whole else []
    if whole < values.shape[1]:
        parts.append(values[:, whole:].amax(dim=1, keepdim=True))
    return torch.cat(parts, dim=1)


def tiles_of(columns: int) -> int:
    """The number of tiles that hold so many columns."""
    return -(-columns // TILE)
