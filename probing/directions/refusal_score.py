"""How much a model is about to refuse, read from the probabilities of its first token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMOOTHING = 1e-8
"""Keeps the log-odds finite: no score is beyond 18.42."""
MOST_TOKENS = 10
LEAST_MASS = 0.01
"""A refusal token has at least so much more mass after harmful prompts than after harmless ones."""
COVERED = 0.95
"""Share of the mass by which both kinds differ that refusal tokens have to cover."""


def refusal_log_odds(
    logits: Float[Tensor, "row vocabulary"], tokens: Sequence[int] | Int[Tensor, " token"]
) -> Float[Tensor, " row"]:
    """``ln(P + 1e-8) - ln(1 - P + 1e-8)`` with ``P`` the probability that the first token is a refusal token.

    Args:
        logits: at the last token of each prompt.
        tokens: ids of the refusal tokens.

    Returns:
        float64; positive where the model is more likely to begin with a refusal token than not. NaN where the logits
        are.

    Raises:
        ValueError: no token, one twice, or one outside the vocabulary.

    Source: Arditi et al. 2024, arXiv 2406.11717.
    """
    chosen = torch.as_tensor(tokens, dtype=torch.long, device=logits.device)
    if not len(chosen) or len(chosen.unique()) < len(chosen):
        raise ValueError("give at least one refusal token, and none twice")
    if int(chosen.min()) < 0 or int(chosen.max()) >= logits.shape[1]:
        raise ValueError(f"a refusal token is outside the vocabulary of {logits.shape[1]}")
    # Summing the other tokens keeps 1 - P exact where P is all but 1.
    logprobs = logits.double().log_softmax(dim=1)
    others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    others[chosen] = False
    refusal, rest = (logprobs[:, mask].exp().sum(dim=1) for mask in (~others, others))
    return torch.log(refusal + SMOOTHING) - torch.log(rest + SMOOTHING)


def first_token_divergence(
    base: Float[Tensor, "row vocabulary"], edited: Float[Tensor, "row vocabulary"]
) -> Float[Tensor, " row"]:
    """KL(base || edited) of the first token of each prompt, in nats, from logits; float64, NaN where logits are.

    The published code adds 1e-6 to every probability first; this is the divergence itself, which is never below 0.
    """
    own, other = base.double().log_softmax(dim=1), edited.double().log_softmax(dim=1)
    # A token that never comes (a logit of minus infinity) counts nothing, and 0 times infinity would be NaN.
    terms = torch.where(own.exp() == 0, 0.0, own.exp() * (own - other))
    return terms.sum(dim=1).clamp_min(0.0)


@dataclass(frozen=True)
class FoundToken:
    """A refusal token with its mean probability as first token after harmful and after harmless prompts."""

    id: int
    harmful: float
    harmless: float


def find_refusal_tokens(
    harmful: Float[Tensor, " vocabulary"], harmless: Float[Tensor, " vocabulary"]
) -> list[FoundToken]:
    """First tokens that a model is likely to begin with after harmful prompts, and not after harmless ones.

    In order of the difference, the fewest that cover 95 % of the mass by which both kinds differ, at most ten, each
    with a difference of at least .01 and at least twice as likely after harmful prompts.

    Args:
        harmful: mean probability of every first token over harmful prompts.
        harmless: the same over harmless prompts.

    Returns:
        The tokens, most different first; none where the model begins all its answers alike.
    """
    apart = (harmful - harmless).double()
    order = apart.argsort(descending=True, stable=True)[:MOST_TOKENS].tolist()
    wanted = COVERED * float(apart.clamp_min(0).sum())
    found: list[FoundToken] = []
    covered = 0.0
    for id in order:
        token = FoundToken(id, float(harmful[id]), float(harmless[id]))
        if covered >= wanted or token.harmful - token.harmless < LEAST_MASS:
            break
        covered += token.harmful - token.harmless
        if token.harmful >= 2 * token.harmless:
            found.append(token)
    return found
