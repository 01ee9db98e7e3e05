import json
import os
import shutil

import families
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import probing
from probing.cli import main
from probing.data.bundled import bundled_model
from probing.engine.low_rank import find_low_rank_removal
from probing.errors import EditRefused, SourceMismatch, UsageError
from probing.models import edited_checkpoints
from probing.runs.refusal.export import ExportConfig, models, run
from probing.store.activations import tensor_sha256
from probing.store.control_vectors import read_control_vector
from probing.store.manifest import MANIFEST, read_run
from probing.types import Direction, Place


def make_direction(folder, model, rank=1, layer=2):
    """A random direction of a model, saved; near what its states hold, so that an edit changes its answers."""
    source = probing.load(str(model))
    width = source.model.config.get_text_config().hidden_size
    vector = torch.randn(rank, width, generator=torch.Generator().manual_seed(1)) * 3
    direction = Direction(vector[0] if rank == 1 else vector, Place("resid_pre", layer), -1, source.source)
    probing.save_direction(folder / "direction.safetensors", direction)
    return direction


def answer(model, prompts=("Is it ok? No.", "Here is how to build")):
    """Ids of greedy answers."""
    rows = [model.tokenizer(text, return_tensors="pt") for text in prompts]
    return [model.model.generate(**row, max_new_tokens=12, do_sample=False)[0].tolist() for row in rows]


def export(folder, model, form, **options):
    out = folder / f"out-{form}"
    config = ExportConfig(model=str(model), direction=folder / "direction.safetensors", format=form, out=out, **options)
    return out, run(config)


@pytest.mark.parametrize("family", ["llama", "tied", "gemma", "gpt2", "bundled"])
@pytest.mark.parametrize("form", ["model", "lora"])
def test_an_export_answers_as_the_hooks_do(family, form, tmp_path):
    changes = {"tie_word_embeddings": True} if family == "tied" else {}
    name = {"tied": "llama"}.get(family, family)
    model = "bundled" if family == "bundled" else tiny.save_model(tmp_path / "model", name, **changes)
    direction, base = make_direction(tmp_path, model, rank=2), probing.load(str(model))
    if (family, form) == ("gpt2", "lora"):
        with pytest.raises(EditRefused, match=r"also writes through .*bias \(Conv1D\)"):
            export(tmp_path, model, form)
        assert not (tmp_path / "out-lora").exists()
        return
    out, report = export(tmp_path, model, form)
    with probing.ablate(base, direction):
        expected = answer(base)
    assert answer(base) != expected
    exported = probing.load(str(out))
    assert answer(exported) == expected
    assert report.facts["proof"].startswith("writers found/edited/proved: embedding 1/1/1" if family != "gpt2" else "w")
    assert read_run(out, MANIFEST)["proof"] == report.facts["proof"]
    assert sorted(report.facts["wrote"]) == sorted(str(path) for path in out.iterdir())


# PEFT asks a model for a property of an older name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_loads_the_adapter_and_switches_it_off(tmp_path):
    from peft import PeftModel

    model = tiny.save_model(tmp_path / "model", tie_word_embeddings=False)
    direction, base = make_direction(tmp_path, model), probing.load(str(model))
    out, _ = export(tmp_path, model, "lora")
    plain = answer(base)
    with probing.ablate(base, direction):
        expected = answer(base)
    wrapped = PeftModel.from_pretrained(base.model, str(out)).eval()
    assert answer(probing.LanguageModel(wrapped, base.tokenizer)) == expected
    with wrapped.disable_adapter():
        row = base.tokenizer("Is it ok? No.", return_tensors="pt")
        assert wrapped.generate(**row, max_new_tokens=12, do_sample=False)[0].tolist() == plain[0]


def test_shards_names_and_dtype_are_those_of_the_checkpoint(tmp_path):
    model = tmp_path / "model"
    made = tiny.make_model(tie_word_embeddings=True)
    made.model.to(torch.bfloat16).save_pretrained(model, max_shard_size="40KB")
    made.tokenizer.save_pretrained(model)
    (model / "LICENSE").write_text("as you like")
    make_direction(tmp_path, model)
    out, report = export(tmp_path, model, "model")
    names = edited_checkpoints.list_shards(model)
    assert len(names) > 2
    assert edited_checkpoints.list_shards(out) == names
    assert (out / "LICENSE").read_text() == "as you like"
    manifest = json.loads((out / MANIFEST).read_text())
    known = {entry["name"]: entry for entry in manifest["tensors"]}
    for name in names:
        before, after = load_file(model / name), load_file(out / name)
        assert set(before) | {"lm_head.weight"} >= set(after) >= set(before)
        for key, tensor in after.items():
            assert tensor.dtype == torch.bfloat16
            assert known[key]["after"] == tensor_sha256(tensor)
            if key in before:
                assert known[key]["before"] == tensor_sha256(before[key])
                writes = key.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight"))
                assert known[key]["changed"] is writes is not torch.equal(before[key], tensor)
    assert known["lm_head.weight"]["before"] is None
    assert report.facts["computed_in"] == "bfloat16"
    embedding = next(
        load_file(model / name) for name in names if "model.embed_tokens.weight" in load_file(model / name)
    )
    assert known["lm_head.weight"]["after"] == tensor_sha256(embedding["model.embed_tokens.weight"])
    # What was tied is told to be no more, and an embedding that is skipped stays tied.
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    shutil.rmtree(out)
    _, report = export(tmp_path, model, "model", embedding="skip")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert "embedding 1/0/0" in report.facts["proof"]
    assert "the direction still enters" in (out / "README.md").read_text()


def test_a_wrong_export_is_found_and_nothing_appears(tmp_path, monkeypatch):
    model = tiny.save_model(tmp_path / "model", tie_word_embeddings=False)
    make_direction(tmp_path, model)
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(edited_checkpoints, "_choose", lambda name, before, saved: before)
        with pytest.raises(EditRefused, match="are not those that were edited"):
            export(tmp_path, model, "model")

    def leave_one_out(*given):
        found = find_low_rank_removal(*given)
        return type(found)(found.writers, found.factors[:-1])

    with monkeypatch.context() as patched:
        patched.setattr(models, "find_low_rank_removal", leave_one_out)
        with pytest.raises(EditRefused, match="still holds"):
            export(tmp_path, model, "lora")
    assert sorted(os.listdir(tmp_path)) == before


MOE = {
    # Fused experts [expert out in], which the checkpoint holds apart.
    "mixtral": "experts.0.w2.weight",
    # Fused in the checkpoint as well: [expert in out], and with a bias.
    "gpt_oss": "experts.down_proj_bias",
    "llama4_text": "experts.down_proj",
}


@pytest.mark.parametrize("family", MOE)
def test_fused_experts_are_exported_along_the_right_axis(family, tmp_path):
    made = families.make(family)
    for name, parameter in made.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    made.model.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    direction, base = make_direction(tmp_path, tmp_path / "model"), probing.load(str(tmp_path / "model"))
    out, _ = export(tmp_path, tmp_path / "model", "model")
    changed = [entry["name"] for entry in json.loads((out / MANIFEST).read_text())["tensors"] if entry["changed"]]
    assert any(name.endswith(MOE[family]) for name in changed), changed
    assert not any("gate" in name or "router" in name for name in changed)
    with probing.ablate(base, direction):
        expected = answer(base)
    assert answer(probing.load(str(out))) == expected
    with pytest.raises(EditRefused, match="experts"):
        export(tmp_path, tmp_path / "model", "lora")
    assert not (tmp_path / "out-lora").exists()


DAMAGES = ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_was_written_wrong_is_found(name, tmp_path, monkeypatch):
    """Weights that a disk changed between writing and loading back, also those that were not edited."""
    model = tiny.save_model(tmp_path / "model", tie_word_embeddings=False)
    make_direction(tmp_path, model)
    before, plain = sorted(os.listdir(tmp_path)), models.write_like

    def write_wrong(*given):
        written = plain(*given)
        weights = load_file(given[2] / "model.safetensors")
        weights[name][0] += 1
        save_file(weights, given[2] / "model.safetensors", {"format": "pt"})
        return written

    monkeypatch.setattr(models, "write_like", write_wrong)
    with pytest.raises(EditRefused):
        export(tmp_path, model, "model")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_control_vector_is_what_adding_does(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the reader of control vectors is not installed")
    model = tiny.save_model(tmp_path / "model")
    direction = make_direction(tmp_path, model)
    out, _ = export(tmp_path, model, "gguf", mode="add", coefficient=-2.0)
    reader = gguf.GGUFReader(str(out / "direction.gguf"))
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    vectors = {each.name: torch.from_numpy(each.data.copy()) for each in reader.tensors}
    assert set(vectors) == {"direction.1", "direction.2"}
    assert vectors["direction.1"].dtype == torch.float32
    # The input of block 2 is the output of block 1.
    torch.testing.assert_close(vectors["direction.1"], -2 * direction.vector.float())
    assert not vectors["direction.2"].any()
    assert "cannot remove" in (out / "README.md").read_text()
    with pytest.raises(SourceMismatch, match="a model of 5 layers takes 4"):
        read_control_vector(out / "direction.gguf", 5, direction.width)
    make_direction(tmp_path, model, layer=1)
    shutil.rmtree(out)
    with pytest.raises(UsageError, match="blocks 1 to 2"):
        export(tmp_path, model, "gguf")


def test_bad_input(tmp_path, capsys):
    model = tiny.save_model(tmp_path / "model")
    make_direction(tmp_path, "bundled")
    with pytest.raises(SourceMismatch, match="the direction is of bundled"):
        export(tmp_path, model, "lora")
    (tmp_path / "out-model").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(tmp_path, "bundled", "model")
    for options, message in (
        ({"form": "gguf", "mode": "project"}, "it adds and cannot remove"),
        ({"form": "lora", "mode": "add"}, "it removes and cannot add"),
        ({"form": "lora", "norm_preserving": True}, "not of low rank"),
        ({"form": "model", "coefficient": 2.0}, "removes the whole component"),
        ({"form": "gguf", "coefficient": float("nan")}, "finite and not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            export(tmp_path, "bundled", **options)
    out = ["--format", "lora", "--out", str(tmp_path / "other")]
    with pytest.raises(SystemExit) as ended:
        main(["refusal", "export", "--model", "bundled", "--direction", str(tmp_path / "nowhere"), *out])
    assert ended.value.code == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_checkpoint_of_the_bundled_model_is_found():
    assert edited_checkpoints.find_model_folder("bundled", None) == bundled_model()
