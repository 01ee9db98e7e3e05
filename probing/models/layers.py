"""Where things are in a model, and whether they are what they seem."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probing.data.batches import padded_length
from probing.errors import LayerNotFound, ModelInvalid
from probing.models.load import LanguageModel

TRIAL_TOKENS = 12
TRIAL_STARTS = (1, 2, 3)
"""``find_backbone`` tries twelve tokens; others, if some of the first have broken embeddings."""


@dataclass(frozen=True)
class _Trial:
    """States of a few tokens: from the backbone, as they reach the head, and without the last tokens."""

    states: Tensor
    multiplied: Tensor
    shorter: Tensor


def find_backbone(language_model: LanguageModel) -> nn.Module:
    """The part of a causal language model below its output head, tried before it is trusted.

    A few tokens are run to prove that (1) what the backbone returns is exactly what the output head multiplies, so it
    is the state after the final norm, and (2) a state does not depend on later tokens, so padding on the right and
    leaving out the last token change nothing.

    Returns:
        A module that takes ``input_ids`` and ``use_cache``; its ``last_hidden_state`` is [row token width].

    Raises:
        LayerNotFound: no backbone or no output head was found, or the states are not what the head multiplies.
        ModelInvalid: the model looks at later tokens, as encoders do.
    """
    model = language_model.model
    backbone, head = model.base_model, model.get_output_embeddings()
    if backbone is model or head is None:
        kinds = ", ".join(name for name, _ in model.named_children())
        raise LayerNotFound(f"{type(model).__name__} is not a backbone with an output head; its parts are {kinds}")
    with torch.inference_mode(), evaluating(model):
        for start in TRIAL_STARTS:
            trial = _try_out(language_model, backbone, head, start)
            if trial is not None:
                _judge(language_model, backbone, trial)
                break
    return backbone  # where no trial was finite, the weights are broken, which is reported pair by pair


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in eval mode, and each part back in its own mode after: in training, dropout would be in the states."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def last_hidden_state(backbone: nn.Module, ids: Tensor) -> Tensor:
    """States after the final norm, [row token width], of right-padded or unpadded ids.

    No attention mask is passed: padding on the right lies in every real token's future, and without a mask attention
    takes its fast causal form and builds no [token token] tensor.
    """
    output = backbone(input_ids=ids, use_cache=False, return_dict=True)
    states: Tensor | None = getattr(output, "last_hidden_state", None)
    if states is None or states.ndim != 3:
        found = "no last_hidden_state" if states is None else f"states of shape {tuple(states.shape)}"
        raise LayerNotFound(f"{type(backbone).__name__} returns {found} where [row token width] was expected")
    return states


def first_nonfinite_place(backbone: nn.Module, ids: Tensor, limit: int | None = None) -> str | None:
    """Name the first place whose states are NaN or infinite for this one sequence; None if all are finite.

    The sequence is padded as it is for scoring: on the CPU, torch's attention turns NaN queries into finite numbers
    when there are fewer than 16 of them (seen with torch 2.13).
    """
    missing = padded_length(ids.shape[1], limit) - ids.shape[1]
    padded = torch.cat([ids, ids[:, -1:].expand(1, missing)], dim=1)
    with torch.inference_mode():
        output = backbone(input_ids=padded, use_cache=False, output_hidden_states=True, return_dict=True)
    # The entries are the embedding, then the output of each layer, but the last of them after the final norm.
    below = [torch.isfinite(states).all().item() for states in output.hidden_states[:-1]]
    if not all(below):
        index = below.index(False)
        return "the embedding" if index == 0 else f"layer {index - 1}"
    if torch.isfinite(output.last_hidden_state).all():
        return None
    return f"layer {len(below) - 1} or the final norm"


def _try_out(language_model: LanguageModel, backbone: nn.Module, head: nn.Module, start: int) -> _Trial | None:
    """Run a few tokens three ways; None if the states are not finite."""
    rows = language_model.model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(TRIAL_TOKENS, device=language_model.device)[None] * 7 + start) % rows
    states = last_hidden_state(backbone, ids)
    if not torch.isfinite(states).all():
        return None
    return _Trial(states, _input_of(head, language_model.model, ids), last_hidden_state(backbone, ids[:, :-3]))


def _judge(language_model: LanguageModel, backbone: nn.Module, trial: _Trial) -> None:
    """Raise unless the trial shows a causal backbone below its head."""
    family = type(language_model.model).__name__
    states, multiplied = trial.states, trial.multiplied
    tolerance = 3e-2 if states.dtype in (torch.bfloat16, torch.float16) else 1e-4
    if multiplied.shape != states.shape or _difference(states, multiplied) > tolerance:
        raise LayerNotFound(
            f"what {type(backbone).__name__} returns is not what the output head of {family} multiplies "
            f"(shapes {tuple(states.shape)} and {tuple(multiplied.shape)}); this family is not supported yet"
        )
    if _difference(states[:, : trial.shorter.shape[1]], trial.shorter) > tolerance:
        raise ModelInvalid(f"{family} is not causal: states depend on later tokens, so it has no response likelihood")


def _difference(states: Tensor, others: Tensor) -> float:
    """Largest difference relative to the largest state."""
    scale = states.float().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((states.float() - others.float()).abs().max() / scale)


def _input_of(module: nn.Module, model: Any, ids: Tensor) -> Tensor:
    """What reaches ``module`` when the whole model runs."""
    seen: list[Tensor] = []
    with _hooked(module, seen):
        model(input_ids=ids, use_cache=False)
    if len(seen) != 1:
        raise LayerNotFound(f"the output head of {type(model).__name__} ran {len(seen)} times in one pass, not once")
    return seen[0]


@contextlib.contextmanager
def _hooked(module: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield
    finally:
        handle.remove()
