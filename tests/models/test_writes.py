import families
import pytest
import tiny
import torch
import transformers

from probing import LanguageModel, Place
from probing.errors import LayerNotFound
from probing.models.layers import find_stack

NAMES = [name for name in families.FAMILIES if name != "llava"]


def told(stack):
    return [
        ([part.describe() for part in writes.attention], [part.describe() for part in writes.mlp])
        for writes in stack.writes
    ]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_changes_nothing(name):
    """Rounding is a hundred thousand times coarser there, and the sums still tell the writes apart."""
    exact, coarse = families.make(name), families.make(name)
    coarse.model.to(torch.bfloat16)
    found = [(a, b) for a, b in told(find_stack(coarse))]
    expected = told(find_stack(exact))
    if families.FAMILIES[name].factor == 1.0:
        assert found == expected
    else:  # a factor that was fitted has other last digits
        assert [(len(a), len(b)) for a, b in found] == [(len(a), len(b)) for a, b in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [0.95, 1.05, 0.22])
def test_factors_are_found_in_half_precision_too(dtype, factor):
    config = transformers.GraniteConfig(**{**families.SHAPE, "residual_multiplier": factor})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    for writes in find_stack(LanguageModel(model, tiny.make_tokenizer())).writes:
        assert [part.factor for part in (*writes.attention, *writes.mlp)] == pytest.approx([factor] * 2, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_part_has_a_factor_of_its_own(dtype):
    """And large embeddings, beside which a block adds little, do not make a part disappear."""
    values = families.FAMILIES["falcon_h1"].values
    config = transformers.FalconH1Config(**values, ssm_out_multiplier=0.2357, attention_out_multiplier=0.9375)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(50)
    stack = find_stack(LanguageModel(model, tiny.make_tokenizer()))
    for writes in stack.writes:
        if writes.form == "sum":
            factors = {part.name: part.factor for part in (*writes.attention, *writes.mlp)}
            assert factors == pytest.approx({"mamba": 0.2357, "self_attn": 0.9375, "feed_forward": 1.0}, rel=1e-2)
    assert any(writes.form == "sum" for writes in stack.writes)


def test_a_massive_channel_hides_nothing():
    language_model = tiny.make_model("llama")
    with torch.no_grad():
        language_model.model.model.embed_tokens.weight[:, 3] += 3e4
    stack = find_stack(language_model)
    assert told(stack) == [(["self_attn"], ["mlp"])] * 3


class Odd(torch.nn.Module):
    """A block that adds what no module of it returns."""

    def __init__(self, plain):
        super().__init__()
        self.plain = plain

    def forward(self, hidden_states, **options):
        return self.plain(hidden_states, **options) ** 2


def test_a_block_that_is_not_understood_is_refused_with_what_was_looked_at():
    language_model = tiny.make_model("llama")
    layers = language_model.model.model.layers
    layers[1] = Odd(layers[1])
    stack = find_stack(language_model)
    assert [writes.form for writes in stack.writes] == ["sum", "unknown", "sum"]
    stack.sites([Place("attn_out", 0), Place("resid_post", 1)])
    with pytest.raises(
        LayerNotFound, match=r"attn_out:1: not found in .*no modules of layer 1 add up .*looked at: .*mlp"
    ):
        stack.sites([Place("attn_out", 1)])


def test_a_place_that_a_family_lacks():
    stack = find_stack(families.make("mamba2"))
    with pytest.raises(LayerNotFound, match="mlp_out:2: not found in Mamba2ForCausalLM; layer 2 writes only mixer"):
        stack.sites([Place("mlp_out", 2)])
    with pytest.raises(LayerNotFound, match="BertModel has no final norm: its states end with resid_post:3"):
        find_stack(families.make("bert")).sites([Place("final_norm")])


def test_blocks_of_different_kinds_are_told_apart():
    stack = find_stack(families.make("lfm2"))
    assert [names for names, _ in told(stack)] == [["conv"], ["self_attn"]] * 2
