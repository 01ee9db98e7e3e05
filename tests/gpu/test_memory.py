"""When the memory runs out, batches get smaller and the numbers stay the same."""

import halves
import pandas as pd
import pytest
import tiny
import torch

from probing import LanguageModel, PreferencePair
from probing.engine import stream
from probing.instruments.pair_scores import PairScorer

PAIRS = [PreferencePair(**row) for row in halves.SHARED]
MOST = 64


def scorer_on(device, **changes):
    made = tiny.make_model("llama", **{**halves.SHAPE, **changes})
    return PairScorer(LanguageModel(made.model.to(device), made.tokenizer), batch_tokens=10**6)


def test_a_planted_failure_shrinks_the_budget(device, monkeypatch):
    expected = scorer_on(device).score(PAIRS).frame
    plain, failed = stream.run_backbone, []

    def forgetful(backbone, ids, **options):
        if ids.numel() > MOST:
            failed.append(ids.numel())
            raise torch.OutOfMemoryError("planted")
        return plain(backbone, ids, **options)

    monkeypatch.setattr(stream, "run_backbone", forgetful)
    scorer = scorer_on(device)
    found = scorer.score(PAIRS).frame
    assert failed
    assert scorer.stream.budget.tokens <= max(failed) // 2
    assert scorer.stream.budget.reason == f"halved when {failed[-1]} tokens did not fit"
    # Other shapes of the same products: float32 sums in another order.
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_card_that_is_full_shrinks_the_budget():
    """The limit leaves 256 MiB; one state within the MLPs takes 330 for all rows together, 3 for one."""
    words = halves.WORDS * 4
    pairs = [
        PreferencePair(str(n), f"{n} {' '.join(words[n % 7 :])}", " " + " ".join(words), " " + " ".join(words[::-1]))
        for n in range(80)
    ]
    scorer = scorer_on("cuda", intermediate_size=4096)
    expected = scorer.score(pairs).frame
    shrunk = scorer_on("cuda", intermediate_size=4096)
    shrunk.score(pairs[:1])  # the workspaces of the libraries are there
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
        found = shrunk.score(pairs).frame
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert shrunk.stream.budget.tokens < 10**6
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-6)
