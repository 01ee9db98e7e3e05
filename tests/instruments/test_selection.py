import contextlib
import json
import logging
import random
import re
from dataclasses import replace

import harness
import numpy as np
import pytest
import tiny
import torch

from probing.data.bundled import bundled_data, bundled_model
from probing.directions.choose import Limits
from probing.directions.measurements import SCORES, Measured
from probing.directions.select import select_by_cascade, select_exhaustively
from probing.engine.suffix import find_why_not
from probing.errors import DataInvalid, SourceMismatch, UsageError
from probing.instruments.directions import extract_directions
from probing.instruments.select_direction import NonePasses, prepare_measurements, select_direction
from probing.models.layers import find_stack
from probing.models.load import load
from probing.types import LabelledPrompt

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
LOOSE = {"kl_most": 5.0}
"""The bundled model is so small that every ablation which matters changes harmless answers."""


def some(label, split, count):
    rows = [row["text"] for row in ROWS if row["label"] == label and row["split"] == split]
    return rows[:: max(len(rows) // count, 1)][:count]


HELD_OUT = [some(label, "validation", 8) for label in ("harmful", "harmless")]


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model()))


@pytest.fixture(scope="module")
def directions(model):
    return extract_directions(model, some("harmful", "train", 24), some("harmless", "train", 24))


def name(texts, kind):
    return [LabelledPrompt(f"{kind} {number}", text) for number, text in enumerate(texts)]


def measure(model, directions, sides=HELD_OUT, tokens=None, **options):
    named = [name(side, kind) for side, kind in zip(sides, ("harmful", "harmless"), strict=True)]
    given = {"refusal_tokens": tokens, "filter_by_sign": False, **options}
    return prepare_measurements(model, directions, *named, **given)


def scores_of(measurements, score, layer, rows, ends=True):
    with measurements.open(score, layer, rows) as run:
        blocks = [run(rows, block) for block in range(len(measurements.blocks(score)))]
    scores = np.concatenate([block.scores for block in blocks], axis=1)
    return (scores, sum(block.ends for block in blocks)) if ends else scores


@contextlib.contextmanager
def hooks(*handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_run(model, text, ablated=None, added=None, layer=None):
    """Log-probabilities of the first token and last states behind every block of one prompt, edited by plain hooks."""
    whole, handles = model.model, []
    if ablated is not None:
        unit = ablated / ablated.norm()

        def take_out(module, args, output):
            states = output[0] if isinstance(output, tuple) else output
            left = states - (states.double() @ unit)[..., None].float() * unit.float()
            return (left, *output[1:]) if isinstance(output, tuple) else left

        writers = [whole.model.embed_tokens]
        writers += [part for block in whole.model.layers for part in (block.self_attn, block.mlp)]
        handles += [writer.register_forward_hook(take_out) for writer in writers]
    if added is not None:
        handles.append(
            whole.model.layers[layer].register_forward_pre_hook(
                lambda module, args: (args[0] + added.float(), *args[1:])
            )
        )
    ends = []
    for block in whole.model.layers:
        handles.append(
            block.register_forward_hook(
                lambda module, args, output: ends.append((output[0] if isinstance(output, tuple) else output)[0, -1])
            )
        )
    ids = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    with hooks(*handles), torch.no_grad():
        logits = whole(input_ids=ids, use_cache=False).logits[0, -1].double()
    return logits.log_softmax(0), torch.stack(ends).double()


def plain_score(logprobs, tokens):
    mass = float(logprobs.exp()[tokens].sum())
    return np.log(mass + 1e-8) - np.log(1 - mass + 1e-8)


@pytest.mark.parametrize("whole_passes", [False, True])
def test_scores_are_those_of_plain_hooks_one_prompt_at_a_time(model, directions, whole_passes):
    measurements = measure(model, directions, whole_passes=whole_passes)
    assert measurements.depth("induce", 2) == (4 if whole_passes else 2)
    assert measurements.depth("bypass", 2) == 4
    row, layer = 2, 2
    vector = directions.vectors[layer, row]
    tokens, (harmful, harmless) = list(measurements.tokens), HELD_OUT
    found = {score: scores_of(measurements, score, layer, [0, row]) for score in SCORES}
    ablated = [plain_run(model, text, ablated=vector) for text in harmful]
    added = [plain_run(model, text, added=vector, layer=layer) for text in harmless]
    base = [plain_run(model, text)[0] for text in harmless]
    other = [plain_run(model, text, ablated=vector)[0] for text in harmless]
    kl = [float((own.exp() * (own - changed)).sum()) for own, changed in zip(base, other, strict=True)]
    expected = {
        "bypass": [plain_score(logprobs, tokens) for logprobs, _ in ablated],
        "induce": [plain_score(logprobs, tokens) for logprobs, _ in added],
        "kl": kl,
    }
    for score in SCORES:
        # Prompts are sorted by length, so that single ones are compared in order of their scores. Float32, and
        # log-odds near certainty: the fourth digit.
        np.testing.assert_allclose(np.sort(found[score][0][1]), np.sort(expected[score]), rtol=1e-3, atol=2e-3)
    for score, runs in (("bypass", ablated), ("induce", added)):
        sums = sum(ends for _, ends in runs)[measurements.cosmic_layers]
        np.testing.assert_allclose(found[score][1][1], sums, rtol=1e-3, atol=1e-3)
    means = [sum(plain_run(model, text)[1] for text in side) / len(side) for side in HELD_OUT]
    for target, mean in zip(measurements.targets, means, strict=True):
        np.testing.assert_allclose(target, mean[measurements.cosmic_layers], rtol=1e-4, atol=1e-4)


def test_the_cascade_on_a_model_chooses_as_the_exhaustive_loop(model, directions):
    fast = select_direction(model, directions, *HELD_OUT, **LOOSE)
    whole = select_direction(model, directions, *HELD_OUT, exhaustive=True, **LOOSE)
    assert (fast.direction.place, fast.direction.position) == (whole.direction.place, whole.direction.position)
    assert torch.equal(fast.direction.vector, whole.direction.vector)
    assert fast.cosmic == whole.cosmic
    for score in (*SCORES, "cosmic"):
        known = fast.table[score].notna()
        assert known.any()
        # One way adds directions to recorded states, the other runs the whole model: rounding of float32.
        np.testing.assert_allclose(fast.table[score][known], whole.table[score][known], rtol=1e-3, atol=2e-3)
    spent = sum(fast.layer_forwards.values())
    assert 3 * spent <= sum(whole.layer_forwards.values()) == whole.exhaustive_layer_forwards
    assert fast.direction.facts["selection"]["bypass"] == fast.table.set_index("status").loc["chosen", "bypass"]
    assert "times fewer than those of a loop over all candidates" in repr(fast)
    assert not [hook for module in model.model.modules() for hook in module._forward_hooks.values()]


class Subset:
    """Some prompts of measurements that are known for all."""

    def __init__(self, whole, keep):
        self.scores, self.keep = whole, keep
        self.candidates, self.targets = np.isfinite(whole["bypass"]).all(axis=2), None

    def blocks(self, score):
        return [4] * (len(self.keep) // 4)

    def depth(self, score, layer):
        return 4 - (layer if score == "induce" else 0)

    @contextlib.contextmanager
    def open(self, score, layer, rows):
        yield lambda left, block: Measured(
            self.scores[score][list(left), layer][:, self.keep[4 * block : 4 * block + 4]]
        )


def test_ten_draws_of_prompts_give_the_same_choice_in_both_ways(model, directions):
    sides = [some(label, "validation", 40) for label in ("harmful", "harmless")]
    measurements = measure(model, directions, sides)
    shape = (*measurements.candidates.shape, 40)
    whole = {score: np.full(shape, np.nan) for score in SCORES}
    for score in SCORES:
        for layer in range(4):
            rows = np.flatnonzero(measurements.candidates[:, layer]).tolist()
            whole[score][rows, layer] = scores_of(measurements, score, layer, rows)[0][:, :40]
    spent, chosen = [0, 0], set()
    for seed in range(10):
        keep = np.random.default_rng(seed).permutation(40)[:16]
        limits = Limits(kl_most=(2.0, 3.0, 5.0)[seed % 3])
        fast, full = (select(Subset(whole, keep), limits) for select in (select_by_cascade, select_exhaustively))
        assert (fast.choice.index, fast.choice.nearest) == (full.choice.index, full.choice.nearest)
        chosen.add(fast.choice.index)
        spent = [spent[0] + sum(fast.forwards.values()), spent[1] + full.exhaustive_forwards]
    assert len(chosen) > 1
    assert 2 * spent[0] < spent[1]


@pytest.mark.parametrize("seed", range(3))
def test_random_deep_models_give_the_same_choice_in_both_ways(seed):
    """Models of twelve layers, of three families, and limits about which their scores lie."""
    family = ("llama", "qwen", "gemma")[seed % 3]
    own = tiny.make_model(family, seed=seed, num_hidden_layers=12)
    generator = random.Random(seed)
    texts = [harness.phrase(generator, 2, 8) for _ in range(40)]
    tokens = list(range(6, 390, 2))
    found = extract_directions(own, texts[:10], texts[10:20], filter_by_sign=False, refusal_tokens=tokens)
    limits = {"induce_least": -0.25, "kl_most": 0.15}
    results = []
    for exhaustive in (False, True):
        with contextlib.suppress(NonePasses):
            result = select_direction(
                own, found, texts[20:30], texts[30:], filter_by_sign=False, exhaustive=exhaustive, **limits
            )
            results.append((str(result.direction.place), result.direction.position, result.cosmic, result))
    assert len(results) == 2
    assert results[0][:3] == results[1][:3]
    assert 2 * sum(results[0][3].layer_forwards.values()) < results[1][3].exhaustive_layer_forwards


def test_numbers_do_not_depend_on_the_batch(model, directions):
    alone = measure(model, directions, [side[:3] for side in HELD_OUT], batch_tokens=1)
    together = measure(model, directions, [[*side[:3], *side[6:]] for side in HELD_OUT])
    assert max(alone.blocks("bypass")) == 1
    for score in SCORES:
        one, many = (scores_of(each, score, 1, [0, 2])[0] for each in (alone, together))
        for row in range(2):
            off = np.abs(one[row][:, None] - many[row][None]).min(axis=1)
            # Matrix products of other shapes.
            assert off.max() < 2e-4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_upper_blocks_alone_give_what_whole_passes_give(family):
    own = tiny.make_model(family)
    assert find_why_not(find_stack(own)) == ""
    generator = random.Random(0)
    sides = [[harness.phrase(generator, 1, 30) for _ in range(5)] for _ in range(3)]
    found = extract_directions(own, sides[0], sides[1], filter_by_sign=False, places=["resid_pre:all"])
    tokens = [20, 33, 50]
    fast, whole = (measure(own, found, sides[1:], tokens, whole_passes=flag) for flag in (False, True))
    for layer in (0, 2):
        rows = np.flatnonzero(fast.candidates[:, layer]).tolist()
        for ours, plain in zip(*(scores_of(each, "induce", layer, rows) for each in (fast, whole)), strict=True):
            np.testing.assert_allclose(ours, plain, rtol=2e-4, atol=2e-4)
    behind = extract_directions(own, sides[0], sides[1], filter_by_sign=False, places=["resid_post:all"])
    fast, whole = (measure(own, behind, sides[1:], tokens, whole_passes=flag) for flag in (False, True))
    assert fast.depth("induce", 2) == 0
    ours, plain = (scores_of(each, "induce", 2, [0, 1]) for each in (fast, whole))
    np.testing.assert_allclose(ours[0], plain[0], rtol=2e-4, atol=2e-4)


def test_a_model_whose_blocks_share_more_than_states_runs_whole_passes(monkeypatch, caplog):
    own = tiny.make_model("llama")
    layers, memory = own.model.model.layers, {}

    def leave(module, args, output):
        memory["of this pass"] = output[0] if isinstance(output, tuple) else output

    def take(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        left = memory.pop("of this pass", torch.zeros_like(states))
        return states + (left if left.shape == states.shape else 0)

    with hooks(layers[0].register_forward_hook(leave), layers[2].register_forward_hook(take)):
        assert "off by" in find_why_not(find_stack(own))
        texts = [harness.phrase(random.Random(seed), 2, 9) for seed in range(12)]
        found = extract_directions(own, texts[:4], texts[4:8], filter_by_sign=False)
        with caplog.at_level(logging.WARNING):
            measurements = measure(own, found, [texts[:4], texts[8:]], [20, 33])
    assert "every direction is added in a pass through the whole model, because its states from block" in caplog.text
    assert measurements.how.startswith("whole passes, because")
    assert measurements.depth("induce", 2) == 3


def test_memory_that_runs_out_halves_the_batch(model, directions, monkeypatch):
    measurements = measure(model, directions, [side[:4] for side in HELD_OUT])
    expected = scores_of(measurements, "bypass", 1, [0, 1, 2])[0]
    plain, sizes = measurements._run, []

    def run(ids, last):
        sizes.append(len(ids))
        if len(ids) > max(measurements.blocks("bypass")):
            raise torch.OutOfMemoryError
        return plain(ids, last)

    monkeypatch.setattr(measurements, "_run", run)
    np.testing.assert_allclose(scores_of(measurements, "bypass", 1, [0, 1, 2])[0], expected, rtol=1e-4, atol=1e-4)
    assert max(sizes) > max(measurements.blocks("bypass"))


def find_named(told):
    """Place and position of the nearest candidate in a message."""
    return re.search(r"The nearest is (resid_pre:\d, position -\d)", str(told.value))[1]


def test_none_passes(model, directions):
    with pytest.raises(
        NonePasses, match=r"none of 12 candidates passes: .*The nearest is resid_pre:\d, position"
    ) as told:
        select_direction(model, directions, *HELD_OUT, kl_most=1e-9)
    table = told.value.table
    assert set(table["status"]) == {"out"}
    with pytest.raises(NonePasses) as whole:
        select_direction(model, directions, *HELD_OUT, kl_most=1e-9, exhaustive=True)
    assert find_named(told) == find_named(whole)
    assert "changes harmless answers by more than 1e-09 nats" in str(told.value)


def test_directions_that_cannot_be_selected(model, directions):
    other = tiny.make_model("llama")
    with pytest.raises(SourceMismatch, match="not of in memory"):
        select_direction(other, directions, *HELD_OUT, refusal_tokens=[20, 33], filter_by_sign=False)
    pairs = extract_directions(model, *HELD_OUT, method="paired_svd", rank=2, filter_by_sign=False)
    with pytest.raises(UsageError, match="rank 2"):
        select_direction(model, pairs, *HELD_OUT)
    written = extract_directions(model, *HELD_OUT, places=["mlp_out:all"])
    with pytest.raises(UsageError, match="read at mlp_out"):
        select_direction(model, written, *HELD_OUT)
    with pytest.raises(DataInvalid, match="refusal score above 0, and 2 are needed"):
        select_direction(model, directions, HELD_OUT[1], HELD_OUT[0])
    broken = replace(directions, vectors=directions.vectors * float("nan"))
    with pytest.raises(DataInvalid, match="there is no direction"):
        select_direction(model, broken, *HELD_OUT)


def ablate_each(model, like, vectors, sides, tokens):
    """Mean refusal score of the first side with each vector ablated."""
    stacked = torch.stack(vectors)[None]
    given = replace(
        like,
        vectors=stacked,
        harmful_mean=stacked,
        harmless_mean=stacked,
        places=like.places[1:2],
        positions=tuple(range(-len(vectors), 0)),
    )
    measurements = measure(model, given, sides, tokens, cosmic=False)
    return scores_of(measurements, "bypass", 1, list(range(len(vectors))), ends=False).mean(axis=1)


@pytest.mark.slow
def test_permuted_labels_give_no_direction_that_does_more_than_a_random_one(model, directions):
    """Directions between prompts with permuted labels, selected: none passes, or its held-out effect is a random one's.

    Without the limits the best of the candidates would do more than random directions, since all lie where states vary.
    """
    tokens = directions.facts["refusal_tokens"]
    pools = {
        split: [text for label in ("harmful", "harmless") for text in some(label, split, count)]
        for split, count in (("train", 48), ("validation", 24))
    }
    chosen = []
    for seed in range(20):
        generator = random.Random(seed)
        drawn = {split: generator.sample(texts, len(texts)) for split, texts in pools.items()}
        sides = {split: (texts[: len(texts) // 2], texts[len(texts) // 2 :]) for split, texts in drawn.items()}
        found = extract_directions(model, *sides["train"], filter_by_sign=False, refusal_tokens=tokens)
        with contextlib.suppress(NonePasses):
            result = select_direction(model, found, *sides["validation"], filter_by_sign=False, cosmic=False)
            chosen.append(result.direction.vector)
    assert 0 < len(chosen) < 10
    generator = torch.Generator().manual_seed(0)
    random_ones = [torch.randn(64, generator=generator, dtype=torch.float64) for _ in range(60)]
    tests = [some(label, "test", 24) for label in ("harmful", "harmless")]
    effects = ablate_each(model, directions, [*random_ones, *chosen], tests, tokens)
    low, high = np.quantile(effects[:60], [0.025, 0.975])
    assert ((effects[60:] >= low) & (effects[60:] <= high)).all()
