"""Training on rollouts with rewards (GRPO): what it does to the states of prompts that it was not trained on."""

from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import probing
from probing.data.bundled import bundled_data, bundled_model

MODEL = str(bundled_model())
rows = load_dataset("json", data_files=str(bundled_data("prompts")), split="train")
texts = {kind: [row["text"] for row in rows if row["label"] == kind] for kind in ("harmful", "harmless")}

# The direction along which the model refuses, and the tokens that it refuses with.
directions = probing.extract_directions(probing.load(MODEL), texts["harmful"], texts["harmless"])
refusal = directions.at("resid_pre:3", position=-1)

callback = probing.GeometryCallback(
    {kind: own[:8] for kind, own in texts.items()},
    every=2,
    layers=[-1],
    directions={"refusal": refusal},
)


def reward_short_answers(completions, **_):
    """A reward that says nothing of refusals: the shorter, the better."""
    return [-float(len(answer[0]["content"])) for answer in completions]


trainer = GRPOTrainer(
    AutoModelForCausalLM.from_pretrained(MODEL),
    reward_funcs=reward_short_answers,
    args=GRPOConfig(
        output_dir="grpo",
        max_steps=4,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=16,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": text}] for text in texts["harmful"][8:16] + texts["harmless"][8:16]]}
    ),
    processing_class=AutoTokenizer.from_pretrained(MODEL),
    callbacks=[callback],
)
trainer.train()

for measured in callback.history:
    row = measured.row()
    print(
        f"step {measured.step}: log-odds of refusing harmful prompts {row['refusal_log_odds/harmful']:+.2f}, "
        f"similarity of the states with those at the start {row['cka/resid_post:3']:.3f}"
    )
