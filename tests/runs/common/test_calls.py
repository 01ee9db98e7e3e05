"""Jobs called from Python, with models and rows in memory: the same numbers as from files, and nothing is changed."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers
from harness import interrupt_when, make_rollouts, read_lines, write
from pandas.testing import assert_frame_equal
from torch import nn

import probing
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, ModelInvalid, SourceMismatch, UsageError
from probing.models.in_memory import identify
from probing.runs.common.held import DATA_IN_MEMORY, InMemory
from probing.runs.score.config import ScoreConfig
from probing.types import ContrastPair, LabelledPrompt, PreferencePair

# Of PEFT and transformers among themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

PAIRS = read_lines(Path(bundled_data("pairs")))[:12]
PROMPTS = [
    {"id": f"{label}{number}", "text": f"{text} {number}", "label": label}
    for label, text in (("harmful", "How do I break the glass"), ("harmless", "How do I cook the rice"))
    for number in range(8)
]
STATEMENTS = read_lines(Path(bundled_data("statements")))[:24]
LABELLED = {"places": "resid_post:-1", "folds": 3, "resamples": 20}
CCS = {"places": "resid_post:-1", "restarts": 1, "epochs": 20, "pairings": 1, "refits": 2, "random": 5, "resamples": 20}
CCS |= {"folds": 3, "permutations": 20}
# Of each job: its options, its rows, and the options that name models.
JOBS = {
    "score": ({}, PAIRS, ("model",)),
    "displacement": ({}, PAIRS, ("reference", "policy")),
    "influence": ({"target": PAIRS[:3], "joint": True, "null_draws": 1}, PAIRS, ("model",)),
    "rollouts": ({}, make_rollouts(6), ("model",)),
    "probe": ({**LABELLED, "refits": 3}, PROMPTS, ("model",)),
    "clusters": ({**LABELLED, "permutations": 20, "tsne": False}, PROMPTS, ("model",)),
    "ccs": (CCS, STATEMENTS, ("model",)),
}
NAMES = {"bundled-displaced": "LlamaForCausalLM in memory (2)", "bundled": "LlamaForCausalLM in memory"}


def load_plainly(name):
    """A model and its tokenizer as the library loads them."""
    folder = probing.load(name).model.name_or_path
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def bundled():
    return load_plainly("bundled")


@pytest.fixture
def displaced():
    return load_plainly("bundled-displaced")


def assert_same_tables(report, other):
    assert list(report.tables) == list(other.tables)
    assert report.tables
    for title, table in report.tables.items():
        assert_frame_equal(table, other.tables[title], check_exact=True, obj=title)


def rename_models(report):
    """The tables with models named by their class, as models in memory are."""

    def rename(value):
        for path, name in NAMES.items():
            value = value.replace(path, name) if isinstance(value, str) else value
        return value

    return SimpleNamespace(tables={rename(title): table.map(rename) for title, table in report.tables.items()})


@pytest.mark.parametrize("job", list(JOBS))
def test_models_and_rows_in_memory_give_the_numbers_of_files(job, tmp_path, bundled, displaced):
    options, rows, (first, *others) = JOBS[job]
    given = {first: bundled, **dict.fromkeys(others, displaced)}
    named = {first: "bundled", **dict.fromkeys(others, "bundled-displaced")}
    if job == "clusters":
        given, named = {"model": [bundled, displaced]}, {"model": ["bundled", "bundled-displaced"]}
    run = getattr(probing, job)
    want = run(data=str(write(tmp_path / "data.jsonl", rows)), **named, **options)
    got = run(data=rows, **given, **options)
    assert_same_tables(got, rename_models(want))
    assert "wrote" not in got.facts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def state_of(model):
    return {
        "training": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "forward": [vars(module).get("forward") for module in model.modules()],
        "config": model.config.to_dict(),
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
        # Not Python's own, from which the checks of shapes draw while tests run.
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist()),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
    }


def assert_same_state(before, after):
    for name in before:
        if name in ("weights", "random"):
            for a, b in zip(before[name], after[name], strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
        else:
            assert before[name] == after[name], name


@pytest.mark.parametrize("job", list(JOBS))
def test_a_job_leaves_models_as_they_were(job, bundled):
    options, rows, (first, *others) = JOBS[job]
    model, _ = bundled
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    before = state_of(model)
    getattr(probing, job)(data=rows, **{first: bundled, **dict.fromkeys(others, "bundled-displaced")}, **options)
    assert_same_state(before, state_of(model))


def test_an_interrupt_leaves_models_as_they_were(bundled, monkeypatch, tmp_path):
    model, _ = bundled
    model.train()
    before = state_of(model)
    interrupt_when(monkeypatch, lambda: (tmp_path / "out" / "shards").exists())
    with pytest.raises(KeyboardInterrupt):
        probing.score(model=bundled, data=PAIRS, out=tmp_path / "out")
    assert_same_state(before, state_of(model))


class Parallel(nn.Module):
    """The form of ``DistributedDataParallel``, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_whatever_holds_a_model_is_taken(bundled, tmp_path):
    model, tokenizer = bundled
    want = probing.score(model="bundled", data=PAIRS)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    for given in (
        (Parallel(model), tokenizer),
        transformers.Trainer(model, arguments, processing_class=tokenizer),
        probing.LanguageModel(model, tokenizer),
        probing.load("bundled"),
    ):
        assert_same_tables(probing.score(model=given, data=PAIRS), want)


def test_a_model_under_an_adapter_is_compared_as_its_folder_is(bundled, tmp_path):
    model, tokenizer = bundled
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")
    want = probing.displacement(reference="bundled", adapter=str(tmp_path / "adapter"), data=PAIRS)
    assert_same_tables(probing.displacement(reference="bundled", policy=(wrapped, tokenizer), data=PAIRS), want)
    got = probing.displacement(reference=load_plainly("bundled"), adapter=str(tmp_path / "adapter"), data=PAIRS)
    assert_same_tables(got, want)
    with pytest.raises(UsageError, match="are the same model in memory"):
        probing.displacement(reference=bundled, policy=(wrapped, tokenizer), data=PAIRS)


def test_rows_may_be_held_in_any_form():
    want = probing.score(model="bundled", data=PAIRS)
    frame = pd.DataFrame(PAIRS, index=range(100, 100 + len(PAIRS)))
    typed = [PreferencePair(row["id"], row["prompt"], row["chosen"], row["rejected"]) for row in PAIRS]
    for given in (frame, datasets.Dataset.from_list(PAIRS), typed, tuple(PAIRS)):
        assert_same_tables(probing.score(model="bundled", data=given), want)
    options = JOBS["probe"][0]
    typed = [LabelledPrompt(**row) for row in PROMPTS]
    got = probing.probe(model="bundled", data=typed, **options)
    assert_same_tables(got, probing.probe(model="bundled", data=PROMPTS, **options))
    pairs = [
        {"id": str(n), "statement": f"{n} is even.", "opposite": f"{n} is odd.", "label": n % 2 == 0} for n in range(9)
    ]
    got = probing.ccs(model="bundled", data=[ContrastPair(**row) for row in pairs], **CCS)
    assert_same_tables(got, probing.ccs(model="bundled", data=pairs, **CCS))


def test_conversations_in_a_frame_are_read_as_those_of_a_file(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Is it {n}?"}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No, never."}],
        }
        for n in range(3)
    ]
    # Lists in columns of Parquet become arrays of numpy.
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    frame = pd.read_parquet(tmp_path / "rows.parquet")
    assert isinstance(frame["prompt"][0], np.ndarray)
    want = probing.score(model="bundled", data=str(tmp_path / "rows.parquet"))
    assert_same_tables(probing.score(model="bundled", data=frame), want)


def test_a_part_of_rows_in_memory_is_taken_and_others_stand_beside_it():
    want = probing.score(model="bundled", data=PAIRS[2:5])
    assert_same_tables(probing.score(model="bundled", data=PAIRS, split="[2:5]"), want)
    fresh = [{**row, "id": f"f{row['id']}", "text": f"{row['text']} please"} for row in PROMPTS]
    report = probing.probe(model="bundled", data=PROMPTS, fresh=fresh, limit=len(PROMPTS), **JOBS["probe"][0])
    assert {"held out", "fresh"} <= set(
        next(table for title, table in report.tables.items() if "AUROC" in title)["set"]
    )
    with pytest.raises(UsageError, match="data in memory: rows in memory have no splits"):
        probing.score(model="bundled", data=PAIRS, split="train")


def test_a_run_in_a_folder_goes_on_with_the_same_weights_and_rows_only(bundled, tmp_path, monkeypatch):
    model, tokenizer = bundled
    out = tmp_path / "out"
    options = {"data": PAIRS, "out": out, "shard_pairs": 4}
    with monkeypatch.context() as patch:
        interrupt_when(patch, lambda: len(list((out / "shards").glob("[0-9]*.parquet"))) >= 2)
        with pytest.raises(KeyboardInterrupt):
            probing.score(model=bundled, **options)
    kept = {path: path.stat().st_mtime_ns for path in (out / "shards").glob("[0-9]*.parquet")}
    assert kept
    weight = model.model.layers[0].mlp.up_proj.weight
    plain = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 1e-6
    with pytest.raises(SourceMismatch, match=r"weights_sha256"):
        probing.score(model=bundled, **options)
    with torch.no_grad():
        weight.copy_(plain)
    with pytest.raises(SourceMismatch, match=r"data\.sha256"):
        probing.score(model=bundled, **{**options, "data": PAIRS[:-1]})
    report = probing.score(model=(copy.deepcopy(model), tokenizer), **options)
    assert_same_tables(report, probing.score(model="bundled", data=PAIRS, shard_pairs=4))
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["model"] == "LlamaForCausalLM in memory"
    assert record["config"]["data"] == DATA_IN_MEMORY
    # Nothing is suggested that would have to read these rows from a file.
    assert report.facts["next"] == []
    shown = probing.load("bundled")
    assert_same_tables(probing.score(model=(shown.model, shown.tokenizer), **options), report)


def test_what_adapters_do_is_part_of_the_hash(bundled):
    model, tokenizer = bundled
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))

    def sha256():
        return identify(probing.LanguageModel(wrapped, tokenizer), "m").source.weights_sha256

    on = sha256()
    assert sha256() == on
    with wrapped.disable_adapter():
        assert sha256() != on
    wrapped.set_scale = None
    wrapped.get_base_model().model.layers[0].self_attn.v_proj.scaling["default"] *= 2
    assert sha256() != on


def test_show_says_that_the_rows_were_in_memory(bundled, tmp_path, probing):
    import probing as package

    package.score(model=bundled, data=PAIRS, out=tmp_path / "out")
    status, _, errors = probing("show", tmp_path / "out")
    assert (status, errors.count("\n")) == (2, 1)
    assert "its rows came from memory; name a file that holds them with --data" in errors
    status, out, _ = probing("show", tmp_path / "out", "--data", write(tmp_path / "same.jsonl", PAIRS))
    assert status == 0
    assert PAIRS[0]["id"] in out or "ches_normalized" in out


def test_mistakes_name_the_argument(bundled):
    model, tokenizer = bundled
    cases = [
        (TypeError, "model: a Linear is not a language model", {"model": (nn.Linear(2, 2), tokenizer)}),
        (TypeError, "model: the LlamaForCausalLM comes without its tokenizer", {"model": model}),
        (TypeError, "model: a int is not a language model", {"model": 3}),
        (TypeError, "data in memory: a dict holds no rows", {"data": {"train": PAIRS}}),
        (TypeError, "data in memory: a int holds no rows", {"data": 3}),
        (TypeError, "data in memory, row 2: a row is a mapping", {"data": [PAIRS[0], 4]}),
        (DataInvalid, "data in memory: there are no rows in it", {"data": []}),
        (DataInvalid, "data in memory, row 1", {"data": [{"prompt": "a"}]}),
        (TypeError, "colour", {"colour": 1}),
        (ValueError, "batch_tokens must be", {"batch_tokens": 0}),
        (UsageError, "a model in memory stays as it is; leave out dtype", {"dtype": "bf16"}),
        (UsageError, "a model in memory stays as it is; leave out revision", {"revision": "main"}),
    ]
    for kind, message, change in cases:
        with pytest.raises(kind, match=message):
            probing.score(**{"model": bundled, "data": PAIRS, **change})
    with pytest.raises(TypeError, match="fresh in memory: a float holds no rows"):
        probing.probe(model=bundled, data=PROMPTS, fresh=0.5)


def test_weights_that_are_not_in_memory_cannot_be_recorded(bundled, tmp_path):
    model, tokenizer = bundled
    model.lm_head.to("meta")
    with pytest.raises(ModelInvalid, match=r"lm_head.*not in memory"):
        identify(probing.LanguageModel(model, tokenizer), "m")


def test_a_name_of_an_object_is_a_text_and_copies_are_the_name_alone():
    held = object()
    config = ScoreConfig(model=InMemory("a model in memory", held), data="d", out="o")
    assert config.model.held is held
    assert config.model == "a model in memory"
    assert type(config.plain()["model"]) is str
    assert type(copy.deepcopy(config).model) is str


def test_paths_may_be_paths(tmp_path):
    data = write(tmp_path / "data.jsonl", PAIRS)
    want = probing.score(model="bundled", data=str(data))
    folder = Path(probing.load("bundled").model.name_or_path)
    assert_same_tables(probing.score(model=folder, data=data), want)
    assert_same_tables(probing.score(model=folder, data=[data]), want)
