"""Formulas of edits: what becomes of a state when a direction is removed, moved or added."""

import torch
from jaxtyping import Float
from torch import Tensor

from probing.errors import UsageError

DEPENDENT = 1e-6
"""A subspace has the rank it claims where its least singular value, its rows scaled to length 1, is above this."""


def orthonormal_rows(vectors: Float[Tensor, "*rank width"]) -> Float[Tensor, "rank width"]:
    """Orthonormal vectors that span what the given ones span, in float64; one vector is scaled to length 1.

    Raises:
        UsageError: the vectors are linearly dependent, so that there are fewer directions than are claimed.
    """
    rows = vectors.detach().double().reshape(-1, vectors.shape[-1])
    # Float32 norms of half-precision vectors of large states would overflow; of tiny ones vanish.
    rows = rows / rows.abs().amax(dim=1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    if len(rows) == 1:
        return rows
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    if len(rows) > rows.shape[1] or bool(sizes[-1] < DEPENDENT):
        raise UsageError(f"the {len(rows)} vectors of the direction are linearly dependent; leave the superfluous out")
    return basis


def pull_back(
    basis: Float[Tensor, "*direction rank width"], scale: Float[Tensor, " width"], centred: bool
) -> Float[Tensor, "*direction rank width"]:
    """The subspace before a norm (or another diagonal map) which becomes ``basis`` behind it.

    Behind y = s (scale * x), with any number s for each token, the component <y, r> is s <x, scale * r>. So x without
    its component along scale * r gives a y without one along r. Where the norm first subtracts the mean of x, what
    counts of scale * r is what remains without its own mean.

    Args:
        basis: orthonormal vectors behind the norm.
        scale: by which the norm multiplies each channel.
        centred: whether the norm subtracts the mean over the channels (LayerNorm).

    Returns:
        Orthonormal vectors before the norm.

    Raises:
        UsageError: the norm multiplies all channels of a vector by zero, so that there is nothing before it to remove.
    """
    before = basis.double() * scale.double()
    if centred:
        before = before - before.mean(dim=-1, keepdim=True)
    if bool((before.norm(dim=-1) < DEPENDENT * scale.double().abs().amax()).any()):
        raise UsageError("the norm behind a write multiplies the direction by zero: nothing of it passes")
    spaces = before.reshape(-1, *before.shape[-2:])
    return torch.stack([orthonormal_rows(space) for space in spaces]).reshape(before.shape)


def affine_target(
    vector: Float[Tensor, "*rank width"], harmless_mean: Float[Tensor, " width"], alpha: float
) -> Float[Tensor, " width"]:
    """What the affine edit (ACE) puts in place of the component: proj_r mu_harmless + alpha r, in float64.

    With ``alpha`` 0 every state ends on the harmless mean along r, with 1 on the harmful one, where r is the difference
    of the two at its natural length. Source: 2411.09003.

    Raises:
        UsageError: an ``alpha`` for a subspace, which has no length to multiply.
    """
    basis = orthonormal_rows(vector)
    target = (basis @ harmless_mean.double()) @ basis
    if alpha == 0:
        return target
    if vector.ndim == 2 and len(vector) > 1:
        raise UsageError(f"coefficient {alpha} for {len(vector)} directions: the affine edit moves along one only")
    return target + alpha * vector.double().reshape(-1)
