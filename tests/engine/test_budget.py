from types import SimpleNamespace

import pytest
import tiny
import torch

from probing.engine import budget
from probing.engine.budget import (
    LEAST_BATCH_TOKENS,
    MOST_BATCH_TOKENS,
    TokenBudget,
    choose_batch_tokens,
    choose_trial_shape,
    find_budget,
    fit_batch_tokens,
)
from probing.engine.modes import choose_mode
from probing.engine.stream import Stream
from probing.errors import OutOfMemory, UsageError
from probing.models.layers import find_backbone
from probing.models.stack import output_site

STACK = find_backbone(tiny.make_model("llama"))
GIB = 2**30


def test_the_budget_follows_the_memory():
    assert fit_batch_tokens(80 * GIB, 2.0**20) == 40 * 2**10
    assert fit_batch_tokens(80 * GIB, 2.0**20, 10.0 * GIB) == 30 * 2**10
    assert fit_batch_tokens(1, 2.0**20) == LEAST_BATCH_TOKENS
    assert fit_batch_tokens(2**60, 1.0) == MOST_BATCH_TOKENS
    assert fit_batch_tokens(0, 0.0, 5.0) == LEAST_BATCH_TOKENS


def test_the_trial_batch_fits_the_positions_of_the_model():
    assert choose_trial_shape(2048, None) == choose_trial_shape(2048, 4096) == (2, 1024)
    assert choose_trial_shape(4096, 512) == (8, 512)
    assert choose_trial_shape(1024, 300) == (4, 300)


def test_on_a_cpu_the_budget_is_fixed():
    fixed = TokenBudget(2048, "fixed on cpu: larger batches are no faster")
    assert choose_batch_tokens(STACK, lambda tokens: pytest.fail("a trial was run")) == fixed
    with pytest.raises(UsageError, match="at least 1, not 0"):
        find_budget(STACK, 0, lambda tokens: tokens)


class Card:
    """The memory of a card in bytes, as torch tells of it."""

    def __init__(self, total, weights, held, per_token, fixed):
        self.total, self.allocated, self.held = total, weights, held
        self.per_token, self.fixed, self.peak = per_token, fixed, 0

    def run(self, tokens):
        self.peak = max(self.peak, self.allocated + self.fixed + tokens * self.per_token)
        self.held = max(self.held, self.peak - self.allocated)  # what was used once is kept by the allocator


@pytest.fixture
def cards(monkeypatch):
    """Two cards; the second has less room."""
    made = {
        torch.device("cuda:0"): Card(80 * GIB, 20 * GIB, GIB, 2**18, 2 * GIB),
        torch.device("cuda:1"): Card(40 * GIB, 20 * GIB, GIB, 2**18, GIB),
    }
    monkeypatch.setattr(budget, "devices_of", lambda language_model: [*made, torch.device("cpu")])
    reset = lambda card: setattr(made[card], "peak", 0)  # noqa: E731
    fake = SimpleNamespace(
        memory_allocated=lambda card: made[card].allocated,
        memory_reserved=lambda card: made[card].allocated + made[card].held,
        max_memory_allocated=lambda card: made[card].peak,
        reset_peak_memory_stats=reset,
        mem_get_info=lambda card: (made[card].total - made[card].allocated - made[card].held, made[card].total),
    )
    monkeypatch.setattr(budget.torch, "cuda", fake)
    return made


def run_on(cards):
    def run(tokens):
        for card in cards.values():
            card.run(tokens)
        return tokens

    return run


def test_on_several_cards_the_one_with_the_least_room_decides(cards):
    found = choose_batch_tokens(STACK, run_on(cards))
    # 40 - 20 GiB are free whether the driver or torch's allocator has them: half less the batch's own 1 GiB.
    assert found.tokens == 9 * GIB // 2**18
    assert found.reason == "half of 20.0 GiB free at 256 KiB a token and 1.0 GiB a batch on cuda:1"


def test_memory_that_the_allocator_holds_counts_as_free(cards):
    for card in cards.values():
        card.held = 10 * GIB
    assert choose_batch_tokens(STACK, run_on(cards)).tokens == 9 * GIB // 2**18


def test_a_trial_that_does_not_fit_leaves_the_least_budget(cards):
    def run(tokens):
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = choose_batch_tokens(STACK, run)
    assert found == TokenBudget(LEAST_BATCH_TOKENS, "the least, since a trial of 4096 tokens did not fit")


def test_processes_that_share_a_model_take_the_least_of_their_budgets(cards, monkeypatch):
    monkeypatch.setattr(type(STACK.language_model.model), "tp_size", 2)
    monkeypatch.setattr(budget, "take_least", lambda number, card: min(number, 5000))
    assert choose_batch_tokens(STACK, run_on(cards)) == TokenBudget(5000, "the least that a process found")
    monkeypatch.setattr(budget, "take_least", lambda number, card: min(number, 10**6))
    assert choose_batch_tokens(STACK, run_on(cards)).tokens == 9 * GIB // 2**18

    def run(tokens):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory, match="give --batch-tokens 1024 or less"):
        choose_batch_tokens(STACK, run)


def test_the_trial_keeps_everything_that_a_run_keeps():
    """What is read at the places counts: all tokens, and what is made of them."""
    seen = []
    sites = [output_site(STACK)]

    def per_token(states, following):
        seen.append((states.shape, following.shape))
        return states[:, :2]

    stream = Stream(STACK, choose_mode(STACK), sites, ("sum", "tokens"), TokenBudget(1, "test"), per_token=per_token)
    assert stream.run_trial(2000) == 4 * 511  # the model has positions for 512 tokens, and no state predicts the first
    assert seen == [((4 * 511, 32), (4 * 511,))]
