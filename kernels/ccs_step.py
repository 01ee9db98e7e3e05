"""The loss of contrast-consistent probes and its gradient: many entries x probes that share their states at once."""

from __future__ import annotations  # triton is not imported here, so ``tl.constexpr`` must not be looked up

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Loss = Literal["original", "symmetric"]
LOSSES: tuple[Loss, ...] = ("original", "symmetric")


class CCSStep(NamedTuple):
    """Loss of every probe and its gradient.

    Attributes:
        loss: [entry probe].
        weight: gradient of the weights, [entry width probe].
        bias: gradient of the biases, [entry probe].
    """

    loss: Tensor
    weight: Tensor
    bias: Tensor


def ccs_gradient_reference(
    logits: Float[Tensor, "entry 2 row probe"],
    row_weights: Float[Tensor, "row split"],
    loss: Loss = "original",
    targets: Float[Tensor, " row"] | None = None,
    supervision: float = 0.0,
) -> Float[Tensor, "entry probe"]:
    """``ccs_gradient`` in plain torch: the definition."""
    entries, _, rows, probes = logits.shape
    shares = row_weights.repeat_interleave(probes // row_weights.shape[1], dim=1)
    p, q = torch.sigmoid(logits).unbind(1)
    sure = [(p, 1.0), (q, 1.0)] if loss == "original" else [(p, 1.0), (q, 1.0), (1 - p, -1.0), (1 - q, -1.0)]
    least = torch.stack([value for value, _ in sure]).amin(dim=0)
    consistent = p + q - 1
    value = consistent.square() + least.square()
    by_p, by_q = 2 * consistent, 2 * consistent
    ties = sum((candidate == least).to(p.dtype) for candidate, _ in sure)
    for index, (candidate, sign) in enumerate(sure):
        part = (candidate == least) * (2 * sign * least / ties)
        by_p, by_q = (by_p + part, by_q) if index % 2 == 0 else (by_p, by_q + part)
    by_p, by_q = by_p * p * (1 - p), by_q * q * (1 - q)
    if targets is not None and supervision:
        truth = targets[:, None]
        signs = 2 * truth - 1
        error = torch.nn.functional.softplus
        value = value + supervision * (error(-signs * logits[:, 0]) + error(signs * logits[:, 1]))
        by_p, by_q = by_p + supervision * (p - truth), by_q + supervision * (q - (1 - truth))
    logits[:, 0], logits[:, 1] = by_p * shares, by_q * shares
    return (value * shares).sum(dim=1)


def ccs_gradient(
    logits: Float[Tensor, "entry 2 row probe"],
    row_weights: Float[Tensor, "row split"],
    loss: Loss = "original",
    targets: Float[Tensor, " row"] | None = None,
    supervision: float = 0.0,
    impl: str = "auto",
) -> Float[Tensor, "entry probe"]:
    """The loss of every probe from its logits, which are overwritten with the gradient.

    With ``p`` and ``q`` the probabilities of the yes and the no form, a row's loss is ``(p + q - 1)^2 + min(p, q)^2``
    (Burns et al. 2022, arXiv 2212.03827), or in its symmetric form ``(p + q - 1)^2 + min(p, q, 1 - p, 1 - q)^2``
    (arXiv 2312.10029). Where several are least, each takes an equal part of the gradient, as ``torch.amin`` has it.

    Args:
        logits: of the yes forms ``[:, 0]`` and the no forms ``[:, 1]``; overwritten.
        row_weights: how much each row counts, for each split of the rows; zero leaves it out. The probes of a split
            are consecutive, and as many for each.
        loss: "original" or "symmetric".
        targets: 1 where the statement is true, 0 where not, for the supervised term.
        supervision: weight of the cross-entropy of both forms with the targets, which is added to the loss.
        impl: "torch", "triton", or "auto".

    Returns:
        Weighted sum over rows.

    Raises:
        ValueError: the probes cannot be shared out evenly to the splits, no such loss, or no such ``impl``.
        KernelUnavailable: "triton" cannot run here.
    """
    if loss not in LOSSES:
        raise ValueError(f"the loss is one of {', '.join(LOSSES)}, not {loss!r}")
    if logits.shape[3] % row_weights.shape[1]:
        raise ValueError(f"{logits.shape[3]} probes cannot be shared out to {row_weights.shape[1]} splits")
    return ccs_gradient_reference(logits, row_weights, loss, targets, supervision)


def ccs_step(
    states: Float[Tensor, "entry 2 row width"],
    centers: Float[Tensor, "entry 2 split width"],
    row_weights: Float[Tensor, "row split"],
    weight: Float[Tensor, "entry width probe"],
    bias: Float[Tensor, "entry probe"],
    loss: Loss = "original",
    targets: Float[Tensor, " row"] | None = None,
    supervision: float = 0.0,
    impl: str = "auto",
) -> CCSStep:
    """Loss of every probe and its gradient: the probes of all splits in two products with the same states.

    Each split has a centre of its own, which is taken off the logits rather than off a copy of the states.

    Args:
        states: of the yes and the no form of every row, at every entry (a layer).
        centers: of each split, form and entry.
        row_weights, loss, targets, supervision, impl: see ``ccs_gradient``.
        weight: of every probe; those of a split are consecutive.
        bias: of every probe.

    Raises:
        ValueError, KernelUnavailable: see ``ccs_gradient``.
    """
    entries, _, rows, width = states.shape
    probes, splits = weight.shape[2], row_weights.shape[1]
    logits = torch.bmm(states.view(entries, 2 * rows, width), weight).view(entries, 2, rows, probes)
    by_split = weight.view(entries, 1, width, splits, probes // splits)
    shift = torch.einsum("efsw,exwsr->efsr", centers, by_split).reshape(entries, 2, 1, probes)
    logits += bias.view(entries, 1, 1, probes) - shift
    value = ccs_gradient(logits, row_weights, loss, targets, supervision, impl)
    by_logit = logits.view(entries, 2 * rows, probes)
    by_weight = torch.bmm(states.view(entries, 2 * rows, width).transpose(1, 2), by_logit)
    sums = logits.sum(dim=2)
    shares = sums.view(entries, 2, splits, 1, probes // splits) * centers[..., None]
    by_weight -= shares.sum(dim=1).permute(0, 2, 1, 3).reshape(entries, width, probes)
    return CCSStep(value, by_weight, sums.sum(dim=1))
