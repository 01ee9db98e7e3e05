"""One pass over many sequences: token-budget batches in, a few small tensors a sequence out."""

import ctypes
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.data.batches import longest_first, next_batch, padded_length
from probing.errors import OutOfMemory
from probing.kernels.segment_pool import segment_sum
from probing.models.layers import last_hidden_state

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 2048
MOST_BATCH_TOKENS = 65536
LEAST_BATCH_TOKENS = 1024
TRIM_SECONDS = 0.25
# CUDA's allocator has a class of error for it; the CPU's and the matrix library of a card have only a sentence.
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, slots=True)
class Segment:
    """A token sequence and the positions whose states count: ``start .. stop - 1``."""

    ids: Sequence[int]
    start: int
    stop: int


@dataclass(frozen=True)
class SegmentStates:
    """What is kept of each segment, on the CPU: the sum of its states and the last of them, float32."""

    total: Float[Tensor, "row width"]
    last: Float[Tensor, "row width"]


@dataclass
class TokenBudget:
    """How many padded tokens go into one batch; shrinks when memory runs out, and stays so."""

    tokens: int
    reason: str

    def shrink(self, failed: int) -> None:
        """Halve after a batch of ``failed`` padded tokens did not fit."""
        self.tokens = max(1, min(self.tokens, failed) // 2)
        self.reason = f"halved when {failed} tokens did not fit"


def choose_batch_tokens(backbone: nn.Module, device: torch.device, max_positions: int | None = None) -> TokenBudget:
    """A token budget for this device.

    On a CPU a few thousand tokens keep all cores busy, and more only costs memory. On a CUDA card one batch is run to
    see what a token takes, and half of the free memory is filled, up to a size beyond which nothing gets faster.
    """
    if device.type != "cuda":
        return TokenBudget(CPU_BATCH_TOKENS, f"fixed on {device.type}: larger batches are no faster")
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        trial = torch.zeros(trial_shape(max_positions), dtype=torch.long, device=device)
        last_hidden_state(backbone, trial)
    per_token = (torch.cuda.max_memory_allocated(device) - before) / trial.numel()
    free = torch.cuda.mem_get_info(device)[0]
    tokens = fit_batch_tokens(free, per_token)
    return TokenBudget(tokens, f"half of {free / 2**30:.1f} GiB free at {per_token / 2**10:.0f} KiB a token")


def trial_shape(max_positions: int | None) -> tuple[int, int]:
    """Rows and length of a batch of about 1024 tokens that the model has positions for."""
    length = min(LEAST_BATCH_TOKENS, max_positions or LEAST_BATCH_TOKENS)
    return -(-LEAST_BATCH_TOKENS // length), length


def fit_batch_tokens(free_bytes: int, bytes_per_token: float) -> int:
    """Tokens that fill half of the free memory, as a multiple of 1024 between 1024 and 65536."""
    tokens = int(free_bytes / 2 / max(bytes_per_token, 1.0)) // LEAST_BATCH_TOKENS * LEAST_BATCH_TOKENS
    return min(max(tokens, LEAST_BATCH_TOKENS), MOST_BATCH_TOKENS)


def segment_states(
    backbone: nn.Module,
    segments: Sequence[Segment],
    device: torch.device,
    budget: TokenBudget,
    *,
    max_positions: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> SegmentStates:
    """Run every sequence once, longest first, and keep the sum and the last of the states that count.

    States are reduced on the device; no batch's states outlive it. When memory runs out the budget is halved, for the
    rest of its life, and the same rows run again.

    Args:
        backbone: as found by ``find_backbone``.
        segments: at least one; tokens from ``stop`` on are not run, since no state that counts can see them.
        device: where the backbone takes its input.
        budget: padded tokens a batch; one sequence longer than that runs alone.
        max_positions: longest input that the backbone takes, if it has a limit.
        progress: called after each batch with the number of its tokens.

    Returns:
        One row a segment, in the order given, whatever the batches were.

    Raises:
        OutOfMemory: one sequence alone does not fit.
    """
    lengths = [padded_length(segment.stop, max_positions) for segment in segments]
    order = longest_first(lengths)
    done: list[tuple[Tensor, Tensor]] = []
    position, trimmed = 0, time.monotonic()
    while position < len(order):
        rows = next_batch(order[position:], lengths, budget.tokens)
        batch = [segments[row] for row in rows]
        states = _try(backbone, batch, lengths[rows[0]], device)
        if states is None:
            _give_way(budget, rows, lengths, device)
            continue
        done.append(states)
        position += len(rows)
        if device.type == "cpu" and time.monotonic() - trimmed > TRIM_SECONDS:
            trim_memory()
            trimmed = time.monotonic()
        if progress is not None:
            progress(sum(segment.stop for segment in batch))
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    total, last = (torch.cat(parts).cpu()[back] for parts in zip(*done, strict=True))
    return SegmentStates(total, last)


def trim_memory() -> None:
    """Have the C library give freed memory back to the system, where it can (glibc).

    Batches of many different sizes leave holes in the heap that it would keep: without this, peak memory grew with the
    number of rows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _try(
    backbone: nn.Module, segments: Sequence[Segment], length: int, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """``_run``, or None when memory ran out; the error is not kept, since its frames hold the batch's memory."""
    try:
        return _run(backbone, segments, length, device)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(sentence in str(error) for sentence in OUT_OF_MEMORY):
            return None
        raise


def _run(backbone: nn.Module, segments: Sequence[Segment], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.empty((len(segments), length), dtype=torch.long)
    for row, segment in enumerate(segments):
        ids[row, : segment.stop] = torch.tensor(segment.ids[: segment.stop])
        # Attention multiplies even masked values, by zero: a pad whose state is NaN would spoil the whole row. So a
        # sequence is padded with a token of its own.
        ids[row, segment.stop :] = segment.ids[segment.stop - 1]
    with torch.inference_mode():
        states = last_hidden_state(backbone, ids.to(device)).flatten(0, 1)
        starts = torch.tensor([row * length + segment.start for row, segment in enumerate(segments)])
        stops = torch.tensor([row * length + segment.stop for row, segment in enumerate(segments)])
        last = states[(stops - 1).to(states.device)]
        return segment_sum(states, starts, stops), last.to(torch.promote_types(last.dtype, torch.float32))


def _give_way(budget: TokenBudget, rows: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
    longest = lengths[rows[0]]
    if len(rows) == 1:
        raise OutOfMemory(
            f"a single sequence of {longest} tokens does not fit into the memory of {device}; use --max-length, a "
            f"smaller --dtype or a larger device"
        )
    budget.shrink(len(rows) * longest)
    log.warning(
        "out of memory with %d sequences of %d tokens: going on with %d tokens a batch",
        len(rows),
        longest,
        budget.tokens,
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
