"""Every kind of adapter that PEFT knows: the base stays the base, and what is scored is what PEFT computes."""

import dataclasses
import warnings

import peft
import pytest
import tiny
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from probing import Capture, LanguageModel, capture, score_pairs
from probing.errors import ModelInvalid, UsageError
from probing.models.adapters import SHARING, attach
from probing.tokens.pairs import tokenize_pairs
from probing.types import PreferencePair

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = [{"prompt": "Is it ok?", "chosen": " No", "rejected": " Never"}]
BEFORE_THE_INPUT = "put tokens before the input"
REFUSED = {
    "PROMPT_TUNING": BEFORE_THE_INPUT,
    "MULTITASK_PROMPT_TUNING": BEFORE_THE_INPUT,
    "P_TUNING": BEFORE_THE_INPUT,
    "PREFIX_TUNING": BEFORE_THE_INPUT,
    "CPT": BEFORE_THE_INPUT,
    "CARTRIDGE": BEFORE_THE_INPUT,
    "POLY": "need a pass of PEFT's own",
    "XLORA": "need a pass of PEFT's own",
    "SHADOW": "need a pass of PEFT's own",
}
NOT_CAUSAL = "LILY"
"""Weighs its parts by the mean of all states of a sequence, later ones too."""
OWN = {
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 2},
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 10},
    "IA3": {"feedforward_modules": ["v_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"r": 0, "oft_block_size": 4},
    "RANDLORA": {"r": 2},
    "ROAD": {"group_size": 2},
    "SHADOW": {"target_modules": None, "shadow_num_hidden_layers": 1},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": list(range(3, 420))},
    "VBLORA": {"num_vectors": 8, "vector_length": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 16},
    "XLORA": {"adapters": {"0": "/nowhere"}, "hidden_size": 32},
}


def make_config(kind):
    """The config of a small adapter of a kind."""
    form = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    usual = {"target_modules": ["q_proj", "v_proj"], "r": 4, "num_virtual_tokens": 2}
    known = {field.name for field in dataclasses.fields(form)}
    options = {name: value for name, value in usual.items() if name in known} if kind.name != "ADAPTION_PROMPT" else {}
    return form(task_type="CAUSAL_LM", **options | OWN.get(kind.name, {}))


def save_adapter(folder, config, model=None, move=None):
    """Save an adapter whose trained numbers were moved away from those that change nothing."""
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(tiny.make_model().model if model is None else model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and (move is None or move(name)):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return str(folder)


def logprobs(model):
    """ln p of the responses as a plain pass of a model gives it, one sequence at a time."""
    pairs = [PreferencePair("0", **ROWS[0])]
    pair = tokenize_pairs(tiny.make_tokenizer(), pairs, eos=True, max_length=None)[0]
    said = []
    for ids in (pair.chosen, pair.rejected):
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        said.append(sum(float(logits[at - 1, ids[at]]) for at in range(pair.prompt_tokens, len(ids))))
    return said


def scored(language_model):
    return score_pairs(language_model, ROWS, columns=["chosen_logprob", "rejected_logprob"]).iloc[0, 2:].tolist()


def fresh(folder):
    """The adapter on a model of its own, as PEFT loads it."""
    return peft.PeftModel.from_pretrained(tiny.make_model().model, folder)


def check_both_sides(folder):
    """The base scores as before, bit by bit, and the model under the adapter as PEFT's own."""
    base = tiny.make_model()
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    parts, settings = [name for name, _ in base.model.named_modules()], base.model.config.to_dict()
    plain = scored(base)
    adapted = base.adapted(folder)
    after = scored(adapted)
    assert after == pytest.approx(logprobs(fresh(folder)), abs=1e-4)
    assert after != pytest.approx(plain, abs=1e-3)
    assert plain == pytest.approx(logprobs(tiny.make_model().model), abs=1e-4)
    assert scored(base) == plain
    assert [name for name, _ in base.model.named_modules()] == parts
    assert base.model.config.to_dict() == settings
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())
    return base, adapted


READ = [kind for kind in peft.PeftType if kind.name not in (*REFUSED, NOT_CAUSAL)]


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_every_kind_leaves_the_base_alone_and_counts_itself(kind, tmp_path):
    base, adapted = check_both_sides(save_adapter(tmp_path, make_config(kind)))
    assert kind.name in SHARING
    shared = {tensor.data_ptr() for tensor in base.model.parameters()}
    assert adapted.model.get_input_embeddings().weight.data_ptr() in shared


def test_a_kind_that_looks_at_later_tokens_has_states_but_no_likelihood(tmp_path):
    base = tiny.make_model()
    adapted = base.adapted(save_adapter(tmp_path, make_config(peft.PeftType.LILY)))
    with pytest.raises(ModelInvalid, match="not causal"):
        scored(adapted)
    text = "Is it ok?"
    states = capture(adapted, [text], Capture(places=["final_norm"], pooling="tokens")).values[:, 0]
    ids = torch.tensor([adapted.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        want = fresh(str(tmp_path)).eval().get_base_model().model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(states, want[-len(states) :], rtol=1e-4, atol=1e-4)
    assert scored(base) == pytest.approx(logprobs(tiny.make_model().model), abs=1e-4)


@pytest.mark.parametrize("kind", [peft.PeftType[name] for name in REFUSED], ids=lambda kind: kind.name)
def test_kinds_that_need_a_pass_of_pefts_own_are_refused_by_name(kind, tmp_path):
    if kind.name == "XLORA":
        make_config(kind).save_pretrained(tmp_path)
        (tmp_path / "adapter_model.safetensors").touch()
    else:
        save_adapter(tmp_path, make_config(kind))
    with pytest.raises(ModelInvalid, match=f"{REFUSED[kind.name]}.*{kind.name}|{kind.name}.*{REFUSED[kind.name]}"):
        tiny.make_model().adapted(str(tmp_path))


TARGETS = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
VARIANTS = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "mica": {"init_lora_weights": "mica"},
    "rslora": {"use_rslora": True, "lora_alpha": 16},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "some_layers": {"layers_to_transform": [1]},
    "replicated_layers": {"layer_replication": [(0, 2), (1, 3)]},
    "saved_head": {"modules_to_save": ["lm_head"]},
    "saved_embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "adapted_embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "embeddings_in_full": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "trainable_tokens": {"trainable_token_indices": list(range(3, 420))},
    "saved_norm": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_saved_extra_of_lora(name, tmp_path):
    check_both_sides(save_adapter(tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS | VARIANTS[name])))


def test_biases_are_those_of_the_adapter_on_its_own_side_only(tmp_path):
    base, reference = tiny.make_model("gpt2"), tiny.make_model("gpt2")
    config = peft.LoraConfig(r=2, bias="all", target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    folder = save_adapter(tmp_path, config, tiny.make_model("gpt2").model)
    plain = scored(base)
    after = scored(base.adapted(folder))
    assert after == pytest.approx(logprobs(peft.PeftModel.from_pretrained(reference.model, folder)), abs=1e-4)
    assert scored(base) == plain
    assert plain == pytest.approx(logprobs(tiny.make_model("gpt2").model), abs=1e-4)


def test_embeddings_that_are_saved_beside_the_adapter_stay_on_its_side(tmp_path):
    torch.manual_seed(3)
    model = peft.get_peft_model(tiny.make_model().model, peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.1)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    check_both_sides(str(tmp_path))


def test_an_unknown_kind_gets_weights_of_its_own(tmp_path, monkeypatch, caplog):
    folder = save_adapter(tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS))
    monkeypatch.setattr("probing.models.adapters.SHARING", frozenset())
    base, adapted = check_both_sides(folder)
    assert "weights are in memory twice" in caplog.text
    assert not {t.data_ptr() for t in base.model.parameters()} & {t.data_ptr() for t in adapted.model.parameters()}


def test_a_base_that_was_changed_after_all_ends_everything(tmp_path, monkeypatch):
    folder = save_adapter(tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS))
    load = peft.PeftModel.load_adapter

    def spoil(self, *args, **options):
        self.get_input_embeddings().weight.data.mul_(2)
        return load(self, *args, **options)

    monkeypatch.setattr(peft.PeftModel, "load_adapter", spoil)
    with pytest.raises(RuntimeError, match="changed 1 weights of the base"):
        attach(tiny.make_model().model, folder)


def test_an_activated_lora_is_refused(tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[4], **TARGETS)
    with pytest.raises(ModelInvalid, match="alora_invocation_tokens"):
        tiny.make_model().adapted(save_adapter(tmp_path, config))
    with pytest.raises(ModelInvalid, match="alora_invocation_tokens"):
        LanguageModel(peft.get_peft_model(tiny.make_model().model, config), tiny.make_tokenizer())


def test_a_start_that_is_drawn_at_random_is_refused(tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights="pissa_niter_4", **TARGETS)
    with pytest.raises(ModelInvalid, match="in another way each time"):
        tiny.make_model().adapted(save_adapter(tmp_path, config))


def test_what_acts_in_pefts_own_pass_is_refused_whatever_its_name(tmp_path, monkeypatch):
    folder = save_adapter(tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS))

    def forward(self, *args, **options):
        output = self.get_base_model()(*args, **options)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(peft.PeftModel, "forward", forward)
    with pytest.raises(ModelInvalid, match="outside of the modules of the model"):
        tiny.make_model().adapted(folder)


def test_several_adapters_that_are_active_at_once_all_count(tmp_path):
    paths = [
        save_adapter(tmp_path / name, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=[part], r=2))
        for name, part in (("a", "q_proj"), ("b", "v_proj"))
    ]
    wrapped = fresh(paths[0])
    wrapped.load_adapter(paths[1], "second")
    one = scored(LanguageModel(wrapped, tiny.make_tokenizer()))
    wrapped.base_model.set_adapter(["default", "second"])
    wanted = [parameter.requires_grad for parameter in wrapped.parameters()]
    both = scored(LanguageModel(wrapped, tiny.make_tokenizer()))
    assert both != pytest.approx(one, abs=1e-4)
    assert both == pytest.approx(logprobs(wrapped), abs=1e-4)
    assert wrapped.base_model.active_adapter == ["default", "second"]
    assert [parameter.requires_grad for parameter in wrapped.parameters()] == wanted


def test_an_adapter_that_is_switched_off_stays_off(tmp_path):
    wrapped = fresh(save_adapter(tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS)))
    with wrapped.disable_adapter():
        assert scored(LanguageModel(wrapped, tiny.make_tokenizer())) == pytest.approx(
            logprobs(tiny.make_model().model), abs=1e-4
        )


def test_an_adapter_replaces_those_of_a_wrapper_made_by_hand(tmp_path):
    first = save_adapter(tmp_path / "a", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    second = save_adapter(tmp_path / "b", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"], r=2))
    by_hand = LanguageModel(fresh(first), tiny.make_tokenizer())
    before = scored(by_hand)
    assert scored(by_hand.adapted(second)) == pytest.approx(logprobs(fresh(second)), abs=1e-4)
    assert scored(by_hand) == before
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights="pissa", **TARGETS)
    pissa = LanguageModel(fresh(save_adapter(tmp_path / "c", config)), tiny.make_tokenizer())
    with pytest.raises(ModelInvalid, match="may have changed its base"):
        pissa.adapted(second)
    by_hand.peft.merge_adapter()
    with pytest.raises(ModelInvalid, match="merged into its base"):
        by_hand.adapted(second)


def exact_rate(language_model):
    return score_pairs(language_model, ROWS, columns=["displacement_rate_exact"]).iloc[0, 2]


@pytest.mark.parametrize("kind", ["LORA", "IA3", "OFT", "LN_TUNING", "LOHA", "VERA"])
def test_the_exact_rate_is_that_of_the_merged_model(kind, tmp_path):
    folder = save_adapter(tmp_path, make_config(peft.PeftType[kind]))
    merged = LanguageModel(fresh(folder).merge_and_unload(), tiny.make_tokenizer())
    assert exact_rate(tiny.make_model().adapted(folder)) == pytest.approx(exact_rate(merged), rel=1e-3)


def test_the_exact_rate_under_dora_is_that_of_the_merged_model(tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", use_dora=True, **TARGETS)
    folder = save_adapter(tmp_path, config)
    base = tiny.make_model()
    adapted = base.adapted(folder)
    merged = LanguageModel(fresh(folder).merge_and_unload(), tiny.make_tokenizer())
    before = scored(adapted)
    assert exact_rate(adapted) == pytest.approx(exact_rate(merged), rel=1e-3)
    assert scored(adapted) == before
    assert scored(base) == pytest.approx(logprobs(tiny.make_model().model), abs=1e-4)


def test_an_exact_rate_that_cannot_be_merged_is_refused(tmp_path):
    folder = save_adapter(tmp_path, make_config(peft.PeftType.ADAPTION_PROMPT))
    with pytest.raises(UsageError, match="ADAPTION_PROMPT"):
        exact_rate(tiny.make_model().adapted(folder))


def test_random_numbers_of_the_caller_go_on_as_they_were(tmp_path):
    folder = save_adapter(tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS))
    base = tiny.make_model()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        base.adapted(folder)
    assert torch.equal(torch.rand(1), expected)
