"""Small random models of real families with a real tokenizer, made on the spot."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probing import LanguageModel

TEXT = [
    "Is it ok? No. Never. Yes, always. I am sorry, but I cannot help with that request.",
    "The answer is near, and nothing is nearer than the newest answer. Human: hello Assistant: hi there",
    "Sure, here is how to build a small boat out of wood, paper, string and a little glue.",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"]
SHAPE: dict[str, Any] = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": ("LlamaConfig", SHAPE),
    "qwen": ("Qwen2Config", SHAPE),
    "gemma": ("Gemma2Config", {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 420,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
}
PAIRS = [
    {"id": "short", "prompt": "Is it ok?", "chosen": " No", "rejected": " Never"},
    {"id": "long", "prompt": "The answer", "chosen": " is near. Nothing is nearer!", "rejected": " is a small boat"},
    {"id": "merge", "prompt": "The answer is near", "chosen": "er", "rejected": "ness, always"},
    {"id": "alike", "prompt": "Q", "chosen": " I cannot help with that.", "rejected": " I cannot help with this."},
    {"id": "one", "prompt": "Sure, here is", "chosen": " x", "rejected": " how to build a boat out of wood and paper"},
]


def make_tokenizer(*, bos: bool = True, template: str | None = TEMPLATE, padding_side: str = "right") -> Any:
    """A byte-level BPE tokenizer whose merges cross word borders often enough to matter."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>", padding_side=padding_side
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = template
    return tokenizer


def make_model(family: str = "llama", *, seed: int = 0, tokenizer: Any = None, **changes: Any) -> LanguageModel:
    """A random model of a family, its weights large enough for states to differ from each other."""
    name, shape = FAMILIES[family]
    config = getattr(transformers, name)(**{**shape, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return LanguageModel(model, make_tokenizer() if tokenizer is None else tokenizer)


def save_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """The same, saved as a folder that can be loaded by path."""
    language_model = make_model(family, **changes)
    language_model.model.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    return folder
