"""DPO that says while it runs whether chosen responses lose probability, and stops when too many do."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import probing
from probing.data.bundled import bundled_data, bundled_model

MODEL = str(bundled_model())
pairs = load_dataset("json", data_files=str(bundled_data("pairs")), split="train")

# Pairs that are watched are not trained on. Refusals that are nearly alike displace most.
alike = pairs.filter(lambda row: row["kind"] == "near_identical_refusal")
train, watched = alike.select(range(48)), alike.select(range(48, 80))

callback = probing.DisplacementCallback(
    watched,
    every=5,
    by="category",
    alarms={"share_halved": "> 0.2"},
    on_alarm="stop",
)
trainer = DPOTrainer(
    AutoModelForCausalLM.from_pretrained(MODEL),
    ref_model=AutoModelForCausalLM.from_pretrained(MODEL),
    args=DPOConfig(
        output_dir="dpo-with-callback", max_steps=60, learning_rate=1e-3, report_to="none", use_cpu=True, bf16=False
    ),
    train_dataset=train.select_columns(["prompt", "chosen", "rejected"]),
    processing_class=AutoTokenizer.from_pretrained(MODEL),
    callbacks=[callback],
)
trainer.train()

last = callback.history[-1]
print(f"step {last.step} of 60: {last.verdict}")
