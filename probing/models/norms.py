"""What a norm, or another map of each channel, behind a write makes of it: found by running it, never by its name."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

TRIALS = 8
EXACT = 1e-4
"""Largest relative difference between what a norm returns and what its form says, computed in float32."""
SEED = 0
ROUNDS = 20


@dataclass(frozen=True, eq=False)
class Norm:
    """A module that returns y = s (scale * x) + shift, with a number s for each token; x less its mean if centred.

    Attributes:
        name: path within the model.
        module: the norm.
        scale: [width], float64, known up to a positive factor.
        shift: [width], float64; zero where the norm has no bias.
        centred: whether the mean over the channels is subtracted first.
    """

    name: str
    module: nn.Module
    scale: Tensor
    shift: Tensor
    centred: bool


def could_be_norm(module: nn.Module, width: int) -> bool:
    """Whether a module holds nothing but vectors of one number a channel, so that it can be tried alone."""
    return not list(module.children()) and all(
        parameter.is_floating_point() and parameter.device.type != "meta" and tuple(parameter.shape) == (width,)
        for parameter in module.parameters()
    )


def find_norm(name: str, module: nn.Module, width: int) -> Norm | None:
    """The form of a norm, with its numbers; None where the module is something else.

    States and their negatives tell the shift; what is left, divided by the states, tells the scale of each channel,
    which has to be the same for every state.
    """
    weight = next(module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    states = torch.randn(TRIALS, width, generator=torch.Generator().manual_seed(SEED)).to(device)
    # The least states of a channel would divide noise.
    states = states.sign() * (states.abs() + 0.5)
    values = {key: value.detach().float() for key, value in module.named_parameters()}
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        above, below = (functional_call(module, values, (given[None],)) for given in (states, -states))
    if not (isinstance(above, Tensor) and above.shape == (1, *states.shape)):
        return None
    above, below, states = above[0].double().cpu(), below[0].double().cpu(), states.double().cpu()
    shift, odd = (above + below).mean(dim=0) / 2, (above - below) / 2
    for centred in (False, True):
        given = states - states.mean(dim=1, keepdim=True) if centred else states
        scale = _fit_scale(given, odd)
        if scale is not None and _is_constant((above + below) / 2, shift, odd):
            shift = shift if bool(shift.abs().max() > EXACT * EXACT * odd.abs().max()) else torch.zeros_like(shift)
            return Norm(name, module, scale, shift, centred)
    return None


def _fit_scale(given: Tensor, odd: Tensor) -> Tensor | None:
    """Scale of each channel such that every row of ``odd`` is a positive multiple of scale * given; None if none is."""
    factors = odd.norm(dim=1, keepdim=True) / given.norm(dim=1, keepdim=True)
    # Alternating least squares; exact where the form is right, since the factors are nearly right from the start.
    for _ in range(ROUNDS):
        scale = (factors * given * odd).sum(dim=0) / (factors * given).square().sum(dim=0)
        factors = (scale * given * odd).sum(dim=1, keepdim=True) / (scale * given).square().sum(dim=1, keepdim=True)
    fits = (factors * scale * given - odd).abs().max() <= EXACT * odd.abs().max()
    return scale if bool(fits) and bool((factors > 0).all()) and bool(odd.abs().max() > 0) else None


def _is_constant(shifts: Tensor, shift: Tensor, odd: Tensor) -> bool:
    """Whether the shift is the same for every state."""
    return bool((shifts - shift).abs().max() <= EXACT * odd.abs().max())
