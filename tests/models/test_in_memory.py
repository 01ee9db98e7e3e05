import copy
import gc
import json
import re
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import accelerate
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from accelerate.state import AcceleratorState
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import probing
from probing import Capture, LanguageModel, capture, load, score_pairs
from probing.engine import modes
from probing.errors import ModelInvalid
from probing.instruments.columns import RATE_COLUMNS
from probing.models import layers, proofs, stack

# Of torch.compile and PEFT among themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),
]
ROWS = [{"prompt": "Is it ok?", "chosen": " No", "rejected": " Never"}]
MORE = [*ROWS, {"prompt": "The answer", "chosen": " is near", "rejected": " is a small boat"}]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def model():
    return tiny.make_model().model


@pytest.fixture
def tokenizer():
    return tiny.make_tokenizer()


def scored(given):
    return score_pairs(given, ROWS, columns=["all"])


class Parallel(nn.Module):
    """The form of ``DistributedDataParallel``, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_every_holder_of_a_model_gives_the_same_numbers(model, tokenizer, tmp_path):
    want = scored(LanguageModel(model, tokenizer))
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    for given in (
        (model, tokenizer),
        [model, tokenizer],
        (Parallel(model), tokenizer),
        (nn.DataParallel(model), tokenizer),
        (torch.compile(model), tokenizer),
        (Parallel(torch.compile(model)), tokenizer),
        (model, SimpleNamespace(tokenizer=tokenizer)),
        transformers.Trainer(model, arguments, processing_class=tokenizer),
        transformers.pipeline("text-generation", model=model, tokenizer=tokenizer),
        load((model, tokenizer)),
        load(model, tokenizer=tokenizer),
    ):
        assert scored(given).equals(want)
        assert load(given, tokenizer=tokenizer).model is model
    texts, request = ["Is it ok?"], Capture(places=["resid_post:1"])
    states = capture((model, tokenizer), texts, request).values
    assert torch.equal(states, capture(LanguageModel(model, tokenizer), texts, request).values)


def test_a_model_under_adapters_counts_as_it_is(model, tokenizer):
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    wrapped.train()
    on = scored((wrapped, tokenizer))
    with wrapped.disable_adapter():
        off = scored((Parallel(wrapped), tokenizer))
    assert not on.equals(off)
    assert off.equals(scored(tiny.make_model()))
    assert scored((wrapped, tokenizer)).equals(on)


def test_a_model_that_accelerate_prepared_for_mixed_precision_is_read_in_its_own(model, tokenizer):
    want = scored((copy.deepcopy(model), tokenizer))
    # It is one for the whole process, and remembers the precision of the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    forward = vars(prepared)["forward"]
    assert scored((prepared, tokenizer)).equals(want)
    assert vars(prepared)["forward"] is forward


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def read_all(given, tokenizer):
    """What a training loop may ask for."""
    kept, dropped = probing.filter_dataset(MORE, (given, tokenizer), keep_lowest=0.5, return_dropped=True)
    states = capture((given, tokenizer), ["Is it ok?", "Never"], Capture(places=["attn_out:0"]))
    return {
        "scores": score_pairs((given, tokenizer), MORE, columns=["all", *RATE_COLUMNS]).to_dict("list"),
        "states": states.values.tolist(),
        "kept": (kept, dropped),
        "reference": probing.add_ref_logps(MORE, (given, tokenizer)),
    }


def look(model):
    """Everything of a model that is trained, and of the state of the process, that a call could change."""
    return {
        "random": [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()],
        "training": [module.training for module in model.modules()],
        "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "forward": [vars(module).get("forward") for module in model.modules()],
        "wanted": [parameter.requires_grad for parameter in model.parameters()],
        "weights": [parameter.detach().tolist() for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "buffers": [buffer.tolist() for buffer in model.buffers()],
    }


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(("adapted", "compiled"), [(False, False), (True, True)])
def test_in_the_middle_of_a_training_step_numbers_and_state_are_those_of_the_plain_model(adapted, compiled, tokenizer):
    model = tiny.make_model(attention_dropout=0.3).model
    if adapted:
        settings = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False, lora_dropout=0.3)
        torch.manual_seed(0)
        model = peft.get_peft_model(model, settings)
    want = read_all(copy.deepcopy(model).eval(), tokenizer)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    trained = DistributedDataParallel(model)
    ids = torch.tensor([[1, 30, 40, 50, 60]])
    # The graph is there while the model is read, and gradients of the step before.
    trained(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    loss = trained(input_ids=ids, labels=ids, use_cache=False).loss
    before = look(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = read_all(torch.compile(trained) if compiled else trained, tokenizer)
    assert found == want
    assert look(model) == before
    loss.backward()
    assert [p.grad is not None for p in model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert look(model)["gradients"] != before["gradients"]


def test_what_is_missing_is_named(model, tokenizer):
    with pytest.raises(TypeError, match=r"LlamaForCausalLM comes without its tokenizer; give a tuple \(model, tok"):
        score_pairs(model, ROWS)
    with pytest.raises(TypeError, match="with a str for a tokenizer"):
        capture((model, "gpt2"), ["a"], Capture(places=["resid_post:1"]))
    with pytest.raises(TypeError, match="a str is not a language model"):
        score_pairs("bundled", ROWS)
    with pytest.raises(TypeError, match="a Linear is not a language model"):
        load((nn.Linear(2, 2), tokenizer))
    with pytest.raises(ModelInvalid, match="stays as it is"):
        load((model, tokenizer), dtype="float32")


def test_the_model_stays_as_it_is(model, tokenizer):
    model.train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    tokenizer.padding_side = "left"
    seen = []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    before = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    score_pairs((model, tokenizer), ROWS, columns=["all", "displacement_rate_exact"])
    assert ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]) == before
    assert tokenizer.padding_side == "left"
    assert len(model.model.layers[0]._forward_hooks) == 1
    assert seen


@pytest.fixture
def trials(monkeypatch):
    """Every proof that is made."""
    made = []
    for module, name in (
        (layers, "_try_blocks"),
        (stack, "find_writes"),
        (layers, "_judge_head"),
        (modes, "_judge_mode"),
    ):
        whole = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, _whole=whole, _name=name, **k: (made.append(_name), _whole(*a, **k))[1]
        )
    return made


def test_proofs_are_made_once_and_again_when_the_structure_changes(model, tokenizer, trials):
    request = Capture(places=["attn_out:1", "resid_post:1"])

    def run():
        trials.clear()
        numbers = scored((model, tokenizer)), capture((model, tokenizer), ["Is it ok?"], request).values
        return numbers, set(trials)

    (scores, states), made = run()
    assert made == {"_try_blocks", "find_writes", "_judge_head", "_judge_mode"}
    (again, same), made = run()
    assert not made
    assert again.equals(scores)
    assert torch.equal(same, states)
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
        model.model.layers[0].mlp.up_proj.weight.add_(0.01)
    (trained, _), made = run()
    assert not made
    assert trained.equals(scored(LanguageModel(copy.deepcopy(model), tokenizer)))
    changes = [
        lambda: model.double(),
        lambda: model.model.layers[0].register_forward_hook(lambda *_: None),
        lambda: model.set_attn_implementation("eager"),
        lambda: setattr(model.config, "rope_theta", 5e5),
        lambda: setattr(model.model.layers[1], "forward", model.model.layers[1].forward),
        lambda: peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["v_proj"])),
    ]
    for change in changes:
        change()
        assert "_judge_mode" in run()[1]
        assert not run()[1]


def test_proofs_of_broken_weights_are_not_kept(tokenizer, trials):
    model = tiny.make_model().model
    good = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    assert scored((model, tokenizer)).status[0] == "not_finite"
    model.load_state_dict(good)
    assert scored((model, tokenizer)).equals(scored(tiny.make_model()))


def test_proofs_do_not_keep_a_model_alive(tokenizer):
    model = tiny.make_model().model
    scored((model, tokenizer))
    assert model in proofs.PROOFS
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert isinstance(proofs.PROOFS, weakref.WeakKeyDictionary)


def test_jobs_answer_with_frames_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(n), "text": f"It is {n}.", "label": n % 2} for n in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"id": "a", "prompt": "Is it ok?", "chosen": " No", "rejected": " Never"}]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs[0]) + "\n")
    report = probing.displacement(reference="bundled", policy="bundled-displaced", data="pairs.jsonl")
    assert isinstance(report, probing.Report)
    assert all(hasattr(table, "columns") for table in report.tables.values())
    report = probing.clusters(
        model="bundled", data="data.jsonl", places="resid_post:0", permutations=5, out=tmp_path / "out"
    )
    assert report.tables
    assert (tmp_path / "out" / "run.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out", "pairs.jsonl"]
    with pytest.raises(TypeError, match="colour"):
        probing.ccs(data="bundled", colour=1)
    with pytest.raises(TypeError, match="data"):
        probing.probe(model="bundled")


def test_the_names_of_jobs_load_no_torch():
    code = "import probing, sys; probing.ccs, probing.probe, probing.clusters, probing.displacement; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_example_of_the_readme_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {"An example": "import probing", "A model in memory": "from transformers"}
    space: dict[str, object] = {}
    for section, first in names.items():
        part = text.split(f"## {section}\n")[1].split("\n## ")[0]
        start = part.index(f"    {first}")
        # All that is indented from there on; what is said in between is not run.
        code = "".join(re.findall(r"^(?:    .*)?\n", part[start:], flags=re.MULTILINE))
        exec(re.sub(r"^    ", "", code, flags=re.MULTILINE), space)
    assert isinstance(space["model"], PreTrainedModel)
    assert list(space["scores"]["status"]) == ["ok", "ok"]
    assert space["states"].values.shape[:2] == (1, 1)
    report = space["report"]
    assert isinstance(report, probing.Report)
    assert any(title.startswith("Drift") for title in report.tables)


def test_hooks_for_gradients_of_the_embedding_are_no_other_structure():
    own = tiny.make_model()
    proofs.remember(own.model, "something", 3)
    own.model.enable_input_require_grads()
    assert proofs.recall(own.model, "something") == 3
    own.model.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert proofs.recall(own.model, "something") is None
