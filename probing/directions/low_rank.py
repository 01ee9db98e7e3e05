"""Removal of a direction from a weight as a product of two thin matrices, which an adapter adds to it."""

from jaxtyping import Float
from torch import Tensor


def factor_removal(
    weight: Float[Tensor, "width in"], basis: Float[Tensor, "rank width"]
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "width rank"]]:
    """Two matrices whose product, added to a weight, removes a subspace from everything that it writes.

    The removal W - V' V W differs from W by -V' (V W): rank k for k orthonormal rows of V, exactly.

    Args:
        weight: the axis of the residual stream first.
        basis: orthonormal rows.

    Returns:
        (down, up) in float64, with up @ down the difference.
    """
    exact = basis.double()
    return exact @ weight.detach().double(), -exact.T.contiguous()
