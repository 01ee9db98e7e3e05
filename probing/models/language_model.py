"""A language model in memory with its tokenizer, and the same one under an adapter."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probing.errors import ModelInvalid
from probing.models.adapters import adapter_sha256, attach, check_active_adapters, plain_base
from probing.models.devices import describe_shares, device_of, devices_of
from probing.models.hashes import tokenizer_sha256
from probing.models.shares import count_shares, refuse_shares
from probing.shown import Shown
from probing.tokens.templates import template_sha256
from probing.tokens.tokenizers import read_tokenizer
from probing.types import Source


@dataclass(frozen=True, eq=False, repr=False)
class LanguageModel(Shown):
    """A language model with the tokenizer it was trained with.

    Made by ``load``; or by hand from a model in memory: ``LanguageModel(model, tokenizer)``.

    Attributes:
        model: a transformers model: causal (with an output head), an encoder, or one for images and text, of which the
            text part is used. It runs in eval mode and leaves as it came.
        tokenizer: tokenizer of the model.
        source: checkpoint that the model was loaded from.
        peft: PEFT's wrapper around the model, where an adapter is on it. One that is given as ``model`` is unwrapped:
            the model is meant as it is, with the adapters that are active in it.
        base: the model without its adapter, where that is another object.

    Raises:
        ModelInvalid: the tokenizer can produce ids that the embedding does not hold; an adapter that acts outside of
            the modules of the model.
    """

    model: Any
    tokenizer: Any
    source: Source = field(default_factory=lambda: Source(model="in memory"))
    peft: Any = None
    base: Any = None

    def __post_init__(self) -> None:
        if hasattr(self.model, "get_base_model") and hasattr(self.model, "peft_config"):
            check_active_adapters(self.model)
            object.__setattr__(self, "peft", self.model)
            object.__setattr__(self, "model", self.model.get_base_model())
        rows = self.model.get_input_embeddings().weight.shape[0]
        highest = max(self.tokenizer.get_vocab().values(), default=-1)
        if highest >= rows:
            raise ModelInvalid(
                f"the tokenizer of {self.source.model} has {highest + 1} ids, the model's embedding only {rows} rows: "
                f"they do not belong together, or the model must be resized and trained for the added tokens"
            )

    def shown_facts(self) -> Mapping[str, object]:
        """Model, class, size, dtype and device."""
        vocabulary, width = self.model.get_input_embeddings().weight.shape
        facts = {"model": self.source.model, "class": type(self.model).__name__, "layers": self.layers}
        facts |= {"width": width, "vocabulary": vocabulary, "dtype": str(self.dtype).removeprefix("torch.")}
        return facts | {"device": self.device} | ({} if self.peft is None else {"adapter": "yes"})

    def adapted(self, path: str, keep_tokenizer: bool = False) -> "LanguageModel":
        """The same model with an adapter on top, in place of any that it has; this one stays as it is.

        The weights that the adapter leaves as they are, are in memory once, and both use them.

        Args:
            path: folder of the adapter (PEFT's ``save_pretrained``), with safetensors weights. A tokenizer or a chat
                template in it replaces the model's.
            keep_tokenizer: whether the tokenizer stays the model's, whatever is in the folder.

        Raises:
            ModelInvalid: the adapter does not fit, PEFT is not installed, or the model is split over processes.
        """
        refuse_shares(self.model, f"{path}: an adapter changes whole weights")
        base = self.base
        if base is None:
            base = self.model if self.peft is None else plain_base(self.peft)
        peft = attach(base, path)
        tokenizer = self.tokenizer if keep_tokenizer else read_tokenizer(Path(path), self.tokenizer, base.config)
        name = self.source.model.split(" + ")[0]
        source = replace(self.source, model=f"{name} + {path}", adapter_sha256=adapter_sha256(path))
        if tokenizer is not self.tokenizer:
            source = replace(
                source, tokenizer_sha256=tokenizer_sha256(tokenizer), template_sha256=template_sha256(tokenizer)
            )
        return LanguageModel(peft.get_base_model(), tokenizer, source, peft, base)

    @property
    def device(self) -> torch.device:
        """Device on which inputs have to be."""
        embedding = self.model.get_input_embeddings()
        return device_of(embedding, embedding.weight)

    @property
    def placement(self) -> str:
        """The devices that it computes on, separated by commas, and over how many processes it is split."""
        return ", ".join(map(str, devices_of(self))) + describe_shares(count_shares(self.model))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def layers(self) -> int:
        """Number of blocks of the model, by its config."""
        return int(getattr(self.model.config.get_text_config(), "num_hidden_layers", 0))

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model has positions for; None if it has no limit.

        RoBERTa and its like count positions from behind the padding index, so that the first ones are never used.
        """
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(limit, int) or limit <= 0:
            return None
        tables = [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding) and "position" in name
        ]
        unused = [table.num_embeddings - table.padding_idx - 1 for table in tables if table.padding_idx is not None]
        return min([limit, *unused])
