import pytest
import tiny
import torch
import transformers

from probing import LanguageModel
from probing.errors import LayerNotFound, ModelInvalid
from probing.models.layers import find_backbone, find_stack
from probing.models.passes import last_hidden_state

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_backbone_gives_the_state_that_the_head_multiplies(family):
    language_model = tiny.make_model(family)
    backbone = find_backbone(language_model).backbone
    with torch.no_grad():
        states = last_hidden_state(backbone, IDS)
        full = language_model.model(input_ids=IDS, output_hidden_states=True)
    torch.testing.assert_close(states, full.hidden_states[-1])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_output_head_is_not_run(family):
    language_model = tiny.make_model(family)
    backbone = find_backbone(language_model).backbone
    calls = []
    handle = language_model.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    last_hidden_state(backbone, IDS)
    handle.remove()
    assert not calls


def test_states_that_lie_in_another_order_are_refused():
    config = transformers.XLNetConfig(vocab_size=420, d_model=32, n_layer=2, n_head=4, d_inner=64)
    model = transformers.AutoModel.from_config(config).eval()
    with pytest.raises(LayerNotFound, match=r"is not \[row token width\] throughout"):
        find_stack(LanguageModel(model, tiny.make_tokenizer()))


def test_attention_that_selects_tokens_is_refused():
    language_model = tiny.make_model()
    language_model.model.config.index_topk = 64
    with pytest.raises(LayerNotFound, match="attends to selected tokens only"):
        find_stack(language_model)


def test_an_encoder_and_a_decoder_in_one_are_refused():
    config = transformers.T5Config(vocab_size=420, d_model=32, num_layers=2, num_heads=4, d_ff=64, d_kv=8)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(LayerNotFound, match="has an encoder and a decoder"):
        find_stack(LanguageModel(model, tiny.make_tokenizer()))


def test_a_model_without_a_list_of_layers_is_refused_with_what_there_is():
    language_model = tiny.make_model()
    language_model.model.config.num_hidden_layers = 7
    with pytest.raises(LayerNotFound, match=r"the config names 7 layers, .* lists of modules are 'model.layers' of 3"):
        find_stack(language_model)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_trying_the_model_leaves_no_hook():
    language_model = tiny.make_model()
    before = hooks(language_model.model)
    find_backbone(language_model)
    assert hooks(language_model.model) == before


def test_no_hook_is_left_when_the_model_fails(monkeypatch):
    language_model = tiny.make_model()
    before = hooks(language_model.model)

    def fail(*_, **__):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(language_model.model, "forward", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        find_backbone(language_model)
    assert hooks(language_model.model) == before


def test_a_head_on_something_else_is_found_out(monkeypatch):
    language_model = tiny.make_model()

    def scaled(**options):
        language_model.model.lm_head(language_model.model.model(**options).last_hidden_state * 2)

    monkeypatch.setattr(language_model.model, "forward", scaled)
    with pytest.raises(LayerNotFound, match="is not what the output head of LlamaForCausalLM multiplies"):
        find_backbone(language_model)


def test_a_backbone_that_returns_something_else_is_found_out(monkeypatch):
    language_model = tiny.make_model()
    monkeypatch.setattr(language_model.model.model, "forward", lambda input_ids, **_: {"logits": None})
    with pytest.raises(LayerNotFound, match="LlamaModel returns no last_hidden_state"):
        find_backbone(language_model)


def test_an_encoder_is_found_out():
    """BERT puts a transformation between its last state and the head."""
    config = transformers.BertConfig(
        vocab_size=420,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        is_decoder=False,
    )
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(config).eval()
    with pytest.raises(LayerNotFound, match="is not what the output head of BertLMHeadModel multiplies"):
        find_backbone(LanguageModel(model, tiny.make_tokenizer()))


def test_later_tokens_that_are_seen_are_found_out(monkeypatch):
    language_model = tiny.make_model()
    backbone = language_model.model.model
    plain = backbone.forward

    def peeking(input_ids, **options):
        output = plain(input_ids=input_ids, **options)
        output.last_hidden_state = output.last_hidden_state + input_ids.sum()
        return output

    monkeypatch.setattr(backbone, "forward", peeking)
    with pytest.raises(ModelInvalid, match="is not causal"):
        find_backbone(language_model)
    with torch.no_grad():  # one broken embedding among the first tokens that are tried hides nothing
        language_model.model.model.embed_tokens.weight[1 + 7 * 3] = float("nan")
    with pytest.raises(ModelInvalid, match="is not causal"):
        find_backbone(language_model)
