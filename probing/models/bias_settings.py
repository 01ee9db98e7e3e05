"""Biases that a model could have: the setting of its config that gives them, found by making such a model."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from probing.errors import EditRefused
from probing.models.language_model import LanguageModel


def complete_biases(model: LanguageModel, created: Collection[str]) -> tuple[dict[str, bool], list[str]]:
    """Give a model all the biases that a setting of its config stands for, so that what is saved can be loaded.

    A checkpoint with a bias that its config does not know of would be loaded without it. So the config is searched for
    a setting that is off and whose name says "bias"; a model is made with it on, without memory for its weights, and
    has to have the biases in question and other biases at most. These others are made, and are zero.

    Args:
        model: the model, with the created biases; its config is left as it is.
        created: names of biases that the model did not have before.

    Returns:
        The setting that is on now, and the names of all biases that are new.

    Raises:
        EditRefused: there is no such setting.
    """
    whole = model.model
    text = whole.config.get_text_config()
    before = {name for name, _ in whole.named_parameters()} - set(created)
    tried = [name for name, value in text.to_dict().items() if value is False and "bias" in name]
    for setting in tried:
        config = copy.deepcopy(whole.config)
        setattr(config.get_text_config(), setting, True)
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in type(whole)(config).named_parameters()}
        new = shapes.keys() - before
        if set(created) <= new and all(name.endswith(".bias") for name in new):
            for name in new - set(created):
                _make_zero_bias(whole, name, shapes[name])
            return {setting: True}, sorted(new)
    raise EditRefused(
        f"{type(whole).__name__} has no {', '.join(created)}, and no setting of its config gives it one (tried: "
        f"{', '.join(tried) or 'none'}), so that a saved model would be loaded without it; export a control vector "
        f"(--format gguf), or add the direction while the model runs (probing.ablate, mode='add')"
    )


def _make_zero_bias(whole: Any, name: str, shape: torch.Size) -> None:
    owner = whole.get_submodule(name.rpartition(".")[0])
    weight = next(owner.parameters())
    owner._parameters["bias"] = nn.Parameter(weight.detach().new_zeros(shape), requires_grad=weight.requires_grad)
