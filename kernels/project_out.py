"""Removal of a direction, or of a subspace of a few, from states: one for all rows, or one a row."""

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

# A program holds a tile of [rank, columns] sums; a power of two each.
TILE = 1024
LEAST_COLUMNS = 128
MOST_RANK = 32
NUM_WARPS = 4


def project_out_reference(
    states: Float[Tensor, "token width"],
    basis: Float[Tensor, "*direction rank width"],
    rows: Int[Tensor, " token"] | None = None,
    coefficient: float = 1.0,
) -> Float[Tensor, "token width"]:
    """``project_out`` in plain torch: the definition."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    basis = basis.to(wide.dtype)
    # A caller's autocast would compute the products in half precision.
    with torch.autocast(states.device.type, enabled=False):
        if rows is None:
            return (wide - coefficient * ((wide @ basis.T) @ basis)).to(states.dtype)
        own = basis[rows.clamp(min=0)]
        removed = torch.einsum("tk,tkw->tw", torch.einsum("tw,tkw->tk", wide, own), own)
    return torch.where((rows < 0)[:, None], states, (wide - coefficient * removed).to(states.dtype))


@lazy_jit
@no_type_check
def project_out_kernel(
    states,
    basis,
    rows,
    projected,
    coefficient,
    width,
    rank,
    state_stride,
    projected_stride,
    block_rank: tl.constexpr,
    block_columns: tl.constexpr,
):
    """One program a token: it reads its whole row before it writes any of it, so both may be the same memory."""
    token = tl.program_id(0).to(tl.int64)
    which = tl.load(rows + token).to(tl.int64)
    own = basis + tl.maximum(which, 0) * rank * width
    vectors = tl.arange(0, block_rank)
    total = tl.zeros((block_rank, block_columns), tl.float32)
    for first in range(0, width, block_columns):
        columns = first + tl.arange(0, block_columns)
        inside = columns < width
        mask = (vectors < rank)[:, None] & inside[None, :]
        tile = tl.load(own + vectors[:, None] * width + columns[None, :], mask=mask, other=0.0)
        row = tl.load(states + token * state_stride + columns, mask=inside, other=0.0).to(tl.float32)
        total += tile * row[None, :]
    components = tl.sum(total, axis=1) * coefficient
    for first in range(0, width, block_columns):
        columns = first + tl.arange(0, block_columns)
        inside = columns < width
        mask = (vectors < rank)[:, None] & inside[None, :]
        tile = tl.load(own + vectors[:, None] * width + columns[None, :], mask=mask, other=0.0)
        row = tl.load(states + token * state_stride + columns, mask=inside, other=0.0).to(tl.float32)
        left = row - tl.sum(tile * components[:, None], axis=0)
        tl.store(projected + token * projected_stride + columns, tl.where(which < 0, row, left), mask=inside)


def project_out(
    states: Float[Tensor, "token width"],
    basis: Float[Tensor, "*direction rank width"],
    rows: Int[Tensor, " token"] | None = None,
    impl: str = "auto",
    *,
    coefficient: float = 1.0,
    in_place: bool = False,
) -> Float[Tensor, "token width"]:
    """States without their components along orthonormal vectors: x - c sum_k (x . r_k) r_k.

    The components are summed in float32 (float64 for float64 states), whatever the dtype of the states.

    Args:
        states: any floating dtype.
        basis: orthonormal rows, [rank width]; or [direction rank width], of which each token has its own.
        rows: index of the direction of each token, -1 for a token that stays as it is. Needed with several directions.
        impl: "torch", "triton" (bf16, float16 and float32 on a CUDA card, up to rank 32), or "auto": Triton where it
            can run. The Triton form has not been measured on a card yet.
        coefficient: the share of the component that is removed; 2 reflects the states.
        in_place: whether the result is written into ``states``, which is then also returned.

    Returns:
        The projected states in the dtype of ``states``.

    Raises:
        ValueError: a basis and rows that do not fit one another, an index out of range, or there is no such ``impl``.
        KernelUnavailable: "triton" cannot run here.
    """
    _check(states, basis, rows)
    chosen = choose("project_out", impl, states, ELEMENT_TYPES).impl
    if chosen == "torch" or basis.shape[-2] > MOST_RANK:
        projected = project_out_reference(states, basis, rows, coefficient)
        return states.copy_(projected) if in_place else projected
    projected = states if in_place else torch.empty(states.shape, dtype=states.dtype, device=states.device)
    launch_project_out(states, basis, rows, projected, coefficient)
    return projected


def launch_project_out(
    states: Float[Tensor, "token width"],
    basis: Float[Tensor, "*direction rank width"],
    rows: Int[Tensor, " token"] | None,
    projected: Float[Tensor, "token width"],
    coefficient: float = 1.0,
) -> None:
    """Have the kernel fill ``projected``, which may be ``states``; nothing is checked here."""
    tokens, width = states.shape
    # An empty grid cannot be launched.
    if states.numel() == 0:
        return
    source = states if states.stride(1) == 1 else states.contiguous()
    target = projected if projected.stride(1) == 1 else torch.empty_like(source)
    basis = basis.to(device=states.device, dtype=torch.float32).contiguous()
    rows = torch.zeros(tokens, dtype=torch.int32) if rows is None else rows
    rank = basis.shape[-2]
    block_rank = 1 << (rank - 1).bit_length()
    # Triton launches on the current card, whichever card holds the tensors.
    with torch.cuda.device_of(states):
        project_out_kernel[(tokens,)](
            source,
            basis,
            rows.to(device=states.device, dtype=torch.int32).contiguous(),
            target,
            float(coefficient),
            width,
            rank,
            source.stride(0),
            target.stride(0),
            block_rank=block_rank,
            block_columns=max(LEAST_COLUMNS, TILE // block_rank),
            num_warps=NUM_WARPS,
        )
    if target is not projected:
        projected.copy_(target)


def compile_variants() -> list[Variant]:
    """Compile every dtype, for one direction and for the largest rank, and rows that begin at other addresses."""
    variants = []
    for name in ELEMENT_TYPES.values():
        for rank, vectors in ((1, True), (1, False), (MOST_RANK, True)):
            pointers = {"states": f"*{name}", "basis": "*fp32", "rows": "*i32", "projected": f"*{name}"}
            numbers = dict.fromkeys(("width", "rank", "state_stride", "projected_stride"), "i32")
            aligned = (*pointers, *(("width", "state_stride", "projected_stride") if vectors else ()))
            variants.append(
                Variant(
                    project_out_kernel,
                    f"{name} rank {rank} {'aligned' if vectors else 'unaligned'} rows",
                    types={**pointers, "coefficient": "fp32", **numbers},
                    constants={"block_rank": rank, "block_columns": max(LEAST_COLUMNS, TILE // rank)},
                    aligned=aligned,
                    instructions=("LDG.128",) if vectors else (),
                    num_warps=NUM_WARPS,
                )
            )
    return variants


def _check(states: Tensor, basis: Tensor, rows: Tensor | None) -> None:
    if basis.shape[-1] != states.shape[-1]:
        raise ValueError(f"a basis of width {basis.shape[-1]} for states of width {states.shape[-1]}")
    if (basis.ndim == 3) != (rows is not None):
        raise ValueError("several directions need the index of each token's, and one direction for all needs none")
    # Indices on a card are not waited for.
    if (
        rows is not None
        and not rows.is_cuda
        and len(rows)
        and not -1 <= int(rows.min()) <= int(rows.max()) < len(basis)
    ):
        raise ValueError(f"rows name directions from {rows.min()} to {rows.max()}, and there are {len(basis)}")
