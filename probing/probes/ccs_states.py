"""States as contrast-consistent probes see them: normalised, about the centre of the rows that were trained on."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Normalization = Literal["l2", "none"]
Centering = Literal["median", "mean"]


def normalize(
    states: Float[Tensor, "*axes width"], normalization: Normalization = "l2"
) -> Float[Tensor, "*axes width"]:
    """States in float32 (float64 stays), each divided by its length where ``normalization`` is "l2"."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    return (
        torch.nn.functional.normalize(wide, dim=-1, eps=torch.finfo(wide.dtype).tiny) if normalization == "l2" else wide
    )


def centers_of(
    states: Float[Tensor, "*axes row width"], train: Bool[Tensor, "row split"], centering: Centering = "median"
) -> Float[Tensor, "*axes split width"]:
    """The centre of the training rows of each split: the median of every feature, or the mean.

    Of an even number of rows the median is the mean of the two in the middle. Half of the forms affirm what is true:
    a feature that tells so lies on both sides of that middle, and the lower of the two would be one side.
    """
    centers = []
    for split in range(train.shape[1]):
        rows = states[..., train[:, split], :]
        centers.append(_median(rows.transpose(-1, -2).contiguous()) if centering == "median" else rows.mean(dim=-2))
    return torch.stack(centers, dim=-2)


def _median(values: Float[Tensor, "*axes row"]) -> Float[Tensor, "*axes"]:
    count = values.shape[-1]
    low, high = (values.kthvalue(at, dim=-1).values for at in ((count + 1) // 2, count // 2 + 1))
    return (low + high) / 2


def logits_of(
    states: Float[Tensor, "entry 2 row width"],
    centers: Float[Tensor, "entry 2 split width"],
    weight: Float[Tensor, "entry width split"],
    bias: Float[Tensor, "entry split"],
) -> Float[Tensor, "entry 2 row split"]:
    """Logits of every form by the probe of every split, with the centre that the split was trained with."""
    shift = torch.einsum("efsw,ews->efs", centers, weight)
    return states @ weight[:, None] + (bias[:, None] - shift)[:, :, None]


def predict_probabilities(
    states: Float[Tensor, "row layer width"],
    normalization: Normalization,
    centers: Float[Tensor, "layer width"],
    weight: Float[Tensor, "layer width"],
    bias: Float[Tensor, " layer"],
) -> Float[Tensor, "row layer"]:
    """Probability of every row by the probe of its layer, in the dtype of the weights, from states as they are."""
    centered = normalize(states, normalization).to(weight) - centers
    return torch.sigmoid((centered * weight).sum(dim=-1) + bias)
