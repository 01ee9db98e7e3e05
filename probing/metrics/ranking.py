"""Whether a model ranks the chosen response above the rejected one, and how well it could."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

UNANIMOUS = 0.001
"""Share of the other response where every rater preferred one; with 0 the odds would be infinite."""


@dataclass(frozen=True, slots=True)
class RankingAccuracy:
    """Share of pairs whose chosen response is ranked first.

    Attributes:
        value: share of pairs where it is at least as likely, ties included, as the paper counts.
        ties: share of pairs where both are exactly as likely.
        n: pairs.
    """

    value: float
    ties: float
    n: int


def ranking_accuracy(chosen: Float[Tensor, " pair"], rejected: Float[Tensor, " pair"]) -> RankingAccuracy:
    """Share of pairs whose chosen response has at least the log-probability of the rejected one.

    This is not the reward accuracy of a DPO log, which compares log-ratios to a reference model.

    Args:
        chosen: summed log-probabilities of the chosen responses, in nats (or per-token means, for the length-normalised
            variant).
        rejected: summed log-probabilities of the rejected responses, likewise.

    Raises:
        ValueError: no pairs, or log-probabilities that are not finite.

    Source: arXiv 2405.19534, Definition 2.1.
    """
    _require_pairs(chosen, rejected)
    better, ties = (chosen >= rejected).double().mean(), (chosen == rejected).double().mean()
    return RankingAccuracy(float(better), float(ties), len(chosen))


def idealized_ranking_accuracy(
    reference_chosen: Float[Tensor, " pair"],
    reference_rejected: Float[Tensor, " pair"],
    share: Float[Tensor, " pair"],
    beta: float,
) -> RankingAccuracy:
    """Ranking accuracy of the model that minimises the DPO loss exactly, given how many raters preferred each response.

    Even that model ranks a pair wrongly when the reference model strongly prefers the other response and raters were
    divided.

    Args:
        reference_chosen: summed log-probabilities of the chosen responses under the reference model, in nats.
        reference_rejected: summed log-probabilities of the rejected responses under the reference model, in nats.
        share: share of the raters who preferred the chosen response, 0 to 1. Where all did, the other's share counts as
            .001.
        beta: beta of the DPO loss.

    Returns:
        Ties, where the optimum is exactly undecided, count as not ranked first, as in the paper.

    Raises:
        ValueError: a share outside 0 to 1, a beta that is not positive; or every share is 1 (a single rater): such data
            say nothing about how divided raters are, and the number would be 1 for any model of moderate opinions.

    Source: arXiv 2405.19534, Theorem 3.1.
    """
    _require_pairs(reference_chosen, reference_rejected)
    if not beta > 0 or beta == float("inf"):
        raise ValueError(f"beta is a positive number, not {beta}")
    if len(share) != len(reference_chosen) or not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError("a share of raters for each pair is needed, between 0 and 1")
    if bool((share == 1).all()):
        raise ValueError(
            "every share of raters is 1, as if there had been one rater: then the best possible ranking accuracy is 1 "
            "by definition and says nothing; shares from several raters are needed"
        )
    share = share.double()
    odds = share.log() - (1 - share).clamp_min(UNANIMOUS).log()
    score = reference_chosen.double() - reference_rejected.double() + odds / beta
    return RankingAccuracy(float((score > 0).double().mean()), float((score == 0).double().mean()), len(score))


def ranking_difficulty(
    reference_chosen: Float[Tensor, "*pair"], reference_rejected: Float[Tensor, "*pair"]
) -> Float[Tensor, "*pair"]:
    """How far the reference model prefers the rejected response: ``ln p(y-) - ln p(y+)``, in nats.

    A model ranks the pair correctly exactly if its DPO loss is at most ``-ln sigmoid(beta difficulty)``.

    Source: arXiv 2405.19534, Theorem 4.1.
    """
    return reference_rejected.double() - reference_chosen.double()


def _require_pairs(chosen: Tensor, rejected: Tensor) -> None:
    if not len(chosen) or len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected; there must be as many, and some")
    if not bool(torch.isfinite(chosen).all()) or not bool(torch.isfinite(rejected).all()):
        raise ValueError("log-probabilities must be finite; leave the other pairs out")
