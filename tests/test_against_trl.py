"""Log-probabilities of pairs are those that TRL trains on, and the scores foretell what its training does."""

import copy
import json
import math
import re
import runpy
import sys
import textwrap
from pathlib import Path

import pytest
import tiny
import transformers
from datasets import Dataset
from harness import read_lines, write
from trl import DPOConfig, DPOTrainer

from probing import add_ref_logps, load, score, score_pairs
from probing.data.bundled import bundled_data

SCRIPT = Path(__file__).parents[1] / "scripts/validate_displacement.py"
LOGPROBS = ["chosen_logprob", "rejected_logprob"]
KINDS = ("near_identical_refusal", "refusal_over_compliance", "one_word_edit", "short_answer")
ROWS = [json.loads(line) for line in bundled_data("pairs").read_text("utf-8").splitlines()]
CONVERSATIONS = [row for kind in KINDS for row in [row for row in ROWS if row["kind"] == kind][:5]]
TEXTS = [
    {"prompt": "A cake is not safe.", "chosen": " No.", "rejected": " Yes."},
    {"prompt": "A bomb is not safe.", "chosen": " Yes. Right.", "rejected": " No."},
    {
        "prompt": "The children liked the kite.",
        "chosen": " It was safe.",
        "rejected": " The police warned us about it.",
    },
    {"prompt": "Question: is soup legal?\n", "chosen": "Yes, 100 %: être là, 早.\n", "rejected": "no"},
    {
        "prompt": "A pie",
        "chosen": "s and a cake are safe things.",
        "rejected": "stol is dangerous.",
    },  # across the border
]


SYSTEM = {"role": "system", "content": "Answer with care."}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def language_model():
    return load("bundled", device="cpu")


def make_trainer(language_model, pairs, folder, trainer=DPOTrainer, **further):
    """A trainer that has the log-probabilities of its reference, in batches of unlike lengths."""
    settings = DPOConfig(
        output_dir=str(folder),
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=8,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        max_steps=2,
    )
    return trainer(
        model=copy.deepcopy(language_model.model),  # the trainer replaces its forward
        args=settings,
        train_dataset=pairs,
        processing_class=language_model.tokenizer,
        **further,
    )


def trl_logprobs(language_model, pairs, folder):
    """What DPOTrainer adds to its dataset as the reference."""
    plain = Dataset.from_list([{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs])
    found = make_trainer(language_model, plain, folder).train_dataset
    assert len(found) == len(pairs)
    return [found["ref_chosen_logps"][:], found["ref_rejected_logps"][:]]


# What TRL sets by default, or passes on, is about to be renamed in transformers.
@pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("pairs", [CONVERSATIONS, TEXTS], ids=["conversations", "texts"])
def test_logprobs_are_those_of_trl(language_model, pairs, tmp_path):
    scores = score_pairs(language_model, pairs, LOGPROBS)
    assert set(scores["status"]) == {"ok"}
    for column, expected in zip(LOGPROBS, trl_logprobs(language_model, pairs, tmp_path), strict=True):
        # Float32 sums of up to some fifty log-probabilities, taken in another order.
        assert scores[column].tolist() == pytest.approx(expected, abs=1e-4, rel=0), column


def make_chatml_model():
    """A model whose BOS opens every turn."""
    tokenizer = tiny.make_tokenizer(bos=False, template=CHATML, padding_side="left")
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    return tiny.make_model(tokenizer=tokenizer, vocab_size=len(tokenizer))


@pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [lambda: load("bundled", device="cpu"), make_chatml_model], ids=["bundled", "chatml"])
def test_reference_log_probabilities_are_those_of_trl(make, tmp_path):
    language_model = make()
    pairs = [
        {**row, "prompt": [SYSTEM, *row["prompt"]] if number % 2 else row["prompt"]}
        for number, row in enumerate(CONVERSATIONS)
    ]
    language_model.tokenizer.padding_side = "left"
    found = add_ref_logps(Dataset.from_list(pairs), language_model)
    assert language_model.tokenizer.padding_side == "left"
    names = ["ref_chosen_logps", "ref_rejected_logps"]
    for name, expected in zip(names, trl_logprobs(language_model, pairs, tmp_path), strict=True):
        assert found[name][:] == pytest.approx(expected, abs=1e-4, rel=1e-6), name


def read_documented_trainer():
    """The class that ``docs/scores.md`` shows."""
    text = (Path(__file__).parents[1] / "docs/scores.md").read_text("utf-8")
    names = {"DPOTrainer": DPOTrainer}
    exec(textwrap.dedent(re.search(r"    class Trainer.*?return dataset\n", text, re.DOTALL)[0]), names)
    return names["TrainerWithoutPrecompute"]


@pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
def test_a_trainer_takes_the_written_pairs_in_place_of_its_own_precompute(tmp_path):
    data = write(tmp_path / "pairs.jsonl", CONVERSATIONS)
    score(model="bundled", data=str(data), out=tmp_path / "out", write_ref_logps=True, device="cpu")
    written = Dataset.from_list(read_lines(tmp_path / "out/ref_logps.jsonl"))
    # Another model than the reference, so that the loss depends on both.
    policy, reference = load("bundled-displaced", device="cpu"), load("bundled", device="cpu").model
    losses = []
    for pairs, kind, further in (
        (written, read_documented_trainer(), {}),
        (Dataset.from_list(CONVERSATIONS), DPOTrainer, {"ref_model": reference}),
    ):
        trainer = make_trainer(policy, pairs, tmp_path / kind.__name__, kind, **further)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert abs(losses[0][0] - math.log(2)) > 0.1  # which is the loss where policy and reference agree


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
def test_exact_rates_foretell_training_on_one_pair(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [SCRIPT.name, "--quick", "--out", str(tmp_path / "out")])
    sys.argv += ["--save-displaced", str(tmp_path / "displaced")]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    results = json.loads((tmp_path / "out/results.json").read_text("utf-8"))
    assert {"plan", "versions", "scores", "together", "alone", "refusal"} == set(results)
    (run,) = results["alone"]
    found = {entry["predictor"]: entry["value"] for entry in run["spearman"] if entry["kind"] == "all"}
    exact = found.pop("displacement_rate_exact")
    assert exact > 0.95  # measured 1.00
    assert exact > max(map(abs, found.values())) + 0.3  # measured .45
    # The change of ln p(chosen) is the rate times the learning rate, beta / 2 and five steps.
    assert run["measured_over_first_order"][1] == pytest.approx(1, abs=0.01)
    assert {row["trained_on"]: row["refused"] for row in results["refusal"]}["nothing"] == 1
    assert score_pairs(load(str(tmp_path / "displaced")), CONVERSATIONS[:1])["status"].tolist() == ["ok"]
