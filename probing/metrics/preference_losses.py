"""Losses of preference training: how hard each pulls at ln p of the chosen and of the rejected response."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.types import WITHOUT_REFERENCE, LossName, check_known_later, check_label_smoothing, find_loss

DISCOPOP_TAU = 0.05
"""Temperature of DiscoPOP's blend of two losses, as its paper recommends and trainers have it."""
PER_TOKEN = ("ipo", "sigmoid_norm", "simpo", "orpo")
"""Losses of mean log-probabilities of a token: their slopes by the sums are the smaller, the longer a response."""


class Slopes(NamedTuple):
    """How hard a loss pulls at each pair: gradient descent moves the weights along ``chosen s_w - rejected s_l``.

    ``s_w`` and ``s_l`` are the gradients of ``ln p(y+)`` and ``ln p(y-)``, summed over tokens.

    Attributes:
        chosen: minus the derivative of the pair's loss by ``ln p(y+)``, [pair], per nat, in float64.
        rejected: the derivative of the pair's loss by ``ln p(y-)``, [pair], per nat, in float64.
    """

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss of preference training.

    Attributes:
        name: "margin" stands for any loss of the margin ``ln p(y+) - ln p(y-)``, per unit of its slope. The others are
            those of TRL's DPOTrainer ("dpo" is its "sigmoid", "slic" its "hinge"), and of its trainers of CPO, SimPO
            and ORPO, without the likelihood of the chosen response that these add: that is ``sft_weight``.
        beta: the loss's coefficient, above 0.
        gamma: the margin that SimPO aims at.
        label_smoothing: the share of labels that are taken to be wrong, of robust, exo_pair, cpo and simpo; below .5.
        sft_weight: weight of the mean negative log-likelihood of the chosen response's tokens, which is added.

    Raises:
        ValueError: no such loss, or a coefficient out of range.

    Source: TRL 1.16, ``DPOTrainer``, ``CPOTrainer``, ``ORPOTrainer``; the tests take their derivatives.
    """

    name: LossName = "margin"
    beta: float = 0.1
    gamma: float = 0.5
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        check_label_smoothing(find_loss(self.name), self.label_smoothing)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be above 0 and finite, not {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be at least 0 and below 0.5, not {self.label_smoothing}")
        if not (0 <= self.sft_weight < math.inf and math.isfinite(self.gamma)):
            raise ValueError(f"sft_weight {self.sft_weight} or gamma {self.gamma} is no finite weight")

    @property
    def needs_likelihoods(self) -> bool:
        """Whether its slopes depend on the log-probabilities."""
        return self.name in WITHOUT_REFERENCE

    @property
    def without_sft(self) -> "PreferenceLoss":
        """The same loss without the likelihood of the chosen response."""
        return replace(self, sft_weight=0.0)

    def slopes(
        self,
        chosen_logprob: Float[Tensor, " pair"],
        rejected_logprob: Float[Tensor, " pair"],
        chosen_tokens: Int[Tensor, " pair"],
        rejected_tokens: Int[Tensor, " pair"],
        reference: Float[Tensor, "pair 2"] | None = None,
    ) -> Slopes:
        """Slopes of the loss of each pair, as if it were a batch of its own; by default at the start of training.

        Args:
            chosen_logprob: ``ln p(y+)``, summed over tokens, in nats; of no account unless ``needs_likelihoods``.
            rejected_logprob: ``ln p(y-)``, summed over tokens, in nats.
            chosen_tokens: number of tokens of the chosen response.
            rejected_tokens: number of tokens of the rejected response.
            reference: ``ln p`` of both responses under the reference; by default it is the model itself.

        Raises:
            ValueError: a reference is given, and the slopes of the loss are known at the start of training only.
        """
        lengths = [chosen_tokens.double(), rejected_tokens.double()]
        units = lengths if self.name in PER_TOKEN else [torch.ones_like(length) for length in lengths]
        if self.needs_likelihoods:
            chosen, rejected = self._slopes_without_reference(
                chosen_logprob.double() / units[0], rejected_logprob.double() / units[1]
            )
        elif reference is None:
            chosen, rejected = (torch.full_like(units[0], slope) for slope in self._slopes_at_reference())
        else:
            gained = [
                (now - before).double()
                for now, before in zip((chosen_logprob, rejected_logprob), reference.T, strict=True)
            ]
            chosen = rejected = self._slope_later(gained[0] / units[0] - gained[1] / units[1])
        return Slopes(chosen / units[0] + self.sft_weight / lengths[0], rejected / units[1])

    def _slope_later(self, margin: Tensor) -> Tensor:
        """Slope by the margin of the log-ratios to the reference, both ways the same."""
        check_known_later(self.name)
        beta, wrong = self.beta, self.label_smoothing
        if self.name == "margin":
            return torch.ones_like(margin)
        if self.name in ("hinge", "slic"):
            return beta * (beta * margin < 1)
        if self.name == "ipo":
            return 1 / beta - 2 * margin
        if self.name == "robust":
            right, other = torch.sigmoid(-beta * margin), torch.sigmoid(beta * margin)
            return beta * ((1 - wrong) * right + wrong * other) / (1 - 2 * wrong)
        return beta * torch.sigmoid(-beta * margin)

    def _slopes_at_reference(self) -> tuple[float, float]:
        """Slopes by the log-ratios to the reference, where these are 0."""
        beta, wrong = self.beta, self.label_smoothing
        if self.name == "apo_down":
            return 0.0, beta / 4
        slope = {
            "margin": 1.0,
            "dpo": beta / 2,
            "sigmoid_norm": beta / 2,
            "bco_pair": beta / 2,
            "hinge": beta,
            "slic": beta,
            "ipo": 1 / beta,
            "sppo_hard": 1 / beta,
            "nca_pair": beta / 4,
            "apo_zero": beta / 4,
            "robust": beta / 2 / (1 - 2 * wrong),
            "exo_pair": beta / 4 * math.log((1 - wrong) / wrong) if wrong else math.inf,
            # Below 0 for a tau below .102: the loss rises with the margin before it falls.
            "discopop": beta * (0.75 - (1 - math.log(2)) / (4 * DISCOPOP_TAU)),
        }[self.name]
        return slope, slope

    def _slopes_without_reference(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes by the log-probabilities, which are means over tokens in losses ``PER_TOKEN``."""
        if self.name == "orpo":
            odds = [logprob - (-logprob.expm1()).log() for logprob in (chosen, rejected)]
            slope = self.beta * torch.sigmoid(odds[1] - odds[0])
            return slope / -chosen.expm1(), slope / -rejected.expm1()
        shift = self.gamma if self.name == "simpo" else 0.0
        slope = self.beta * (torch.sigmoid(shift - self.beta * (chosen - rejected)) - self.label_smoothing)
        return slope, slope


MARGIN = PreferenceLoss()
"""Any loss of the margin, per unit of its slope."""
