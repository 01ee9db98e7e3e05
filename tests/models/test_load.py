import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from probing import LanguageModel, load
from probing.errors import ModelInvalid
from probing.models.devices import choose_device


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def test_a_folder_loads_ready_to_run(model_folder):
    loaded = load(str(model_folder))
    assert not loaded.model.training
    assert loaded.dtype == torch.float32
    assert loaded.device == choose_device()
    assert loaded.max_positions == 512
    assert loaded.source.model == str(model_folder)


def test_hashes_follow_the_content(folder):
    first = load(str(folder)).source
    assert first == load(str(folder)).source
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    second = load(str(folder)).source
    assert first.weights_sha256 != second.weights_sha256
    assert (first.tokenizer_sha256, first.template_sha256) == (second.tokenizer_sha256, second.template_sha256)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert load(str(folder)).source.template_sha256 != second.template_sha256
    config_with(rms_norm_eps=1.0)(folder)
    third = load(str(folder)).source
    assert third.config_sha256 != second.config_sha256
    assert third.config_sha256 == load(str(folder), dtype="bfloat16").source.config_sha256
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|user|>"}))
    assert load(str(folder)).source.tokenizer_sha256 != third.tokenizer_sha256


def test_dtype_can_be_chosen(model_folder):
    assert load(str(model_folder), dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelInvalid, match="dtype 'int8' is none of auto, float32"):
        load(str(model_folder), dtype="int8")


def test_a_device_that_is_not_there(model_folder):
    with pytest.raises(ModelInvalid, match="device 'cuda:93' cannot be used here"):
        load(str(model_folder), device="cuda:93")
    with pytest.raises(ModelInvalid, match="device 'meta' holds no numbers"):
        load(str(model_folder), device="meta")


def test_further_heads_may_be_left_out(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"v_head.summary.weight": torch.zeros(1, 32)}, folder / "model.safetensors", {"format": "pt"})
    assert load(str(folder)).max_positions == 512


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def lacking(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def further_layer(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickled_beside_an_adapter(folder):
    pickled(folder)
    save_file({"x": torch.zeros(1)}, folder / "adapter.safetensors")


def remote(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))


def config_with(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


BAD = {
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        r"no tokenizer .* save the tokenizer beside the model",
    ),
    "no weights": (without("model.safetensors"), r"no weights \(\*\.safetensors\); it holds"),
    "no config": (without("config.json"), r"no config\.json, so this is not a model folder"),
    "pickle": (pickled, r"the weights are pickled \(pytorch_model\.bin\).* convert them to safetensors"),
    "truncated": (truncated, r"a weight file is damaged or cut short .* fetch it again"),
    "pickle beside safetensors": (pickled_beside_an_adapter, r"cannot be loaded as a language model"),
    "further layer": (further_layer, r"hold 1 tensors that the config has no place for \(model\.layers\.3"),
    "bad config": (config_with(hidden_size="wide"), r"cannot be loaded as a language model"),
    "lacking": (lacking, r"the weights lack 1 tensors of the model \(model\.layers\.1\.mlp\.up_proj\.weight"),
    "remote code": (remote, r"needs code of its own, which is not run unless you say so.* --trust-remote-code"),
    "unknown type": (config_with(model_type="nonesuch"), r"cannot be loaded as a language model"),
    "encoder-decoder": (config_with(model_type="t5"), r"cannot be loaded as a language model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_with_the_reason(folder, case):
    change, message = BAD[case]
    change(folder)
    with pytest.raises(ModelInvalid, match=message):
        load(str(folder))


def test_a_file_is_no_model(folder):
    with pytest.raises(ModelInvalid, match="is a file; give the model's folder"):
        load(str(folder / "config.json"))


def test_neither_a_folder_nor_on_the_hub():
    with pytest.raises(ModelInvalid, match="nobody/nothing: no such folder, not in the cache of the hub"):
        load("nobody/nothing")


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows():
    language_model = tiny.make_model()
    language_model.tokenizer.add_tokens([f"<new{number}>" for number in range(200)])
    with pytest.raises(ModelInvalid, match=r"has \d+ ids, the model's embedding only 420 rows"):
        LanguageModel(language_model.model, language_model.tokenizer)


@pytest.mark.parametrize("name", ["bundeld", "bundle", "bundled-displced"])
def test_a_misspelt_name_of_a_bundled_model_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ModelInvalid, match=f"{name}: no such folder or model; did you mean bundled"):
        load(name)


@pytest.mark.parametrize("name", ["", " "])
def test_a_model_needs_a_name(name):
    with pytest.raises(ModelInvalid, match="no model was named"):
        load(name)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere", "models/of/mine", "..\\\\model"])
def test_what_looks_like_a_path_is_no_name_of_the_hub(name):
    with pytest.raises(ModelInvalid, match="no such folder"):
        load(name)


@pytest.mark.parametrize(("short", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_short_names_of_dtypes(short, dtype, model_folder):
    assert load(str(model_folder), dtype=short).dtype == dtype


def test_no_bars_of_the_library_and_its_setting_stays(model_folder, capfd):
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    load(str(model_folder))
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled() == shown
