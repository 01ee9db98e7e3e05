"""Passes of a model: in eval mode, without a cache, with a few token ids to try it on."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from probing.errors import LayerNotFound
from probing.models.language_model import LanguageModel
from probing.models.proofs import OF_A_PASS
from probing.models.shares import is_split

TRIAL_TOKENS = 12
TRIAL_STARTS = (1, 2, 3)
"""First ids of the twelve tokens that a model is tried on; the next ones serve if some of the first have broken
embeddings."""


@contextlib.contextmanager
def use_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each part back afterwards: in training, dropout would be in the states.

    Meanwhile its configs ask for the last states alone. Arguments of a call cannot do that: a language model does not
    pass ``return_dict`` on to its backbone, and fails on the tuple that a config made it return.
    """
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with _return_last_states(model), _leave_out_accelerate(model):
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _leave_out_accelerate(model: nn.Module) -> Iterator[None]:
    """Run a model as it is itself where accelerate, for training in mixed precision, put another ``forward`` on it."""
    own = vars(model)
    before = own.get("forward")
    try:
        if "_original_forward" in own:
            own["forward"] = own["_original_forward"]
        yield
    finally:
        if before is not None:
            own["forward"] = before


@contextlib.contextmanager
def _return_last_states(model: nn.Module) -> Iterator[None]:
    """Have configs that ask for tuples, states of every layer or attention maps not ask for them inside the block."""
    configs = [vars(module).get("config") for module in model.modules()]
    # Set in their dictionaries, since the setter of ``output_attentions`` refuses the values that were there before.
    known = {id(config): vars(config) for config in configs if isinstance(config, PretrainedConfig)}
    before = [(values, {name: values[name] for name in OF_A_PASS if name in values}) for values in known.values()]
    try:
        for values, own in before:
            values.update({name: OF_A_PASS[name] for name in own})
        yield
    finally:
        for values, own in before:
            values.update(own)


def run_backbone(backbone: nn.Module, ids: Tensor, **options: Any) -> Any:
    """One pass. No attention mask is passed unless it is among the options.

    Padding on the right comes after every real token, and without a mask attention takes its fast causal form and
    builds no [token token] tensor. There is no cache: it costs memory, and it lets packed sequences see each other.
    """
    wanted = {"use_cache": False, "return_dict": True}
    return backbone(
        input_ids=ids, **{name: value for name, value in wanted.items() if accepts(backbone, name)}, **options
    )


def accepts(module: nn.Module, option: str) -> bool:
    """Whether a module's forward takes this keyword."""
    parameters = inspect.signature(module.forward).parameters
    return option in parameters or any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values())


def last_hidden_state(backbone: nn.Module, ids: Tensor) -> Tensor:
    """What the backbone returns, [row token width], for right-padded or unpadded ids."""
    output = run_backbone(backbone, ids)
    # Code that a checkpoint brings may return a tuple whatever its config says.
    states: Tensor | None = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if states is None or states.ndim != 3:
        returned = "no last_hidden_state" if states is None else f"states of shape {tuple(states.shape)}"
        raise LayerNotFound(f"{type(backbone).__name__} returns {returned} where [row token width] was expected")
    return states


def logits_of(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    """The logits of a whole causal language model, [row token vocab]."""
    output = model(input_ids=ids, use_cache=False, **options)
    logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


def trial_ids(language_model: LanguageModel, start: int, tokens: int = TRIAL_TOKENS) -> Tensor:
    """A few different token ids, [1 token], whose embeddings are finite where that can be seen."""
    weight = language_model.model.get_input_embeddings().weight
    ids = (torch.arange(tokens) * 7 + start) % weight.shape[0]
    readable = weight.device.type != "meta" and weight.is_floating_point() and not is_split(weight)
    if readable and not torch.isfinite(weight[ids.to(weight.device)].sum(dim=1)).all():
        good = torch.isfinite(weight.sum(dim=1)).cpu().nonzero()[:, 0]
        if len(good):
            ids = good[ids % len(good)]
    return ids[None].to(language_model.device)
