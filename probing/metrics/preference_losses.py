"""Losses of preference training: how hard each pulls at ln p of the chosen and of the rejected response."""

from dataclasses import dataclass
from typing import NamedTuple, get_args

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
    """A loss as its trainer begins with it: policy and reference are the same model.

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
    ) -> Slopes:
        """Slopes of the loss of each pair at the start of training.

        Args:
            chosen_logprob: ``ln p(y+)``, summed over tokens, in nats.
            rejected_logprob: ``ln p(y-)``, summed over tokens, in nats.
            chosen_tokens: number of tokens of the chosen response.
            rejected_tokens: number of tokens of the rejected response.
        """
        one = chosen_logprob.new_ones(chosen_logprob.shape).double()
        slope = one if self.name == "margin" else one * (self.beta / 2)
        return Slopes(slope, slope.clone())
