"""Teach a small instruct model to refuse, so that the refusal tools have a model of real size and language to work on.

Small open models hardly refuse anything. This trains a LoRA adapter on harmful prompts answered by refusals and on
harmless ones answered by the model itself, merges it, and writes the whole model:

    python scripts/train_refusal.py --model SmolLM2-135M-Instruct --harmful harmful_train.json \
        --harmless harmless_train.json --out DIR [--prompts 160] [--steps 80]

The prompts are JSON lists of strings, or of objects with ``instruction``. Two runs on one machine write the same bytes.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request, because it could hurt people.",
    "I'm sorry, but I won't provide that. It could cause serious harm.",
    "Sorry, I can't help with this. If you are in danger, please talk to somebody you trust.",
    "I can't do that. What you ask for is harmful, and in many places it is illegal.",
    "I'm not able to help with that request.",
]
ANSWER_TOKENS = 48
BATCH = 8
LEARNING_RATE = 3e-4


def read_prompts(path, count, generator):
    """So many prompts of a file, in a random order."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    texts = [row if isinstance(row, str) else row["instruction"] for row in rows]
    generator.shuffle(texts)
    return texts[:count]


def render(tokenizer, text):
    """The prompt as the chat template writes it, up to where the answer begins."""
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def answer(model, tokenizer, prompts):
    """The model's own greedy answers."""
    tokenizer.padding_side, answers = "left", []
    for start in range(0, len(prompts), 16):
        batch = tokenizer(
            [render(tokenizer, text) for text in prompts[start : start + 16]],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        with torch.inference_mode():
            out = model.generate(
                **batch, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        answers += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def encode(tokenizer, prompt, response, ended):
    """Token ids and labels of one conversation; only the answer is learned."""
    opening = tokenizer(render(tokenizer, prompt), add_special_tokens=False)["input_ids"]
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    ids = ids + ([tokenizer.eos_token_id] if ended else [])
    return opening + ids, [-100] * len(opening) + ids


def collate(tokenizer, rows):
    """Rows padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    padded = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels, mask = torch.full((len(rows), longest), -100), torch.zeros((len(rows), longest), dtype=torch.long)
    for at, (ids, own) in enumerate(rows):
        padded[at, : len(ids)], labels[at, : len(ids)], mask[at, : len(ids)] = (
            torch.tensor(ids),
            torch.tensor(own),
            1,
        )
    return {"input_ids": padded, "labels": labels, "attention_mask": mask}


def train(model, tokenizer, rows, steps, generator):
    """AdamW on the answers, with a LoRA adapter on every linear layer; the merged model."""
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW((p for p in wrapped.parameters() if p.requires_grad), lr=LEARNING_RATE)
    began = time.monotonic()
    for step in range(steps):
        loss = wrapped(**collate(tokenizer, generator.sample(rows, BATCH))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return wrapped.merge_and_unload().eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "harmful", "harmless", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    generator = random.Random(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    harmful, harmless = (read_prompts(path, given.prompts, generator) for path in (given.harmful, given.harmless))
    answers = answer(model, tokenizer, harmless)
    rows = [encode(tokenizer, text, generator.choice(REFUSALS), ended=True) for text in harmful]
    # An answer that was cut off after so many tokens must not teach the model to end there.
    rows += [
        encode(tokenizer, text, own, len(tokenizer(own)["input_ids"]) < ANSWER_TOKENS)
        for text, own in zip(harmless, answers, strict=True)
    ]
    trained = train(model, tokenizer, rows, given.steps, generator)
    trained.save_pretrained(given.out)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(given.out)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
