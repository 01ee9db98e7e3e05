"""Formulas of edits: what becomes of a state when a direction is removed, moved or added."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.errors import UsageError
from probing.kernels.project_out import project_out

DEPENDENT = 1e-6
"""A subspace has the rank it claims where its least singular value, its rows scaled to length 1, is above this."""
NEXT_TO_NOTHING = 1e-3
"""A vector of which an edit leaves less than this share of its length is not made longer again: it is rounding."""


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


def remove_from_vectors(
    vectors: Float[Tensor, "vector width"], basis: Float[Tensor, "rank width"], keep_norms: bool = False
) -> Float[Tensor, "vector width"]:
    """Vectors of a weight without their components along a basis, in float32 or better.

    The vectors are those along the axis of the residual stream: the columns of a matrix [out in]. They may keep their
    lengths, since a longer vector without a component has none either. Along the other axis this is not so: a published
    edit that keeps the lengths of the rows leaves 10 to 25 % of the component.

    Args:
        vectors: any floating dtype.
        basis: orthonormal rows.
        keep_norms: whether each vector keeps its length; one of which the removal leaves next to nothing does not.

    Returns:
        The vectors in float32, or float64 where they were.
    """
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    # There is no kernel for float64, and none is meant.
    impl = "torch" if wide.dtype == torch.float64 else "auto"
    left = project_out(wide, basis, impl=impl)
    if not keep_norms:
        return left
    before, after = wide.norm(dim=1, keepdim=True), left.norm(dim=1, keepdim=True)
    longer = torch.where(after > NEXT_TO_NOTHING * before, before / after, 1.0)
    # Once more, since rounding is made larger with the rest.
    return project_out(left * longer, basis, impl=impl)


@dataclass(frozen=True, eq=False)
class Change:
    """What an edit does to states at one point: x - coefficient * sum_k (x . r_k) r_k + shift.

    Attributes:
        basis: orthonormal rows, [rank width], or [direction rank width] where each row of a batch has its own; None
            where nothing is removed.
        coefficient: the share of the component that is removed.
        shift: [width], or [direction width]; None where nothing is added.
    """

    basis: Tensor | None
    coefficient: float = 1.0
    shift: Tensor | None = None
    _copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor | None, Tensor | None]] = field(
        default_factory=dict, repr=False
    )

    def apply(
        self, states: Float[Tensor, "token width"], rows: Int[Tensor, " token"] | None = None, impl: str = "auto"
    ) -> Float[Tensor, "token width"]:
        """The edited states in their own dtype, in memory of their own; computed in float32 or better.

        Args:
            states: any floating dtype.
            rows: index of the direction of each token where there are several; -1 leaves a token as it is.
            impl: of ``project_out``.
        """
        wide = torch.promote_types(states.dtype, torch.float32)
        basis, shift = self._on(states.device, wide)
        if shift is None:
            assert basis is not None
            return project_out(states, basis, rows, impl, coefficient=self.coefficient)
        left = states.to(wide)
        if basis is not None:
            left = project_out(left, basis, rows, impl, coefficient=self.coefficient)
        if rows is None:
            return (left + shift).to(states.dtype)
        moved = (left + shift[rows.clamp(min=0)]).to(states.dtype)
        return torch.where((rows < 0)[:, None], states, moved)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Basis and shift on a device, copied there once."""
        key = (device, dtype)
        if key not in self._copies:
            # What is made in inference mode could not be used where gradients are wanted.
            with torch.inference_mode(False):
                basis = None if self.basis is None else self.basis.to(device=device, dtype=dtype)
                shift = None if self.shift is None else self.shift.to(device=device, dtype=dtype)
            self._copies[key] = (basis, shift)
        return self._copies[key]
