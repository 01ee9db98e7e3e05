"""The number of tokens of a batch: as many as the device has memory for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from probing.errors import OutOfMemory, UsageError
from probing.models.devices import devices_of, free_memory
from probing.models.shares import count_shares
from probing.models.stack import Stack
from probing.models.tensor_parallel import take_least

CPU_BATCH_TOKENS = 2048
MOST_BATCH_TOKENS = 65536
LEAST_BATCH_TOKENS = 1024
TRIAL_TOKENS = (2048, 4096)
TRIAL_LENGTH = 1024


@dataclass
class TokenBudget:
    """The number of padded tokens of a batch; it shrinks when memory runs out, and stays so."""

    tokens: int
    reason: str

    def shrink(self, failed: int) -> None:
        """Halve after a batch of ``failed`` padded tokens did not fit."""
        self.tokens = max(1, min(self.tokens, failed) // 2)
        self.reason = f"halved when {failed} tokens did not fit"


def find_budget(stack: Stack, batch_tokens: int | None, run_trial: Callable[[int], int]) -> TokenBudget:
    """The budget that was asked for, or one that fits the device.

    Args:
        stack: the model.
        batch_tokens: the number of tokens that the user asked for.
        run_trial: runs one batch of about so many tokens, with everything that is kept of it, and answers how many
            they were.

    Raises:
        UsageError: a budget of less than one token.
    """
    if batch_tokens is None:
        return choose_batch_tokens(stack, run_trial)
    if batch_tokens < 1:
        raise UsageError(f"batch_tokens must be at least 1, not {batch_tokens}")
    return TokenBudget(batch_tokens, "as asked for")


def choose_batch_tokens(stack: Stack, run_trial: Callable[[int], int]) -> TokenBudget:
    """A token budget for the device of a model, or for the card among several that has the least room.

    On a CPU a few thousand tokens keep all cores busy, and more only costs memory. On a card two trials show what a
    token takes and what a batch takes whatever its size (logits of a chunk of rows, say), and half of the free memory
    is filled, up to a size beyond which nothing gets faster.

    Raises:
        OutOfMemory: a trial of a model that is split over processes does not fit.
    """
    shared = count_shares(stack.language_model.model) > 1
    cards = [device for device in devices_of(stack.language_model) if device.type == "cuda"]
    if not cards:
        kind = stack.language_model.device.type
        return TokenBudget(CPU_BATCH_TOKENS, f"fixed on {kind}: larger batches are no faster")
    try:
        peaks = [_find_peaks(cards, run_trial, tokens) for tokens in TRIAL_TOKENS]
    except torch.OutOfMemoryError as error:
        if shared:
            # The other processes wait for this one in the same trial.
            raise OutOfMemory(
                f"a trial of {TRIAL_TOKENS[-1]} tokens does not fit into the memory of {cards[0]}; give --batch-tokens "
                f"{LEAST_BATCH_TOKENS} or less"
            ) from error
        return TokenBudget(LEAST_BATCH_TOKENS, f"the least, since a trial of {TRIAL_TOKENS[-1]} tokens did not fit")
    tokens = [run for run, _ in peaks]
    fitting = []
    for card, few, many in zip(cards, *(taken for _, taken in peaks), strict=True):
        per_token = max(many - few, 0) / (tokens[1] - tokens[0])
        fixed, free = max(few - per_token * tokens[0], 0.0), free_memory(card) or 0
        reason = f"half of {free / 2**30:.1f} GiB free at {per_token / 2**10:.0f} KiB a token"
        reason += f" and {fixed / 2**30:.1f} GiB a batch" + f" on {card}" * (len(cards) > 1)
        fitting.append(TokenBudget(fit_batch_tokens(free, per_token, fixed), reason))
    budget = min(fitting, key=lambda budget: budget.tokens)
    if shared:
        # All processes have to cut the same batches.
        least = take_least(budget.tokens, cards[0])
        return budget if least == budget.tokens else TokenBudget(least, "the least that a process found")
    return budget


def _find_peaks(cards: Sequence[torch.device], run_trial: Callable[[int], int], tokens: int) -> tuple[int, list[int]]:
    """The number of tokens of a trial, and the most bytes of each card that it took at once."""
    before = [torch.cuda.memory_allocated(card) for card in cards]
    for card in cards:
        torch.cuda.reset_peak_memory_stats(card)
    run = run_trial(tokens)
    most = [torch.cuda.max_memory_allocated(card) for card in cards]
    return run, [peak - allocated for peak, allocated in zip(most, before, strict=True)]


def choose_trial_shape(tokens: int, max_positions: int | None) -> tuple[int, int]:
    """Rows and length of a trial of about so many tokens: of sequences that are usual, and not too long for a model."""
    length = min(TRIAL_LENGTH, max_positions or TRIAL_LENGTH)
    return -(-tokens // length), length


def fit_batch_tokens(free: int, per_token: float, fixed: float = 0.0) -> int:
    """Tokens that fill half of the free memory, as a multiple of 1024 between 1024 and 65536.

    Args:
        free: bytes.
        per_token: bytes of each token.
        fixed: bytes of each batch besides.
    """
    tokens = int(max(free / 2 - fixed, 0) / max(per_token, 1.0)) // LEAST_BATCH_TOKENS * LEAST_BATCH_TOKENS
    return min(max(tokens, LEAST_BATCH_TOKENS), MOST_BATCH_TOKENS)
