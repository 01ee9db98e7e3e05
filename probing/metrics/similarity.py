"""How alike two responses look to the model: CHES and its simpler relatives. Higher means more alike."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from probing.kernels.segment_pool import pair_dot


def ches(
    chosen_sum: Float[Tensor, "*pair width"], rejected_sum: Float[Tensor, "*pair width"]
) -> Float[Tensor, "*pair"]:
    """Centered hidden embedding similarity ``<S+, S-> - |S+|^2``; higher predicts more displacement.

    ``S`` is the sum of the states that predict the tokens of a response: from the last prompt token to the token
    before the last of the response, after the model's final norm. Computed as ``<S+, S- - S+>`` in float64, because
    the textbook form subtracts two large numbers. Grows with the length of the rejected response and falls with that
    of the chosen one: compare pairs by ``ches_normalized``.

    Args:
        chosen_sum: ``S+``, float32 or better.
        rejected_sum: ``S-``.

    Returns:
        The scores, float64, one value a pair, in squared units of the model's states, unbounded. Exactly 0 for
        responses of one token each, where both sums are the same state.

    Raises:
        TypeError: sums in half precision, which hold no usable digits.

    Source: Razin et al. 2024, arXiv 2410.08847, Definition 2. Their code sums in the model's dtype.
    """
    _require_wide(chosen_sum, rejected_sum)
    return pair_dot(chosen_sum, rejected_sum.double() - chosen_sum.double())


def ches_normalized(
    chosen_sum: Float[Tensor, "*pair width"],
    rejected_sum: Float[Tensor, "*pair width"],
    chosen_tokens: Int[Tensor, "*pair"],
    rejected_tokens: Int[Tensor, "*pair"],
) -> Float[Tensor, "*pair"]:
    """CHES of the mean states: ``<S+/n+, S-/n-> - |S+/n+|^2``. The score to filter by.

    Args:
        chosen_sum: ``S+``, float32 or better.
        rejected_sum: ``S-``.
        chosen_tokens: ``n+``, the number of response tokens, end of turn included.
        rejected_tokens: ``n-``.

    Returns:
        The scores, float64, one value a pair, in squared units of the model's states, unbounded.

    Raises:
        TypeError: sums in half precision.
        ValueError: a response without tokens.

    Source: Razin et al. 2024, arXiv 2410.08847, the length-normalised variant of Definition 2.
    """
    _require_wide(chosen_sum, rejected_sum)
    if bool((chosen_tokens < 1).any()) or bool((rejected_tokens < 1).any()):
        raise ValueError("a response has no tokens; leave such pairs out before scoring")
    chosen_mean = chosen_sum.double() / chosen_tokens.unsqueeze(-1)
    rejected_mean = rejected_sum.double() / rejected_tokens.unsqueeze(-1)
    return pair_dot(chosen_mean, rejected_mean - chosen_mean)


def last_state_similarity(
    chosen_last: Float[Tensor, "*pair width"], rejected_last: Float[Tensor, "*pair width"]
) -> Float[Tensor, "*pair"]:
    """Inner product of the states that predict the last token of each response.

    With the end of turn counted as part of the response, that is the state after the last word.

    Returns:
        The scores, float64, one value a pair, in squared units of the model's states, unbounded.

    Source: Razin et al. 2024, arXiv 2410.08847, the last-hidden-embedding baseline.
    """
    return pair_dot(chosen_last, rejected_last)


def edit_similarity(chosen: Sequence[Hashable], rejected: Sequence[Hashable]) -> float:
    """Minus the Levenshtein distance of two token sequences, divided by the longer length: -1 (nothing shared) to 0.

    Args:
        chosen: token ids of the chosen response.
        rejected: token ids of the rejected response.

    Raises:
        ValueError: both sequences are empty.

    Source: Razin et al. 2024, arXiv 2410.08847, the edit-distance baseline (sign turned, so that higher is more alike).
    """
    if not chosen and not rejected:
        raise ValueError("two empty sequences have no edit similarity")
    return -float(Levenshtein.normalized_distance(chosen, rejected))


def _require_wide(*sums: Tensor) -> None:
    for values in sums:
        if values.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"state sums must be float32 or float64, not {values.dtype}: sum in float32 to begin with")
