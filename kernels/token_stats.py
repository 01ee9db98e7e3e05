"""What a language model says of tokens, from its last states: log-probability, rank, entropy; no logits are kept."""

from __future__ import annotations  # triton is not imported here, so ``tl.constexpr`` must not be looked up

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.kernels.dispatch import choose
from probing.kernels.jit import ELEMENT_TYPES, Variant, lazy_jit

if TYPE_CHECKING:
    import triton.language as tl

Parity = Literal["bf16"]
CPU_LOGIT_BYTES = 1 << 26
"""Logits of one chunk of rows. In smaller chunks the matrix product is slower: it packs the unembedding every time."""
CUDA_ROWS = 2048
LEAST_ROWS = 16
"""A matrix product of fewer rows rounds differently from one of many."""
MOST_ROWS = 2048
VOCABULARY_SLICE = 4096
"""Rows of a half-precision unembedding that are widened together on a CPU."""
MASKED = -1e30
"""Stands for minus infinity, which would make the entropy 0 x inf."""
ROW_TYPES = {torch.float32: ELEMENT_TYPES[torch.float32]}
"""Logits that the Triton form of ``row_stats`` takes."""
# 32 columns a thread, read in eight instructions of 128 bits; a vocabulary of 128k is 16 blocks.
BLOCK_COLUMNS = 8192
NUM_WARPS = 8


@dataclass(frozen=True, eq=False)
class Unembedding:
    """How states become logits: ``z = (h W' + b) scale``, then ``cap tanh(z / cap)`` where there is a cap.

    Attributes:
        weight: W, [vocabulary width].
        bias: b, [vocabulary]; minus infinity takes a token out.
        scale: multiplies what the head returns (Cohere, Granite).
        soft_cap: no logit is larger (Gemma 2); None where there is none.

    Raises:
        ValueError: shapes that do not belong together, or a cap that is not positive.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or (self.bias is not None and self.bias.shape != self.weight.shape[:1]):
            shape = None if self.bias is None else tuple(self.bias.shape)
            raise ValueError(f"weight is [vocabulary width] and bias [vocabulary], not {self.weight.shape} and {shape}")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"a soft cap is positive, not {self.soft_cap}")


class TokenStats(NamedTuple):
    """What a model says of each target.

    Attributes:
        logprob: ln p(target), natural logarithm, [token]; float32, or float64 for float64 states. NaN where ignored.
        rank: 1 + the number of other tokens with a larger logit, [token] int64. 0 where ignored.
        entropy: of the whole distribution, in nats, [token].
        top_logprob: of the most likely tokens, descending, [token top].
        top_ids: which they are; equally likely ones come in no particular order.
    """

    logprob: Tensor
    rank: Tensor
    entropy: Tensor
    top_logprob: Tensor
    top_ids: Tensor


class RowStats(NamedTuple):
    """Of one chunk of logits: as in ``TokenStats``, and ln of the sum of exp(logit), each [row]."""

    logprob: Tensor
    rank: Tensor
    entropy: Tensor
    logsumexp: Tensor


def row_stats_reference(
    logits: Float[Tensor, "row vocabulary"], targets: Int[Tensor, " row"], scratch: Tensor | None = None
) -> RowStats:
    """``row_stats`` in plain torch: the definition. Writes over ``logits``, and ``scratch`` of the same shape."""
    target = logits.gather(1, targets[:, None])
    # As numbers: adding up truth values is several times slower. No target is larger than itself.
    rank = torch.gt(logits, target, out=torch.empty_like(logits) if scratch is None else scratch).sum(dim=1)
    largest = logits.amax(dim=1, keepdim=True)
    shifted = logits.sub_(largest)
    weights = torch.exp(shifted, out=scratch)
    total = weights.sum(dim=1)
    entropy = total.log() - torch.linalg.vecdot(weights, shifted) / total
    logprob = (target - largest)[:, 0] - total.log()
    return RowStats(logprob, rank.long() + 1, entropy, largest[:, 0] + total.log())


@lazy_jit
@no_type_check
def row_stats_kernel(
    logits, targets, logprob, rank, entropy, logsumexp, width, row_stride, block_columns: tl.constexpr
):
    """One program a row, which it reads once: the sums are scaled down whenever a block holds a larger logit."""
    row = tl.program_id(0).to(tl.int64)  # 2,048 rows of 2**20 columns overflow 32 bits
    first_logit = logits + row * row_stride
    target = tl.load(first_logit + tl.load(targets + row))
    largest = target  # not minus infinity, of which 0 x inf could come
    total = 0.0  # of exp(z - largest)
    moment = 0.0  # of exp(z - largest) (z - largest)
    larger = 0
    for first in range(0, width, block_columns):
        columns = first + tl.arange(0, block_columns)
        inside = columns < width
        # A column beyond the last holds the target's logit: not larger than the target's, nor than the largest.
        block = tl.load(first_logit + columns, mask=inside, other=target)
        before = largest
        # The maximum of Triton passes over NaN, but its own weight is NaN, and so is every sum from there on.
        largest = tl.maximum(largest, tl.max(block, axis=0))
        shifted = block - largest
        weights = tl.where(inside, tl.exp(shifted), 0.0)
        scale = tl.exp(before - largest)
        moment = (moment + total * (before - largest)) * scale + tl.sum(weights * shifted, axis=0)
        total = total * scale + tl.sum(weights, axis=0)
        # The target's own column is read again as the number it was, so it is not larger.
        larger += tl.sum((block > target).to(tl.int32), axis=0)
    log_total = tl.log(total)
    tl.store(logprob + row, (target - largest) - log_total)
    tl.store(rank + row, larger.to(tl.int64) + 1)
    tl.store(entropy + row, log_total - moment / total)
    tl.store(logsumexp + row, largest + log_total)


def row_stats(
    logits: Float[Tensor, "row vocabulary"],
    targets: Int[Tensor, " row"],
    impl: str = "auto",
    scratch: Tensor | None = None,
) -> RowStats:
    """Log-probability, rank, entropy and log of the sum of exp, row by row.

    Args:
        logits: float32 or float64, finite or NaN. The torch form writes over them. One NaN makes all of its row NaN
            but the rank, which does not count it.
        targets: a column for each row, int64; not checked.
        impl: "torch", "triton" (float32 on a CUDA card), or "auto": Triton where it can run.
        scratch: of the shape and dtype of ``logits``, so that the torch form allocates nothing of that size.

    Raises:
        KernelUnavailable: "triton" cannot run here.
    """
    if choose("row_stats", impl, logits, ROW_TYPES).impl == "torch":
        return row_stats_reference(logits, targets, scratch)
    logprob, entropy, logsumexp = (logits.new_empty(len(logits)) for _ in range(3))
    stats = RowStats(logprob, targets.new_empty(len(logits), dtype=torch.long), entropy, logsumexp)
    launch_row_stats(logits, targets, stats)
    return stats


def launch_row_stats(
    logits: Float[Tensor, "row vocabulary"],
    targets: Int[Tensor, " row"],
    stats: RowStats,
    block_columns: int = BLOCK_COLUMNS,
) -> None:
    """Have the kernel fill ``stats`` (float32 and int64, contiguous), every element of it.

    Args:
        logits: float32.
        targets: a column for each row, int64; not checked.
        stats: to be filled.
        block_columns: how many columns are held at a time, a power of two; small ones are for tests.
    """
    if not len(logits):  # an empty grid cannot be launched
        return
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    with torch.cuda.device_of(logits):  # Triton launches on the current card, whichever holds the tensors
        row_stats_kernel[(len(logits),)](
            logits,
            targets.contiguous(),
            *stats,
            logits.shape[1],
            logits.stride(0),
            block_columns=block_columns,
            num_warps=NUM_WARPS,
        )


def compile_variants() -> list[Variant]:
    """Vocabularies of a multiple of 16 tokens, as nearly all that are padded have, and others."""
    arguments = "logits targets logprob rank entropy logsumexp width row_stride".split()
    kinds = "*fp32 *i64 *fp32 *i64 *fp32 *fp32 i32 i32".split()
    return [
        Variant(
            row_stats_kernel,
            label,
            types=dict(zip(arguments, kinds, strict=True)),
            constants={"block_columns": BLOCK_COLUMNS},
            aligned=aligned,
            instructions=instructions,
            num_warps=NUM_WARPS,
        )
        for label, aligned, instructions in (
            ("aligned rows", tuple(arguments), ("LDG.128",)),
            ("unaligned rows", tuple(arguments[:-2]), ()),
        )
    ]


def token_stats(
    hidden: Float[Tensor, "token width"],
    unembedding: Unembedding | Float[Tensor, "vocabulary columns"],
    targets: Int[Tensor, " target"],
    *,
    top: int = 0,
    parity: Parity | None = None,
    impl: str = "auto",
) -> TokenStats:
    """Log-probability, rank and entropy of target tokens, from the states that predict them.

    Logits are made for a chunk of rows at a time, in float32 whatever the states' dtype, and only numbers per row are
    kept: peak memory does not depend on the number of tokens. In bf16, log-probabilities would be off by about .02 and
    one rank in six to ten would be wrong.

    Args:
        hidden: states after the final norm, any floating dtype.
        unembedding: the output head; a weight alone, as wide as the states, is a head without bias, scale or cap.
        targets: token ids, one a state. Negative ones (-100 in a trainer's labels) are ignored: their log-probability
            is NaN.
        top: how many of the most likely tokens to name.
        parity: "bf16" rounds states, weights and logits to bf16, after each thing that happens to them, to reproduce
            numbers that were published that way.
        impl: for the statistics of a row of logits: see ``row_stats``.

    Raises:
        ValueError: shapes that do not belong together, a target beyond the vocabulary.
        KernelUnavailable: ``impl="triton"`` cannot run here.

    Source: the rank is that of arXiv 2601.14249; log-probabilities are those of a DPO trainer (arXiv 2305.18290).
    """
    head = unembedding if isinstance(unembedding, Unembedding) else Unembedding(unembedding)
    vocabulary, width = head.weight.shape
    if hidden.shape[1] != width or len(hidden) != len(targets):
        raise ValueError(
            f"{len(targets)} targets and states of shape {tuple(hidden.shape)} do not fit an unembedding of shape "
            f"{tuple(head.weight.shape)}"
        )
    if not 0 <= top <= vocabulary:
        raise ValueError(f"the top {top} of {vocabulary} tokens cannot be named")
    if len(targets) and int(targets.max()) >= vocabulary:
        raise ValueError(f"target {int(targets.max())} is not among the {vocabulary} tokens of the unembedding")
    targets = targets.to(hidden.device)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    stats = TokenStats(
        hidden.new_empty(len(hidden), dtype=exact),
        targets.new_empty(len(hidden), dtype=torch.long),
        hidden.new_empty(len(hidden), dtype=exact),
        hidden.new_empty((len(hidden), top), dtype=exact),
        targets.new_empty((len(hidden), top), dtype=torch.long),
    )
    scratch: Tensor | None = None
    for rows, logits in logit_chunks(hidden, head, parity):
        best = logits.topk(top) if top else None  # before the logits are written over
        if not hidden.is_cuda:  # there the kernel needs none
            scratch = torch.empty_like(logits) if scratch is None else scratch[: len(logits)]
        found = row_stats(logits, targets[rows].clamp_min(0), impl, scratch)
        for whole, part in zip(stats[:3], found[:3], strict=True):
            whole[rows] = part
        if best is not None:
            stats.top_logprob[rows] = best.values - found.logsumexp[:, None]
            stats.top_ids[rows] = best.indices
    ignored = targets < 0
    stats.logprob[ignored] = float("nan")
    stats.logprob[stats.logprob < MASKED / 2] = -float("inf")
    stats.rank[ignored] = 0
    return stats


def logit_chunks(
    hidden: Float[Tensor, "token width"], head: Unembedding, parity: Parity | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Logits of consecutive rows, [row vocabulary], in a buffer that the next ones are written into.

    Yields:
        Which rows, and their logits: float32, or float64 for float64 states.
    """
    vocabulary = len(head.weight)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    size = rows_at_a_time(hidden, vocabulary)
    buffer: Tensor | None = None
    for start in range(0, len(hidden), size):
        rows = hidden[start : start + size]
        missing = LEAST_ROWS - len(rows)
        filled = torch.cat([rows, rows[:1].expand(missing, -1)]) if missing > 0 else rows
        if buffer is None:
            buffer = torch.empty((len(filled), vocabulary), dtype=dtype, device=hidden.device)
        logits_into(buffer[: len(filled)], filled, head, slice(0, vocabulary), parity)
        yield slice(start, start + len(rows)), buffer[: len(rows)]


def rows_at_a_time(hidden: Tensor, vocabulary: int) -> int:
    """How many rows of logits are made together."""
    if hidden.device.type == "cuda":
        return CUDA_ROWS
    return min(max(CPU_LOGIT_BYTES // (4 * vocabulary), LEAST_ROWS), MOST_ROWS)


def logits_into(
    out: Tensor,
    hidden: Float[Tensor, "row width"],
    head: Unembedding,
    columns: slice,
    parity: Parity | None = None,
) -> None:
    """Fill ``out``, [row column], with the logits of some columns of the vocabulary."""
    weight = head.weight[columns]

    def rounded() -> None:
        if parity is not None:
            out.copy_(out.bfloat16())

    if parity is not None:
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    _product_into(out, hidden, weight)
    if head.bias is not None:
        out += head.bias[columns].to(out)
    rounded()
    if head.scale != 1.0:
        out *= head.scale
        rounded()
    if head.bias is not None:
        out.clamp_min_(MASKED)
    if head.soft_cap is not None:
        for step in (lambda: out.div_(head.soft_cap), out.tanh_, lambda: out.mul_(head.soft_cap)):
            step()
            rounded()


def _product_into(out: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """``hidden @ weight.T`` with sums and result in the dtype of ``out``."""
    if hidden.dtype == weight.dtype == out.dtype:
        torch.mm(hidden, weight.T, out=out)
    elif out.is_cuda and hidden.dtype == weight.dtype and hasattr(torch.ops.aten.mm, "dtype_out"):
        torch.ops.aten.mm.dtype_out(hidden, weight.T, out.dtype, out=out)  # half precision in, float32 sums out
    else:
        wide = hidden.to(out.dtype)
        for start in range(0, len(weight), VOCABULARY_SLICE):
            part = slice(start, start + VOCABULARY_SLICE)
            out[:, part] = wide @ weight[part].to(out.dtype).T
