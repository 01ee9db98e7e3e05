"""Leave out the preference pairs that are most likely to displace likelihood, then train by DPO on the others."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import probing
from probing.data.bundled import bundled_data, bundled_model

# Your model and pairs: a folder or hub id, and a file or dataset in any of TRL's formats.
MODEL = str(bundled_model())
pairs = load_dataset("json", data_files=str(bundled_data("pairs")), split="train")

model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)

# A low score of CHES means that both responses have unlike states; pairs with the highest scores are left out.
kept = probing.filter_dataset(pairs, (model, tokenizer), by="ches_normalized", keep_lowest=0.9)
print(f"{len(kept)} of {len(pairs)} pairs are trained on")

trainer = DPOTrainer(
    model,
    ref_model=AutoModelForCausalLM.from_pretrained(MODEL),
    args=DPOConfig(output_dir="filtered-dpo", max_steps=20, report_to="none", use_cpu=True, bf16=False),
    train_dataset=kept.select_columns(["prompt", "chosen", "rejected"]),
    processing_class=tokenizer,
)
trainer.train()
