"""How far states differ, and how far they may."""

import torch
from torch import Tensor

NOISE = 3.0
"""Two ways to the same states may differ by so many times the difference that rounding alone is measured to cause."""
MOST_NOISE = 0.4
"""Upper limit of that difference: states of other tokens differ by about 1."""


def difference(states: Tensor, others: Tensor) -> float:
    """Largest difference relative to the largest state."""
    states, others = states.float().cpu(), others.float().cpu()
    scale = states.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((states - others).abs().max() / scale)


def channelwise_difference(states: Tensor, others: Tensor) -> float:
    """Difference of [token channel] states from others, as one number.

    The root mean square, over channels, of the largest difference relative to the channel's largest value.
    Relative to the largest value of all, one massive channel would hide any difference in the others.
    """
    states, others = (tensor.double().cpu() for tensor in (states, others))
    if not torch.isfinite(others).all():
        return float("inf")
    scale = states.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((states - others).abs().amax(0) / scale).square().mean().sqrt())


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference allowed between two ways of computing the same states, relative to the largest."""
    return 3e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4


def allowed_difference(limit: float, noise: float) -> float:
    """Difference allowed between two ways to the same states where rounding alone makes them differ by ``noise``."""
    return max(limit, min(NOISE * noise, MOST_NOISE))
