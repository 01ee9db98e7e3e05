import json
import shutil

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from probing import Capture, LanguageModel, capture, load, score_pairs
from probing.errors import ModelInvalid

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
ROWS = [{"prompt": "Is it ok?", "chosen": " No", "rejected": " Never"}]
PLACES = Capture(places=["resid_post:1", "final_norm"])


def wrapped(seed=0, **options):
    """The tiny model under a random adapter."""
    model = peft.get_peft_model(
        tiny.make_model().model, peft.LoraConfig(r=2, **({"target_modules": ["v_proj"]} | options))
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def adapter(tmp_path, model_folder):
    folder = tmp_path / "adapter"
    wrapped().save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(model_folder)}))
    return folder


def merged():
    return LanguageModel(wrapped().merge_and_unload(), tiny.make_tokenizer())


def scored(language_model):
    return score_pairs(language_model, ROWS, columns=["all"]).select_dtypes("float").iloc[0].to_dict()


def test_the_folder_of_an_adapter_loads_with_its_base(adapter, model_folder):
    language_model = load(str(adapter))
    assert scored(language_model) == pytest.approx(scored(merged()), rel=1e-4)
    assert scored(language_model) != pytest.approx(scored(load(str(model_folder))), rel=1e-4)
    states = [capture(model, ["Is it ok?"], PLACES).values for model in (language_model, merged())]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    assert language_model.source.adapter_sha256
    assert language_model.source.weights_sha256 == load(str(model_folder)).source.weights_sha256


def test_the_base_stays_the_base_while_adapters_come_and_go(adapter, model_folder, tmp_path):
    wrapped(seed=1).save_pretrained(tmp_path / "other")
    base = load(str(model_folder))
    plain = scored(base)
    first, second = base.adapted(str(adapter)), base.adapted(str(tmp_path / "other"))
    found = scored(first)
    assert found != plain
    assert scored(second) not in (plain, found)
    assert scored(base) == plain
    assert scored(first) == found
    assert first.model.get_input_embeddings().weight.data_ptr() == base.model.get_input_embeddings().weight.data_ptr()
    assert first.source.adapter_sha256 != second.source.adapter_sha256


def test_a_wrapper_of_peft_is_unwrapped_with_what_is_active_in_it():
    by_hand = LanguageModel(wrapped(), tiny.make_tokenizer())
    assert scored(by_hand) == pytest.approx(scored(merged()), rel=1e-4)


def test_bad_adapters_are_named(adapter, tmp_path):
    config = adapter / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"base_model_name_or_path": None}))
    with pytest.raises(ModelInvalid, match="does not say which model it belongs to"):
        load(str(adapter))
    config.write_text(json.dumps(values | {"base_model_name_or_path": "/nowhere/model"}))
    with pytest.raises(ModelInvalid, match="/nowhere/model"):
        load(str(adapter))
    config.write_text("{")
    with pytest.raises(ModelInvalid, match="damaged"):
        load(str(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 50)
    config.write_text(json.dumps(values))
    with pytest.raises(ModelInvalid, match="adapter"):
        load(str(adapter))


def test_an_adapter_of_another_model_does_not_fit_and_leaves_no_trace(adapter, tmp_path):
    wide = tiny.make_model(hidden_size=64, num_attention_heads=4)
    plain, parts = scored(wide), [name for name, _ in wide.model.named_modules()]
    with pytest.raises(ModelInvalid, match="the adapter does not fit the model"):
        wide.adapted(str(adapter))
    assert [name for name, _ in wide.model.named_modules()] == parts
    assert scored(wide) == plain
    base = tiny.make_model()
    first, plain = base.adapted(str(adapter)), scored(base)
    found, parts = scored(first), [name for name, _ in base.model.named_modules()]
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(ModelInvalid, match="the adapter does not fit the model"):
        base.adapted(str(adapter))
    assert [name for name, _ in base.model.named_modules()] == parts
    assert (scored(base), scored(first)) == (plain, found)


def test_adapters_that_change_the_input_are_refused(tmp_path):
    model = peft.get_peft_model(
        tiny.make_model().model, peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    with pytest.raises(ModelInvalid, match="put tokens before the input"):
        LanguageModel(model, tiny.make_tokenizer())


def test_adapters_that_fit_only_in_part_are_refused(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    base = tiny.make_model()
    plain = scored(base)
    half = {name: tensor for name, tensor in tensors.items() if "layers.0" in name}
    renamed = {name.replace("layers", "blocks"): tensor for name, tensor in tensors.items()}
    more = tensors | {name.replace("layers.0", "layers.7"): tensor.clone() for name, tensor in tensors.items()}
    for broken in (half, renamed, more):
        save_file(broken, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelInvalid, match="of its tensors are missing"):
            base.adapted(str(adapter))
        assert scored(base) == plain


def test_a_wrapper_keeps_its_meaning_when_another_adapter_comes(adapter):
    by_hand = LanguageModel(wrapped(seed=3), tiny.make_tokenizer())
    before = scored(by_hand)
    other = by_hand.adapted(str(adapter))
    assert scored(other) != before
    assert scored(by_hand) == before


def test_gradients_are_wanted_as_before(adapter):
    base = tiny.make_model()
    base.adapted(str(adapter))
    wanted = [parameter.requires_grad for parameter in base.model.parameters()]
    scored(base)
    assert [parameter.requires_grad for parameter in base.model.parameters()] == wanted


def test_the_exact_rate_under_an_adapter_is_that_of_the_merged_model(adapter, model_folder):
    both = load(str(adapter)), merged()
    rates = [score_pairs(model, ROWS, columns=["displacement_rate_exact"]).iloc[0, 2] for model in both]
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)
    assert rates[0] != pytest.approx(
        score_pairs(load(str(model_folder)), ROWS, columns=["displacement_rate_exact"]).iloc[0, 2], rel=1e-3
    )


def test_a_callers_autocast_and_inference_mode_change_nothing(adapter):
    columns = ["all", "displacement_rate", "displacement_rate_exact"]
    language_model = load(str(adapter))
    plain = score_pairs(language_model, ROWS, columns=columns)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score_pairs(language_model, ROWS, columns=columns).equals(plain)
    with torch.inference_mode():
        assert score_pairs(language_model, ROWS, columns=columns).equals(plain)


def test_states_of_the_base_are_its_own_under_an_adapter(adapter, model_folder):
    base = load(str(model_folder))
    before = capture(base, ["Is it ok?"], PLACES).values
    other = capture(base.adapted(str(adapter)), ["Is it ok?"], PLACES).values
    assert not torch.allclose(other, before, rtol=1e-3)
    assert torch.equal(capture(base, ["Is it ok?"], PLACES).values, before)


def test_an_adapter_on_an_adapter_is_refused(adapter, tmp_path, model_folder):
    second = tmp_path / "second"
    shutil.copytree(adapter, second)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(adapter)}))
    with pytest.raises(ModelInvalid, match=r"names another adapter, .*merge that one"):
        load(str(second))
    with pytest.raises(ModelInvalid, match="names another adapter"):
        load(str(model_folder)).adapted(str(second))
    (second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(second)}))
    with pytest.raises(ModelInvalid, match="names itself"):
        load(str(second))


def test_the_tokenizer_and_the_template_of_the_folder_are_the_adapters(adapter, model_folder):
    rows = [{"prompt": [{"role": "user", "content": "Is it ok?"}], "chosen": " No", "rejected": " Never"}]
    rows[0] |= {side: [{"role": "assistant", "content": rows[0][side]}] for side in ("chosen", "rejected")}
    own = (
        "{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    plain = score_pairs(load(str(adapter)), rows)
    base = load(str(model_folder))
    (adapter / "chat_template.jinja").write_text(own)
    templated = load(str(adapter))
    found = score_pairs(templated, rows)
    tokenizer = tiny.make_tokenizer(template=own)
    wanted = score_pairs(LanguageModel(merged().model, tokenizer), rows)
    assert found.iloc[0, 2:].tolist() == pytest.approx(wanted.iloc[0, 2:].tolist(), rel=1e-4)
    assert found.ches[0] != pytest.approx(plain.ches[0], rel=1e-3)
    assert base.source.template_sha256 != templated.source.template_sha256
    (adapter / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(adapter)
    assert score_pairs(load(str(adapter)), rows).equals(found)
    assert score_pairs(load(str(adapter), tokenizer=base.tokenizer), rows).equals(plain)
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(ModelInvalid, match="the tokenizer in it cannot be read"):
        load(str(adapter))
