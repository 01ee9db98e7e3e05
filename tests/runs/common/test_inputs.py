"""What can be known without torch is told before torch is imported; nothing here loads a model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import write

from probing.data.bundled import BUNDLED_MODELS
from probing.errors import LayerNotFound, ModelInvalid
from probing.models import checkpoints
from probing.models.checkpoints import check_checkpoint, check_device, check_layers, check_template_files
from probing.tokens.tokenizer_files import lacks_template

ROOT = Path(__file__).parents[3]
BUNDLED = BUNDLED_MODELS["bundled"]()
LABELLED = [{"id": f"r{n}", "text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]
TURNS = {
    "id": "t",
    "prompt": [{"role": "user", "content": "hi"}],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}
# Run one after another in one process, which imports torch for none of them.
RUN = """
import contextlib, io, json, sys
from probing.cli import main
for arguments in json.loads(sys.stdin.read()):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main(arguments)
    late = [name for name in ("torch", "transformers") if name in sys.modules]
    print(json.dumps([said.getvalue(), late]), flush=True)
"""
DATA, LABELS = ["--data", "bundled"], ["--data", "labelled.jsonl"]
CASES = [
    (["score", "--model", "./nowhere", "--data", "no-data.jsonl"], "./nowhere: no such folder"),
    (["score", "--model", "empty", *DATA], "empty: no config.json, so this is not a model folder; it holds nothing"),
    (["score", "--model", "bundeld", *DATA], "bundeld: no such folder or model; did you mean bundled?"),
    (["score", "--model", "bundled", "--revision", "main", *DATA], "which has no revision 'main'"),
    (["score", "--model", "bundled", "--device", "gpu", *DATA], "device 'gpu' cannot be used here: there is none"),
    (
        ["score", "--model", "bundled", "--rate-parameters", "last:0", *DATA],
        "--rate-parameters must be all, head or last:K",
    ),
    (["score", "--model", "bundled", "--dtype", "fp8", *DATA], "--dtype"),
    (
        ["score", "--model", "mute", "--data", "turns.jsonl"],
        "line 1 (id 't'): the pair is made of messages, but the tokenizer has no",
    ),
    (["capture", "--model", "./nowhere", "--places", "final_norm", *DATA], "./nowhere: no such folder"),
    (["capture", "--model", "bundled", "--places", "resid_pst:all", *DATA], "'resid_pst' is no place in a model"),
    (["capture", "--model", "bundled", "--places", "resid_post:1,last:0", *DATA], "'last' is no place in a model"),
    (["capture", "--model", "bundled", "--places", "resid_post:4", *DATA], "bundled has 4 layers, 0 to 3"),
    (
        ["clusters", "--model", "bundled", "--model", "mute", "--data", "talks.jsonl"],
        "row 'm0' is made of messages, but",
    ),
    (["capture", "--model", "mute", "--places", "final_norm", "--chat", *LABELS], "--chat puts texts into"),
    (["ccs", "--model", "./nowhere", *DATA], "./nowhere: no such folder"),
    (["ccs", "--model", "mute", "--chat", *DATA], "--chat puts texts into the chat template"),
    (
        ["ccs", "--model", "bundled", "--places", "resid_post:-5", *DATA],
        "bundled has 4 layers, 0 to 3 (or -4 to -1 from the end), and no resid_post:-5",
    ),
    (["ccs", "--model", "bundled", "--data", "statements.jsonl"], "3 pairs make 3 groups"),
    (["ccs", "--store", "nowhere", *DATA], "nowhere: no such folder"),
    (["probe", "--model", "./nowhere", *LABELS], "./nowhere: no such folder"),
    (["probe", "--model", "bundled", "--positive", "zz", *LABELS], "no row has the label 'zz'; there are a, b"),
    (["probe", "--model", "bundled", "--folds", "20", *LABELS], "12 rows make 12 groups that share no text"),
    (["probe", "--model", "mute", "--chat", *LABELS], "--chat puts texts into the chat template"),
    (["probe", "--store", "empty", *LABELS], "empty: holds no manifest.json"),
    (["clusters", "--model", "bundled", "--model", "./nowhere", *LABELS], "./nowhere: no such folder"),
    (["clusters", "--store", "empty", *LABELS], "empty: holds no manifest.json"),
    (["clusters", "--model", "bundled", "--labels", "a,c", *LABELS], "no row has the label 'c'"),
    (["displacement", "--reference", "./nowhere", "--policy", "bundled", *DATA], "./nowhere: no such folder"),
    (["displacement", "--reference", "bundled", "--policy", "./nowhere", *DATA], "./nowhere: no such folder"),
    (["displacement", "--reference", "bundled", "--adapter", "empty", *DATA], "empty: no adapter_config.json"),
    (["displacement", "--reference", "bundled", "--adapter", "bare", *DATA], "bare: no adapter_model.safetensors"),
    (["displacement", "--reference", "bundled", "--steps", "empty", *DATA], "empty: holds no folders whose names end"),
]


def remove_template(folder):
    """The bundled model with a tokenizer that has no chat template."""
    shutil.copytree(BUNDLED, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What every command says, and which libraries were imported by then."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "empty").mkdir()
    remove_template(folder / "mute")
    (folder / "bare").mkdir()
    (folder / "bare" / "adapter_config.json").write_text("{}")
    write(folder / "labelled.jsonl", LABELLED)
    write(folder / "turns.jsonl", [TURNS])
    write(folder / "talks.jsonl", [{"id": f"m{n}", "messages": TURNS["prompt"], "label": n % 2} for n in range(6)])
    statements = [{"statement": f"{n} is even.", "opposite": f"{n} is odd.", "label": n % 2 == 0} for n in range(3)]
    write(folder / "statements.jsonl", statements)
    given = json.dumps([[*arguments, "--out", "out"] for arguments, _ in CASES])
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=given, capture_output=True, text=True, check=True, cwd=folder
    )
    assert not (folder / "out").exists()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case[0]}: {said[:40]}" for case, said in CASES])
def test_a_mistake_is_told_before_torch_is_imported(told, number):
    (said, late), (arguments, message) = told[number], CASES[number]
    assert message in said
    assert said.startswith(f"probing {arguments[0]}: ")
    assert said.count("\n") == 1
    assert late == []


@pytest.mark.parametrize(
    ("cuda", "hip", "refused"), [("None", "None", True), ("'12.8'", "None", False), ("None", "'6.3'", False)]
)
def test_a_card_is_refused_at_once_where_torch_was_built_without(tmp_path, monkeypatch, cuda, hip, refused):
    form = "from typing import Optional\n__version__ = '2'\ncuda: Optional[str] = {}\nhip: Optional[str] = {}\n"
    (tmp_path / "version.py").write_text(form.format(cuda, hip))
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: spec)
    check_device("cpu")
    check_device("mps")
    if refused:
        with pytest.raises(ModelInvalid, match="'cuda:1' cannot be used here: the torch that is installed was built"):
            check_device("cuda:1")
    else:
        check_device("cuda:1")


def test_what_the_installed_torch_says_of_itself_is_understood():
    import torch

    assert checkpoints._is_built_without_cards() is (torch.version.cuda is None and torch.version.hip is None)


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "CUDA", "", "cpu:99999", "cuda 0"])
def test_names_of_devices(device):
    with pytest.raises(ModelInvalid, match="cannot be used here"):
        check_device(device)


def test_a_template_may_be_in_many_places(tmp_path):
    assert not lacks_template(BUNDLED)
    folder = remove_template(tmp_path / "mute")
    assert lacks_template(folder)
    assert not lacks_template(tmp_path / "nowhere")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for more, lacking in (({"chat_template": "{{ messages }}"}, False), ({"auto_map": {}}, False), ({}, True)):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **more}))
        assert lacks_template(folder) is lacking
    for name in ("chat_template.json", "tekken.json"):
        (folder / name).write_text("{}")
        assert not lacks_template(folder)
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text("[" * 10)
    # Damage is told where the tokenizer is loaded.
    assert not lacks_template(folder)


def test_an_adapter_is_looked_at_with_its_base(tmp_path):
    mute = remove_template(tmp_path / "mute")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(mute)}))
    with pytest.raises(ModelInvalid, match=r"no adapter_model\.safetensors"):
        check_checkpoint(str(adapter))
    (adapter / "adapter_model.safetensors").touch()
    check_checkpoint(str(adapter))
    with pytest.raises(ModelInvalid, match="no chat template"):
        check_template_files(str(adapter), "why")
    with pytest.raises(LayerNotFound, match="has 4 layers"):
        check_layers(str(adapter), "resid_post:9")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    check_template_files(str(adapter), "why")
    (mute / "tokenizer.json").unlink()
    (mute / "tokenizer_config.json").unlink()
    with pytest.raises(ModelInvalid, match="no tokenizer"):
        check_checkpoint(str(adapter))
    check_checkpoint(str(mute), tokenized=True)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"n_layer": 2}, 2),
        ({"text_config": {"num_hidden_layers": 2}}, 2),
        ({"num_hidden_layers": "2"}, None),
        ({"text_config": 5}, None),
        ([], None),
        ({}, None),
    ],
)
def test_layers_are_counted_where_the_config_tells_them(tmp_path, config, layers):
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_layers(str(tmp_path), "resid_post:0,resid_post:all,final_norm,resid_post:-2")
    if layers is None:
        check_layers(str(tmp_path), "resid_post:99")
        return
    for wrong in ("resid_post:2", "attn_out:-3", "resid_pre:1..2"):
        with pytest.raises(LayerNotFound, match="has 2 layers, 0 to 1"):
            check_layers(str(tmp_path), wrong)
