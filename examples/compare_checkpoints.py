"""How far each checkpoint of a training run is from its beginning, pair by pair, and how its states moved."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import probing
from probing.data.bundled import bundled_data, bundled_model

MODEL = str(bundled_model())
pairs = load_dataset("json", data_files=str(bundled_data("pairs")), split="train").select(range(64))

trainer = DPOTrainer(
    AutoModelForCausalLM.from_pretrained(MODEL),
    ref_model=AutoModelForCausalLM.from_pretrained(MODEL),
    args=DPOConfig(
        output_dir="checkpoints",
        max_steps=12,
        save_steps=4,
        learning_rate=3e-4,
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
    processing_class=AutoTokenizer.from_pretrained(MODEL),
)
trainer.train()

# The same as: probing displacement --reference MODEL --steps checkpoints --data pairs.jsonl --out displaced
before = probing.score_pairs(probing.load(MODEL), pairs, columns=["chosen_logprob", "rejected_logprob"])
for step in (4, 8, 12):
    after = probing.score_pairs(
        probing.load(f"checkpoints/checkpoint-{step}"), pairs, columns=["chosen_logprob", "rejected_logprob"]
    )
    change = (after["chosen_logprob"] - before["chosen_logprob"]).mean()
    print(f"step {step}: ln p of the chosen responses changed by {change:+.2f} nats on average")
