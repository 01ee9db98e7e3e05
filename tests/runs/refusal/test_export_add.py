"""The edit that adds, exported as a model: through what is there, through biases that a setting gives, or refused."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file

import probing
from probing.errors import EditRefused, ModelInvalid
from probing.runs.refusal.export import ExportConfig, models, run
from probing.store.manifest import MANIFEST, read_run
from probing.types import Direction, Place

IDS = torch.tensor([[1, 30, 31, 32, 33, 34, 35]])


def export(folder, model, layer=2, coefficient=1.5, **options):
    source = probing.load(str(model))
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1)) * 3
    direction = Direction(vector, Place("resid_pre", layer), -1, source.source)
    probing.save_direction(folder / "direction.safetensors", direction)
    with probing.ablate(source, direction, "add", coefficient=coefficient):
        expected = run_logits(source)
    options = {"format": "model", "mode": "add", "coefficient": coefficient} | options
    out = folder / "out"
    config = ExportConfig(model=str(model), direction=folder / "direction.safetensors", out=out, **options)
    return out, expected, run_logits(source), lambda: run(config)


def run_logits(language_model):
    with torch.no_grad():
        return language_model.model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("family", "layer", "changed", "new"),
    [
        # Three layers, each with a bias of gate, up and down.
        ("llama", 2, 0, 9),
        ("gpt2", 2, 1, 0),
        ("gemma", 0, 1, 1),
    ],
)
def test_a_model_that_adds_is_loaded_by_its_config_alone(family, layer, changed, new, tmp_path):
    model = tiny.save_model(tmp_path / "model", family, tie_word_embeddings=family == "gemma")
    out, expected, plain, go = export(tmp_path, model, layer)
    report = go()
    loaded = run_logits(probing.load(str(out)))
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-4)
    assert (loaded - plain).abs().max() > 0.1
    known = json.loads((out / MANIFEST).read_text())["tensors"]
    assert sum(each["before"] is None for each in known) == new
    assert sum(each["changed"] for each in known) == changed + new
    assert "proved: the residual stream moves there by the same vector" in report.facts["proof"]
    assert read_run(out, MANIFEST)["mode"] == "add"
    card = (out / "README.md").read_text()
    assert "A model with a direction added" in card
    assert "Subtract the vector" in card
    config = json.loads((out / "config.json").read_text())
    if family == "llama":
        assert config["mlp_bias"] is True
        assert "mlp_bias is on in config.json now: 9 biases are new, all but one of them zero" in card
        tensors = load_file(out / "model.safetensors")
        biases = {name for name, each in tensors.items() if name.endswith("bias") and bool(each.any())}
        assert biases == {"model.layers.1.mlp.down_proj.bias"}
        assert not any(name.endswith("bias") for name in load_file(model / "model.safetensors"))


def test_a_bias_that_no_setting_gives_is_refused(tmp_path):
    model = tiny.save_model(tmp_path / "model", "qwen")
    out, _, _, go = export(tmp_path, model)
    with pytest.raises(EditRefused, match=r"no model\.layers\.1\.mlp\.down_proj\.bias, and no setting .*tried: none"):
        go()
    assert not out.exists()


def double(model, direction, coefficient):
    return probing.add_to_weights(model, direction, 2 * coefficient)


@pytest.mark.parametrize(
    ("what", "planted", "error", "message"),
    [
        # The setting forgotten.
        (
            "complete_biases",
            lambda model, created: ({}, list(created)),
            ModelInvalid,
            r"no place for .*down_proj\.bias",
        ),
        ("add_to_weights", double, EditRefused, "off by"),
    ],
)
def test_what_is_loaded_back_is_proved(what, planted, error, message, tmp_path, monkeypatch):
    model = tiny.save_model(tmp_path / "model")
    out, _, _, go = export(tmp_path, model)
    monkeypatch.setattr(models, what, planted)
    with pytest.raises(error, match=message):
        go()
    assert not out.exists()


def test_modes_that_a_format_cannot_hold(tmp_path):
    given = {"model": "bundled", "direction": tmp_path, "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="mode 'affine' has no form in weights"):
        ExportConfig(format="model", mode="affine", **given)
    with pytest.raises(ValueError, match="an adapter holds matrices"):
        ExportConfig(format="lora", mode="add", **given)
    with pytest.raises(ValueError, match="embedding are for mode 'project'"):
        ExportConfig(format="model", mode="add", embedding="skip", **given)
    with pytest.raises(ValueError, match="a coefficient is for mode 'add'"):
        ExportConfig(format="model", coefficient=2, **given)
