"""What rewards make of the responses of a group: how hard one step of policy-gradient training pulls at each."""

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.types import AdvantageName

ADVANTAGES: tuple[str, ...] = get_args(AdvantageName)
STD_FLOOR = 1e-4
"""Added to the standard deviation of the rewards, as TRL's GRPOTrainer does."""


class ResponseWeights(NamedTuple):
    """How hard one step on a group pulls at each response: it moves the weights along ``sum_i weight_i s_i``.

    ``s_i`` is the gradient of ``ln p`` of response i, summed over its tokens.

    Attributes:
        advantages: [response], in float64.
        weights: [response], in float64.
    """

    advantages: Tensor
    weights: Tensor


def response_weights(
    rewards: Float[Tensor, " response"], tokens: Int[Tensor, " response"], name: AdvantageName = "grpo"
) -> ResponseWeights:
    """Advantages of the responses of a group, and the weights of their gradients where policy and sampler are equal.

    ``grpo``: advantage ``(r - mean) / (std + 1e-4)`` with the standard deviation of a sample (of n - 1), and the weight
    is the advantage over the number of tokens. ``dapo``: the same advantage over the number of tokens of the whole
    group. ``dr_grpo``: advantage and weight are ``r - mean``, without either division. What a trainer divides by
    besides, the number of responses or a constant length, scales all weights of a group alike.

    Args:
        rewards: at least two.
        tokens: number of tokens of each response.
        name: which of these.

    Raises:
        ValueError: fewer than two rewards, or one that is not finite.

    Source: Shao et al. 2024, arXiv 2402.03300; Yu et al. 2025, arXiv 2503.14476; Liu et al. 2025, arXiv 2503.20783.
    """
    if len(rewards) < 2 or not bool(rewards.isfinite().all()):
        raise ValueError("advantages need at least two rewards, all of them finite")
    values = rewards.double()
    centred = values - values.mean()
    if name == "dr_grpo":
        return ResponseWeights(centred, centred.clone())
    advantages = centred / (values.std() + STD_FLOOR)
    lengths = tokens.to(advantages)
    return ResponseWeights(advantages, advantages / (lengths.sum() if name == "dapo" else lengths))


def rates_under(gram: Float[Tensor, "response other"], weights: Float[Tensor, " other"]) -> Float[Tensor, " response"]:
    """Initial rate of change of ``ln p`` of each response when the weights move along ``sum_i weight_i s_i``."""
    return torch.mv(gram, weights.to(gram))
