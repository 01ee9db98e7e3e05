"""Models that a caller has in memory, in whatever holds them: a pair with the tokenizer, a trainer, a wrapper."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from probing.errors import ModelInvalid
from probing.models.hashes import NOT_CONTENT, tokenizer_sha256
from probing.models.language_model import LanguageModel
from probing.models.proofs import ADAPTER_STATE
from probing.tokens.templates import template_sha256
from probing.types import Source

WRAPPERS = ("module", "_orig_mod", "pretrained_model")
"""Attributes under which DistributedDataParallel and DataParallel, ``torch.compile`` and TRL's models with a value head
hold the model."""
IN_MEMORY = "in memory"
OF_ADAPTERS = (*ADAPTER_STATE, "scaling")
"""Attributes of the layers of an adapter that change what they compute, and are no tensors."""


def as_language_model(model: Any, tokenizer: Any = None) -> LanguageModel:
    """A language model from whatever a caller holds one in.

    Nothing of the model is changed: it stays where it is, in its dtype, and with the adapters that are on.

    Args:
        model: a ``LanguageModel``; a tuple of a transformers model and its tokenizer; a ``transformers.Trainer`` (or a
            pipeline), which has both; or a transformers model alone, where the tokenizer is given. Models may be
            wrapped by PEFT, ``torch.compile``, accelerate or ``DistributedDataParallel``.
        tokenizer: tokenizer to take in place of the one that comes with the model.

    Raises:
        TypeError: it is none of these, or there is no tokenizer.
        ModelInvalid: the tokenizer does not belong to the model.
    """
    if isinstance(model, LanguageModel):
        return model if tokenizer is None else replace(model, tokenizer=tokenizer)
    if isinstance(model, tuple | list) and len(model) == 2:
        model, its = model
        tokenizer = its if tokenizer is None else tokenizer
    elif not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        its = getattr(model, "processing_class", None) or getattr(model, "tokenizer", None)
        model, tokenizer = model.model, its if tokenizer is None else tokenizer
    model = _unwrap(model)
    if not hasattr(model, "get_input_embeddings") or not hasattr(model, "config"):
        raise TypeError(
            f"a {type(model).__name__} is not a language model; give what probing.load(path) answers, a tuple of a "
            f"transformers model and its tokenizer, or a Trainer"
        )
    # A processor of images and text has the tokenizer of the text.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(tokenizer, "get_vocab"):
        given = "without its tokenizer" if tokenizer is None else f"with a {type(tokenizer).__name__} for a tokenizer"
        raise TypeError(
            f"the {type(model).__name__} comes {given}; give a tuple (model, tokenizer), or "
            f"probing.LanguageModel(model, tokenizer)"
        )
    return LanguageModel(model, tokenizer)


def _unwrap(model: Any) -> Any:
    """The transformers or PEFT model inside of wrappers."""
    while isinstance(model, nn.Module) and not hasattr(model, "get_input_embeddings"):
        inner = next(
            (getattr(model, name) for name in WRAPPERS if isinstance(getattr(model, name, None), nn.Module)), None
        )
        if inner is None:
            return model
        model = inner
    # A compiled model passes on every attribute of the one inside, ``get_input_embeddings`` among them.
    return vars(model).get("_modules", {}).get("_orig_mod", model) if isinstance(model, nn.Module) else model


def name_in_memory(model: LanguageModel) -> str:
    """A name for messages and records: that of the checkpoint it was loaded from, or its class."""
    known = model.source.model
    return f"{type(model.model).__name__ if known == IN_MEMORY else known} {IN_MEMORY}"


def identify(model: LanguageModel, name: str) -> LanguageModel:
    """The same model with a source that tells it by its content in memory, whatever it was loaded from.

    Raises:
        ModelInvalid: weights are neither in the memory of the host nor on a device, so that they cannot be read.
    """
    settings = {key: value for key, value in model.model.config.to_dict().items() if key not in NOT_CONTENT}
    source = Source(
        model=name,
        weights_sha256=_hash_tensors(model.model, name),
        config_sha256=hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(),
        tokenizer_sha256=tokenizer_sha256(model.tokenizer),
        template_sha256=template_sha256(model.tokenizer),
    )
    return replace(model, source=source)


def _hash_tensors(model: nn.Module, name: str) -> str:
    """Hash of every parameter and buffer, by name, and of the state of adapters."""
    digest = hashlib.sha256()
    for part, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type == "meta":
            raise ModelInvalid(
                f"{name}: the weights {part} are not in memory, so that a record cannot tell them from others; leave "
                f"out the folder of results, or load the model whole"
            )
        digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for line in _describe_adapters(model):
        digest.update(line.encode())
    return digest.hexdigest()


def _describe_adapters(model: nn.Module) -> Iterator[str]:
    for part, module in model.named_modules():
        state = {name: getattr(module, name) for name in OF_ADAPTERS if hasattr(module, name)}
        if state:
            yield f"{part} {sorted(state.items())}\n"
