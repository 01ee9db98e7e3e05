"""What changed between two models, with the tokens that moved most, against the same on the CPU."""

import halves
import numpy as np
import pandas as pd
import tiny
from halves import assert_as_good_as_plain, twins

from probing import LanguageModel, PreferencePair
from probing.instruments.pair_changes import FLOAT_COLUMNS, PairComparer

PAIRS = [PreferencePair(**row) for row in halves.SHARED]
TOP = 3
MOVED = ("gained_before", "gained_after", "lost_before", "lost_after")


def compared(before, after):
    """The changes, and one row a token; the budget is small on purpose, so that there are several batches."""
    comparer = PairComparer(before, after, predictors=(), top=TOP, batch_tokens=64)
    block = comparer.compare(comparer.tokenize(PAIRS))
    return block.frame, block.tokens.to_pandas()


def on(device, seed):
    made = tiny.make_model("llama", seed=seed, **halves.SHAPE)
    return LanguageModel(made.model.to(device), made.tokenizer)


def test_in_float32(device):
    frame, tokens = compared(on(device, 0), on(device, 1))
    expected, tokens_expected = compared(on("cpu", 0), on("cpu", 1))
    pd.testing.assert_frame_equal(frame, expected, rtol=1e-3, atol=1e-3)
    for name in ("gained_ids", "lost_ids", "gained", "lost"):
        assert np.array_equal(np.stack(tokens[name]), np.stack(tokens_expected[name])), name
    for name in MOVED:
        np.testing.assert_allclose(np.stack(tokens[name]), np.stack(tokens_expected[name]), rtol=1e-3, atol=1e-3)


def moved(tokens, way):
    """By how much the probability of the tokens that moved most did, [token top]."""
    before, after = (np.stack(tokens[f"{way}_{time}"]) for time in ("before", "after"))
    return after - before


def test_in_bf16_as_good_as_on_the_cpu(device):
    """By how much tokens moved, not which: of several that moved alike another may come first."""
    halves_of, exact = zip(*(twins("cpu", seed=seed) for seed in (0, 1)), strict=True)
    found = [twins(device, seed=seed)[0] for seed in (0, 1)]
    ways = [compared(*models) for models in (found, halves_of, exact)]
    frames, tokens = zip(*ways, strict=True)
    for name in FLOAT_COLUMNS:
        assert_as_good_as_plain(*(frame[name] for frame in frames), name)
    for name in ("logprob_before", "logprob_after"):
        assert_as_good_as_plain(*(table[name] for table in tokens), name)
    for way in ("gained", "lost"):
        assert_as_good_as_plain(*(moved(table, way) for table in tokens), way)
