"""Likelihoods of whole responses: sums over tokens, and the rank-surprisal ratio."""

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

RANK_CLIP = 100


def segment_totals(values: Real[Tensor, " token"], offsets: Int[Tensor, " bound"]) -> Float[Tensor, " segment"]:
    """Sums of consecutive values in float64: of ``offsets[i] .. offsets[i + 1] - 1``, one a segment.

    A value that is not finite spoils its own segment only.

    Raises:
        ValueError: offsets that do not rise from 0 to the number of values.
    """
    lengths = offsets.diff()
    if not len(offsets) or int(offsets[0]) != 0 or int(offsets[-1]) != len(values) or bool((lengths < 1).any()):
        raise ValueError(f"offsets must rise from 0 to {len(values)}, without empty segments")
    return torch.segment_reduce(values.double(), "sum", lengths=lengths.to(values.device))


def rank_surprisal_ratio(
    ranks: Int[Tensor, " token"],
    surprisals: Float[Tensor, " token"],
    offsets: Int[Tensor, " bound"] | None = None,
    clip: int = RANK_CLIP,
) -> Float[Tensor, "*segment"]:
    """Rank-surprisal ratio of a response: the sum of min(rank, clip) over the sum of surprisals. Lower is better.

    A response that is useful for training is surprising (a large surprisal) and still near what the model would say
    (small ranks).

    Args:
        ranks: 1 + the number of more likely tokens, of the response's tokens only.
        surprisals: -ln p of the same tokens, in nats.
        offsets: bounds of several responses, ``offsets[i] .. offsets[i + 1] - 1`` each, from 0.
        clip: larger ranks count as this much.

    Returns:
        The ratio, float64: one value, or one a segment. Infinite for a response that the model was certain of.

    Raises:
        ValueError: no tokens, a rank below 1, a negative surprisal, offsets that do not fit.

    Source: arXiv 2601.14249. For a whole dataset the paper takes ``dataset_rank_surprisal_ratio``.
    """
    if len(ranks) != len(surprisals) or not len(ranks):
        raise ValueError(f"{len(ranks)} ranks and {len(surprisals)} surprisals; there must be as many, and some")
    if clip < 1 or bool((ranks < 1).any()) or bool((surprisals < 0).any()):
        raise ValueError("ranks and their limit are at least 1, and surprisals at least 0")
    bounds = torch.tensor([0, len(ranks)]) if offsets is None else offsets
    ratios = segment_totals(ranks.clamp_max(clip), bounds) / segment_totals(surprisals, bounds)
    return ratios[0] if offsets is None else ratios


def dataset_rank_surprisal_ratio(
    mean_ranks: Float[Tensor, " response"], mean_surprisals: Float[Tensor, " response"]
) -> float:
    """Rank-surprisal ratio of a dataset: the mean of the responses' mean ranks over that of their mean surprisals.

    This is a ratio of means, not a mean of ratios, so that single responses of which the model is certain do not
    dominate it.

    Args:
        mean_ranks: mean clipped rank of each response, over its tokens.
        mean_surprisals: mean surprisal of each response, over its tokens, in nats.

    Source: arXiv 2601.14249.
    """
    return float(mean_ranks.double().mean() / mean_surprisals.double().mean())
