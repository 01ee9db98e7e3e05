"""A direction added in weights: the logits of the hooks, undone bit for bit, and every mistake found."""

import families
import pytest
import torch

import probing
from probing.engine import weight_bias
from probing.errors import EditRefused, UsageError
from probing.models import writing_tensors
from probing.types import Direction, Place

IDS = torch.tensor([[1, 30, 31, 32, 33, 34, 35], [1, 90, 57, 200, 11, 301, 44]])
# A bias that is new, biases and shifts that are there, experts' biases, shared experts, a factor, a mixer without MLP;
# an embedding of its own, one that is tied, and positions.
EXPECTED = {
    ("llama", 2): ("model.layers.1.mlp.down_proj.bias", True),
    ("gpt2", 2): ("transformer.h.1.mlp.c_proj.bias", False),
    ("gpt_oss", 2): ("model.layers.1.mlp.experts.down_proj_bias", False),
    ("llama4_text", 2): ("model.layers.1.feed_forward.shared_expert.down_proj.bias", True),
    ("granite", 2): ("model.layers.1.mlp.down_proj.bias", True),
    ("mamba2", 2): ("backbone.layers.1.mixer.out_proj.bias", True),
    ("falcon", 2): ("transformer.h.1.mlp.dense_4h_to_h.bias", True),
    ("granite", 0): ("model.embed_tokens.weight", False),
    ("gemma2", 0): ("model.embed_tokens.weight", False),
    ("bloom", 0): ("transformer.word_embeddings_layernorm.bias", False),
    ("gpt2", 0): ("transformer.wpe.weight", False),
}


def vector(*shape):
    return torch.randn(*(shape or (32,)), generator=torch.Generator().manual_seed(3))


def run(language_model):
    with torch.no_grad():
        return language_model.model(input_ids=IDS).logits


def copy_weights(language_model):
    return {key: value.clone() for key, value in language_model.model.state_dict().items()}


def is_unchanged(language_model, weights):
    now = language_model.model.state_dict()
    return now.keys() == weights.keys() and all(torch.equal(now[key], weights[key]) for key in weights)


@pytest.mark.parametrize(("name", "layer"), EXPECTED)
def test_weights_give_the_logits_of_hooks(name, layer):
    language_model = families.make(name)
    weights, plain = copy_weights(language_model), run(language_model)
    with probing.ablate(language_model, vector(), "add", layers=layer, coefficient=-1.5):
        under_hooks = run(language_model)
    edit = probing.add_to_weights(language_model, vector(), -1.5, layers=layer)
    edited = run(language_model)
    # Both compute in float32, the sums in another order.
    torch.testing.assert_close(edited, under_hooks, rtol=0, atol=1e-4 * float(plain.abs().max().clamp_max(1)))
    assert (edited - plain).abs().max() > 0.1
    ((tensor,), (written, new)) = edit.tensors, EXPECTED[name, layer]
    assert (tensor.name, edit.created) == (written, [written] if new else [])
    assert f"added at resid_pre:{layer} through {written}" in edit.describe()
    assert ("untied first" in edit.describe()) == (name == "gemma2")
    edit.undo()
    assert is_unchanged(language_model, weights)
    assert torch.equal(run(language_model), plain)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma2", r"a norm without a shift stands behind: model\.layers\.1\.post_feedforward_layernorm"),
        ("mixtral", r"no bias .* behind block 1; looked at: model\.layers\.1\.mlp\.experts\.down_proj"),
        ("bert", "a norm stands behind each sum"),
    ],
)
def test_what_has_no_place_for_a_constant_is_refused_by_name(name, message):
    language_model = families.make(name)
    weights = copy_weights(language_model)
    with pytest.raises(EditRefused, match=message):
        probing.add_to_weights(language_model, vector(), layers=2)
    assert is_unchanged(language_model, weights)


def test_several_layers_sides_and_half_precision():
    language_model = families.make("llama")
    language_model.model.to(torch.bfloat16)
    weights = copy_weights(language_model)
    direction = Direction(vector(), Place("resid_post", 1), -1, language_model.source)
    with probing.add_to_weights(language_model, direction, [1.0, -2.0], layers=[1, -1]) as edit:
        assert edit.places == ["resid_post:1", "resid_post:3"]
        assert edit.parameters == 64
        layers = language_model.model.model.layers
        assert layers[3].mlp.down_proj.bias.dtype == torch.bfloat16
        torch.testing.assert_close(layers[3].mlp.down_proj.bias.float(), -2 * vector(), rtol=1e-2, atol=1e-3)
    assert is_unchanged(language_model, weights)
    kept = probing.add_to_weights(language_model, direction)
    kept.forget()
    kept.undo()
    assert not is_unchanged(language_model, weights)


def double(tensor, axis, added, plain=weight_bias.add_along):
    plain(tensor, axis, 2 * added)


def add_before_the_mlp(found, block):
    return tuple(each for each in found if each.layer == block and each.kind == "attention")


@pytest.mark.parametrize(
    ("name", "where", "what", "planted"),
    [
        ("gpt2", weight_bias, "add_along", double),
        ("gpt2", weight_bias, "_choose_writers", add_before_the_mlp),
        # The factor behind the write forgotten.
        ("granite", writing_tensors.TensorFinder, "measure_gain", lambda *arguments: 1.0),
    ],
)
def test_the_guard_finds_mistakes_and_undoes_the_edit(name, where, what, planted, monkeypatch):
    language_model = families.make(name)
    weights = copy_weights(language_model)
    monkeypatch.setattr(where, what, planted)
    with pytest.raises(EditRefused, match=r"off by .* the edit was undone"):
        probing.add_to_weights(language_model, vector(), layers=2)
    assert is_unchanged(language_model, weights)


def test_experts_that_a_gate_weighs_are_no_place_for_a_constant(monkeypatch):
    """The effect of a bias counts, not its name: weights of experts that do not add up to one move tokens unlike."""
    language_model = families.make("gpt_oss")
    router = type(language_model.model.model.layers[1].mlp.router)
    plain = router.forward

    def forward(self, states):
        logits, scores, chosen = plain(self, states)
        return logits, scores * torch.linspace(0.5, 1, len(scores))[:, None], chosen

    monkeypatch.setattr(router, "forward", forward)
    with pytest.raises(EditRefused, match="no bias"):
        probing.add_to_weights(language_model, vector(), layers=2)


def test_bad_input():
    language_model = families.make("llama")
    with pytest.raises(UsageError, match="a subspace has no length"):
        probing.add_to_weights(language_model, vector(2, 32), layers=2)
    with pytest.raises(UsageError, match="one direction, the same for all rows"):
        probing.add_to_weights(language_model, vector(2, 1, 32), layers=2)
    with pytest.raises(UsageError, match="layers must be given"):
        probing.add_to_weights(language_model, vector())
    elsewhere = Direction(vector(), Place("mlp_out", 1), -1, language_model.source)
    with pytest.raises(UsageError, match="was read at mlp_out"):
        probing.add_to_weights(language_model, elsewhere)
    with probing.ablate(language_model, vector()), pytest.raises(UsageError, match=r"under probing\.ablate"):
        probing.add_to_weights(language_model, vector(), layers=2)
