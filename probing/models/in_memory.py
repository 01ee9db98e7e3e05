"""Models that a caller has in memory, in whatever holds them: a pair with the tokenizer, a trainer, a wrapper."""

from dataclasses import replace
from typing import Any

from torch import nn

from probing.models.language_model import LanguageModel

WRAPPERS = ("module", "_orig_mod", "pretrained_model")
"""Attributes under which DistributedDataParallel and DataParallel, ``torch.compile`` and TRL's models with a value head
hold the model."""


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
