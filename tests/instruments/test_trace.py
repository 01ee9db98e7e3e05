"""The logit lens by hand, projections by plain hooks, and the whole trace of the bundled model."""

import dataclasses
import json

import families
import numpy as np
import pytest
import torch

import probing
from probing.data.bundled import bundled_data
from probing.directions.trace import WINDOW
from probing.errors import DataInvalid, NotFinite, SourceMismatch, UsageError
from probing.instruments.directions import first_token_head, refusal_log_odds
from probing.instruments.trace import trace_refusal
from probing.instruments.trace_reading import Lens, ProjectionReader, append_answer
from probing.instruments.trace_tables import TracedText, find_depth, list_bands, list_cliffs, list_curves
from probing.models.layers import find_stack
from probing.models.load import load
from probing.types import Direction, Place

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()][::40]
SIDES = [[row for row in ROWS if row["label"] == kind] for kind in ("harmful", "harmless")]
FEW = {"refits": 1, "resamples": 20, "folds": 3, "random_directions": 4}


@pytest.fixture(scope="module")
def model():
    return load("bundled")


@pytest.fixture(scope="module")
def direction(model):
    return probing.extract_directions(model, *SIDES, places="resid_pre:2").at("resid_pre:2", -1)


@pytest.fixture(scope="module")
def traced(model, direction):
    sides = [
        [{**row, "response": "Sorry, I cannot."} if at == 0 else row for at, row in enumerate(side)] for side in SIDES
    ]
    return trace_refusal(model, *sides, direction, places="resid_post:3", **FEW)


def read_plainly(model, ids):
    """States behind every block, and the model's own logits at the last token."""
    states = []
    hooks = [
        block.register_forward_hook(
            lambda module, given, made: states.append(made[0] if isinstance(made, tuple) else made)
        )
        for block in find_stack(model).blocks
    ]
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids])).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return torch.stack([each[0] for each in states]), logits


def log_odds(logits, tokens):
    mass = float(logits.double().softmax(0)[tokens].sum())
    return np.log(mass + 1e-8) - np.log(1 - mass + 1e-8)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "cohere2", "granite"])
def test_the_lens_is_norm_and_head_by_hand(family):
    model = families.make(family)
    stack, tokens = find_stack(model), [7, 90]
    states, logits = read_plainly(model, [1, 50, 60, 70, 80, 9, 33])
    lens = Lens(stack, first_token_head(model), tokens)
    found = lens.score(states[:, -1])
    config = model.model.config
    for state, score in zip(states[:, -1], found.tolist(), strict=True):
        with torch.no_grad():
            own = model.model.lm_head(stack.final_norm(state[None]))[0]
        own = own * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        own = own if cap is None else cap * torch.tanh(own / cap)
        assert score == pytest.approx(log_odds(own, tokens), abs=1e-4)
    # Behind the last block it is what the model itself says.
    assert found[-1] == pytest.approx(log_odds(logits, tokens), abs=1e-4)
    ended = stack.final_norm(states[-1]).detach()
    assert lens.find_why_not(states[-1], ended) == ""
    assert "off by" in lens.find_why_not(states[-2], ended)
    blind = Lens(dataclasses.replace(stack, final_norm=None), lens.head, tokens)
    assert "not a single module" in blind.find_why_not(states[-1], ended)


def test_projections_are_those_of_a_plain_hook(model, direction):
    ids = model.tokenizer("Tell me how a lamp is made.")["input_ids"]
    other = [*ids, *ids[1:4]]
    texts = [TracedText("a", True, ids, len(ids), len(ids)), TracedText("b", False, other, len(ids), len(ids))]
    reader = ProjectionReader.open(model, direction, 3, seed=0)
    curves = reader.read(texts)
    vector = direction.vector.double() / direction.vector.double().norm()
    for text, curve in zip(texts, curves, strict=True):
        # What comes out of block 1 goes into block 2; the first token does not count.
        states = read_plainly(model, text.ids)[0][1, 1:].double()
        np.testing.assert_allclose(curve[:, 0], (states @ vector).numpy(), atol=1e-4)
        assert curve.shape == (len(text.ids) - 1, 4)
    np.testing.assert_allclose(reader.vectors.norm(dim=1), 1)
    listed = list_curves(texts, curves, model.tokenizer)
    own = listed[listed["id"] == "b"]
    assert list(own["part"]) == ["prompt"] * (len(ids) - 1) + ["answer"] * 3
    assert list(own["from_end"]) == list(range(1 - len(ids), 3))
    assert own["text"].iloc[0] == model.tokenizer.decode([ids[1]])
    assert own["projection"].iloc[-1] == curves[1][-1, 0]


def test_a_thought_has_a_cliff_of_its_own():
    texts = [TracedText("a", True, list(range(20)), 6, 14), TracedText("b", True, list(range(12)), 6, None)]
    curves = [np.arange(19.0)[:, None], np.zeros((11, 1))]
    found = list_cliffs(texts, curves).set_index(["id", "at"])
    assert found.loc[("a", "end of the prompt"), "last"] == 4
    # Tokens 6 to 13 of the sequence are the thought, and the curve begins with the second token.
    row = found.loc[("a", "beginning of the answer")]
    assert (row["last"], row["plateau"], row["cliff"]) == (12, 8, -4)
    assert len(found) == 3
    bands = list_bands(texts, curves).set_index(["aligned_at", "position"])
    assert bands.loc[("beginning of the answer", 0), "quantile_50"] == 13
    assert bands.loc[("beginning of the answer", 0), "texts"] == 1
    assert bands.loc[("end of the prompt", -1), "texts"] == 2
    assert bands.index.get_level_values("position").min() >= -WINDOW


def test_the_trace_of_the_bundled_model(model, direction, traced):
    tokens = [token.id for token in traced.tokens]
    assert tokens == direction.facts["refusal_tokens"]
    places = traced.places.set_index("place")
    for number, kind in enumerate(("harmful", "harmless")):
        scores = refusal_log_odds(model, SIDES[number], tokens)
        assert places.loc["resid_post:3", f"lens_{kind}"] == pytest.approx(float(scores.mean()), abs=1e-4)
        assert traced.refused[kind] == int((scores > 0).sum())
    assert list(places.index) == ["resid_post:0", "resid_post:1", "resid_post:2", "resid_post:3", "surface"]
    assert places["decision_f1"].notna().tolist() == [False, False, False, True, True]
    assert places.loc["resid_post:3", "decision_f1"] > 0.8
    assert set(traced.why_not) == {"within_harmful", "within_harmless"}
    assert set(traced.sources["source"]) == {row["category"] for row in ROWS}
    assert set(traced.curves["part"]) == {"prompt", "answer"}
    assert traced.curves["token"].min() == 1
    assert len(traced.cliffs) == len(ROWS)
    assert repr(traced).startswith("RefusalTrace(refused: ")


def test_without_heads_nothing_has_to_be_decided_differently(model, direction):
    sides = [[row["text"] for row in SIDES[1][:4]], [row["text"] for row in SIDES[1][3:]]]
    with pytest.raises(DataInvalid, match=r"the model refuses 0 and complies with \d+; 3 of either"):
        trace_refusal(model, *sides, refusal_tokens=["I"], **FEW)
    found = trace_refusal(model, *sides, direction, refusal_tokens=["I"], classifier=False, **FEW)
    assert "decision_f1" not in found.places
    assert found.places["lens_gap"].notna().all()
    assert len(found.cliffs)


def test_bad_input(model, direction):
    other = load("bundled-displaced")
    with pytest.raises(SourceMismatch, match="the direction is of bundled"):
        trace_refusal(other, *SIDES, direction, **FEW)
    both = torch.stack([direction.vector, torch.ones_like(direction.vector)])
    with pytest.raises(UsageError, match="a subspace of rank 2"):
        trace_refusal(model, *SIDES, dataclasses.replace(direction, vector=both), **FEW)
    with pytest.raises(DataInvalid, match="3 harmful prompts can be read, and 4 are needed"):
        trace_refusal(model, SIDES[0][:3], SIDES[1], **FEW)
    weight = other.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[:] = float("nan")
    with pytest.raises(NotFinite, match="0 harmful prompts can be read"):
        trace_refusal(other, *SIDES, refusal_tokens=["I"], **FEW)
    broken = Direction(torch.ones(model.model.config.hidden_size), Place("resid_pre", 2), -1, other.source, "m")
    reader = ProjectionReader.open(other, broken, 0, seed=0)
    with pytest.raises(NotFinite, match="row 'a'"):
        reader.read([TracedText("a", True, [1, 5, 6], 3, 3)])


def test_answers_stand_behind_prompts_and_thoughts(model):
    tokenizer = model.tokenizer
    ids, start = append_answer(tokenizer, [1, 2], "Sorry.")
    assert (ids[:2], start) == ([1, 2], 2)
    assert tokenizer.decode(ids[2:]).strip() == "Sorry."
    ids, start = append_answer(tokenizer, [1, 2], "Sorry.", "Is it bad", "end")
    assert tokenizer.decode(ids[start:]).strip() == "Sorry."
    assert "bad" in tokenizer.decode(ids[2:start])


def test_depth():
    depths = [find_depth(place, 4) for place in ("resid_pre:0", "resid_post:0", "mlp_out:3", "final_norm")]
    assert depths == [0, 0.25, 1, 1]
