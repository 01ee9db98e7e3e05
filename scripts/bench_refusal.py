"""The job ``refusal`` of ``bench.py``: the selection of a direction by the cascade and by the exhaustive loop."""

import argparse
import random
import sys
from typing import Any

import torch
from measuring import spread_of, timed
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from probing import Directions, LanguageModel, Selection, extract_directions, select_direction
from probing.data.bundled import bundled_model

LAYERS, WIDTH, PROMPTS, ROUNDS = 16, 256, 8, 4
SMALL = (8, 32, 4, 2)
INDUCING = 0.6
"""Quantile of ``induce`` that is its limit: four in ten candidates of a random model pass it, as of published ones."""
WORDS = "near never no yes always sorry help boat wood glue string paper answer write tell how why make list".split()


def make_model(layers: int, width: int, device: str) -> LanguageModel:
    """A deep random Llama with the tokenizer and the chat template of the bundled model."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return LanguageModel(model.to(device), tokenizer)


def draw_prompts(count: int, seed: int) -> list[str]:
    """Prompts of a few random words."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(6, 20))) for _ in range(count)]


def select(model: LanguageModel, directions: Directions, sides: list[list[str]], **options: Any) -> Selection:
    """Select without COSMIC, which the loop has not either."""
    return select_direction(model, directions, *sides, filter_by_sign=False, cosmic=False, **options)


def bench_refusal(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times of both ways in turn, and the layer-forwards of both."""
    layers, width, prompts, rounds = SMALL if options.small else (LAYERS, WIDTH, PROMPTS, ROUNDS)
    model = make_model(layers, width, options.device)
    tokens = list(range(0, len(model.tokenizer), 2))
    found = extract_directions(
        model, draw_prompts(16, 1), draw_prompts(16, 2), filter_by_sign=False, refusal_tokens=tokens
    )
    sides = [draw_prompts(prompts, 3), draw_prompts(prompts, 4)]
    # Limits about which the scores of this model lie, so that some candidates pass each and others do not.
    everything = select(model, found, sides, exhaustive=True, induce_least=-20.0, kl_most=1e6).table
    limits = {
        "induce_least": float(everything["induce"].quantile(INDUCING)),
        "kl_most": float(everything["kl"].quantile(0.5)),
    }
    ratios, spent = [], 0
    for _ in range(rounds):
        fast, ours = timed(lambda: select(model, found, sides, **limits), options.device)
        whole, plain = timed(lambda: select(model, found, sides, exhaustive=True, **limits), options.device)
        if (fast.direction.place, fast.direction.position) != (whole.direction.place, whole.direction.position):
            sys.exit("the two ways choose differently; no times are shown")
        spent = sum(fast.layer_forwards.values())
        ratios.append(plain / ours)
        print(f"  cascade {ours:.1f} s, loop {plain:.1f} s: {plain / ours:.2f}x", file=sys.stderr)
    return [
        {
            "figure": "time of the exhaustive loop over that of the cascade",
            "layers": layers,
            "width": width,
            "candidates": int(everything["bypass"].notna().sum()),
            "prompts_of_each_kind": prompts,
            "layer_forwards": spent,
            "exhaustive_layer_forwards": fast.exhaustive_layer_forwards,
            "layer_forwards_ratio": round(fast.exhaustive_layer_forwards / spent, 2),
            **spread_of(ratios, digits=2),
        }
    ]
