"""What a run has to know of a model, which may be in another process."""

from dataclasses import dataclass, field
from typing import Any

import torch

from probing.models.devices import device_names, devices_of
from probing.models.language_model import LanguageModel
from probing.types import Source


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model. Two are equal if the models compute the same.

    Attributes:
        source: checkpoint that it was loaded from.
        dtype: dtype of its weights.
        device_kinds: kinds of the devices that it computes on, by which arithmetic differs.
        layers: number of its blocks.
        placement: these devices.
        tokenizer: its tokenizer.
    """

    source: Source
    dtype: torch.dtype
    device_kinds: str
    layers: int
    placement: str = field(compare=False)
    tokenizer: Any = field(compare=False)


def find_model_facts(model: LanguageModel) -> ModelFacts:
    """The facts of a model in this process."""
    kinds = device_names(devices_of(model))
    return ModelFacts(model.source, model.dtype, kinds, model.layers, model.placement, model.tokenizer)


AnyModel = LanguageModel | ModelFacts
"""A model in this process, or what is known of one in another."""
