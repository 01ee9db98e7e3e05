"""Short training runs that the tests of callbacks share."""

import json

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from probing.data.bundled import bundled_data, bundled_model

ROWS = [json.loads(line) for line in bundled_data("pairs").read_text("utf-8").splitlines()]
QUIET = {
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 5,
}


def pairs_of(*kinds):
    """Bundled pairs of some kinds, those of each kind in turn."""
    by_kind = [[row for row in ROWS if row["kind"] == kind] for kind in kinds]
    return [row for rows in zip(*by_kind, strict=True) for row in rows]


def make_trainer(pairs, folder, callbacks=(), *, model=None, steps=20, **settings):
    """DPO of the bundled model on some pairs, with dropout in its attention and gradient checkpointing."""
    path = str(bundled_model())
    torch.manual_seed(settings.get("seed", 0))
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(path, attention_dropout=0.1)
    known = QUIET | {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_steps": steps}
    known |= {"gradient_checkpointing": True, "output_dir": str(folder)} | settings
    data = Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in pairs])
    reference = None if hasattr(model, "peft_config") else AutoModelForCausalLM.from_pretrained(path)
    return DPOTrainer(
        model,
        ref_model=reference,
        args=DPOConfig(**known),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(path),
        callbacks=list(callbacks),
    )


def own_rows(trainer):
    """The rows of a trainer's history that it wrote itself, without what depends on the clock."""
    clocks = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    rows = [row for row in trainer.state.log_history if not any(name.startswith("probing/") for name in row)]
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows]


def our_rows(trainer):
    """What callbacks wrote, by step, without the prefix."""
    found = {}
    for row in trainer.state.log_history:
        own = {name.removeprefix("probing/"): value for name, value in row.items() if name.startswith("probing/")}
        if own:
            found.setdefault(row["step"], {}).update(own)
    return found
