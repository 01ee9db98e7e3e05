"""Which modules and parameters write to the residual stream, in models whose answer is known by hand."""

import families
import pytest
import tiny
import torch

from probing.errors import EditRefused
from probing.models import writers as writers_module
from probing.models.layers import find_stack
from probing.models.norms import find_norm
from probing.models.writers import Writers, find_writers
from probing.models.writing_tensors import TensorFinder

# Path within a block (or the model, for embeddings) and axis, of the first block with each.
EXPECTED = {
    "llama": {"model.embed_tokens.weight": 1, "self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0},
    "gpt2": {
        "transformer.wte.weight": 1,
        "transformer.wpe.weight": 1,
        "attn.c_proj.weight": 1,
        "attn.c_proj.bias": 0,
        "mlp.c_proj.weight": 1,
        "mlp.c_proj.bias": 0,
    },
    # The matrices of the experts are square here: no shape tells their axes.
    "qwen3_moe": {
        "model.embed_tokens.weight": 1,
        "self_attn.o_proj.weight": 0,
        "mlp.experts.down_proj": 1,
    },
    "gpt_oss": {
        "model.embed_tokens.weight": 1,
        "self_attn.o_proj.weight": 0,
        "self_attn.o_proj.bias": 0,
        "mlp.experts.down_proj": 2,
        "mlp.experts.down_proj_bias": 1,
    },
    "deepseek_v3": {
        "model.embed_tokens.weight": 1,
        "self_attn.o_proj.weight": 0,
        "mlp.down_proj.weight": 0,
        "mlp.experts.down_proj": 1,
        "mlp.shared_experts.down_proj.weight": 0,
    },
    "llama4_text": {
        "model.embed_tokens.weight": 1,
        "self_attn.o_proj.weight": 0,
        "feed_forward.down_proj.weight": 0,
        "feed_forward.experts.down_proj": 2,
        "feed_forward.shared_expert.down_proj.weight": 0,
    },
    "bloom": {
        "transformer.word_embeddings.weight": 1,
        "transformer.word_embeddings_layernorm.bias": 0,
        "self_attention.dense.weight": 0,
        "self_attention.dense.bias": 0,
        "mlp.dense_4h_to_h.weight": 0,
        "mlp.dense_4h_to_h.bias": 0,
    },
    "gemma2": {"model.embed_tokens.weight": 1, "self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0},
    "falcon_h1": {
        "model.embed_tokens.weight": 1,
        "mamba.out_proj.weight": 0,
        "self_attn.o_proj.weight": 0,
        "feed_forward.down_proj.weight": 0,
    },
    "granitemoehybrid": {
        "model.embed_tokens.weight": 1,
        "mamba.out_proj.weight": 0,
        "self_attn.o_proj.weight": 0,
        "block_sparse_moe.experts.down_proj": 1,
        "shared_mlp.output_linear.weight": 0,
    },
}


def find_tensors(language_model):
    stack = find_stack(language_model)
    writers = find_writers(stack)
    finder = TensorFinder(stack, writers)
    return [tensor for writer in writers for tensor in finder.find(writer)]


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_that_write(name):
    language_model = families.make(name)
    blocks = [find_stack(language_model).name_of(block) for block in find_stack(language_model).blocks]
    found = {}
    for tensor in find_tensors(language_model):
        prefix = next((block for block in blocks if tensor.name.startswith(block + ".")), None)
        found[tensor.name if prefix is None else tensor.name[len(prefix) + 1 :]] = tensor.axis
        assert tensor.parameter is language_model.model.get_parameter(tensor.name)
    assert found == EXPECTED[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_behind_writes(dtype):
    language_model = families.make("gemma2")
    language_model.model.to(dtype)
    stack = find_stack(language_model)
    writers = [writer for writer in find_writers(stack) if writer.kind != "embedding"]
    assert [[name for name, _ in writer.edited] for writer in writers[:2]] == [
        ["model.layers.0.self_attn"],
        ["model.layers.0.mlp"],
    ]
    for writer in writers:
        weight = 1 + writer.module.weight.detach().double()
        cosine = torch.nn.functional.cosine_similarity(writer.norm.scale, weight, dim=0)
        assert float(cosine) > 1 - 1e-12
        assert not writer.norm.centred
        assert not writer.norm.shift.any()


def test_a_layer_norm_is_known_by_its_numbers(generator):
    norm = torch.nn.LayerNorm(24)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(24, generator=generator))
        norm.bias.copy_(torch.randn(24, generator=generator))
    found = find_norm("norm", norm, 24)
    assert found.centred
    torch.testing.assert_close(found.shift, norm.bias.detach().double(), rtol=1e-5, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(found.scale, norm.weight.detach().double(), dim=0)
    assert float(cosine) > 1 - 1e-10


@pytest.mark.parametrize("module", [torch.nn.GELU(), torch.nn.Softmax(dim=-1), torch.nn.Tanh(), torch.nn.ReLU()])
def test_what_is_no_norm_is_not_taken_for_one(module):
    assert find_norm("other", module, 24) is None


def test_kinds_and_shares():
    stack = find_stack(families.make("granitemoehybrid"))
    found = find_writers(stack)
    some = tuple(writer for writer in found if writer.kind != "embedding")
    told = Writers(found, some, some[:1], ["and a note"]).describe()
    assert told.startswith("writers found/edited/proved: embedding 1/0/0, attention 4/4/1, mlp 8/8/0; ")
    everything = sum(parameter.numel() for writer in found for parameter in writer.module.parameters())
    embedding = stack.language_model.model.get_input_embeddings().weight.numel()
    assert f"{1 - embedding / everything:.1%} of their parameters are edited; and a note" in told


class Experts(torch.nn.Module):
    """Experts in modules of their own, of which each token takes one; the last is never taken in a short trial."""

    def __init__(self, width):
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(4))

    def forward(self, states):
        flat = states.reshape(-1, states.shape[-1])
        chosen = (flat[:, 0] > 0).long()
        written = torch.stack([expert(flat) if index < 2 else flat * 0 for index, expert in enumerate(self.experts)])
        return written[chosen, torch.arange(len(flat))].reshape(states.shape)


def test_experts_that_no_token_reached_are_found_by_those_that_were():
    language_model = tiny.make_model()
    for layer in language_model.model.model.layers:
        layer.mlp = Experts(32)
    names = {tensor.name: tensor.axis for tensor in find_tensors(language_model)}
    wanted = {f"model.layers.2.mlp.experts.{index}.{key}": 0 for index in range(4) for key in ("weight", "bias")}
    assert wanted.items() <= names.items()


class Squared(torch.nn.Module):
    """A write that is no linear map of any parameter."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states) ** 2


def test_weights_that_are_not_understood_are_refused_by_name():
    language_model = tiny.make_model()
    language_model.model.model.layers[1].mlp = Squared(language_model.model.model.layers[1].mlp)
    with pytest.raises(EditRefused, match=r"model\.layers\.1\.mlp of LlamaForCausalLM writes are not understood"):
        find_tensors(language_model)


def test_a_constant_that_is_no_parameter_is_refused():
    language_model = tiny.make_model()
    mlp = language_model.model.model.layers[0].mlp
    mlp.register_buffer("added", torch.ones(32))
    mlp.forward = lambda states: type(mlp).forward(mlp, states) + mlp.added
    with pytest.raises(EditRefused, match=r"layers\.0\.mlp .* not understood: .* is off by"):
        find_tensors(language_model)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_name(kind):
    language_model = tiny.make_model()
    mlp = language_model.model.model.layers[2].mlp
    packed = torch.zeros(64, 32).to(kind)
    mlp.packed = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(EditRefused, match=r"model\.layers\.2\.mlp\.packed of LlamaForCausalLM is quantised"):
        find_tensors(language_model)


class Packed(torch.nn.Parameter):
    """Stands for weights of quantisation libraries, which say that they are of half precision."""


def test_weights_in_a_class_of_their_own_are_refused_by_name():
    language_model = tiny.make_model()
    projection = language_model.model.model.layers[0].self_attn.o_proj
    projection.weight = Packed(projection.weight.detach())
    with pytest.raises(EditRefused, match=r"0\.self_attn\.o_proj\.weight .* is quantised, .* \(Packed, float32\)"):
        find_tensors(language_model)


@pytest.mark.parametrize("name", ["bert", "deberta_v3"])
def test_a_norm_after_each_sum_is_refused_by_name(name):
    with pytest.raises(
        EditRefused, match=r"(Bert|DebertaV2)Model cannot be edited at its writes: a norm .*\(layer 0\)"
    ):
        find_writers(find_stack(families.make(name)))


def test_a_block_that_is_not_understood_is_refused_by_name():
    language_model = tiny.make_model()
    layers = language_model.model.model.layers
    plain = layers[1].forward
    layers[1].forward = lambda states, **options: plain(states, **options) ** 2
    with pytest.raises(EditRefused, match=r"no modules of layer 1 add up .*\(layer 1\)"):
        find_writers(find_stack(language_model))


def describe(writer):
    """Everything that a writer is, its modules by themselves."""
    norm = None if writer.norm is None else (writer.norm.name, id(writer.norm.module), writer.norm.centred)
    before = [(part.name, id(part.module), part.factor) for part in writer.before]
    return writer.kind, writer.layer, writer.name, id(writer.module), writer.factor, norm, before


@pytest.mark.parametrize("name", ["gemma2", "bloom", "granitemoehybrid"])
def test_writers_are_remembered_until_the_structure_changes(name, monkeypatch):
    language_model = families.make(name)
    stack = find_stack(language_model)
    searched = []
    plain = writers_module._search
    monkeypatch.setattr(writers_module, "_search", lambda *given: searched.append(given) or plain(*given))
    first, again = find_writers(stack), find_writers(stack)
    assert len(searched) == 1
    assert list(map(describe, again)) == list(map(describe, first))
    for one, other in zip(first, again, strict=True):
        assert one.norm is None or torch.equal(one.norm.scale, other.norm.scale)
        assert one.norm is None or torch.equal(one.norm.shift, other.norm.shift)
    # Training may change the numbers of a norm, which are read each time.
    normed = [writer for writer in again if writer.norm is not None]
    for writer in normed:
        with torch.no_grad():
            writer.norm.module.weight.mul_(torch.linspace(0.5, 2, 32))
    for before, after in zip(normed, [each for each in find_writers(stack) if each.norm is not None], strict=True):
        fresh = find_norm("norm", before.norm.module, 32)
        assert torch.equal(after.norm.scale, fresh.scale)
        assert not torch.allclose(after.norm.scale, before.norm.scale)
    assert len(searched) == 1
    # Some kinds are another question; a hook and another module are another structure.
    find_writers(stack, ("mlp",))
    assert len(searched) == 2
    handle = stack.blocks[0].register_forward_hook(lambda *_: None)
    find_writers(stack)
    assert len(searched) == 3
    handle.remove()
    find_writers(stack)
    assert len(searched) == 3


def test_a_module_that_was_replaced_is_not_remembered():
    language_model = families.make("llama")
    stack = find_stack(language_model)
    before = find_writers(stack)
    block = stack.blocks[1]
    block.mlp = torch.nn.Sequential(block.mlp)
    after = find_writers(stack)
    (own,) = [writer for writer in after if writer.layer == 1 and writer.kind == "mlp"]
    assert own.module in set(block.mlp.modules())
    assert len(after) == len(before)
    block.mlp = torch.nn.Identity()
    with pytest.raises(EditRefused):
        find_writers(find_stack(language_model))
