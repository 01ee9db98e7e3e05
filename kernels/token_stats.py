"""What a language model says of tokens, from its last states: log-probability, rank, entropy; no logits are kept."""

# Triton is not imported here, so annotations such as ``tl.constexpr`` must not be evaluated.
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.kernels.dispatch import choose
from probing.kernels.jit import ELEMENT_TYPES, Variant, lazy_jit
from probing.kernels.output_head import (
    MASKED,
    Parity,
    Unembedding,
    chunk_logits,
    chunks_of,
    count_rows_at_a_time,
    finish_logits,
    logit_buffers,
    with_fewer_rows,
)
from probing.kernels.side_by_side import BUFFERS, run_in_turn, run_side_by_side, second_stream
from probing.kernels.top_columns import TILE, tiles_of, top_columns

if TYPE_CHECKING:
    import triton.language as tl

TWO_STREAMS = True
"""Whether a card computes the product of one chunk while it takes the statistics of the chunk before; otherwise it does
one after the other."""
ROW_TYPES = {torch.float32: ELEMENT_TYPES[torch.float32]}
"""Logits that the Triton form of ``row_stats`` takes."""
# Each thread reads 32 columns in eight instructions of 128 bits; a vocabulary of 128k is 16 blocks.
BLOCK_COLUMNS = 8192
NUM_WARPS = 8


class TokenStats(NamedTuple):
    """Statistics of each target token under a model.

    Attributes:
        logprob: ln p(target), natural logarithm, [token]; float32, or float64 for float64 states. NaN where ignored.
        rank: 1 + the number of other tokens with a larger logit, [token] int64. 0 where ignored.
        entropy: entropy of the whole distribution, in nats, [token].
        top_logprob: log-probability of the most likely tokens, descending, [token top].
        top_ids: ids of the most likely tokens; equally likely ones come in no particular order.
        logsumexp: ln of the sum of exp(logit), [token]; a logit less this is a log-probability.
    """

    logprob: Tensor
    rank: Tensor
    entropy: Tensor
    top_logprob: Tensor
    top_ids: Tensor
    logsumexp: Tensor

    def __repr__(self) -> str:
        return f"TokenStats({len(self.logprob)} tokens, top {self.top_ids.shape[-1]}, on {self.logprob.device})"


class RowStats(NamedTuple):
    """Statistics of one chunk of logits, as in ``TokenStats``, each [row]."""

    logprob: Tensor
    rank: Tensor
    entropy: Tensor
    logsumexp: Tensor


def row_stats_reference(
    logits: Float[Tensor, "row vocabulary"], targets: Int[Tensor, " row"], scratch: Tensor | None = None
) -> RowStats:
    """``row_stats`` in plain torch: the definition. Writes over ``logits``, and ``scratch`` of the same shape."""
    target = logits.gather(1, targets[:, None])
    # Converted to numbers, since summing booleans is several times slower. No target is larger than itself.
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
    logits,
    bias,
    targets,
    logprob,
    rank,
    entropy,
    logsumexp,
    maxima,
    width,
    row_stride,
    scale,
    soft_cap,
    masked,
    tile: tl.constexpr,
    block_columns: tl.constexpr,
    has_bias: tl.constexpr,
    has_cap: tl.constexpr,
    has_maxima: tl.constexpr,
):
    """One program a row, which it reads once: the sums are scaled down whenever a block holds a larger logit.

    Bias, scale and cap are applied to the logits that are read; maxima are taken before the cap, which changes no
    order.
    """
    # 2,048 rows of 2**20 columns overflow 32 bits, so the offset is computed in 64.
    row = tl.program_id(0).to(tl.int64)
    first_logit = logits + row * row_stride
    tiles = tl.cdiv(width, tile)
    column = tl.load(targets + row)
    uncapped = tl.load(first_logit + column)
    if has_bias:
        uncapped = (uncapped + tl.load(bias + column)) * scale
        # Triton's maximum would ignore NaN; this comparison keeps it.
        uncapped = tl.where(uncapped < masked, masked, uncapped)
    else:
        uncapped *= scale
    target = uncapped
    if has_cap:
        # exp of minus the absolute value cannot overflow.
        decay = tl.exp(-2.0 * tl.abs(target) / soft_cap)
        target = tl.where(target < 0, -soft_cap, soft_cap) * (1.0 - decay) / (1.0 + decay)
    # Starting from minus infinity, 0 x inf could give NaN.
    largest = target
    # ``total`` is the sum of exp(z - largest), ``moment`` that of exp(z - largest) (z - largest).
    total = 0.0
    moment = 0.0
    larger = 0
    for first in range(0, width, block_columns):
        columns = first + tl.arange(0, block_columns)
        inside = columns < width
        block = tl.load(first_logit + columns, mask=inside, other=0.0)
        if has_bias:
            block = (block + tl.load(bias + columns, mask=inside, other=0.0)) * scale
            block = tl.where(block < masked, masked, block)
        else:
            block *= scale
        # The target's own column is computed again to the same number, so it is not larger.
        larger += tl.sum((inside & (block > uncapped)).to(tl.int32), axis=0)
        if has_maxima:
            of_tiles = tl.reshape(tl.where(inside, block, float("-inf")), (block_columns // tile, tile))
            at = first // tile + tl.arange(0, block_columns // tile)
            tl.store(maxima + row * tiles + at, tl.max(of_tiles, axis=1), mask=at < tiles)
        if has_cap:
            decays = tl.exp(-2.0 * tl.abs(block) / soft_cap)
            block = tl.where(block < 0, -soft_cap, soft_cap) * (1.0 - decays) / (1.0 + decays)
        # Columns beyond the last one hold the target's logit, which is not larger than the largest.
        block = tl.where(inside, block, target)
        before = largest
        # Triton's maximum ignores NaN, but exp of a NaN logit is NaN, and so is every sum from there on.
        largest = tl.maximum(largest, tl.max(block, axis=0))
        shifted = block - largest
        weights = tl.where(inside, tl.exp(shifted), 0.0)
        fade = tl.exp(before - largest)
        moment = (moment + total * (before - largest)) * fade + tl.sum(weights * shifted, axis=0)
        total = total * fade + tl.sum(weights, axis=0)
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
    head: Unembedding | None = None,
) -> RowStats:
    """Log-probability, rank, entropy and log of the sum of exp, row by row.

    Args:
        logits: float32 or float64, finite or NaN. The torch form writes over them. One NaN makes all of its row NaN
            but the rank, which does not count it.
        targets: a column for each row, int64; not checked.
        impl: "torch", "triton" (float32 on a CUDA card), or "auto": Triton where it can run.
        scratch: tensor of the shape and dtype of ``logits``, so that the torch form allocates nothing of that size.
        head: output head whose bias, scale and cap are still to be applied; None where the logits are finished.

    Raises:
        KernelUnavailable: "triton" cannot run here.
    """
    if choose("row_stats", impl, logits, ROW_TYPES).impl == "torch":
        if head is not None:
            finish_logits(logits, head, head.bias)
        return row_stats_reference(logits, targets, scratch)
    logprob, entropy, logsumexp = (logits.new_empty(len(logits)) for _ in range(3))
    stats = RowStats(logprob, targets.new_empty(len(logits), dtype=torch.long), entropy, logsumexp)
    launch_row_stats(logits, targets, stats, head)
    return stats


def launch_row_stats(
    logits: Float[Tensor, "row vocabulary"],
    targets: Int[Tensor, " row"],
    stats: RowStats,
    head: Unembedding | None = None,
    maxima: Float[Tensor, "row tile"] | None = None,
    block_columns: int = BLOCK_COLUMNS,
) -> None:
    """Have the kernel fill ``stats`` (float32 and int64, contiguous), every element of it.

    Args:
        logits: float32; they are left as they are.
        targets: a column for each row, int64; not checked.
        stats: tensors that the kernel fills.
        head: output head whose bias, scale and cap are still to be applied.
        maxima: tensor that is filled with the largest logit, before the cap, of every ``TILE`` columns; contiguous.
        block_columns: number of columns that are held at a time, a power of two; small ones are for tests.
    """
    # An empty grid cannot be launched.
    if not len(logits):
        return
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    bias = None if head is None or head.bias is None else head.bias.to(logits).contiguous()
    cap = None if head is None else head.soft_cap
    # Triton launches on the current card, whichever card holds the tensors.
    with torch.cuda.device_of(logits):
        row_stats_kernel[(len(logits),)](
            logits,
            logits if bias is None else bias,
            targets.contiguous(),
            *stats,
            stats.logprob if maxima is None else maxima,
            logits.shape[1],
            logits.stride(0),
            1.0 if head is None else float(head.scale),
            1.0 if cap is None else float(cap),
            MASKED,
            tile=min(TILE, block_columns),
            block_columns=block_columns,
            has_bias=bias is not None,
            has_cap=cap is not None,
            has_maxima=maxima is not None,
            num_warps=NUM_WARPS,
        )


def compile_variants() -> list[Variant]:
    """Compile each kind of head, for vocabularies of a multiple of 16 tokens (most padded ones) and for others."""
    arguments = (
        "logits bias targets logprob rank entropy logsumexp maxima width row_stride scale soft_cap masked".split()
    )
    kinds = "*fp32 *fp32 *i64 *fp32 *i64 *fp32 *fp32 *fp32 i32 i32 fp32 fp32 fp32".split()
    fixed = {"tile": TILE, "block_columns": BLOCK_COLUMNS}
    return [
        Variant(
            row_stats_kernel,
            f"{label}, {form}",
            types=dict(zip(arguments, kinds, strict=True)),
            constants=fixed | dict(zip(("has_bias", "has_cap", "has_maxima"), flags, strict=True)),
            aligned=aligned,
            instructions=instructions,
            num_warps=NUM_WARPS,
        )
        for label, aligned, instructions in (
            ("aligned rows", tuple(arguments[:-3]), ("LDG.128",)),
            ("unaligned rows", tuple(arguments[:-5]), ()),
        )
        for form, flags in (
            ("plain head", (False, False, False)),
            ("plain head and maxima", (False, False, True)),
            ("bias, cap and maxima", (True, True, True)),
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
    one rank in six to ten would be wrong. Where memory runs out, chunks are halved, with a warning.

    Args:
        hidden: states after the final norm, any floating dtype.
        unembedding: the output head; a weight alone, as wide as the states, is a head without bias, scale or cap.
        targets: token ids, one a state. Negative ones (-100 in a trainer's labels) are ignored: their log-probability
            is NaN.
        top: number of the most likely tokens to name.
        parity: "bf16" rounds states, weights and logits to bf16, after each thing that happens to them, to reproduce
            numbers that were published that way.
        impl: implementation of the statistics of a row of logits: see ``row_stats``.

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
    stats = _allocate(hidden, top)
    kernel = choose("row_stats", impl, stats.logprob, ROW_TYPES).impl == "triton"

    def fill(rows: int) -> None:
        _Filler(hidden, head, targets.clamp_min(0), stats, parity, kernel).run(chunks_of(len(hidden), rows))

    with_fewer_rows(fill, count_rows_at_a_time(hidden, vocabulary))
    ignored = targets < 0
    stats.logprob.masked_fill_(ignored, float("nan"))
    stats.logprob.masked_fill_(stats.logprob < MASKED / 2, -float("inf"))
    stats.rank.masked_fill_(ignored, 0)
    return stats


def _allocate(hidden: Tensor, top: int) -> TokenStats:
    exact = torch.promote_types(hidden.dtype, torch.float32)
    logprob, entropy, logsumexp = (hidden.new_empty(len(hidden), dtype=exact) for _ in range(3))
    rank, top_ids = (hidden.new_empty(shape, dtype=torch.long) for shape in (len(hidden), (len(hidden), top)))
    return TokenStats(logprob, rank, entropy, hidden.new_empty((len(hidden), top), dtype=exact), top_ids, logsumexp)


@dataclass(eq=False)
class _Filler:
    """Fills ``stats`` chunk by chunk: ``make`` puts logits into a buffer, ``use`` reads them.

    Attributes:
        hidden: the states.
        head: the output head.
        targets: a column for each state.
        stats: tensors that are filled.
        parity: see ``token_stats``.
        kernel: whether the Triton form reads the logits.
    """

    hidden: Tensor
    head: Unembedding
    targets: Tensor
    stats: TokenStats
    parity: Parity | None
    kernel: bool

    def run(self, chunks: list[slice]) -> None:
        """Fill all rows; on a card in two streams."""
        if TWO_STREAMS and self.hidden.is_cuda and len(chunks) > 1:
            device = self.hidden.device
            self.set_up(chunks, BUFFERS)
            run_side_by_side(chunks, self.make, self.use, torch.cuda.current_stream(device), second_stream(device))
        else:
            self.set_up(chunks, 1)
            run_in_turn(chunks, self.make, self.use)

    def set_up(self, chunks: list[slice], buffers: int) -> None:
        """Make buffers for these chunks, and choose which step applies bias, scale and cap."""
        # The kernel applies them while it reads, which saves a pass over the logits for each.
        bare = Unembedding(self.head.weight)
        self.made_by, self.left = (bare, self.head) if self.kernel and self.parity is None else (self.head, bare)
        vocabulary = len(self.head.weight)
        self.buffers = logit_buffers(self.hidden, vocabulary, chunks, buffers)
        # Only ``use`` writes and reads it, so one is enough: for the maxima of tiles, or as scratch memory of the torch
        # form.
        columns = tiles_of(vocabulary) if self.kernel else vocabulary
        self.beside = self.buffers[0].new_empty((len(self.buffers[0]), columns))

    def make(self, rows: slice, buffer: int) -> None:
        """Put the logits of these rows into a buffer."""
        chunk_logits(self.buffers[buffer], self.hidden[rows], self.made_by, self.parity)

    def use(self, rows: slice, buffer: int) -> None:
        """Read the logits of these rows from a buffer."""
        count, part = rows.stop - rows.start, TokenStats(*(values[rows] for values in self.stats))
        logits, beside, targets = self.buffers[buffer][:count], self.beside[:count], self.targets[rows]
        top, stats = part.top_ids.shape[1], RowStats(part.logprob, part.rank, part.entropy, part.logsumexp)
        if self.kernel:
            launch_row_stats(logits, targets, stats, self.left, beside if top else None)
            best = top_columns(logits, top, beside, self.left)
        else:
            # Taken before the torch form overwrites the logits.
            best = top_columns(logits, top)
            for whole, values in zip(stats, row_stats_reference(logits, targets, beside), strict=True):
                whole.copy_(values)
        torch.sub(best[0], part.logsumexp[:, None], out=part.top_logprob)
        part.top_ids.copy_(best[1])
