import json

import pytest
import tiny
import torch

from probing.data.bundled import bundled_data, bundled_model
from probing.directions.extract import cosine, difference_in_means
from probing.errors import DataInvalid, UsageError
from probing.instruments.directions import (
    extract_directions,
    first_token_head,
    keep_by_sign,
    mean_first_token,
    read_refusals,
    refusal_log_odds,
)
from probing.models.load import load
from probing.types import LabelledPrompt

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]


def some(label, split="train", count=24):
    """Bundled prompts of one kind, some of every category."""
    rows = [row["text"] for row in ROWS if row["label"] == label and row["split"] == split]
    return rows[:: max(len(rows) // count, 1)][:count]


HARMFUL, HARMLESS = some("harmful"), some("harmless")


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model()))


def plain_ends(model, text, tokens):
    """States that enter every block at the last tokens of a prompt, as transformers lists them."""
    ids = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    with torch.no_grad():
        output = model.model(input_ids=ids, output_hidden_states=True)
    return torch.stack(output.hidden_states[:-1])[:, 0, -tokens:], output.logits[0, -1]


def test_directions_are_those_of_plain_loops(model):
    found = extract_directions(model, HARMFUL, HARMLESS)
    # The template writes the end of the turn and the opening of the answer; before these stands the instruction's end.
    assert found.positions == (-3, -2, -1)
    assert [str(place) for place in found.places] == [f"resid_pre:{layer}" for layer in range(4)]
    sides = [torch.stack([plain_ends(model, text, 3)[0] for text in side]) for side in (HARMFUL, HARMLESS)]
    expected = difference_in_means(*sides)
    same = ~found.vectors.isnan().any(dim=-1)
    # At the embedding the tokens of the template are the same in every prompt.
    assert same.tolist() == [[True, False, False]] + [[True, True, True]] * 3
    torch.testing.assert_close(found.vectors[same], expected[same], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.harmless_mean, sides[1].double().mean(0), rtol=1e-4, atol=1e-5)
    assert found.facts["prompts"] == {"harmful": len(HARMFUL), "harmless": len(HARMLESS)}
    with pytest.raises(ValueError, match="all prompts look the same there"):
        found.at("resid_pre:0")
    direction = found.at("resid_pre:-1")
    assert torch.equal(direction.vector, found.vectors[3, 2])
    assert (direction.position, str(direction.place), direction.source) == (-1, "resid_pre:3", model.source)


def test_scores_are_those_of_the_models_own_logits(model):
    tokens = [model.tokenizer.convert_tokens_to_ids(token) for token in ("I", "Sorry")]
    found = refusal_log_odds(model, [*HARMFUL[:3], *HARMLESS[:3]], tokens)
    for text, score in zip([*HARMFUL[:3], *HARMLESS[:3]], found.tolist(), strict=True):
        mass = float(plain_ends(model, text, 1)[1].double().softmax(0)[tokens].sum())
        assert score == pytest.approx(float(torch.tensor(mass).double().logit()), abs=2e-3)
    assert (found[:3] > 0).all()
    assert (found[3:] < 0).all()
    by_text = refusal_log_odds(model, HARMFUL[:1], ["I", "Sorry"])
    torch.testing.assert_close(by_text, found[:1])


def test_refusal_tokens_are_found(model):
    found = extract_directions(model, HARMFUL, HARMLESS)
    assert sorted(model.tokenizer.convert_ids_to_tokens(found.facts["refusal_tokens"])) == ["I", "Sorry"]


def test_prompts_of_the_wrong_sign_are_left_out(model):
    """Harmless prompts among the harmful ones would pull the direction to nothing."""
    mixed = extract_directions(model, [*HARMFUL, *some("harmless", "test", 10)], HARMLESS)
    clean = extract_directions(model, HARMFUL, HARMLESS)
    assert mixed.facts["prompts"]["harmful"] == len(HARMFUL)
    torch.testing.assert_close(mixed.vectors[1:], clean.vectors[1:], rtol=1e-5, atol=1e-6)
    everything = extract_directions(model, [*HARMFUL, *some("harmless", "test", 10)], HARMLESS, filter_by_sign=False)
    assert everything.facts["prompts"]["harmful"] == len(HARMFUL) + 10
    assert float(everything.vectors[3, 2].norm()) < 0.9 * float(clean.vectors[3, 2].norm())


def test_nothing_left_shows_how_the_scores_lay(model):
    with pytest.raises(DataInvalid, match=r"of 24 harmful prompts 0 have a refusal score above 0.*median -"):
        extract_directions(model, HARMLESS, some("harmless", "test"), refusal_tokens=["I", "Sorry"])
    with pytest.raises(DataInvalid, match="alike"):
        extract_directions(model, HARMLESS, HARMLESS)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(["I am sorry"], "3 tokens"), ([], "at least one"), (["I", "I"], "twice"), ([10**6], "no token 1000000")],
)
def test_tokens_that_are_none_are_refused(model, tokens, said):
    with pytest.raises(UsageError, match=said):
        refusal_log_odds(model, HARMFUL[:1], tokens)


def test_a_prompt_that_cannot_be_read_has_no_score(model):
    found = refusal_log_odds(model, [HARMFUL[0], "", HARMLESS[0]], ["I"])
    assert found.isnan().tolist() == [False, True, False]


def test_the_sequences_first_token_never_counts():
    """With a template that writes nothing before the instruction, a prompt of one token has no state to read."""
    model = tiny.make_model("llama")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ '<|assistant|>' }}"
    with pytest.raises(DataInvalid, match="fewer than 2 can be read"):
        extract_directions(model, ["o", "k"], ["a", "b"], filter_by_sign=False)


def test_a_template_without_a_position_after_the_instruction_is_refused():
    model = tiny.make_model("llama")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataInvalid, match="writes nothing after an instruction"):
        extract_directions(model, ["Is it ok?", "The answer"], ["Sure", "Never"], filter_by_sign=False)


def test_directions_of_other_methods_point_the_same_way(model):
    plain = extract_directions(model, HARMFUL, HARMLESS).at("resid_pre:3")
    for how in ({"method": "logistic"}, {"method": "paired_svd", "rank": 2}, {"winsorized": 0.05}):
        other = extract_directions(model, HARMFUL, HARMLESS, **how).at("resid_pre:3")
        assert float(cosine(other.vector.reshape(-1, 64)[0], plain.vector)) > 0.95
    off = extract_directions(model, HARMFUL, HARMLESS, off_harmless_mean=True).at("resid_pre:3")
    assert abs(float(cosine(off.vector, off.harmless_mean))) < 1e-12
    assert off.method == "difference in means, off the harmless mean"


def test_reading_lists_what_was_measured(model):
    kinds = [[LabelledPrompt(f"{at}", text) for at, text in enumerate(side)] for side in (HARMFUL, HARMLESS)]
    kinds[1] = [LabelledPrompt(f"harmless {prompt.id}", prompt.text) for prompt in kinds[1]]
    reading = read_refusals(model, *kinds, tokens=["I"])
    assert [token.id for token in reading.tokens] == [model.tokenizer.convert_tokens_to_ids("I")]
    assert reading.tokens[0].harmful > 0.5 > reading.tokens[0].harmless
    assert set(reading.scores) == {prompt.id for side in kinds for prompt in side}
    assert [len(side) for side in keep_by_sign(reading, *kinds)] == [24, 24]


def test_mean_probability_of_first_tokens(model):
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    head = first_token_head(model)
    expected = (states @ model.model.get_output_embeddings().weight.detach().T).double().softmax(1).mean(0)
    torch.testing.assert_close(mean_first_token(states, head), expected, rtol=1e-5, atol=1e-7)
