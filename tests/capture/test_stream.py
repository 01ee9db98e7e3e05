import logging

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from probing.capture.stream import (
    LEAST_BATCH_TOKENS,
    MOST_BATCH_TOKENS,
    Segment,
    TokenBudget,
    choose_batch_tokens,
    fit_batch_tokens,
    segment_states,
    trial_shape,
)
from probing.errors import OutOfMemory
from probing.models.layers import find_backbone

CPU = torch.device("cpu")
MODEL = tiny.make_model("llama")
BACKBONE = find_backbone(MODEL)


def segments_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Segment(torch.randint(3, 400, (length,), generator=generator).tolist(), length // 3, length)
        for length in lengths
    ]


def run(segments, tokens=64, backbone=BACKBONE, **options):
    return segment_states(backbone, segments, CPU, TokenBudget(tokens, "test"), **options)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.sampled_from([1, 64, 10000]))
def test_states_do_not_depend_on_the_batch(lengths, tokens):
    segments = segments_of(lengths)
    states = run(segments, tokens)
    for row, segment in enumerate(segments):
        alone = run([segment])
        assert torch.equal(states.total[row], alone.total[0])
        assert torch.equal(states.last[row], alone.last[0])


def test_states_equal_the_plain_model_on_unpadded_ids():
    segments = segments_of([40, 7, 23])
    states = run(segments)
    for row, segment in enumerate(segments):
        with torch.no_grad():
            output = MODEL.model(input_ids=torch.tensor([segment.ids]), output_hidden_states=True)
        plain = output.hidden_states[-1][0, segment.start : segment.stop]
        torch.testing.assert_close(states.total[row], plain.sum(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states.last[row], plain[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [0, 399])
def test_a_token_that_breaks_the_model_spoils_only_the_rows_that_hold_it(bad):
    """Padding must not bring it in: attention multiplies a masked NaN by zero, which is NaN."""
    language_model = tiny.make_model("llama")
    segments = segments_of([20, 20, 30])
    segments[1].ids[4] = bad
    with torch.no_grad():
        language_model.model.model.embed_tokens.weight[bad] = float("nan")
    states = run(segments, 1000, backbone=find_backbone(language_model))
    assert torch.isfinite(states.total).all(1).tolist() == [True, False, True]


def test_tokens_after_the_stop_are_not_run():
    short, long = Segment([5, 6, 7], 0, 3), Segment([5, 6, 7, 8, 9], 0, 3)
    assert torch.equal(run([short]).total, run([long]).total)


def test_progress_counts_every_token_once():
    seen = []
    segments = segments_of([40, 7, 23, 23])
    run(segments, progress=seen.append)
    assert sum(seen) == 93
    assert len(seen) > 1


class Small(nn.Module):
    """A backbone whose memory ends at a number of tokens."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error, self.sizes = most, error, []

    def forward(self, input_ids, **options):
        self.sizes.append(input_ids.numel())
        if input_ids.numel() > self.most:
            raise self.error
        return BACKBONE(input_ids=input_ids, **options)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_halves_the_budget_for_good_and_loses_nothing(error, caplog):
    small, budget = Small(48, error), TokenBudget(1000, "test")
    segments = segments_of([16] * 12)
    with caplog.at_level(logging.WARNING):
        states = segment_states(small, segments, CPU, budget)
    assert torch.equal(states.total, run(segments).total)
    assert small.sizes == [192, 96, 48, 48, 48, 48]
    assert budget.tokens == 48
    assert "going on with 48 tokens a batch" in caplog.text


def test_freed_memory_is_given_back_now_and_then(monkeypatch):
    calls = []
    monkeypatch.setattr("probing.capture.stream.trim_memory", lambda: calls.append(1))
    run(segments_of([16] * 8), 16)
    assert not calls  # a quarter of a second has not passed
    monkeypatch.setattr("probing.capture.stream.TRIM_SECONDS", -1.0)
    run(segments_of([16] * 8), 16)
    assert len(calls) == 8


def test_a_sequence_that_never_fits_is_an_error():
    with pytest.raises(OutOfMemory, match="single sequence of 16 tokens does not fit"):
        run(segments_of([16, 16]), backbone=Small(3, torch.OutOfMemoryError()))


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="something else"):
        run(segments_of([16]), backbone=Small(0, RuntimeError("something else")))


def test_the_budget_follows_the_memory():
    assert fit_batch_tokens(80 * 2**30, 2.0**20) == 40 * 2**10
    assert fit_batch_tokens(1, 2.0**20) == LEAST_BATCH_TOKENS
    assert fit_batch_tokens(2**60, 1.0) == MOST_BATCH_TOKENS
    assert fit_batch_tokens(0, 0.0) == LEAST_BATCH_TOKENS


def test_the_trial_batch_fits_the_positions_of_the_model():
    assert trial_shape(None) == trial_shape(4096) == (1, LEAST_BATCH_TOKENS)
    assert trial_shape(512) == (2, 512)
    assert trial_shape(300) == (4, 300)


def test_on_a_cpu_the_budget_is_fixed():
    assert choose_batch_tokens(BACKBONE, CPU) == TokenBudget(2048, "fixed on cpu: larger batches are no faster")


def test_a_sequence_is_padded_to_its_own_length_and_not_to_its_neighbours():
    """On a model this small the bits agree in either case, so the shapes are what is looked at."""
    shapes = []

    class Watched(nn.Module):
        def forward(self, input_ids, **options):
            shapes.append(tuple(input_ids.shape))
            return BACKBONE(input_ids=input_ids, **options)

    run(segments_of([40, 7, 23, 16, 17]), 1000, backbone=Watched(), max_positions=43)
    assert shapes == [(1, 43), (2, 32), (2, 16)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_states_on_a_card_equal_those_on_the_cpu():
    import copy

    card = torch.device("cuda")
    moved = copy.deepcopy(BACKBONE).to(card)
    segments = segments_of([40, 7, 23, 300])
    states = segment_states(moved, segments, card, choose_batch_tokens(moved, card))
    torch.testing.assert_close(states.total, run(segments).total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states.last, run(segments).last, rtol=1e-4, atol=1e-4)
