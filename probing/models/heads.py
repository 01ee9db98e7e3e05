"""How a model turns its last states into logits, read from its parts and proved on its own output."""

from typing import Any

import torch
from torch import Tensor, nn

from probing.errors import LayerNotFound
from probing.kernels.output_head import Unembedding, write_logits
from probing.models.devices import device_of
from probing.models.passes import TRIAL_STARTS, last_hidden_state, logits_of, trial_ids, use_eval_mode
from probing.models.proofs import recall, remember
from probing.models.shares import gather
from probing.models.stack import Stack

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Names in configs of soft caps that are applied to logits behind the head."""
FAITHFUL = {torch.float32: 1e-4, torch.float64: 1e-8}
FAITHFUL_HALF = 1e-2
"""Largest root mean square difference of our logits from the model's, relative to the root mean square of the
model's."""
IDENTITY_ROWS = 256


def find_head(stack: Stack) -> Unembedding:
    """The output head of a causal language model (``find_backbone``'s stack), proved on a few tokens.

    Where the head is no plain linear layer (an adapter on it, quantised or offloaded weights), the matrix that it
    multiplies with is found by giving it the identity.

    Raises:
        LayerNotFound: the model's own logits differ.
    """
    model = stack.language_model.model
    with torch.inference_mode(), use_eval_mode(model):
        weight, bias = _read_matrix(model.get_output_embeddings(), stack.width)
        config = model.config.get_text_config()
        scale = 1.0
        for name in MULTIPLIERS:
            scale *= float(getattr(config, name, None) or 1.0)
        for name in DIVISORS:
            scale /= float(getattr(config, name, None) or 1.0)
        caps = [float(getattr(config, name)) for name in SOFT_CAPS if getattr(config, name, None)]
        head = Unembedding(weight, bias, scale, caps[0] if caps else None)
        if recall(model, "output head") is None:
            _prove(stack, head)
    return head


def _read_matrix(head: nn.Module, width: int) -> tuple[Tensor, Tensor | None]:
    """Weight [vocabulary width] and bias of a linear head."""
    weight: Any = getattr(head, "weight", None)
    if type(head) is nn.Linear and weight.device.type != "meta":
        whole = gather(weight.data)
        if type(whole) is Tensor:
            return whole, None if head.bias is None else gather(head.bias.data)
    parameter = next(head.parameters())
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    device = device_of(head, parameter)
    bias: Tensor = head(torch.zeros((1, width), dtype=dtype, device=device))[0]
    columns = []
    for start in range(0, width, IDENTITY_ROWS):
        rows = torch.eye(width, dtype=dtype, device=device)[start : start + IDENTITY_ROWS]
        columns.append((head(rows) - bias).T)
    return torch.cat(columns, dim=1), bias if bool(bias.any()) else None


def _prove(stack: Stack, head: Unembedding) -> None:
    """Raise unless the head makes the model's own logits from the backbone's states."""
    model = stack.language_model.model
    for start in TRIAL_STARTS:
        ids = trial_ids(stack.language_model, start)
        # On several cards a head that is tied to the embedding is on the first one, and the last states are on the last
        # one.
        states = last_hidden_state(stack.backbone, ids)[0].to(head.weight.device)
        theirs = logits_of(model, ids)[0]
        if not bool(torch.isfinite(states).all()):
            # Broken weights are reported later, row by row.
            continue
        if theirs.shape[-1] != len(head.weight):
            raise LayerNotFound(
                f"{stack.family} has {theirs.shape[-1]} logits a token, its output head {len(head.weight)}; "
                f"likelihoods of this family are not supported yet"
            )
        ours = torch.empty(theirs.shape, dtype=torch.promote_types(states.dtype, torch.float32), device=states.device)
        write_logits(ours, states, head, slice(0, len(head.weight)))
        seen = torch.isfinite(theirs).to(ours.device)
        gap = (ours - theirs.to(ours))[seen].norm() / ours[seen].norm().clamp_min(torch.finfo(torch.float32).tiny)
        if not float(gap) <= FAITHFUL.get(states.dtype, FAITHFUL_HALF):
            raise LayerNotFound(
                f"the logits of {stack.family} are not those of its output head (they differ by {float(gap):.1e}), so "
                f"something happens to them that was not understood; likelihoods of this family are not supported yet"
            )
        remember(model, "output head", True)
        return
