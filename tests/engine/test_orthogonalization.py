"""Edits of weights: the same logits as under hooks, undone bit for bit; and every mistake is found."""

import families
import peft
import pytest
import tiny
import torch
import transformers

import probing
from probing.engine import orthogonalization, weight_edits
from probing.errors import EditRefused, UsageError
from probing.kernels.project_out import project_out
from probing.models.layers import find_stack
from probing.models.writers import find_writers
from probing.models.writing_tensors import TensorFinder

REFUSED = ("bert", "roberta", "deberta_v3")
IDS = torch.tensor([[1, 30, 31, 32, 33, 34, 35], [1, 90, 57, 200, 11, 301, 44]])


def make(name):
    """A model of a family whose biases, those of experts and norms among them, are not zero."""
    language_model = families.make(name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in language_model.model.named_parameters():
            if key.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return language_model


def vector(*shape):
    return torch.randn(*(shape or (32,)), generator=torch.Generator().manual_seed(3))


def run(language_model):
    with torch.no_grad():
        output = language_model.model(input_ids=IDS)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def copy_weights(language_model):
    return {key: value.clone() for key, value in language_model.model.state_dict().items()}


def is_unchanged(language_model, weights):
    now = language_model.model.state_dict()
    return now.keys() == weights.keys() and all(torch.equal(now[key], weights[key]) for key in weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    language_model = make("gemma2")
    language_model.model.to(dtype)
    weights = copy_weights(language_model)
    edit = probing.orthogonalize(language_model, vector())
    assert {tensor.parameter.dtype for tensor in edit.tensors} == {dtype}
    edit.undo()
    assert is_unchanged(language_model, weights)


def test_norms_are_kept_along_the_axis_of_the_residual_stream():
    language_model = make("gpt_oss")
    before = {tensor.name: tensor.parameter.clone() for tensor in find_all(language_model)}
    with probing.orthogonalize(language_model, vector(), norm_preserving=True) as edit:
        for tensor in edit.tensors:
            norms, were = tensor.parameter.norm(dim=tensor.axis), before[tensor.name].norm(dim=tensor.axis)
            torch.testing.assert_close(norms, were, rtol=1e-5, atol=1e-6)
            assert not torch.equal(tensor.parameter, before[tensor.name])
    assert all(torch.equal(tensor.parameter, before[tensor.name]) for tensor in find_all(language_model))


def find_all(language_model):
    stack = find_stack(language_model)
    writers = find_writers(stack)
    finder = TensorFinder(stack, writers)
    return [tensor for writer in writers for tensor in finder.find(writer)]


def test_a_tied_embedding_is_left_alone_if_asked_for():
    language_model = make("gpt2")
    weights = copy_weights(language_model)
    edit = probing.orthogonalize(language_model, vector(), embedding="skip")
    assert "embedding 2/0/0" in edit.describe()
    assert "the embedding is not edited" in edit.describe()
    assert torch.equal(language_model.model.transformer.wte.weight, weights["transformer.wte.weight"])
    assert language_model.model.lm_head.weight is language_model.model.transformer.wte.weight
    edit.undo()


def test_a_saved_model_keeps_the_edit_and_its_head(tmp_path):
    language_model = make("gpt2")
    probing.orthogonalize(language_model, vector()).forget()
    edited = run(language_model)
    language_model.model.save_pretrained(tmp_path)
    language_model.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(run(probing.load(str(tmp_path), dtype="float32", device="cpu")), edited)


def test_chosen_writers_and_layers():
    language_model = tiny.make_model()
    edit = probing.orthogonalize(language_model, vector(), where="mlp", layers=[0, -1])
    assert [tensor.name for tensor in edit.tensors] == [f"model.layers.{at}.mlp.down_proj.weight" for at in (0, 2)]
    assert edit.parameters == 2 * 64 * 32
    assert edit.kept_bytes == 4 * edit.parameters
    with probing.ablate(language_model, vector(), where="mlp", layers=[0, -1]):
        under_hooks = run(language_model)
    torch.testing.assert_close(run(language_model), under_hooks, rtol=1e-4, atol=1e-4)
    edit.undo()
    edit.undo()
    assert edit.kept_bytes == 0


def test_a_second_edit_of_the_same_direction_changes_next_to_nothing():
    language_model = tiny.make_model()
    probing.orthogonalize(language_model, vector())
    once = copy_weights(language_model)
    probing.orthogonalize(language_model, vector())
    for key, value in language_model.model.state_dict().items():
        torch.testing.assert_close(value, once[key], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_adapters_are_edited_with_the_weights_they_stand_on():
    language_model = tiny.make_model()
    config = peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    adapted = probing.LanguageModel(peft.get_peft_model(language_model.model, config), language_model.tokenizer)
    with probing.ablate(adapted, vector()):
        under_hooks = run(adapted)
    with probing.orthogonalize(adapted, vector()) as edit:
        torch.testing.assert_close(run(adapted), under_hooks, rtol=1e-4, atol=1e-4)
        assert sum("lora_B" in tensor.name for tensor in edit.tensors) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": "tied"}, "embedding is one of untie, skip"),
        ({"where": "resid"}, "weights are edited at the writes"),
        ({"where": "embedding", "layers": 1}, "there is no embedding among the writers of the layers"),
        ({"direction": torch.ones(2, 1, 32)}, "along one direction or subspace"),
    ],
)
def test_bad_requests_name_the_matter(options, message):
    with pytest.raises(UsageError, match=message):
        probing.orthogonalize(tiny.make_model(), **{"direction": vector(), **options})


def test_weights_are_not_edited_under_hooks():
    language_model = tiny.make_model()
    with probing.ablate(language_model, vector()), pytest.raises(UsageError, match=r"is under probing\.ablate"):
        probing.orthogonalize(language_model, vector())


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_whose_writes_cannot_be_proved_is_refused_by_name(name):
    language_model = families.make(name)
    weights = copy_weights(language_model)
    with pytest.raises(EditRefused, match="Model cannot be edited at its writes"):
        probing.orthogonalize(language_model, vector())
    assert is_unchanged(language_model, weights)


def test_positions_that_are_no_parameters_are_edited_by_hooks_and_refused_in_weights():
    config = transformers.XGLMConfig(vocab_size=420, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    language_model = probing.LanguageModel(model, tiny.make_tokenizer())
    with probing.ablate(language_model, vector()) as edit:
        assert "embedding 2/2/2" in edit.describe()
    with pytest.raises(EditRefused, match=r"model\.embed_positions of XGLMForCausalLM writes are not understood"):
        probing.orthogonalize(language_model, vector())
    probing.orthogonalize(language_model, vector(), where=["attention", "mlp"]).undo()


def test_a_parameter_that_something_else_uses_is_refused_by_name():
    language_model = tiny.make_model()
    layers = language_model.model.model.layers
    layers[1].self_attn.q_proj.weight = layers[0].self_attn.o_proj.weight
    with pytest.raises(
        EditRefused, match=r"0\.self_attn\.o_proj\.weight cannot be edited alone: .*1\.self_attn\.q_proj\.weight uses"
    ):
        probing.orthogonalize(language_model, vector())


# Mistakes of published tools, each planted into the edit; the guard has to find it, name the module, and undo it all.


def forget(wanted):
    """Leave out the tensors whose names hold a text."""
    plain = TensorFinder.find
    return lambda finder, writer: [tensor for tensor in plain(finder, writer) if wanted not in tensor.name]


def turn(finder, writer):
    """Take the other axis of the fused experts, which are square here."""
    found = PLAIN_FIND(finder, writer)
    return [
        orthogonalization.WritingTensor(each.name, each.owner, each.key, 3 - each.axis)
        if "experts" in each.name
        else each
        for each in found
    ]


PLAIN_FIND = TensorFinder.find


def keep_norms_of_rows(tensor, axis, basis, keep_norms=False):
    """The lengths along the other axis are kept: what published code calls norm-preserving."""
    if tensor.ndim < 2:
        return project_along(tensor, axis, basis)
    other = tensor.ndim - 1 if axis != tensor.ndim - 1 else tensor.ndim - 2
    norms = tensor.norm(dim=other, keepdim=True)
    project_along(tensor, axis, basis)
    return tensor.mul_(norms / tensor.norm(dim=other, keepdim=True))


def project_along(tensor, axis, basis, keep_norms=False):
    vectors = tensor.movedim(axis, -1)
    return vectors.copy_(project_out(vectors.reshape(-1, 32), basis.float()).reshape(vectors.shape))


def round_direction(tensor, axis, basis, keep_norms=False):
    return project_along(tensor, axis, torch.nn.functional.normalize(basis.bfloat16().float(), dim=1))


MISTAKES = {
    "experts skipped": ("qwen3_moe", TensorFinder, "find", forget("experts"), r"layers\.0\.mlp .* still holds"),
    "shared experts skipped": ("deepseek_v3", TensorFinder, "find", forget("shared_exp"), r"layers\.1\.mlp .* still"),
    "one layer skipped": ("llama", TensorFinder, "find", forget("2.mlp"), r"layers\.2\.mlp .* still holds"),
    "experts along the wrong axis": ("qwen3_moe", TensorFinder, "find", turn, r"layers\.0\.mlp .* still holds"),
    "bias forgotten": ("gpt2", TensorFinder, "find", forget("attn.c_proj.bias"), r"h\.0\.attn .* still holds"),
    "bias of experts forgotten": ("gpt_oss", TensorFinder, "find", forget("proj_bias"), r"layers\.0\.mlp .* still"),
    "positions forgotten": ("gpt2", TensorFinder, "find", forget("wpe"), r"transformer\.wpe .* still holds"),
    "shift of a norm forgotten": (
        "bloom",
        TensorFinder,
        "find",
        forget("layernorm.bias"),
        "embeddings_layernorm .* still",
    ),
    "scale of a norm forgotten": (
        "gemma2",
        orthogonalization,
        "pull_back",
        lambda basis, scale, centred: basis,
        r"post_attention_layernorm .* still holds",
    ),
    "centring of a norm forgotten": (
        "bloom",
        orthogonalization,
        "pull_back",
        lambda basis, scale, centred: torch.nn.functional.normalize(basis * scale, dim=1),
        r"embeddings_layernorm .* still holds",
    ),
    "norms of rows kept": ("llama", orthogonalization, "project_tensor", keep_norms_of_rows, "still holds"),
    "direction rounded to bf16": ("llama", orthogonalization, "project_tensor", round_direction, "still holds"),
    "tied head edited": (
        "gpt2",
        weight_edits,
        "separate",
        lambda *arguments: None,
        r"lm_head\.weight was changed by the edit of the embedding",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_guard_finds_each_mistake_and_undoes_the_edit(mistake, monkeypatch):
    name, where, what, planted, message = MISTAKES[mistake]
    language_model = make(name)
    weights, plain = copy_weights(language_model), run(language_model)
    monkeypatch.setattr(where, what, planted)
    with pytest.raises(EditRefused, match=message):
        probing.orthogonalize(language_model, vector())
    assert is_unchanged(language_model, weights)
    assert torch.equal(run(language_model), plain)


@pytest.mark.parametrize("mistake", ["experts skipped", "norms of rows kept", "bias forgotten"])
def test_the_guard_finds_mistakes_in_half_precision(mistake, monkeypatch):
    name, where, what, planted, message = MISTAKES[mistake]
    language_model = make(name)
    language_model.model.to(torch.bfloat16)
    probing.orthogonalize(language_model, vector()).undo()
    monkeypatch.setattr(where, what, planted)
    with pytest.raises(EditRefused, match=message):
        probing.orthogonalize(language_model, vector())


class Experts(torch.nn.Module):
    """Experts in modules of their own, of which the last two are never used."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))

    def forward(self, states):
        return torch.where(states[..., :1] > 0, self.experts[0](states), self.experts[1](states))


def test_experts_that_no_token_reached_are_proved_by_their_weights(monkeypatch):
    language_model = tiny.make_model()
    layers = language_model.model.model.layers
    for layer in layers:
        layer.mlp = Experts()
    edit = probing.orthogonalize(language_model, vector())
    assert sum("experts.3" in tensor.name for tensor in edit.tensors) == 6
    edit.undo()
    plain, idle = orthogonalization.project_tensor, {layer.mlp.experts[3].weight.data_ptr() for layer in layers}
    monkeypatch.setattr(
        orthogonalization,
        "project_tensor",
        lambda tensor, *rest: tensor if tensor.data_ptr() in idle else plain(tensor, *rest),
    )
    with pytest.raises(EditRefused, match=r"layers\.0\.mlp\.experts\.3\.weight still holds"):
        probing.orthogonalize(language_model, vector())
