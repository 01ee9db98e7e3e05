"""Small random models of many families, and by hand: which modules of theirs write to the residual stream."""

from dataclasses import dataclass, field
from typing import Any

import tiny
import torch
import transformers

from probing import LanguageModel

LAYERS = 4
SHAPE: dict[str, Any] = {**tiny.SHAPE, "num_hidden_layers": LAYERS}
OLD_SHAPE = {
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
WINDOW = {"sliding_window": 16}
HEAD = {"head_dim": 8}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Family:
    """How to make one, and what is known of it.

    Attributes:
        config: name of the config class.
        values: of the config.
        attention: modules (within a block) whose outputs are what attention writes; each with its factor.
        mlp: the same for the MLP.
        auto: class of the library that makes the model.
        listed_from: which state the library lists first: 0 the embedding, 1 the first layer's output.
    """

    config: str
    values: dict[str, Any]
    attention: tuple[str, ...] = ("self_attn",)
    mlp: tuple[str, ...] = ("mlp",)
    factor: float = 1.0
    auto: str = "AutoModelForCausalLM"
    listed_from: int = 0
    parts: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)


SANDWICH = {"attention": ("post_attention_layernorm",), "mlp": ("post_feedforward_layernorm",)}
POST_NORM = {"attention": ("attention.output.dense",), "mlp": ("output.dense",), "auto": "AutoModel"}
FAMILIES = {
    "llama": Family("LlamaConfig", SHAPE),
    "mistral": Family("MistralConfig", {**SHAPE, **WINDOW}),
    "qwen2": Family("Qwen2Config", {**SHAPE, **WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": Family("Qwen3Config", {**SHAPE, **HEAD}),
    "gemma2": Family("Gemma2Config", {**SHAPE, **HEAD, **WINDOW, "query_pre_attn_scalar": 8}, **SANDWICH),
    "gemma3": Family(
        "Gemma3TextConfig",
        {**SHAPE, **HEAD, **WINDOW, "query_pre_attn_scalar": 8, "num_hidden_layers": 7},
        **SANDWICH,
    ),
    "phi3": Family("Phi3Config", {**SHAPE, **WINDOW}),
    "olmo2": Family("Olmo2Config", SHAPE, **SANDWICH),
    "gpt2": Family(
        "GPT2Config",
        {**tiny.FAMILIES["gpt2"][1], "n_layer": LAYERS},
        attention=("attn",),
    ),
    "gpt_neox": Family("GPTNeoXConfig", {**OLD_SHAPE, "intermediate_size": 64}, attention=("attention",)),
    "mixtral": Family("MixtralConfig", {**SHAPE, **EXPERTS}),
    "qwen3_moe": Family("Qwen3MoeConfig", {**SHAPE, **EXPERTS, **HEAD}),
    "gpt_oss": Family(
        "GptOssConfig", {**SHAPE, **EXPERTS, **HEAD, **WINDOW, "rope_parameters": {"rope_type": "default"}}
    ),
    "granite": Family("GraniteConfig", {**SHAPE, "residual_multiplier": 0.22}, factor=0.22),
    "cohere2": Family("Cohere2Config", {**SHAPE, **WINDOW}),
    "falcon": Family("FalconConfig", OLD_SHAPE, attention=("self_attention",)),
    "bloom": Family(
        "BloomConfig",
        {"vocab_size": 420, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
        attention=("self_attention.dense",),
        mlp=("mlp.dense_4h_to_h",),
    ),
    "opt": Family("OPTConfig", {**OLD_SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32}, mlp=("fc2",)),
    "deepseek_v3": Family(
        "DeepseekV3Config",
        {
            **SHAPE,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 32,
        },
    ),
    "llama4_text": Family(
        "Llama4TextConfig",
        {
            **SHAPE,
            **HEAD,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
        },
        mlp=("feed_forward",),
    ),
    "mamba2": Family(
        "Mamba2Config",
        {
            "vocab_size": 420,
            "hidden_size": 32,
            "num_hidden_layers": LAYERS,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 1,
            "expand": 2,
            "chunk_size": 16,
        },
        attention=("mixer",),
        mlp=(),
        listed_from=1,
    ),
    "falcon_h1": Family(
        "FalconH1Config", {**SHAPE, **MAMBA, "mamba_d_ssm": 64}, attention=("mamba", "self_attn"), mlp=("feed_forward",)
    ),
    "lfm2": Family(
        "Lfm2Config",
        {**SHAPE, "layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 16},
        attention=("conv", "self_attn"),
        mlp=("feed_forward",),
    ),
    "granitemoehybrid": Family(
        "GraniteMoeHybridConfig",
        {
            **SHAPE,
            **MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "shared_intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "residual_multiplier": 0.22,
            "mamba_expand": 2,
        },
        attention=("mamba", "self_attn"),
        mlp=("block_sparse_moe", "shared_mlp"),
        factor=0.22,
    ),
    "llava": Family(
        "LlavaConfig",
        {},
        auto="AutoModelForImageTextToText",
        parts={"text_config": ("LlamaConfig", SHAPE), "vision_config": ("CLIPVisionConfig", VISION)},
    ),
    "bert": Family("BertConfig", {**OLD_SHAPE, "intermediate_size": 64}, **POST_NORM),
    "roberta": Family("RobertaConfig", {**OLD_SHAPE, "intermediate_size": 64}, **POST_NORM),
    "deberta_v3": Family(
        "DebertaV2Config",
        {
            **OLD_SHAPE,
            "intermediate_size": 64,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
        **POST_NORM,
    ),
    "modernbert": Family(
        "ModernBertConfig",
        {**OLD_SHAPE, "intermediate_size": 64, "local_attention": 16, "pad_token_id": 0, "cls_token_id": 1}
        | {"sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
        attention=("attn",),
        auto="AutoModel",
    ),
}


def make(name: str, seed: int = 0) -> LanguageModel:
    """A random model whose weights are large enough for attention to matter."""
    family = FAMILIES[name]
    parts = {key: getattr(transformers, kind)(**values) for key, (kind, values) in family.parts.items()}
    config = getattr(transformers, family.config)(**family.values, **parts)
    torch.manual_seed(seed)
    model = getattr(transformers, family.auto).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return LanguageModel(model, tiny.make_tokenizer())
