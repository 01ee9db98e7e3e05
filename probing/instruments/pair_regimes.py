"""Columns of pair scores that tell how training on a pair moves both of its responses: rates, regime, SFT weight."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probing.instruments.gradient_rates import GradientRates
from probing.kernels.output_head import Unembedding
from probing.metrics.displacement import free_feature_products
from probing.metrics.entanglement import (
    PairProducts,
    entanglement,
    find_regimes,
    gradient_ratio,
    least_sft_weight,
    pair_rates,
)
from probing.metrics.preference_losses import PreferenceLoss
from probing.tokens.pairs import TokenizedPair


class FreeProducts(NamedTuple):
    """Products of some pairs over head and states as free parameters, on the CPU.

    Attributes:
        products: of the gradients of both responses of each pair.
        pulls: the pulls of the tokens of each pair's rejected response, [token]; see ``free_feature_products``.
    """

    products: PairProducts
    pulls: list[Tensor]


def free_products(
    states: Tensor,
    following: Tensor,
    logsumexp: Tensor,
    pairs: Sequence[TokenizedPair],
    head: Unembedding,
    both: bool = True,
) -> FreeProducts:
    """Products of the gradients of each pair over head and states as free parameters, and the pulls of its tokens.

    Args:
        states: states of each pair's chosen and then rejected response, pair after pair, [token width], where the head
            is.
        following: the tokens that they predict, on the CPU.
        logsumexp: ln of the sum of exp(logit) at each state.
        pairs: pairs that the states belong to.
        head: the output head.
        both: whether the product of the rejected response with itself is computed; the others are the same bits
            without it.
    """
    lengths = [count for pair in pairs for count in (pair.chosen_tokens, pair.rejected_tokens)]
    parts, ids = states.split(lengths), following.split(lengths)
    totals = logsumexp.split([pair.chosen_tokens + pair.rejected_tokens for pair in pairs])
    grams, pulls = [], []
    for at, total in zip(range(0, len(parts), 2), totals, strict=True):
        found = free_feature_products(parts[at : at + 2], ids[at : at + 2], head, total, 2 if both else 1)
        gram = found.gram
        pulls.append(found.pulls[0, lengths[at] :])
        own = gram[1, 1] if both else gram.new_tensor(torch.nan)
        grams.append(torch.stack([gram[0, 0], gram[0, 1], own, gram[0, 0] - gram[0, 1]]))
    # Joined before they go to the host, which would otherwise wait for the card at every pair.
    products = PairProducts(*torch.stack(grams).cpu().unbind(1))
    return FreeProducts(products, list(torch.cat(pulls).cpu().split(lengths[1::2])))


def exact_products(rates: GradientRates, pairs: Sequence[TokenizedPair]) -> PairProducts:
    """Products of the gradients of each pair over parameters of the model."""
    return PairProducts(*torch.tensor([rates.products(pair) for pair in pairs], dtype=torch.float64).unbind(1))


def regime_columns(
    products: PairProducts,
    loss: PreferenceLoss,
    pairs: Sequence[TokenizedPair],
    likelihoods: Mapping[str, Sequence[float]],
) -> dict[str, list[Any]]:
    """Rates, regimes and the like, one value a pair, by the names of the columns in their free-feature form.

    Args:
        products: products of the gradients of each pair.
        loss: the loss of the training.
        pairs: the pairs.
        likelihoods: ``chosen_logprob`` and ``rejected_logprob`` of each pair, where the loss needs them.
    """
    tokens = [torch.tensor([getattr(pair, f"{side}_tokens") for pair in pairs]) for side in ("chosen", "rejected")]
    unknown = [torch.nan] * len(pairs)
    logprobs = [
        torch.tensor(likelihoods.get(f"{side}_logprob", unknown), dtype=torch.float64)
        for side in ("chosen", "rejected")
    ]
    rates = pair_rates(products, loss.slopes(*logprobs, *tokens))
    alone = loss.without_sft.slopes(*logprobs, *tokens)
    return {
        "displacement_rate": rates.chosen.tolist(),
        "rejected_rate": rates.rejected.tolist(),
        "entanglement": entanglement(products).tolist(),
        "gradient_ratio": gradient_ratio(products).tolist(),
        "least_sft_weight": least_sft_weight(products, alone, tokens[0]).tolist(),
        "regime": find_regimes(rates),
    }
