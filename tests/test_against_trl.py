"""Log-probabilities of pairs are those that TRL trains on, and the scores foretell what its training does."""

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest
import transformers
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from probing import load, score_pairs
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


@pytest.fixture(scope="module")
def language_model():
    return load("bundled", device="cpu")


def trl_logprobs(language_model, pairs, folder):
    """What DPOTrainer adds to its dataset as the reference, in one batch of unlike lengths."""
    settings = DPOConfig(
        output_dir=str(folder),
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=8,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=copy.deepcopy(language_model.model),  # the trainer replaces its forward
        args=settings,
        train_dataset=Dataset.from_list(
            [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
        ),
        processing_class=language_model.tokenizer,
    )
    found = trainer.train_dataset
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
