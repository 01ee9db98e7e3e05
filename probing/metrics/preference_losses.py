"""Losses of preference training: how hard each pulls at ln p of the chosen and of the rejected response."""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.types import LossName

LOSSES: tuple[str, ...] = get_args(LossName)


class Slopes(NamedTuple):
    """How hard a loss pulls at each pair: gradient descent moves the weights along ``chosen s_w - rejected s_l``.

    ``s_w`` and ``s_l`` are the gradients of ``ln p(y+)`` and ``ln p(y-)``, summed over tokens.

    Attributes:
        chosen: minus the derivative of the pair's loss by ``ln p(y+)``, [pair], per nat.
        rejected: the derivative of the pair's loss by ``ln p(y-)``, [pair], per nat.
    """

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss of preference training.

    Attributes:
        name: "margin" stands for any loss of the margin ``ln p(y+) - ln p(y-)``, per unit of its slope.
        beta: the loss's coefficient.
    """

    name: LossName = "margin"
    beta: float = 0.1

    def slopes(
        self,
        chosen_logprob: Float[Tensor, " pair"],
        rejected_logprob: Float[Tensor, " pair"],
        chosen_tokens: Int[Tensor, " pair"],
        rejected_tokens: Int[Tensor, " pair"],
        reference: Float[Tensor, "pair 2"] | None = None,
    ) -> Slopes:
        """Slopes of the loss of each pair, by default at the start of training.

        Args:
            chosen_logprob: ``ln p(y+)``, summed over tokens, in nats.
            rejected_logprob: ``ln p(y-)``, summed over tokens, in nats.
            chosen_tokens: number of tokens of the chosen response.
            rejected_tokens: number of tokens of the rejected response.
            reference: ``ln p`` of both responses under the reference; by default it is the model itself.
        """
        margin = torch.zeros_like(chosen_logprob).double()
        if reference is not None:
            margin = (chosen_logprob - reference[:, 0]) - (rejected_logprob - reference[:, 1])
        slope = torch.ones_like(margin) if self.name == "margin" else self.beta * torch.sigmoid(-self.beta * margin)
        return Slopes(slope, slope.clone())
