"""Stage ``model``: a Llama of 8B parameters with random weights, made on the device, and texts for it."""

import json
import random
import time

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from card.run import Run
from card.sizes import Sizes
from card.timing import sync
from probing import LanguageModel, PreferencePair
from probing.data.bundled import bundled_data, bundled_model

POSITIONS = 8192
PROMPT_TOKENS, RESPONSE_TOKENS = 165, 340
"""Medians of the lengths; with the spreads below the means are about 200 and 400 tokens."""
PROMPT_SPREAD, RESPONSE_SPREAD = 0.6, 0.55
SAMPLE_WORDS = 4000


def model(run: Run) -> None:
    """Make the model and keep it for the stages that follow."""
    began = time.monotonic()
    net = random_llama(run.sizes, run.device)
    sync(run.device)
    run.kept["model"] = LanguageModel(net, AutoTokenizer.from_pretrained(bundled_model()))
    run.say(
        seconds=time.monotonic() - began,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        dtype=str(net.dtype),
        inv_freq=str(net.model.rotary_emb.inv_freq.dtype),
        memory_gib=torch.cuda.memory_allocated() / 2**30 if run.card else None,
    )


def random_llama(sizes: Sizes, device: str) -> LlamaForCausalLM:
    """In bf16 from the start: in float32 first it would take 32 GB."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=POSITIONS,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def realistic_pairs(language_model: LanguageModel, count: int, scale: float = 1.0) -> list[PreferencePair]:
    """Pairs of about 200 prompt and 400 response tokens a side, of log-normal lengths, from the bundled texts' words.

    Args:
        language_model: whose tokenizer counts the tokens of a word.
        count: of pairs.
        scale: of the lengths.
    """
    words = bundled_words()
    sample = " ".join(words[:SAMPLE_WORDS])
    tokens_a_word = len(language_model.tokenizer(sample, verbose=False)["input_ids"]) / len(sample.split())
    draw = random.Random(0)

    def text(median: float, spread: float) -> str:
        wanted = median * scale * draw.lognormvariate(0, spread) / tokens_a_word
        return " ".join(draw.choices(words, k=max(2, round(wanted))))

    return [
        PreferencePair(
            str(number),
            text(PROMPT_TOKENS, PROMPT_SPREAD),
            " " + text(RESPONSE_TOKENS, RESPONSE_SPREAD),
            " " + text(RESPONSE_TOKENS, RESPONSE_SPREAD),
        )
        for number in range(count)
    ]


def bundled_words() -> list[str]:
    """Every word of the bundled preference pairs."""
    words: list[str] = []
    for line in bundled_data("pairs").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for side in ("prompt", "chosen", "rejected"):
            words += [word for turn in row[side] for word in turn["content"].split()]
    return words
