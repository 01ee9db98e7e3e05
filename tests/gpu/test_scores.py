"""Scores of a bf16 model against the same weights in float32 on the CPU, one sequence at a time."""

from dataclasses import replace

import halves
import pandas as pd
import pytest
import tiny
import torch
from halves import assert_as_good_as_plain, twins

from probing import LanguageModel, PreferencePair, load, score_pairs
from probing.engine import compiled
from probing.engine.modes import choose_mode
from probing.instruments.columns import ALL_COLUMNS, LIKELIHOOD_COLUMNS, SCORE_COLUMNS
from probing.instruments.pair_scores import PairScorer
from probing.models.layers import find_backbone

PAIRS = [PreferencePair(**row) for row in halves.SHARED]
NUMBERS = [name for name in (*SCORE_COLUMNS, *LIKELIHOOD_COLUMNS) if name != "ranking_correct"]


def scored(language_model, sharing):
    """Packed, whatever the trial says of it: how far off it is is what is asked here."""
    scorer = PairScorer(language_model, columns=("all",))
    packing = "varlen" if language_model.device.type == "cuda" else "paths"
    scorer.stream.mode = replace(scorer.stream.mode, packing=packing, sharing=sharing)
    return scorer.score(PAIRS).frame


def plain(language_model):
    """One row a batch, nothing packed and nothing shared."""
    scorer = PairScorer(language_model, columns=("all",), batch_tokens=1)
    scorer.stream.mode = replace(scorer.stream.mode, packing="none", sharing=False)
    return scorer.score(PAIRS).frame


def check(found, half, exact):
    assert (found["status"] == "ok").all()
    for name in NUMBERS:
        assert_as_good_as_plain(found[name], half[name], exact[name], name)
    margins = (exact["chosen_logprob"] - exact["rejected_logprob"]).abs()
    clear = margins > 2 * (found["chosen_logprob"] - exact["chosen_logprob"]).abs().max() + 1
    assert clear.any()
    assert (found["ranking_correct"] == exact["ranking_correct"])[clear].all()


@pytest.fixture(scope="module")
def in_half():
    """Scores by the plain way on the CPU: in bf16, and in float32 with the same weights."""
    half, exact = twins("cpu")
    return plain(half), plain(exact)


@pytest.mark.parametrize("sharing", [True, False])
def test_in_bf16_as_good_as_the_plain_way(device, sharing, in_half):
    half, _ = twins(device)
    check(scored(half, sharing), *in_half)


def test_the_fast_way_is_the_one_that_runs(device):
    half, _ = twins(device)
    mode = choose_mode(find_backbone(half))
    assert (mode.packing, mode.sharing) == ("varlen" if device == "cuda" else "paths", True), mode.reason


def test_compiled_as_good_as_the_plain_way(device, in_half, monkeypatch):
    half, _ = twins(device)
    if device == "cpu":  # its compiler takes minutes
        monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    check(PairScorer(half, columns=("all",), compile=True).score(PAIRS).frame, *in_half)


def test_every_column_in_float32(device):
    """Sums of 64 products in another order: 1e-3 of a number, as for scores of the same model on other machines."""
    exact = tiny.make_model("llama", **halves.SHAPE)
    expected = score_pairs(exact, PAIRS, columns=ALL_COLUMNS, batch_tokens=1)
    moved = LanguageModel(tiny.make_model("llama", **halves.SHAPE).model.to(device), exact.tokenizer)
    found = score_pairs(moved, PAIRS, columns=ALL_COLUMNS)
    assert found[list(ALL_COLUMNS)].notna().all().all()
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-6)


def test_loaded_onto_the_device(device, model_folder):
    models = (load(str(model_folder), dtype="float32", device=at) for at in (device, "cpu"))
    pd.testing.assert_frame_equal(*(score_pairs(model, PAIRS) for model in models), rtol=1e-3)
