"""Consistency of a probe on a statement and its opposite, taken together (PA-CCS, arXiv 2511.21737)."""

import torch
from jaxtyping import Float
from torch import Tensor


def polar_consistency(
    a1: Float[Tensor, "*axes pair"],
    a0: Float[Tensor, "*axes pair"],
    n1: Float[Tensor, "*axes pair"],
    n0: Float[Tensor, "*axes pair"],
) -> Float[Tensor, "*axes pair"]:
    """Polar consistency of each pair: how far the claims "A" and "not N" are from having the same probability.

    ``1/2 [(a1 - n0)^2 + (a0 - n1)^2] sign(a1 - n1) sign(n0 - a0)``, in [-1, 1]. Zero is consistent; a negative value
    belongs to a probe that answers A and N alike in one form and not in the other. It is zero for a probe that says .5
    of everything as well: never read it without the accuracy and ``contradiction_index``. The same for a probe turned
    round, and for A and N exchanged.

    Args:
        a1: probability of the statement's yes form.
        a0: probability of the statement's no form.
        n1: probability of the opposite's yes form.
        n0: probability of the opposite's no form.

    Raises:
        ValueError: different shapes, or values outside [0, 1].
    """
    _check(a1, a0, n1, n0)
    distance = ((a1 - n0).square() + (a0 - n1).square()) / 2
    return distance * torch.sign(a1 - n1) * torch.sign(n0 - a0)


def contradiction_index(
    a1: Float[Tensor, "*axes pair"],
    a0: Float[Tensor, "*axes pair"],
    n1: Float[Tensor, "*axes pair"],
    n0: Float[Tensor, "*axes pair"],
) -> Float[Tensor, "*axes pair"]:
    """Contradiction index of each pair: probability that a statement and its opposite are both affirmed or both denied.

    ``a1 n1 + a0 n0``, in [0, 2]: 0 without contradiction, .5 for a probe that says .5 of everything.

    Args:
        a1: probability of the statement's yes form.
        a0: probability of the statement's no form.
        n1: probability of the opposite's yes form.
        n0: probability of the opposite's no form.

    Raises:
        ValueError: different shapes, or values outside [0, 1].
    """
    _check(a1, a0, n1, n0)
    return a1 * n1 + a0 * n0


def symmetric_contradiction_index(
    a1: Float[Tensor, "*axes pair"],
    a0: Float[Tensor, "*axes pair"],
    n1: Float[Tensor, "*axes pair"],
    n0: Float[Tensor, "*axes pair"],
) -> Float[Tensor, "*axes pair"]:
    """Mean of the ``contradiction_index`` of a probe and of the same probe turned round.

    Which way round a probe without labels comes out is an accident, and of a probe that says .4 of everything the index
    is .32 one way round and .72 the other. The mean is the same both ways: 0 without contradiction, .52 for this probe,
    .5 for one that says .5 of everything, which is the least that a probe has that says the same of every form.

    Args:
        a1, a0, n1, n0: see ``polar_consistency``.

    Raises:
        ValueError: different shapes, or values outside [0, 1].
    """
    turned = contradiction_index(1 - a1, 1 - a0, 1 - n1, 1 - n0)
    return (contradiction_index(a1, a0, n1, n0) + turned) / 2


def _check(*forms: Tensor) -> None:
    shapes = {tuple(form.shape) for form in forms}
    if len(shapes) > 1:
        raise ValueError(f"the four forms have shapes {', '.join(map(str, sorted(shapes)))}; they must have one")
    if not all(bool(((form >= 0) & (form <= 1)).all()) for form in forms):
        raise ValueError("probabilities must lie between 0 and 1")
